"""The inventory that grows, beside the lab's own, and names that lead elsewhere."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.hosts import Deployment


def put_into_inventory(deployment: Deployment, nodes: list[str], **groups: Any) -> None:
    """Write hosts into the group of nodes, and others into ``groups``; what was written before goes."""
    hosts = {name: {"vpn_node": node_of(deployment, name)} for name in nodes}
    written = {"nodes": {"hosts": hosts}} | groups
    (deployment.directory / "inventory/growth.yml").write_text(json.dumps(written))


@contextmanager
def not_a_node(deployment: Deployment, name: str) -> Iterator[None]:
    """Take a host out of the group of nodes, as the last step of docs/grow.md says."""

    def change(inventory: Any) -> None:
        del inventory["all"]["children"]["nodes"]["hosts"][name]

    with _changed(deployment, change):
        yield


@contextmanager
def node_is_called(deployment: Deployment, name: str, hostname: str) -> Iterator[None]:
    """Let clients find a node under another name."""

    def change(inventory: Any) -> None:
        inventory["all"]["hosts"][name]["vpn_node"]["hostname"] = hostname

    with _changed(deployment, change):
        yield


@contextmanager
def _changed(deployment: Deployment, change: Callable[[Any], None]) -> Iterator[None]:
    file = deployment.directory / "inventory/hosts.yml"
    before = file.read_text()
    inventory = yaml.safe_load(before)
    change(inventory)
    file.write_text(yaml.safe_dump(inventory))
    try:
        yield
    finally:
        file.write_text(before)


def node_of(deployment: Deployment, name: str) -> dict[str, object]:
    domain = deployment.portal_url.partition("//vpn.")[2]
    return {"number": int(name[-1]), "hostname": f"{name}.{domain}"}


def run(deployment: Deployment, playbook: str, *options: str) -> str:
    done = deployment.playbook(playbook, *options, log=f"growing-{playbook}")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@contextmanager
def name_leads_to(deployment: Deployment, addresses: list[str]) -> Iterator[None]:
    """Let the portal's name lead elsewhere, on every host and on this machine, as a change in DNS does."""
    name = deployment.portal_url.removeprefix("https://")
    before = on_this_machine(name, addresses)
    on_hosts(deployment, name, addresses)
    try:
        yield
    finally:
        on_this_machine(name, before)
        on_hosts(deployment, name, before)


def on_hosts(deployment: Deployment, name: str, addresses: list[str]) -> None:
    lines = "".join(f"{address} {name}\n" for address in addresses)
    for host in deployment.info["hosts"]:
        change = f"sed -i '/ {name}$/d' /etc/hosts && cat >>/etc/hosts"
        deployment.named(host["name"]).run(change, stdin=lines)


def on_this_machine(name: str, addresses: list[str]) -> list[str]:
    """Write where a name leads and return where it led. Other labs have lines of their own there."""
    file = Path("/etc/hosts")
    lines = [line.split() for line in file.read_text().splitlines()]
    before = [words[0] for words in lines if words[1:] == [name]]
    written = iter([f"{address} {name}" for address in addresses])
    # In the place of the old ones, within what the lab takes away again. It may be mounted, so not replaced.
    kept = [next(written) if words[1:] == [name] else " ".join(words) for words in lines]
    file.write_text("\n".join(kept) + "\n")
    return before

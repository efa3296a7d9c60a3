"""The inventory that grows, beside the lab's own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
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
    file = deployment.directory / "inventory/hosts.yml"
    before = file.read_text()
    inventory = yaml.safe_load(before)
    del inventory["all"]["children"]["nodes"]["hosts"][name]
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

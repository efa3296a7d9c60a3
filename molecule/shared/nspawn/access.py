"""Ways into an instance: ssh keys, the inventory, accounts, and what ``lab-info`` tells."""

import json
import secrets
import shlex
from pathlib import Path
from typing import Any

from nspawn.machine import RUNTIME, LabError, give_to_caller, run, say, write_atomically
from nspawn.topology import PROJECT, Host, Instance

_USERS = {"admin": "admin", "alice": "", "bob": ""}  # name: permission
_PORTAL_CA = "/etc/causeway/tls/ca.crt"


def make_keys(instance: Instance) -> None:
    """The instance's client key, its hosts' keys and the passwords of its accounts, each once."""
    keys = instance.directory / "host_keys"
    keys.mkdir(mode=0o700, exist_ok=True)
    for path in (instance.directory / "ssh_key", *(keys / host.name for host in instance.topology.hosts)):
        if not path.with_suffix(".pub").exists():
            path.unlink(missing_ok=True)
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab-{path.name}", "-f", path])
    give_to_caller(instance.directory / "ssh_key", instance.directory / "ssh_key.pub")
    passwords = instance.directory / "secrets.json"
    if not passwords.exists():
        created = {name: secrets.token_urlsafe(18) for name in _USERS}
        write_atomically(passwords, json.dumps(created, indent=2) + "\n", mode=0o600)
        give_to_caller(passwords)


def install_keys(instance: Instance, host: Host, new_root: Path) -> None:
    """Give a host its own key, made before it boots: known_hosts is right from the first connection."""
    key = instance.directory / "host_keys" / host.name
    write_atomically(new_root / "etc/ssh/ssh_host_ed25519_key", key.read_text(), mode=0o600)
    write_atomically(new_root / "etc/ssh/ssh_host_ed25519_key.pub", key.with_suffix(".pub").read_text())
    (new_root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    write_atomically(
        new_root / "root/.ssh/authorized_keys", (instance.directory / "ssh_key.pub").read_text(), mode=0o600
    )


def write_inventory(instance: Instance) -> None:
    """Write the files that ssh and Ansible read. ``group_vars`` are links, so that edits count at once."""
    files = {"known_hosts": _known_hosts(instance), "ssh_config": _ssh_config(instance)}
    for name, text in files.items():
        write_atomically(instance.directory / name, text)
    inventory = instance.directory / "inventory"
    inventory.mkdir(exist_ok=True)
    control = instance.runtime / "cp"
    control.mkdir(exist_ok=True, mode=0o700)
    hosts = "# Written by molecule/shared/lab.py\n" + _yaml(_inventory(instance))
    write_atomically(inventory / "hosts.yml", hosts)
    written = [instance.directory / name for name in files] + [inventory, inventory / "hosts.yml", control]
    source = PROJECT / "molecule" / instance.topology.name
    for link in inventory.rglob("*"):
        if link.is_symlink() and not link.exists():
            link.unlink()  # its source was deleted
    for kind in ("group_vars", "host_vars"):
        for file in sorted((source / kind).rglob("*.yml")):
            link = inventory / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            written += [link.parent, link.parent.parent]
            if not link.is_symlink():
                link.symlink_to(file)
    give_to_caller(*written)


def _inventory(instance: Instance) -> dict[str, Any]:
    hosts: dict[str, Any] = {}
    for host in instance.topology.hosts:
        hosts[host.name] = {"ansible_host": str(instance.host_ipv4(host))}
        if host.node_number is not None:
            hosts[host.name]["vpn_node"] = {"number": host.node_number, "hostname": instance.host_fqdn(host)}
    variables = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(instance.directory / "ssh_key"),
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={instance.directory / 'known_hosts'} "
        "-o GlobalKnownHostsFile=/dev/null -o IdentitiesOnly=yes -o ConnectTimeout=10",
        "ansible_control_path_dir": str(instance.runtime / "cp"),
        "lab_directory": str(instance.directory),
        "lab_portal_name": instance.portal_name,
        "lab_ipv4_gateway": str(instance.ipv4[1]),
        "lab_internet_ipv4": str(instance.internet_ipv4[1]),
        "lab_internet_ipv6": str(instance.internet_ipv6[1]),
    }
    # Kept free in every topology: one that begins with one portal may get a second one.
    variables["lab_virtual_ipv4"] = f"{instance.virtual_ipv4}/{instance.ipv4.prefixlen}"
    variables["lab_virtual_ipv6"] = f"{instance.virtual_ipv6}/{instance.ipv6.prefixlen}"
    for host in instance.topology.hosts:
        if host.on_the_internet:
            ipv4, ipv6 = instance.internet_addresses(host)
            variables |= {"lab_internet_host_ipv4": str(ipv4), "lab_internet_host_ipv6": str(ipv6)}
    groups = sorted({group for host in instance.topology.hosts for group in host.groups})
    children: dict[str, Any] = {
        group: {"hosts": {host.name: {} for host in instance.in_group(group)}} for group in groups
    }
    return {"all": {"vars": variables, "hosts": hosts, "children": children}}


def _yaml(value: dict[str, Any], indent: int = 0) -> str:
    """Nested mappings as YAML; scalars in JSON's form, which YAML reads alike."""
    text = ""
    for key, entry in value.items():
        text += " " * indent + f"{key}:"
        nested = isinstance(entry, dict) and entry
        text += "\n" + _yaml(entry, indent + 2) if nested else f" {json.dumps(entry)}\n"
    return text


def _known_hosts(instance: Instance) -> str:
    lines = []
    for host in instance.topology.hosts:
        key = (instance.directory / "host_keys" / f"{host.name}.pub").read_text().split()
        names = (host.name, instance.host_fqdn(host), instance.host_ipv4(host), instance.host_ipv6(host))
        lines.append(f"{','.join(map(str, names))} {key[0]} {key[1]}\n")
    return "".join(lines)


def _ssh_config(instance: Instance) -> str:
    """For people and scripts: ``ssh -F .lab/<instance>/ssh_config <host>``."""
    text = ""
    for host in instance.topology.hosts:
        text += f"Host {host.name} {instance.host_fqdn(host)}\n  HostName {instance.host_ipv4(host)}\n"
    return text + (
        f"Host *\n  User root\n  IdentityFile {instance.directory / 'ssh_key'}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {instance.directory / 'known_hosts'}\n  GlobalKnownHostsFile /dev/null\n"
        "  BatchMode yes\n  ConnectTimeout 10\n"
    )


def ssh_command(instance: Instance, host: Host, command: str) -> list[str]:
    return ["ssh", "-F", str(instance.directory / "ssh_config"), host.name, command]


def close_connections(number: int) -> None:
    """End the ssh connections that Ansible keeps open to an instance."""
    for control in (RUNTIME / str(number) / "cp").glob("*"):
        try:
            run(["ssh", "-O", "exit", "-S", control, "lab"], timeout_seconds=5)
        except LabError:
            control.unlink(missing_ok=True)


def create_accounts(instance: Instance) -> None:
    """Create the lab's accounts on the portal, as an administrator would at the command line."""
    portals = instance.in_group("portals")
    if not portals:
        return
    for name, password in _passwords(instance).items():
        command = ["vpn-portal", "user", "add", name, "--password-file", "-", "--exists-ok"]
        if _USERS[name]:
            command += ["--permission", _USERS[name]]
        run(ssh_command(instance, portals[0], shlex.join(command)), stdin=password)
    say(f"accounts on {portals[0].name}: {', '.join(_USERS)}")


def fetch_portal_ca(instance: Instance) -> None:
    """Copy the certificate of a self-signed portal here, where browsers and tests look for it."""
    for portal in instance.in_group("portals")[:1]:
        certificate = run(ssh_command(instance, portal, f"cat {_PORTAL_CA}"))
        write_atomically(instance.directory / "portal-ca.crt", certificate)
        give_to_caller(instance.directory / "portal-ca.crt")


def remember_profiles(instance: Instance) -> None:
    """Note the profiles that were deployed, so that ``info`` needs neither Ansible nor a connection."""
    ansible_inventory, inventory = PROJECT / ".venv/bin/ansible-inventory", instance.directory / "inventory"
    for portal in instance.in_group("portals")[:1]:
        variables = json.loads(run([ansible_inventory, "-i", inventory, "--host", portal.name]))
        profiles = sorted(variables.get("vpn_profiles", {}))
        write_atomically(instance.directory / "profiles.json", json.dumps(profiles) + "\n")


def info(instance: Instance, pids: dict[str, int | None]) -> dict[str, Any]:
    """The contract of ``make lab-info``. ``pids`` is process 1 of each host."""
    passwords = _passwords(instance)
    authority, profiles = instance.directory / "portal-ca.crt", instance.directory / "profiles.json"
    vip = {"ipv4": str(instance.virtual_ipv4), "ipv6": str(instance.virtual_ipv6)}
    return {
        "topology": instance.topology.name,
        "portal_url": f"https://{instance.portal_name}/",
        "ca_file": str(authority.relative_to(PROJECT)),
        "admin": {"user": "admin", "password": passwords["admin"]},
        "user": {"user": "alice", "password": passwords["alice"]},
        "ssh": {"key": str((instance.directory / "ssh_key").relative_to(PROJECT)), "user": "root"},
        "vip": vip if instance.topology.has_virtual_ip else None,
        "hosts": [
            {
                "name": host.name,
                "address": str(instance.host_ipv4(host)),
                "groups": list(host.groups),
                "machine": instance.machine_name(host),
                "pid": pids[host.name],
            }
            for host in instance.topology.hosts
        ],
        "profiles": json.loads(profiles.read_text()) if profiles.exists() else [],
    }


def banner(instance: Instance) -> str:
    """What a person needs to know once the portal is deployed."""
    about = info(instance, dict.fromkeys((host.name for host in instance.topology.hosts), None))
    shell = f"ssh -F .lab/{instance.name}/ssh_config {instance.topology.hosts[0].name}"
    which = f"TOPOLOGY={instance.topology.name}"
    if instance.name != instance.topology.name:
        which += f" NAME={instance.name}"
    return f"""
The portal is up.

  Portal        {about["portal_url"]}
  Administrator {about["admin"]["user"]}  {about["admin"]["password"]}
  User          {about["user"]["user"]}  {about["user"]["password"]}
  CA            {about["ca_file"]} (import it into the browser)
  Profiles      {", ".join(about["profiles"])}

Next:
  curl --cacert {about["ca_file"]} {about["portal_url"]}.well-known/vpn-user-portal
  {shell}
  make lab-info {which}
  make lab-down {which}
"""


def _passwords(instance: Instance) -> dict[str, str]:
    return dict(json.loads((instance.directory / "secrets.json").read_text()))

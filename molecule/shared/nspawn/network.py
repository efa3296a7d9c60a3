"""The bridge of an instance, and the rules that keep its packets on this machine."""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable
from ipaddress import ip_network
from pathlib import Path

from nspawn.machine import RUNTIME, LabError, locked, run, write_atomically
from nspawn.topology import INTERNET_IPV4, INTERNET_IPV6, LAB_IPV4, LAB_IPV6, Instance

_KERNEL = Path("/proc/sys")
_KERNEL_BEFORE = RUNTIME / "kernel_before"
# The least that a lab needs. A host's systemd takes about nine of root's inotify instances, and all hosts are
# of one root: with the kernel's 128, unit number 129 that watches a path fails with "Too many open files".
_KERNEL_NEEDED = {"net/ipv4/ip_forward": 1, "fs/inotify/max_user_instances": 1024}
_WORST_METRIC = "4278198272"
_ETC_HOSTS = Path("/etc/hosts")


def bring_up(instance: Instance) -> None:
    """Create what is missing of bridge, routes, rules and names. Safe to repeat."""
    resolvers = [address for address in nameservers() if ":" not in address]
    if not resolvers or not Path("/proc/sys/net/ipv6").exists():
        raise LabError("the lab needs an IPv4 resolver that is not on loopback, and IPv6 in the kernel")
    with locked("network"):
        _bring_up_bridge(instance)
        _bring_up_routes(instance)
        run(["nft", "-f", "-"], stdin=_rules(instance, resolvers))
        _raise_kernel_settings()
        _write_machine_names(instance.number, _names_block(instance))


def take_down(number: int, bridge: str, nft_table: str) -> None:
    """Remove all of it. What the last instance no longer needs is put back as it was."""
    with locked("network"):
        run(["nft", "-f", "-"], stdin=f"table inet {nft_table}\ndelete table inet {nft_table}\n")
        if _exists(bridge):
            run(["ip", "link", "delete", bridge])
        _write_machine_names(number, "")
        _take_down_routes(number)
        others = [file for file in RUNTIME.glob("*/owner.json") if file.parent.name != str(number)]
        if not others and _KERNEL_BEFORE.exists():
            for name, value in json.loads(_KERNEL_BEFORE.read_text()).items():
                (_KERNEL / name).write_text(f"{value}\n")
            _KERNEL_BEFORE.unlink()


def _raise_kernel_settings() -> None:
    before = {name: int((_KERNEL / name).read_text()) for name in _KERNEL_NEEDED}
    if not _KERNEL_BEFORE.exists():
        write_atomically(_KERNEL_BEFORE, json.dumps(before))
    for name, needed in _KERNEL_NEEDED.items():
        if before[name] < needed:
            (_KERNEL / name).write_text(f"{needed}\n")


def nameservers() -> list[str]:
    """Resolvers of this machine that a host can reach."""
    addresses = re.findall(r"^nameserver\s+(\S+)", resolv_conf().read_text(), re.MULTILINE)
    return [address for address in addresses if not address.startswith(("127.", "::1", "fe80:"))]


def resolv_conf() -> Path:
    """The file to copy into hosts. systemd-resolved's stub listens on loopback, its own list is beside it."""
    usual, upstream = Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")
    return upstream if "127.0.0.53" in usual.read_text() and upstream.exists() else usual


def _bring_up_bridge(instance: Instance) -> None:
    if not _exists(instance.bridge):
        run(["ip", "link", "add", instance.bridge, "type", "bridge", "stp_state", "0", "mcast_snooping", "0"])
    for address in (
        f"{instance.ipv4[1]}/{instance.ipv4.prefixlen}",
        f"{instance.ipv6[1]}/{instance.ipv6.prefixlen}",
        # The stand-in for a host on the Internet: the machine itself answers there.
        f"{instance.internet_ipv4[1]}/{instance.internet_ipv4.prefixlen}",
        f"{instance.internet_ipv6[1]}/{instance.internet_ipv6.prefixlen}",
    ):
        options = ["nodad"] if ":" in address else []
        run(["ip", "address", "replace", address, "dev", instance.bridge, *options])
    Path(f"/proc/sys/net/ipv4/conf/{instance.bridge}/send_redirects").write_text("0\n")
    run(["ip", "link", "set", instance.bridge, "up"])


def _bring_up_routes(instance: Instance) -> None:
    wanted = [str(network) for network in (LAB_IPV4, LAB_IPV6, INTERNET_IPV4, INTERNET_IPV6)]
    wanted += instance.topology.client_ranges
    write_atomically(instance.runtime / "routes.json", json.dumps(wanted))
    for network in wanted:
        run(["ip", _family(network), "route", "replace", "unreachable", network, "metric", _WORST_METRIC])


def _take_down_routes(number: int) -> None:
    own = RUNTIME / str(number) / "routes.json"
    others = [_read(file) for file in RUNTIME.glob("*/routes.json") if file != own]
    for network in set(_read(own)).difference(*others):
        with contextlib.suppress(LabError):  # already gone: a crash came between
            run(["ip", _family(network), "route", "delete", "unreachable", network, "metric", _WORST_METRIC])


def _read(file: Path) -> list[str]:
    try:
        return list(json.loads(file.read_text()))
    except (OSError, ValueError):
        return []


def _family(network: str) -> str:
    return f"-{ip_network(network).version}"


def _exists(interface: str) -> bool:
    return Path(f"/sys/class/net/{interface}").exists()


def _rules(instance: Instance, resolvers: Iterable[str]) -> str:
    """Outward go DNS to the machine's resolver and web traffic for packages, all else is refused.

    Without them a tunnel client with a default route would leak into the network the machine is in.
    The machine forwards no IPv6, so what is not for the lab is refused before the kernel drops it silently.
    """
    table, bridge = instance.nft_table, instance.bridge
    return f"""\
table inet {table}
delete table inet {table}
table inet {table} {{
    chain prerouting {{
        type filter hook prerouting priority filter
        iifname "{bridge}" ip6 daddr 2000::/3 ip6 daddr != {instance.internet_ipv6} \\
            reject with icmpv6 admin-prohibited
    }}
    chain forward {{
        type filter hook forward priority filter
        iifname != "{bridge}" oifname != "{bridge}" accept
        iifname "{bridge}" oifname "{bridge}" accept
        oifname "{bridge}" ct state established,related accept
        iifname "{bridge}" ip saddr {instance.ipv4} ip daddr {{ {", ".join(resolvers)} }} \\
            meta l4proto {{ tcp, udp }} th dport 53 accept
        iifname "{bridge}" ip saddr {instance.ipv4} ip daddr != {{ {LAB_IPV4}, {INTERNET_IPV4} }} \\
            tcp dport {{ 80, 443 }} accept
        reject with icmpx admin-prohibited
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat
        ip saddr {instance.ipv4} oifname != "{bridge}" masquerade
    }}
}}
"""


def hosts_lines(instance: Instance) -> str:
    """Every name of an instance, in the form of hosts(5)."""
    ipv4, ipv6 = instance.portal_addresses
    lines = [f"{ipv4} {instance.portal_name}", f"{ipv6} {instance.portal_name}"]
    for host in instance.topology.hosts:
        names = f"{instance.host_fqdn(host)} {host.name}"
        lines += [f"{instance.host_ipv4(host)} {names}", f"{instance.host_ipv6(host)} {names}"]
    return "\n".join(lines) + "\n"


def _names_block(instance: Instance) -> str:
    """On the machine only full names: short ones would be the same in two instances."""
    lines = [line.split() for line in hosts_lines(instance).splitlines()]
    return "".join(f"{address} {full_name}\n" for address, full_name, *_ in lines)


def _write_machine_names(number: int, block: str) -> None:
    begin, end = f"# BEGIN causeway lab {number}\n", f"# END causeway lab {number}\n"
    before = _ETC_HOSTS.read_text()
    after = re.sub(f"{begin}.*?{end}", "", before, flags=re.DOTALL)
    if block:
        after += ("" if after.endswith("\n") or not after else "\n") + begin + block + end
    if after == before:
        return
    beside = _ETC_HOSTS.with_name("hosts.causeway-lab")
    shutil.copy2(_ETC_HOSTS, beside)
    beside.write_text(after)
    try:
        beside.replace(_ETC_HOSTS)
    except OSError:  # a bind mount, as in a container: it cannot be replaced, only written
        _write_in_place(_ETC_HOSTS, after)
        beside.unlink()


def _write_in_place(path: Path, text: str) -> None:
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(text)
        file.truncate()
        os.fsync(file.fileno())

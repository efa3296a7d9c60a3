"""Tunnels in a network namespace of their own: a proof neither changes nor believes the host's routes.

The outer socket stays in the host's namespace: the tunnel's device is made there and then moved, so the
namespace has the tunnel and nothing else, and whatever answers has come through it.
"""

import ipaddress
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from portal_app.verification.browser import VerificationError

#: Runs a module of ours, as root: without ``-P`` Python would look into the current directory first.
OWN_MODULE = (sys.executable, "-P", "-m")

NAMESPACE = "causeway-verify"
DEVICE = "cwverify0"
UP_SECONDS = 15
GONE_SECONDS = 5


@dataclass(frozen=True)
class Tunnel:
    """A tunnel that is up: its gateways, its DNS servers and the largest packet it takes (bytes)."""

    gateways: tuple[str, ...]
    dns_servers: tuple[str, ...]
    mtu: int


def run(*words: str, stdin: str | None = None) -> str:
    """Run a program and return its output; raises VerificationError with what it said."""
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise VerificationError(f"{' '.join(words[:4])}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def inside(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a program in the namespace."""
    return subprocess.run(
        ("ip", "netns", "exec", NAMESPACE, *words), capture_output=True, text=True, timeout=60, check=False
    )


def remove_leftovers() -> None:
    """Remove what a run that was killed has left."""
    subprocess.run(("ip", "link", "delete", DEVICE), capture_output=True, check=False)
    subprocess.run(("ip", "netns", "delete", NAMESPACE), capture_output=True, check=False)


@contextmanager
def namespace() -> Iterator[None]:
    remove_leftovers()
    run("ip", "netns", "add", NAMESPACE)
    try:
        run("ip", "-n", NAMESPACE, "link", "set", "lo", "up")
        yield
    finally:
        remove_leftovers()


def new_wireguard_key() -> tuple[str, str]:
    """Return a private key and its public key."""
    private = run("wg", "genkey").strip()
    return private, run("wg", "pubkey", stdin=private).strip()


def _values(config: str, key: str) -> list[str]:
    found = re.search(rf"^{key} = (.*)$", config, re.MULTILINE)
    return found.group(1).split(",") if found else []


@contextmanager
def wireguard(config: str, private_key: str | None = None) -> Iterator[Tunnel]:
    """Bring a ``/connect`` answer up, with ``private_key`` where it holds none.

    The kernel does WireGuard where it can, else ``wireguard-go``.
    """
    made = subprocess.run(
        ("ip", "link", "add", DEVICE, "type", "wireguard"), capture_output=True, check=False
    )
    process = None
    directory = Path(tempfile.mkdtemp(prefix="causeway-verify-"))
    log = directory / "log"

    def is_up() -> bool:
        nonlocal process
        # What ends while it starts says nothing about the service: it is started again until the time is up.
        if made.returncode != 0 and (process is None or process.poll() is not None):
            with log.open("a") as file:
                process = subprocess.Popen(("wireguard-go", "-f", DEVICE), stdout=file, stderr=file)
        return subprocess.run(("wg", "show", DEVICE), capture_output=True, check=False).returncode == 0

    try:
        _wait_until(is_up, "wg", lambda: _tail(log) if log.exists() else "")
        kept = re.sub(r"^(MTU|Address|DNS) = .*\n", "", config, flags=re.MULTILINE)
        if private_key:
            kept = kept.replace("[Interface]", f"[Interface]\nPrivateKey = {private_key}", 1)
        with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
            file.write(kept)
            file.flush()
            run("wg", "setconf", DEVICE, file.name)
        run("ip", "link", "set", DEVICE, "netns", NAMESPACE)
        mtu = int((_values(config, "MTU") or ["1420"])[0])
        run("ip", "-n", NAMESPACE, "link", "set", DEVICE, "mtu", str(mtu), "up")
        addresses = [ipaddress.ip_interface(a) for a in _values(config, "Address")]
        for address in addresses:
            extra = ("nodad",) if address.version == 6 else ()
            run("ip", "-n", NAMESPACE, "address", "add", str(address), "dev", DEVICE, *extra)
        for route in _values(config, "AllowedIPs"):
            run("ip", "-n", NAMESPACE, "route", "replace", route, "dev", DEVICE)
        servers = tuple(
            s for s in _values(config, "DNS") if re.fullmatch(r"[0-9a-f.:]+", s) and ("." in s or ":" in s)
        )
        yield Tunnel(tuple(str(a.network.network_address + 1) for a in addresses), servers, mtu)
    finally:
        subprocess.run(("ip", "-n", NAMESPACE, "link", "delete", DEVICE), capture_output=True, check=False)
        subprocess.run(("ip", "link", "delete", DEVICE), capture_output=True, check=False)
        _stop(process)
        shutil.rmtree(directory, ignore_errors=True)


#: Run by OpenVPN when the device has its addresses: moves it into the namespace and tells what was pushed.
#: It is given to the shell, since a hardened /tmp executes nothing.
_UP = """\
set -e
ip link set "$dev" netns {namespace}
ip -n {namespace} link set "$dev" mtu "$tun_mtu" up
ip -n {namespace} address add "$ifconfig_local/$ifconfig_netmask" dev "$dev"
ip -n {namespace} -6 address add "$ifconfig_ipv6_local/$ifconfig_ipv6_netbits" dev "$dev" nodad
ip -n {namespace} route add default dev "$dev"
ip -n {namespace} -6 route add default dev "$dev"
env | grep -E '^(ifconfig_|tun_mtu|foreign_option_)' > {told}.new
mv {told}.new {told}
"""


@contextmanager
def openvpn(config: str, transport: str) -> Iterator[Tunnel]:
    """Bring a ``/connect`` answer up over ``udp`` or ``tcp``: the other's remotes are left out."""
    lines = [
        line
        for line in config.splitlines()
        if not line.startswith("remote ") or line.endswith(f" {transport}")
    ]
    if not any(line.startswith("remote ") for line in lines):
        raise VerificationError(f"the configuration has no {transport} remote")
    directory = Path(tempfile.mkdtemp(prefix="causeway-verify-"))
    process = None
    try:
        told, up = directory / "told", directory / "up"
        up.write_text(_UP.format(namespace=NAMESPACE, told=told))
        (directory / "client.conf").write_text("\n".join(lines) + "\n")
        log = (directory / "log").open("w")
        words = ["openvpn", "--config", str(directory / "client.conf"), "--dev", DEVICE, "--dev-type", "tun"]
        words += ["--disable-dco", "--ifconfig-noexec", "--route-noexec"]
        words += ["--script-security", "2", "--up", f"/bin/sh {up}", "--connect-retry", "1", "2"]
        path = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")}
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=path)
        alive = process
        _wait_until(
            lambda: told.exists() or alive.poll() is not None, "openvpn", lambda: _tail(directory / "log")
        )
        if not told.exists():
            raise VerificationError(f"openvpn ended: {_tail(directory / 'log')}")
        pushed = dict(line.split("=", 1) for line in told.read_text().splitlines())
        network4 = ipaddress.ip_interface(f"{pushed['ifconfig_local']}/{pushed['ifconfig_netmask']}").network
        network6 = ipaddress.ip_interface(
            f"{pushed['ifconfig_ipv6_local']}/{pushed['ifconfig_ipv6_netbits']}"
        ).network
        options = [value.split() for name, value in pushed.items() if name.startswith("foreign_option_")]
        servers = tuple(o[2] for o in options if o[:2] == ["dhcp-option", "DNS"])
        gateways = (str(network4.network_address + 1), str(network6.network_address + 1))
        yield Tunnel(gateways, servers, int(pushed["tun_mtu"]))
    finally:
        _stop(process)
        shutil.rmtree(directory, ignore_errors=True)


def ping(address: str, size: int) -> None:
    """Ping with packets of ``size`` bytes (IP header included) that must not be cut up."""
    header = 48 if ":" in address else 28
    deadline = time.monotonic() + UP_SECONDS
    while True:
        done = inside("ping", "-n", "-c", "1", "-W", "2", "-M", "do", "-s", str(size - header), address)
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise VerificationError(
                f"no answer from {address} to {size}-byte pings: {said[-1] if said else ''}"
            )
        time.sleep(0.3)


def resolve(server: str, name: str) -> None:
    """Ask a DNS server through the tunnel for a name."""
    done = inside(*OWN_MODULE, "portal_app.verification.resolver", server, name)
    if done.returncode != 0:
        raise VerificationError(f"{server} does not resolve {name}: {done.stderr.strip()[-200:]}")


def wait_until_cut(address: str) -> None:
    """Raise VerificationError unless the gateway stops answering soon."""
    deadline = time.monotonic() + GONE_SECONDS
    while time.monotonic() < deadline:
        if inside("ping", "-n", "-c", "1", "-W", "1", address).returncode != 0:
            return
        time.sleep(0.2)
    raise VerificationError(f"{address} still answers {GONE_SECONDS} s after /disconnect")


def _wait_until(condition: Callable[[], bool], what: str, explain: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + UP_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise VerificationError(f"{what} is not up after {UP_SECONDS} s {explain()}".strip())
        time.sleep(0.05)


def _tail(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-3:])[-400:]


def _stop(process: "subprocess.Popen[bytes] | None") -> None:
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

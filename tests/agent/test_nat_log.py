"""The log of NAT: real packets through a real router, in network namespaces."""

import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from node_agent import conntrack, nat_log
from node_agent.conntrack import Change, Flow, Overrun
from node_agent.nat_log import FILE, NatLog
from node_agent.settings import Settings
from tests.agent.conftest import CertificateAuthority, running, until
from vpn_core.messages import Translation, Translations

INSIDE, OUTSIDE = {4: "10.77.0.2", 6: "fd00:77::2"}, {4: "198.51.100.2", 6: "2001:db8:77::2"}
ROUTER_INSIDE, ROUTER_OUTSIDE = {4: "10.77.0.1", 6: "fd00:77::1"}, {4: "198.51.100.1", 6: "2001:db8:77::1"}
MASQUERADE = """
table inet nat { chain postrouting { type nat hook postrouting priority srcnat;
oifname "out" ip saddr 10.77.0.0/24 masquerade
oifname "out" ip6 saddr fd00:77::/64 masquerade; }; }
"""
#: Answers each packet with the address and port that it seems to come from.
ECHO = """
import socket
sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
sock.bind(("::", 9))
print("ready", flush=True)
while True:
    _, (address, port, *_rest) = sock.recvfrom(100)
    sock.sendto(f"{address.removeprefix('::ffff:')} {port}".encode(), (address, port, 0, 0))
"""
ASK = """
import socket, sys
sock = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(5)
sock.sendto(b"x", (sys.argv[1], 9))
print(sock.recv(100).decode())
"""
#: Lets the kernel end every flow (IPCTNL_MSG_CT_DELETE without a tuple); by itself it comes to that late.
FORGET_ALL = """
import socket, struct
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
sock.bind((0, 0))
sock.send(struct.pack("=IHHIIBBH", 20, 1 << 8 | 2, 5, 1, 0, 0, 0, 0))
sock.recv(1000)
"""
#: How long a flow without packets lives, in seconds.
LIFE = 2


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Router:
    """A client, a router that puts its own address in place of the client's, and a host outside."""

    def __init__(self) -> None:
        name = secrets.token_hex(3)
        self.inside, self.router, self.outside = (f"{part}-{name}" for part in ("nin", "nat", "nout"))
        self._processes: list[subprocess.Popen[str]] = []
        for namespace in (self.inside, self.router, self.outside):
            ip("netns", "add", namespace)
        for here, there, far in (("in", "uplink", self.inside), ("out", "downlink", self.outside)):
            ip("-n", self.router, "link", "add", here, "type", "veth", "peer", "name", there, "netns", far)
        for namespace, device, addresses in (
            (self.inside, "uplink", INSIDE),
            (self.router, "in", ROUTER_INSIDE),
            (self.router, "out", ROUTER_OUTSIDE),
            (self.outside, "downlink", OUTSIDE),
        ):
            ip("-n", namespace, "link", "set", device, "up")
            ip("-n", namespace, "address", "add", f"{addresses[4]}/24", "dev", device)
            ip("-n", namespace, "address", "add", f"{addresses[6]}/64", "dev", device, "nodad")
        for family in (4, 6):
            ip("-n", self.inside, f"-{family}", "route", "add", "default", "via", ROUTER_INSIDE[family])
        for setting in (
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            f"net.netfilter.nf_conntrack_udp_timeout={LIFE}",
        ):
            self.run(self.router, "sysctl", "-q", "-w", setting)
        self.run(self.router, "nft", MASQUERADE)
        self.start(self.outside, "-c", ECHO).stdout.readline()  # type: ignore[union-attr]

    def run(self, namespace: str, *words: str) -> str:
        command = ["ip", "netns", "exec", namespace, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()

    def start(self, namespace: str, *words: str) -> "subprocess.Popen[str]":
        """Start Python in a namespace."""
        command = ["ip", "netns", "exec", namespace, sys.executable, *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._processes.append(process)
        return process

    def ask(self, family: int) -> tuple[str, int]:
        """Send a packet to the host outside; return where it seemed to come from."""
        address, port = self.run(self.inside, sys.executable, "-c", ASK, OUTSIDE[family]).split()
        return address, int(port)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        for namespace in (self.inside, self.router, self.outside):
            ip("netns", "delete", namespace)


@pytest.fixture
def router() -> Iterator[Router]:
    made = Router()
    yield made
    made.close()


@pytest.fixture
def record(router: Router, tmp_path: Path) -> Callable[[], "subprocess.Popen[str]"]:
    """Start what writes the log, as systemd does, and return it."""
    settings = tmp_path / "settings.toml"
    settings.write_text(
        'node_number = 1\ncertificate_file = "x"\nkey_file = "x"\nca_file = "x"\nlog_nat = true\n'
        f'nat_log_directory = "{tmp_path}"\n'
    )
    program = f"from node_agent.cli import main; main(['--settings', '{settings}', 'log-nat'])"

    def start() -> "subprocess.Popen[str]":
        process = router.start(router.router, "-c", program)
        wait_until(lambda: (tmp_path / FILE).exists() and listens(router))
        return process

    return start


def listens(router: Router) -> bool:
    """Tell whether somebody hears of connections (a netlink socket of netfilter with groups)."""
    rows = [line.split() for line in router.run(router.router, "cat", "/proc/net/netlink").splitlines()]
    return any(row[1] == "12" and row[3] == "00000005" for row in rows)


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def found(directory: Path, address: str, port: int) -> list[Translation]:
    now = int(time.time())
    return list(nat_log.find(directory, address, port, now - 60, now + 60).translations)


@pytest.mark.slow
@pytest.mark.parametrize("family", [4, 6])
def test_a_client_is_found_by_what_others_saw_of_it(
    router: Router, record: Callable[[], object], tmp_path: Path, family: int
) -> None:
    record()

    address, port = router.ask(family)

    assert address == ROUTER_OUTSIDE[family], "its own address was not seen"
    wait_until(lambda: found(tmp_path, address, port))
    (one,) = found(tmp_path, address, port)
    assert (one.client, one.protocol) == (INSIDE[family], 17)
    assert abs(one.began_at - time.time()) < 30
    assert found(tmp_path, address, (port + 1) % 65536) == []
    assert found(tmp_path, INSIDE[family], port) == []
    earlier = nat_log.find(tmp_path, address, port, 0, one.began_at - 10)
    assert earlier == Translations(is_kept=True, translations=(), begins_at=one.began_at)
    assert one.ended_at is None
    router.run(router.router, sys.executable, "-c", FORGET_ALL)
    wait_until(lambda: found(tmp_path, address, port)[0].ended_at is not None)


@pytest.mark.slow
def test_what_ended_while_nobody_wrote_has_an_end(
    router: Router, record: Callable[[], "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    first = record()
    address, port = router.ask(4)
    wait_until(lambda: found(tmp_path, address, port))
    first.send_signal(signal.SIGTERM)
    assert first.wait(10) == 0
    wait_until(lambda: f"dport={port}" not in router.run(router.router, "cat", "/proc/net/nf_conntrack"), 30)

    record()

    wait_until(lambda: found(tmp_path, address, port)[0].ended_at is not None)


FLOWS = [Flow(number, 17, f"10.64.0.{number}", "192.0.2.1", 5000 + number) for number in range(5)]


def test_what_begins_and_ends_is_written_once(tmp_path: Path) -> None:
    log = NatLog(tmp_path / FILE)
    first, second, *_ = FLOWS
    log.write([Change(True, first), Change(True, first), Change(True, second), Change(False, second)], 100)
    log.write([Change(False, first), Change(False, FLOWS[3])], 160)
    # The kernel gives the same ports again.
    log.write([Change(True, replace(second, number=77))], 200)
    log.close()

    def asked(flow: Flow) -> list[tuple[int, int | None]]:
        rows = nat_log.find(tmp_path, flow.address, flow.port, 0, 1000).translations
        return [(row.began_at, row.ended_at) for row in rows]

    assert asked(first) == [(100, 160)]
    assert asked(second) == [(200, None), (100, 100)]
    assert asked(FLOWS[3]) == []


def test_only_who_used_it_at_that_time_is_found(tmp_path: Path) -> None:
    log = NatLog(tmp_path / FILE)
    flow = FLOWS[0]
    log.write([Change(True, flow)], 100)
    log.write([Change(False, flow)], 200)
    log.close()

    spans = {(0, 99): 0, (0, 100): 1, (150, 150): 1, (200, 300): 1, (201, 300): 0}
    for (begin, end), count in spans.items():
        got = nat_log.find(tmp_path, flow.address, flow.port, begin, end).translations
        assert len(got) == count, (begin, end)


def test_what_is_old_is_forgotten_and_what_goes_on_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nat_log, "_BATCH", 2)
    log = NatLog(tmp_path / FILE)
    log.write([Change(True, flow) for flow in FLOWS], 100)
    log.write([Change(False, flow) for flow in FLOWS[1:4]], 150)
    log.write([Change(False, FLOWS[4])], 300)

    assert log.forget(before=200) == 3
    log.close()

    left = [bool(nat_log.find(tmp_path, f.address, f.port, 0, 1000).translations) for f in FLOWS]
    assert left == [True, False, False, False, True]


def test_what_was_missed_is_made_up_for_from_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel had more to tell than was read in time."""
    here, there = socket.socketpair()
    there.send(b"x")
    living = iter([FLOWS[:2], FLOWS[1:3]])
    monkeypatch.setattr(conntrack, "listen", lambda: here)
    monkeypatch.setattr(conntrack, "living", lambda: next(living))

    def read(netlink: socket.socket) -> list[Change]:
        netlink.recv(1)
        raise Overrun("too much")

    monkeypatch.setattr(conntrack, "read", read)
    log = NatLog(tmp_path / FILE)
    turns = iter([False, True])
    nat_log._record(log, 7, lambda: next(turns))
    log.close()
    there.close()

    rows = [nat_log.find(tmp_path, f.address, f.port, 0, 2**40).translations for f in FLOWS]
    assert [[row.ended_at is None for row in found] for found in rows] == [[False], [True], [True], [], []]


async def test_a_portal_asks_the_agent(
    settings: Settings, management: CertificateAuthority, tmp_path: Path
) -> None:
    log = NatLog(tmp_path / FILE)
    log.write([Change(True, FLOWS[1])], 100)
    log.close()
    settings = replace(settings, log_nat=True, nat_log_directory=tmp_path)
    async with running(settings, management) as node:

        async def asked(**changes: object) -> tuple[int, object]:
            query = {"address": "192.0.2.1", "port": 5001, "first": 50, "last": 150} | changes
            words = "&".join(f"{name}={value}" for name, value in query.items())
            return await node.call("GET", f"/n/translations?{words}")

        row = {"client": "10.64.0.1", "protocol": 17, "began_at": 100, "ended_at": None}
        kept = {"is_kept": True, "begins_at": 100}
        assert await asked() == (200, kept | {"translations": [row]})
        assert await asked(last=99) == (200, kept | {"translations": []})
        for wrong in ({"address": "x"}, {"port": -1}, {"first": ""}, {"last": "1e3"}, {"more": 1}):
            status, _ = await asked(**wrong)
            assert status == 400, wrong


async def test_a_log_that_nobody_writes_is_a_problem_of_the_node(
    settings: Settings, management: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nat_log, "SILENT_SECONDS", 0.5)
    log = NatLog(tmp_path / FILE)
    async with running(replace(settings, log_nat=True, nat_log_directory=tmp_path), management) as node:

        async def problems() -> list[str]:
            return [text for text in (await node.info())["problems"] if "log of NAT" in text]

        await until(problems)
        log.touch()
        assert await problems() == []
    log.close()


async def test_where_it_is_not_to_be_kept_it_is_taken_away(
    settings: Settings, management: CertificateAuthority, tmp_path: Path
) -> None:
    NatLog(tmp_path / FILE).close()
    async with running(replace(settings, nat_log_directory=tmp_path), management) as node:
        await until(lambda: not (tmp_path / FILE).exists())
        answer = await node.call("GET", "/n/translations?address=192.0.2.1&port=1&first=0&last=1")
        assert answer == (200, {"is_kept": False, "translations": [], "begins_at": None})

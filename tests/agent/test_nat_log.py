"""The log of NAT: real packets through a real router, in network namespaces."""

import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from node_agent import conntrack, nat_log
from node_agent.conntrack import Change, Flow, Overrun
from node_agent.nat_log import FILE, NatLog
from node_agent.settings import Settings
from tests.agent.conftest import CertificateAuthority, running, until
from vpn_core.messages import Gap, Translation, Translations

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
    return list(nat_log.find(directory, address, port, now - 60, now + 60, now).translations)


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
    earlier = nat_log.find(tmp_path, address, port, 0, one.began_at - 60, time.time())
    assert (earlier.is_kept, earlier.translations, earlier.gaps) == (True, (), ())
    assert earlier.begins_at is not None
    assert one.began_at - 60 < earlier.begins_at <= one.began_at + 1
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
    stopped_at = time.time()
    wait_until(lambda: f"dport={port}" not in router.run(router.router, "cat", "/proc/net/nf_conntrack"), 30)

    record()

    wait_until(lambda: found(tmp_path, address, port)[0].ended_at is not None)
    (one,) = found(tmp_path, address, port)
    assert one.ended_at is not None
    assert one.ended_at <= stopped_at
    missed = int(stopped_at)
    assert nat_log.find(tmp_path, address, port, missed, missed, time.time()).gaps


FLOWS = [Flow(number, 17, f"10.64.0.{number}", "192.0.2.1", 5000 + number) for number in range(5)]


def asked(directory: Path, flow: Flow, first: int, last: int, now: float | None = None) -> Translations:
    """Ask at ``now``, or soon after ``last``."""
    return nat_log.find(directory, flow.address, flow.port, first, last, last if now is None else now)


def times(found: Translations) -> list[tuple[int, int | None]]:
    return [(row.began_at, row.ended_at) for row in found.translations]


def test_what_begins_and_ends_is_written_once(tmp_path: Path) -> None:
    log = NatLog(tmp_path / FILE, 90)
    first, second, *_ = FLOWS
    log.write([Change(True, first), Change(True, first), Change(True, second), Change(False, second)], 100)
    log.write([Change(False, first), Change(False, FLOWS[3])], 160)
    # The kernel gives the same ports again.
    log.write([Change(True, replace(second, number=77))], 200)
    log.close()

    assert times(asked(tmp_path, first, 0, 210)) == [(100, 160)]
    assert times(asked(tmp_path, second, 0, 210)) == [(200, None), (100, 100)]
    assert times(asked(tmp_path, FLOWS[3], 0, 210)) == []


def test_only_who_used_it_at_that_time_is_found(tmp_path: Path) -> None:
    log = NatLog(tmp_path / FILE, 90)
    flow = FLOWS[0]
    log.write([Change(True, flow)], 100)
    log.write([Change(False, flow)], 200)
    log.close()

    spans = {(0, 99): 0, (0, 100): 1, (150, 150): 1, (200, 300): 1, (201, 300): 0}
    for (begin, end), count in spans.items():
        assert len(asked(tmp_path, flow, begin, end).translations) == count, (begin, end)


def test_what_nobody_heard_is_a_gap_and_names_nobody(tmp_path: Path) -> None:
    """Who had the port before the gap was seen last when it began, and who had it after may be new in it."""
    before, after = FLOWS[0], replace(FLOWS[0], number=7, client="10.64.0.7")
    log = NatLog(tmp_path / FILE, 90)
    log.agree([], 90)
    log.write([Change(True, before)], 100)
    log.write([], 120)
    log.close()
    log = NatLog(tmp_path / FILE, 1920)
    log.agree([after], 1920)
    log.write([], 1990)
    log.close()

    gap = (Gap(119, 1920),)
    within, earlier, later = (asked(tmp_path, before, at, at) for at in (900, 110, 1930))
    assert (within.translations, within.gaps) == ((), gap)
    assert (times(earlier), earlier.gaps) == ([(100, 120)], ())
    assert (times(later), later.gaps) == ([(1920, None)], ())
    assert asked(tmp_path, before, 0, 1995).gaps == (*gap, Gap(89, 90))


def test_gaps_without_anything_between_them_are_one(tmp_path: Path) -> None:
    log = NatLog(tmp_path / FILE, 100)
    for now in (200.0, 200.5, 201.5):
        log.agree([], now)
    log.close()

    assert asked(tmp_path, FLOWS[0], 0, 250).gaps == (Gap(99, 202),)


def test_while_nobody_listens_there_is_a_gap_and_what_was_open_was_seen_last(tmp_path: Path) -> None:
    log = NatLog(tmp_path / FILE, 100)
    log.write([Change(True, FLOWS[0])], 150)
    log.close()

    soon, late = (asked(tmp_path, FLOWS[0], 120, 300, now) for now in (200, 1000))

    assert (times(soon), soon.gaps) == ([(150, None)], ())
    assert (times(late), late.gaps) == ([(150, 150)], (Gap(149, 1000),))
    assert asked(tmp_path, FLOWS[0], 900, 900, 1000).translations == ()
    assert asked(tmp_path, FLOWS[0], 120, 140, 1000).gaps == ()


def test_what_is_old_is_forgotten_and_what_goes_on_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nat_log, "_BATCH", 2)
    log = NatLog(tmp_path / FILE, 90)
    log.agree([], 95)
    log.write([Change(True, flow) for flow in FLOWS], 100)
    log.write([Change(False, flow) for flow in FLOWS[1:4]], 150)
    log.write([Change(False, FLOWS[4])], 300)

    assert sum(log.forget(before=200)) == 3
    log.close()

    found = [asked(tmp_path, flow, 0, 310) for flow in FLOWS]
    assert [bool(one.translations) for one in found] == [True, False, False, False, True]
    assert found[0].gaps == ()


def test_it_says_since_when_it_is_kept_whatever_is_in_it(tmp_path: Path) -> None:
    """Also when nothing is, and when the oldest is open for longer than anything is kept."""
    log = NatLog(tmp_path / FILE, 90.5)
    assert asked(tmp_path, FLOWS[0], 0, 95).begins_at == 91
    log.write([Change(True, FLOWS[0])], 100)
    for before, since in ((50, 91), (200, 200), (150, 200)):
        list(log.forget(before))
        assert asked(tmp_path, FLOWS[0], 0, 105).begins_at == since
    log.close()
    NatLog(tmp_path / FILE, 500).close()

    assert asked(tmp_path, FLOWS[0], 0, 105).begins_at == 200


def test_on_a_volume_that_is_nearly_full_the_oldest_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = NatLog(tmp_path / FILE, 0)

    def write(hour: int) -> None:
        flows = [Flow(number, 17, "10.64.0.2", "192.0.2.1", number) for number in range(200)]
        log.write([Change(begins, flow) for flow in flows for begins in (True, False)], hour * 3600)

    for hour in range(100):
        write(hour)
    monkeypatch.setattr(nat_log, "_LEAST_FREE", (0, 0.1))
    assert log.shorten(100 * 3600) is None
    assert nat_log.problem(tmp_path) == ""

    size = (tmp_path / FILE).stat().st_size
    monkeypatch.setattr(nat_log, "_LEAST_FREE", (2**62, 1.0))
    for hour in range(100, 300):
        while steps := log.shorten(hour * 3600):
            list(steps)
        write(hour)
    log.close()

    assert (tmp_path / FILE).stat().st_size < size * 1.1
    assert "nearly full, so the log of NAT forgets early" in nat_log.problem(tmp_path)
    found = asked(tmp_path, replace(FLOWS[0], port=5), 0, 300 * 3600)
    assert found.begins_at is not None
    assert 150 * 3600 < found.begins_at < 290 * 3600
    assert min(row.began_at for row in found.translations) >= found.begins_at


def test_what_is_told_is_read_while_it_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part at each turn, and systemd hears at each turn that it is alive."""
    here, there = socket.socketpair()
    here.setblocking(False)
    log = NatLog(tmp_path / FILE, 0)
    old = [Flow(number, 17, "10.64.0.9", "192.0.2.1", number) for number in range(50)]
    log.write([Change(begins, flow) for flow in old for begins in (True, False)], 100)
    monkeypatch.setattr(nat_log, "_BATCH", 1)
    monkeypatch.setattr(nat_log, "EVERY_SECONDS", 0.0)
    told: list[str] = []
    monkeypatch.setattr(nat_log, "notify", told.append)
    read: list[Change] = []

    def read_next(netlink: socket.socket) -> list[Change]:
        netlink.recv(1)
        read.append(Change(True, FLOWS[len(read)]))
        return read[-1:]

    def left() -> int:
        with closing(sqlite3.connect(tmp_path / FILE)) as db:
            return int(db.execute("SELECT count(*) FROM translations WHERE ended = 100").fetchone()[0])

    monkeypatch.setattr(conntrack, "read", read_next)
    there.send(bytes(5))
    nat_log._follow(log, here, 7, lambda: len(read) == 5)
    assert 0 < left() < 50
    assert told == ["WATCHDOG=1"] * 5

    nat_log._follow(log, here, 7, lambda: left() == 0)
    log.close()
    here.close()
    there.close()
    assert all(asked(tmp_path, flow, 0, 2**40, time.time()).translations for flow in FLOWS)


def test_what_was_missed_is_made_up_for_from_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel had more to tell than was read in time."""
    pairs = [socket.socketpair() for _ in range(2)]
    pairs[0][1].send(b"x")
    living = iter([FLOWS[:2], FLOWS[1:3]])
    heard: list[socket.socket] = []

    def listen() -> socket.socket:
        heard.append(pairs[len(heard)][0])
        return heard[-1]

    def read(netlink: socket.socket) -> list[Change]:
        netlink.recv(1)
        raise Overrun("too much")

    monkeypatch.setattr(conntrack, "listen", listen)
    monkeypatch.setattr(conntrack, "living", lambda: next(living))
    monkeypatch.setattr(conntrack, "read", read)
    began_at = int(time.time())
    log = NatLog(tmp_path / FILE, began_at - 100)
    nat_log._record(log, 7, lambda: len(heard) == 2)
    log.close()
    for _, there in pairs:
        there.close()

    found = [asked(tmp_path, flow, began_at, began_at + 60, time.time()) for flow in FLOWS]
    ended = [[row.ended_at is not None for row in one.translations] for one in found]
    assert ended == [[True], [False], [False], [], []]
    assert len(found[0].gaps) == 1


async def test_a_portal_asks_the_agent(
    settings: Settings, management: CertificateAuthority, tmp_path: Path
) -> None:
    now = int(time.time())
    log = NatLog(tmp_path / FILE, now - 90)
    log.agree([], now - 80)
    log.write([Change(True, FLOWS[1])], now)
    log.close()
    settings = replace(settings, log_nat=True, nat_log_directory=tmp_path)
    async with running(settings, management) as node:

        async def asked(**changes: object) -> tuple[int, object]:
            query = {"address": "192.0.2.1", "port": 5001, "first": now - 50, "last": now + 50} | changes
            words = "&".join(f"{name}={value}" for name, value in query.items())
            return await node.call("GET", f"/n/translations?{words}")

        row = {"client": "10.64.0.1", "protocol": 17, "began_at": now, "ended_at": None}
        gap = {"began_at": now - 91, "ended_at": now - 80}
        kept = {"is_kept": True, "begins_at": now - 90}
        assert await asked() == (200, kept | {"translations": [row], "gaps": []})
        assert await asked(last=now - 1) == (200, kept | {"translations": [], "gaps": []})
        assert await asked(first=now - 85) == (200, kept | {"translations": [row], "gaps": [gap]})
        for wrong in ({"address": "x"}, {"port": -1}, {"first": ""}, {"last": "1e3"}, {"more": 1}):
            status, _ = await asked(**wrong)
            assert status == 400, wrong


async def test_a_log_that_nobody_writes_is_a_problem_of_the_node(
    settings: Settings, management: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nat_log, "SILENT_SECONDS", 0.5)
    log = NatLog(tmp_path / FILE, 0)
    async with running(replace(settings, log_nat=True, nat_log_directory=tmp_path), management) as node:

        async def problems() -> list[str]:
            return [text for text in (await node.info())["problems"] if "log of NAT" in text]

        await until(problems)
        log.write([], time.time())
        assert await problems() == []
    log.close()


async def test_where_it_is_not_to_be_kept_it_is_taken_away(
    settings: Settings, management: CertificateAuthority, tmp_path: Path
) -> None:
    NatLog(tmp_path / FILE, 0).close()
    async with running(replace(settings, nat_log_directory=tmp_path), management) as node:
        await until(lambda: not (tmp_path / FILE).exists())
        answer = await node.call("GET", "/n/translations?address=192.0.2.1&port=1&first=0&last=1")
        assert answer == (200, {"is_kept": False, "translations": [], "begins_at": None, "gaps": []})

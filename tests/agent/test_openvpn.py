"""The agent with a real OpenVPN server and real clients."""

import dataclasses
import itertools
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node_agent import openvpn
from node_agent.settings import OpenVpnProcess, Settings
from tests.agent.conftest import AUTHORITY, CertificateAuthority, Interface, Running, peer, running, until
from tests.agent.openvpn_world import World
from vpn_core.messages import Connection

pytestmark = pytest.mark.slow

NAME = "employees-0"
ID = "0123456789abcdef" * 2


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    directory = tmp_path / "openvpn"
    directory.mkdir()
    made = World(directory)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def node_settings(settings: Settings, world: World) -> Settings:
    process = OpenVpnProcess.parse(
        {
            "name": NAME,
            "profile_id": "employees",
            "device": "tun194",
            "socket": str(world.socket(NAME)),
            "ipv4": "10.80.1.0/25",
            "ipv6": "fd00:80:1::/112",
        },
        "test",
    )
    return dataclasses.replace(settings, wireguard=None, openvpn=(process,))


def connection(connection_id: str = ID, generation: int = 1, seconds: int = 3600) -> Connection:
    return Connection(
        connection_id=connection_id,
        profile_id="employees",
        protocol="openvpn",
        expires_at=int(time.time()) + seconds,
        generation=generation,
        common_name=connection_id,
    )


async def silent(world: World) -> bool:
    return not await world.pings(seconds=0.3)


async def attached(node: Running) -> None:
    await until(lambda: node.agent.processes[0]._answers)


async def test_a_wanted_client_comes_in_and_a_cut_client_is_out_within_a_second(
    node_settings: Settings, management: CertificateAuthority, world: World
) -> None:
    """I3: and the answer has the counters, the journal both ends of the session."""
    world.serve(NAME, "employees")
    async with running(node_settings, management) as node:
        await node.replace(1, connection())
        world.connect(ID, "employees")
        await until(lambda: world.pings(seconds=0.2), seconds=20)
        await until(lambda: node.agent.info().o_client_count == 1)
        assert node.agent.info().openvpn_clients == {"employees": 1}
        assert re.fullmatch(r"2\.[0-9.]+", (node.agent.info().software or {})["openvpn"])
        started = time.monotonic()

        usage = await node.cut(ID, 2)

        assert time.monotonic() - started < 1
        assert await silent(world)
        assert usage["received_bytes"] > 0
        assert (usage["active"], usage["ipv4"], usage["ipv6"]) == (True, "10.80.1.2", "fd00:80:1::2")
        await until(lambda: node.agent.journal.head == 2)
        _, answer = await node.call("GET", "/n/events")
        start, end = answer["events"]
        assert (start["kind"], start["ipv4"], start["ipv6"]) == ("start", "10.80.1.2", "fd00:80:1::2")
        assert (end["kind"], end["session_id"]) == ("end", start["session_id"])
        assert end["received_bytes"] == usage["received_bytes"]
        await until(lambda: "AUTH_FAILED" in world.output("client-cdef"), seconds=15)


async def test_a_client_that_is_cut_while_it_comes_in_is_sent_away(
    node_settings: Settings, management: CertificateAuthority, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I3: let in and cut before it had its addresses, when there was no client yet to cut."""
    monkeypatch.setattr(openvpn, "POLL_SECONDS", 600.0)
    world.serve(NAME, "employees")
    async with running(node_settings, management) as node:
        await node.replace(1, connection())
        await attached(node)
        process = node.agent.processes[0]
        decide = process._decide

        def decide_then_cut(*what: Any) -> openvpn.Decision:
            decision = decide(*what)
            node.agent.store.cut(AUTHORITY, ID, 2)
            return decision

        monkeypatch.setattr(process, "_decide", decide_then_cut)
        world.connect(ID, "employees")

        await until(lambda: "AUTH_FAILED" in world.output("client-cdef"), seconds=20)

        assert process.clients == {}
        assert await silent(world)


async def test_a_client_that_is_not_wanted_is_refused(
    node_settings: Settings, management: CertificateAuthority, world: World
) -> None:
    world.serve(NAME, "employees")
    async with running(node_settings, management) as node:
        await node.replace(1)
        await attached(node)
        world.connect(ID, "employees")

        await until(lambda: "AUTH_FAILED" in world.output("client-cdef"), seconds=15)

        assert node.agent.processes[0].clients == {}


async def test_a_certificate_of_another_profile_is_refused(
    node_settings: Settings, management: CertificateAuthority, world: World
) -> None:
    """V4: the organizational unit of the certificate is the profile it was made for."""
    world.serve(NAME, "employees")
    async with running(node_settings, management) as node:
        await node.replace(1, connection())
        await attached(node)
        world.connect(ID, "employees", organizational_unit="legacy")

        await until(lambda: "AUTH_FAILED" in world.output("client-cdef"), seconds=15)


async def test_a_client_waits_while_the_set_is_unknown(
    node_settings: Settings, management: CertificateAuthority, world: World
) -> None:
    """R57: told to come again, it comes in as soon as a portal has spoken."""
    world.serve(NAME, "employees")
    async with running(node_settings, management) as node:
        await attached(node)
        world.connect(ID, "employees")
        await until(lambda: "TEMP" in world.output("client-cdef"), seconds=15)

        await node.replace(1, connection())

        await until(lambda: world.pings(seconds=0.2), seconds=20)


async def test_clients_survive_a_restart_of_the_agent_with_one_session(
    node_settings: Settings, management: CertificateAuthority, world: World
) -> None:
    """R43, R97: and a client that came while no agent was attached comes in afterwards."""
    other = "f" * 32
    world.serve(NAME, "employees")
    async with running(node_settings, management) as node:
        await node.admit(connection(), AUTHORITY)
        await node.replace(2, connection(), connection(other, 2))
        world.connect(ID, "employees")
        await until(lambda: world.pings(seconds=0.2), seconds=20)
    assert await world.pings()
    client = world.connect(other, "employees")
    await until(lambda: "PUSH_REQUEST" in world.output("client-ffff"), seconds=15)

    async with running(node_settings, management) as node:
        await attached(node)
        assert await world.pings()
        await until(lambda: len(node.agent.processes[0].clients) == 2, seconds=20)
        world.stop(client)
        await until(lambda: len(node.agent.processes[0].clients) == 1, seconds=30)
        await node.cut(ID, 3)
        await until(lambda: node.agent.journal.head == 4, seconds=30)
        _, answer = await node.call("GET", "/n/events")

    assert [(e["kind"], e["connection_id"]) for e in answer["events"]] == [
        ("start", ID),
        ("start", other),
        ("end", other),
        ("end", ID),
    ]


async def test_an_expired_connection_is_cut_without_a_portal(
    node_settings: Settings, management: CertificateAuthority, world: World
) -> None:
    """R52."""
    world.serve(NAME, "employees")
    async with running(node_settings, management) as node:
        await node.replace(1, connection(seconds=8))
        world.connect(ID, "employees")
        await until(lambda: world.pings(seconds=0.2), seconds=7)

        await until(lambda: silent(world), seconds=10)

        await until(lambda: "AUTH_FAILED" in world.output("client-cdef"), seconds=15)


async def test_a_crashed_process_is_attached_to_again_and_its_sessions_end(
    node_settings: Settings, management: CertificateAuthority, world: World
) -> None:
    """R49."""
    server = world.serve(NAME, "employees")
    async with running(node_settings, management) as node:
        await node.replace(1, connection())
        world.connect(ID, "employees")
        await until(lambda: world.pings(seconds=0.2), seconds=20)
        world.stop(server, hard=True)
        await until(lambda: node.agent.processes[0].clients == {}, seconds=5)
        await until(lambda: node.agent.journal.head == 2)

        world.socket(NAME).unlink(missing_ok=True)
        world.serve(NAME, "employees")

        # A client notices the loss by its keepalive of 60 s; another one stands for it here.
        await attached(node)
        assert node.agent.problems() == []


async def test_a_hung_process_disturbs_nobody_else(
    settings: Settings,
    node_settings: Settings,
    management: CertificateAuthority,
    world: World,
    interface: Interface,
) -> None:
    """R50: an admission takes at most 500 ms meanwhile, over WireGuard too, and /n/info 200 ms."""
    server = world.serve(NAME, "employees")
    async with running(dataclasses.replace(settings, openvpn=node_settings.openvpn), management) as node:
        await node.replace(1, connection())
        world.connect(ID, "employees")
        await until(lambda: world.pings(seconds=0.2), seconds=20)
        pid = int(
            Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()[0]
            if Path(f"/proc/{server.pid}/comm").read_text().strip() == "ip"
            else server.pid
        )
        os.kill(pid, signal.SIGSTOP)
        try:
            admissions, questions = [], []
            generations = itertools.count(2)

            async def is_reported() -> bool:
                over_openvpn, over_wireguard = next(generations), next(generations)
                for made in (connection(f"{over_openvpn:032x}", over_openvpn), peer(over_wireguard)):
                    begin = time.monotonic()
                    assert await node.admit(made) == 204
                    admitted = time.monotonic()
                    await node.info()
                    admissions.append(admitted - begin)
                    questions.append(time.monotonic() - admitted)
                return bool(node.agent.problems())

            await until(is_reported, seconds=20)
            await node.cut(ID, next(generations))
            assert await is_reported()
            assert max(admissions) <= 0.5
            assert max(questions) <= 0.2
        finally:
            os.kill(pid, signal.SIGCONT)

        await until(lambda: node.agent.processes[0]._answers, seconds=15)
        await until(lambda: silent(world), seconds=10)
        assert node.agent.problems() == []

"""The agent with a real `wg` and a real interface, called over real mutual TLS."""

import asyncio
import subprocess
import time
from dataclasses import replace

import pytest

from node_agent.settings import Settings
from tests.agent.conftest import CertificateAuthority, Interface, peer, public_key, running, until

#: Peers of a node that is in use.
MANY = 1000


async def test_an_admitted_peer_is_usable_when_the_answer_comes(
    settings: Settings, management: CertificateAuthority, interface: Interface
) -> None:
    async with running(settings, management) as node:
        assert await node.admit(peer(1)) == 204

        assert interface.peers() == {str(peer(1).public_key): "10.64.0.3/32 fd00:64::3/128"}


async def test_a_cut_peer_is_gone_when_the_answer_comes(
    settings: Settings, management: CertificateAuthority, interface: Interface
) -> None:
    async with running(settings, management) as node:
        await node.admit(peer(1))

        usage = await node.cut(peer(1).connection_id, 2)

        assert interface.peers() == {}
        assert usage["connection_id"] == peer(1).connection_id
        assert usage["received_bytes"] == 0


async def test_an_address_is_taken_from_an_older_connection_that_still_has_it(
    settings: Settings, management: CertificateAuthority, interface: Interface
) -> None:
    async with running(settings, management) as node:
        await node.admit(peer(1))
        successor = replace(peer(2), ipv4=peer(1).ipv4, ipv6=peer(1).ipv6)

        assert await node.admit(successor) == 204

        assert interface.peers() == {str(successor.public_key): "10.64.0.3/32 fd00:64::3/128"}


async def test_a_set_removes_and_adds_what_differs(
    settings: Settings, management: CertificateAuthority, interface: Interface
) -> None:
    async with running(settings, management) as node:
        # One that is made a second later expires a second later, and is another one.
        stays = peer(2)
        await node.admit(peer(1))
        await node.admit(stays)

        answer = await node.replace(3, stays, peer(3))

        assert answer == (200, {"removed": 1, "added": 1, "generation": 3})
        assert set(interface.peers()) == {peer(2).public_key, peer(3).public_key}


@pytest.mark.slow
async def test_peers_changed_by_hand_are_put_right_and_reported(
    settings: Settings, management: CertificateAuthority, interface: Interface
) -> None:
    """R48."""
    async with running(settings, management) as node:
        await node.replace(3, peer(1), peer(2), peer(3))
        right = interface.peers()
        await until(lambda: node.agent.wireguard and len(node.agent.wireguard.seen.peers) == 3)
        stranger = public_key()
        interface.wg("set", interface.name, "peer", stranger, "allowed-ips", "10.64.9.9/32")
        interface.wg("set", interface.name, "peer", str(peer(1).public_key), "remove")
        interface.wg("set", interface.name, "peer", str(peer(2).public_key), "persistent-keepalive", "9")
        interface.wg("set", interface.name, "peer", str(peer(3).public_key), "allowed-ips", "10.64.7.7/32")

        await until(lambda: interface.peers() == right)

        assert "keepalive: every" not in interface.wg("show", interface.name).stdout
        wanted = {
            f"peer {stranger[:8]}… was added by hand, is removed",
            f"peer {str(peer(1).public_key)[:8]}… was removed by hand, is back",
            f"peer {str(peer(3).public_key)[:8]}… was altered by hand, is as it was",
        }
        told: set[str] = set()

        # A report follows its repair, and the four hands need not fall into one round.
        async def all_told() -> bool:
            told.update((await node.info())["problems"])
            return wanted <= told

        await until(all_told)


@pytest.mark.slow
async def test_a_restarted_agent_touches_no_unchanged_peer(
    settings: Settings, management: CertificateAuthority, interface: Interface
) -> None:
    """R46: of 1,000 none, and it is in step within 2 s."""
    async with running(settings, management) as node:
        await node.replace(MANY, *(peer(n) for n in range(1, MANY + 1)))
    before = interface.peers()
    calls: list[tuple[str, ...]] = []

    begin = time.monotonic()
    async with running(settings, management) as node:
        wireguard = node.agent.wireguard
        assert wireguard is not None
        run = wireguard._run

        async def record(*words: str) -> str:
            calls.append(words)
            return await run(*words)

        wireguard._run = record  # type: ignore[method-assign]
        await until(lambda: len(wireguard.seen.peers) == MANY)
        assert time.monotonic() - begin <= 2
        await until(lambda: len(calls) > 1, seconds=8)

    assert {words[0] for words in calls} == {"show"}
    assert interface.peers() == before


async def test_a_recreated_interface_gets_all_its_peers_back(
    settings: Settings, management: CertificateAuthority, interface: Interface
) -> None:
    """R45, R47: 1,000 within 2 s after it is up."""
    async with running(settings, management) as node:
        await node.replace(MANY, *(peer(n) for n in range(1, MANY + 1)))
        assert len(interface.peers()) == MANY
        assert settings.wireguard is not None
        interface.down()

        await until(settings.wireguard.restart_file.exists)
        assert f"WireGuard interface {interface.name} is missing" in (await node.info())["problems"]
        interface.up()
        await until(lambda: len(interface.peers()) == MANY, seconds=2)

        await until(lambda: node.agent.problems() == [])


async def test_the_interface_keeps_its_own_key_and_port(
    settings: Settings, management: CertificateAuthority, interface: Interface
) -> None:
    """N8."""
    before = [interface.wg("show", interface.name, what).stdout for what in ("public-key", "listen-port")]
    async with running(settings, management) as node:
        await node.admit(peer(1))
        info = await node.info()
        assert await node.admit(replace(peer(2), public_key=before[0].strip())) == 422
        await node.replace(9)

    after = [interface.wg("show", interface.name, what).stdout for what in ("public-key", "listen-port")]
    assert after == before
    assert info["wireguard_public_key"] == before[0].strip()


async def test_a_connection_ends_when_it_expires_without_a_portal(
    settings: Settings, management: CertificateAuthority, interface: Interface
) -> None:
    """R52."""
    async with running(settings, management) as node:
        now = int(node.agent.clock.now())
        await node.admit(replace(peer(1), expires_at=now + 2))
        assert interface.peers() != {}

        await until(lambda: interface.peers() == {}, seconds=6)

        assert node.agent.clock.now() >= now + 2


async def test_an_admission_while_the_interface_is_away_fails_and_is_made_up_for(
    settings: Settings, management: CertificateAuthority, interface: Interface
) -> None:
    interface.down()
    async with running(settings, management) as node:
        assert await node.admit(peer(1)) == 500
        interface.up()

        await until(lambda: set(interface.peers()) == {peer(1).public_key}, seconds=5)


async def test_many_admissions_at_once_all_arrive(
    settings: Settings, management: CertificateAuthority, interface: Interface
) -> None:

    async with running(settings, management) as node:
        answers = await asyncio.gather(*(node.admit(peer(n)) for n in range(1, 65)))

        assert set(answers) == {204}
        assert len(interface.peers()) == 64


async def test_a_command_names_no_private_key(
    settings: Settings, management: CertificateAuthority, interface: Interface
) -> None:
    """S2, S3: what the agent holds of the interface has no private key in it."""
    private = subprocess.run(
        ["wg", "show", interface.name, "private-key"], check=True, capture_output=True, text=True
    ).stdout.strip()
    async with running(settings, management) as node:
        await node.admit(peer(1))
        assert node.agent.wireguard is not None
        await until(lambda: node.agent.wireguard and node.agent.wireguard.seen.public_key)

        assert private not in repr(node.agent.wireguard.seen)


async def test_peers_come_back_after_a_reboot_without_a_portal(
    settings: Settings, management: CertificateAuthority, interface: Interface
) -> None:
    """R45: 1,000 within 2 s after it is up."""
    async with running(settings, management) as node:
        await node.replace(MANY, *(peer(n) for n in range(1, MANY + 1)))
    interface.down()
    interface.up()
    begin = time.monotonic()
    assert interface.peers() == {}

    async with running(settings, management):
        await until(lambda: len(interface.peers()) == MANY, seconds=2)
        assert time.monotonic() - begin <= 2


@pytest.mark.parametrize("damage", [b"", b"garbage\n", None])
async def test_lost_state_removes_no_peer_from_a_running_interface(
    settings: Settings, management: CertificateAuthority, interface: Interface, damage: bytes | None
) -> None:
    """R57: also not when the first thing that a portal says is an empty set (R58)."""
    async with running(settings, management) as node:
        await node.replace(9, *(peer(n) for n in range(1, 9)))
    path = settings.state_directory / "wanted"
    path.unlink() if damage is None else path.write_bytes(damage)

    async with running(settings, management) as node:
        await until(lambda: node.agent.wireguard and len(node.agent.wireguard.seen.peers) == 8)
        assert await node.admit(peer(20)) == 204
        assert (await node.replace(21))[0] == 409
        assert len(interface.peers()) == 9
        if damage is not None:
            assert "nothing is removed" in (await node.info())["problems"][0]

        assert (await node.replace(21, *(peer(n) for n in range(1, 8)), peer(20)))[0] == 200

        await until(lambda: len(interface.peers()) == 8)
        assert (await node.info())["problems"] == []


@pytest.mark.slow
async def test_what_a_damaged_file_tells_is_not_added_to_an_empty_interface(
    settings: Settings, management: CertificateAuthority, interface: Interface
) -> None:
    """R57: it may have been cut since; what expires is removed all the same."""
    async with running(settings, management) as node:
        soon = int(node.agent.clock.now()) + 3
        await node.replace(9, peer(1), replace(peer(2), expires_at=soon))
    path = settings.state_directory / "wanted"
    path.write_bytes(path.read_bytes() + b"garbage\n")
    interface.wg("set", interface.name, "peer", str(peer(1).public_key), "remove")

    async with running(settings, management) as node:
        await node.info()
        assert node.agent.store.unsure == {peer(1).connection_id, peer(2).connection_id}
        await until(lambda: interface.peers() == {}, seconds=8)
        await node.replace(9, peer(1))

        assert set(interface.peers()) == {peer(1).public_key}


@pytest.mark.slow
async def test_a_real_handshake_is_a_session_with_its_bytes(
    settings: Settings, management: CertificateAuthority, interface: Interface
) -> None:
    """I7, P2: from a client that connects, pings and is cut."""
    client = Interface(interface.name.replace("wgt", "wgc"))
    try:
        client.up()
        link = interface.name[-6:]
        for words in (
            f"link add s{link} netns {interface.namespace} type veth"
            f" peer name c{link} netns {client.namespace}",
            f"-n {interface.namespace} address add 10.98.8.1/30 dev s{link}",
            f"-n {client.namespace} address add 10.98.8.2/30 dev c{link}",
            f"-n {interface.namespace} link set s{link} up",
            f"-n {client.namespace} link set c{link} up",
            f"-n {interface.namespace} address add 10.64.0.1/17 dev {interface.name}",
            f"-n {client.namespace} address add 10.64.0.3/32 dev {client.name}",
            f"-n {interface.namespace} link set {interface.name} up",
            f"-n {client.namespace} link set {client.name} up",
            f"-n {client.namespace} route add 10.64.0.0/17 dev {client.name}",
        ):
            subprocess.run(["ip", *words.split()], check=True)
        port = interface.wg("show", interface.name, "listen-port").stdout.strip()
        server_key = interface.wg("show", interface.name, "public-key").stdout.strip()
        peer_words = ["allowed-ips", "10.64.0.0/17", "endpoint", f"10.98.8.1:{port}"]
        client.wg("set", client.name, "peer", server_key, *peer_words)
        connection = replace(peer(1), public_key=client.wg("show", client.name, "public-key").stdout.strip())
        async with running(replace(settings, log_origins=True), management) as node:
            await node.admit(connection)
            ping = ["ip", "netns", "exec", client.namespace, "ping", "-c2", "-i0.2", "-W5", "10.64.0.1"]
            process = await asyncio.create_subprocess_exec(*ping, stdout=subprocess.DEVNULL)
            assert await process.wait() == 0
            # On a busy machine a cut says what the last round has seen.
            wireguard, key = node.agent.wireguard, str(connection.public_key)
            assert wireguard is not None
            await until(
                lambda: key in wireguard.seen.counters and wireguard.seen.counters[key].received_bytes > 200
            )

            usage = await node.cut(connection.connection_id, 2)

            assert usage["active"]
            assert usage["received_bytes"] > 200
            assert usage["origin"] == "10.98.8.2"
            await until(lambda: node.agent.journal.head == 2)
            _, answer = await node.call("GET", "/n/events")
        start, end = answer["events"]
        assert (start["kind"], start["ipv4"], start["ipv6"]) == ("start", connection.ipv4, connection.ipv6)
        assert (end["kind"], end["session_id"]) == ("end", start["session_id"])
        assert end["received_bytes"] == usage["received_bytes"]
    finally:
        client.close()


async def test_a_key_that_comes_back_while_its_old_connection_is_cut_stays(
    settings: Settings, management: CertificateAuthority, interface: Interface
) -> None:
    """I4: an app connects again with the same key; both calls are on their way at once."""
    async with running(settings, management) as node:
        for generation in range(1, 60, 3):
            old = peer(1, generation)
            new = replace(peer(2, generation + 2), public_key=old.public_key)
            await node.admit(old)

            await asyncio.gather(node.cut(old.connection_id, generation + 1), node.admit(new))

            assert set(interface.peers()) == {old.public_key}
            await node.cut(new.connection_id, generation + 2)
            assert interface.peers() == {}


async def test_a_set_is_taken_while_the_interface_is_away(
    settings: Settings, management: CertificateAuthority, interface: Interface
) -> None:
    interface.down()
    async with running(settings, management) as node:
        assert (await node.replace(2, peer(1)))[0] == 200
        assert (await node.cut(peer(1).connection_id, 3))["connection_id"] == peer(1).connection_id
        assert (await node.replace(4, peer(2)))[0] == 200
        interface.up()

        await until(lambda: set(interface.peers()) == {peer(2).public_key}, seconds=5)


async def test_a_repair_planned_before_a_cut_does_not_undo_it(
    settings: Settings, management: CertificateAuthority, interface: Interface
) -> None:
    """I3: 1,000 peers are being restored while some are cut."""
    async with running(settings, management) as node:
        await node.replace(2000, *(peer(n, 1) for n in range(1, 1001)))
        interface.down()
        interface.up()
        await until(lambda: 0 < len(interface.peers()) < 1000, seconds=5)

        await asyncio.gather(*(node.cut(peer(n).connection_id, 2000 + n) for n in range(1000, 900, -1)))

        gone = {str(peer(n).public_key) for n in range(901, 1001)}
        assert not gone & interface.peers().keys()
        await until(lambda: len(interface.peers()) == 900)
        assert not gone & interface.peers().keys()


async def test_a_hung_interface_is_reported_and_does_not_stop_the_agent(
    settings: Settings,
    management: CertificateAuthority,
    interface: Interface,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node_agent.wireguard.CALL_SECONDS", 0.5)
    async with running(settings, management) as node:
        await node.replace(1, peer(1))
        interface.pause()
        try:
            assert await node.admit(peer(2)) == 500
            await until(lambda: f"{interface.name}: no answer" in str(node.agent.problems()))
            await node.info()
        finally:
            interface.resume()

        await until(lambda: len(interface.peers()) == 2, seconds=8)
        await until(lambda: node.agent.problems() == [])

"""The HTTP surface over mutual TLS: strict, and refusals as careful as successes (N11, R56, R58, R66)."""

import asyncio
import contextlib
import datetime
import email.utils
import json
import logging
import os
import ssl
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from node_agent.records import RecordFile
from node_agent.settings import Settings
from tests.agent.conftest import (
    AUTHORITY,
    CLIENT,
    SERVER,
    CertificateAuthority,
    Running,
    peer,
    portal_context,
    running,
    until,
)
from vpn_core.messages import Authority, Connection, Events, NodeInfo, Usage


@pytest.fixture
def openvpn_settings(settings: Settings, tmp_path: Path) -> Settings:
    """A node without WireGuard, whose OpenVPN process is away: nothing but HTTP is needed."""
    base = {
        "name": "employees-0",
        "profile_id": "employees",
        "device": "tun0",
        "socket": str(tmp_path / "none.sock"),
        "ipv4": "10.80.1.0/25",
        "ipv6": "fd00:80:1::/112",
    }
    process = (
        type(settings)
        .parse(
            {
                "node_number": 1,
                "certificate_file": "",
                "key_file": "",
                "ca_file": "",
                "openvpn": [base],
            },
            "test",
        )
        .openvpn
    )
    return replace(settings, wireguard=None, openvpn=process)


def connection(number: int = 1, generation: int = 1) -> Connection:
    return Connection(
        connection_id=f"{number:032x}",
        profile_id="employees",
        protocol="openvpn",
        expires_at=4_000_000_000,
        generation=generation,
        common_name=f"{number:032x}",
    )


def admission(c: Connection) -> dict[str, Any]:
    return {"authority": AUTHORITY.to_dict(), "connection": c.to_dict()}


PATH = f"/n/connections/{1:032x}"


async def test_info_says_who_it_is_and_is_the_same_at_both_paths(
    openvpn_settings: Settings, management: CertificateAuthority
) -> None:
    async with running(openvpn_settings, management) as node:
        _, info = await node.call("GET", "/n/info")
        _, alias = await node.call("GET", "/i/node")

        parsed = NodeInfo.parse(info)
        assert (parsed.node_number, parsed.profiles) == (1, {"employees": ["openvpn"]})
        assert info.keys() == alias.keys()
        assert info["instance_id"] == alias["instance_id"]


async def test_admit_cut_and_set_are_known_at_the_next_question(
    openvpn_settings: Settings, management: CertificateAuthority
) -> None:
    async with running(openvpn_settings, management) as node:
        assert await node.admit(connection()) == 204
        _, usage = await node.call("GET", "/n/usage")
        assert [Usage.parse(u).connection_id for u in usage["usage"]] == [connection().connection_id]

        assert Usage.parse(await node.cut(connection().connection_id, 2)).received_bytes == 0
        assert (await node.call("PUT", PATH, admission(connection())))[0] == 409
        assert await node.replace(3, connection(2, 2)) == (200, {"removed": 0, "added": 1, "generation": 3})
        info = await node.info()
        assert (info["generation"], info["connection_count"]) == (3, 1)


async def test_another_machine_or_boot_than_is_meant_obeys_nothing(
    openvpn_settings: Settings, management: CertificateAuthority
) -> None:
    """R60: a clone has certificate and instance of its original; a boot of its own it cannot deny."""
    async with running(openvpn_settings, management) as node:
        own, another = (await node.info())["boot_id"], "c" * 32
        whole = {"authority": AUTHORITY.to_dict(), "generation": 1, "connections": []}
        for method, path, body in (("PUT", PATH, admission(connection())), ("PUT", "/n/connections", whole)):
            refused, said = await node.call(method, path, body, headers={"If-Match": f'"{another}"'})
            assert (refused, own in said["error"]) == (412, True)
            assert (await node.info())["connection_count"] == 0

        assert (await node.call("PUT", PATH, admission(connection()), headers={"If-Match": f'"{own}"'}))[
            0
        ] == 204


async def test_usage_of_some_connections_is_of_no_others(
    openvpn_settings: Settings, management: CertificateAuthority
) -> None:
    """A page of the portal asks for its rows only: a node has up to ten thousand."""
    async with running(openvpn_settings, management) as node:
        for number in (1, 2, 3):
            assert await node.admit(connection(number, number)) == 204

        async def asked(ids: str) -> tuple[int, list[str]]:
            status, answer = await node.call("GET", f"/n/usage?connections={ids}")
            return status, [usage["connection_id"] for usage in answer.get("usage", [])]

        first, third, unknown = f"{1:032x}", f"{3:032x}", "f" * 32
        assert await asked(f"{third},{unknown},{first},{third}") == (200, [third, first])
        assert await asked(unknown) == (200, [])
        many = ",".join(f"{number:032x}" for number in range(200))
        assert (await asked(many))[1] == [first, f"{2:032x}", third]
        for bad in ("", "x", f"{first},", f"{first}%00", f"{first}&connections={third}", f"{many},{unknown}"):
            assert (await asked(bad))[0] == 400, bad[:80]


async def test_info_is_answered_while_a_whole_set_is_compared(
    openvpn_settings: Settings, management: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ten thousand connections that takes a while."""
    async with running(openvpn_settings, management) as node:
        begun, answered = asyncio.Event(), threading.Event()
        loop, compare = asyncio.get_running_loop(), node.agent.store.compare

        def slowly(*arguments: Any) -> Any:
            loop.call_soon_threadsafe(begun.set)
            assert answered.wait(10)
            return compare(*arguments)

        monkeypatch.setattr(node.agent.store, "compare", slowly)
        replacing = asyncio.create_task(node.replace(1, connection()))
        await asyncio.wait_for(begun.wait(), 10)

        assert (await node.info())["connection_count"] == 0

        answered.set()
        assert (await replacing)[0] == 200


async def test_a_held_set_is_refused_with_its_reason_and_shown(
    openvpn_settings: Settings, management: CertificateAuthority
) -> None:
    """R58."""
    foreign = Authority("b" * 32, 7)
    async with running(openvpn_settings, management) as node:
        await node.replace(1, connection())

        status, answer = await node.replace(2, authority=foreign)

        assert status == 409
        assert "bbbbbbbb" in answer["error"]
        assert "bbbbbbbb" in (await node.info())["held"]
        assert (await node.info())["connection_count"] == 1
        assert "removed 1, added 0" in await node.agent.accept()
        info = await node.info()
        assert (info["held"], info["connection_count"], info["epoch"]) == ("", 0, 7)


async def test_maintenance_survives_a_restart_and_so_does_the_instance(
    openvpn_settings: Settings, management: CertificateAuthority
) -> None:
    async with running(openvpn_settings, management) as node:
        before = await node.info()
        assert await node.call("PUT", "/n/maintenance", {"on": True}) == (204, None)

    async with running(openvpn_settings, management) as node:
        after = await node.info()

    assert (before["maintenance_mode"], after["maintenance_mode"]) == (False, True)
    assert after["instance_id"] == before["instance_id"]
    assert after["boot_id"] == before["boot_id"]


BAD: list[tuple[str, str, object]] = [
    ("PUT", PATH, {}),
    ("PUT", PATH, []),
    ("PUT", PATH, {"authority": AUTHORITY.to_dict()}),
    ("PUT", PATH, admission(connection()) | {"more": 1}),
    ("PUT", PATH, admission(connection(2))),
    ("PUT", "/n/connections/ABC", admission(connection())),
    ("PUT", PATH, {"authority": {"deployment_id": "a" * 32, "epoch": "1"}, "connection": {}}),
    ("PUT", PATH, {"authority": AUTHORITY.to_dict(), "connection": connection().to_dict() | {"ipv4": "x"}}),
    ("DELETE", PATH, {"authority": AUTHORITY.to_dict(), "generation": -1}),
    ("DELETE", PATH, {"authority": AUTHORITY.to_dict(), "generation": True}),
    ("PUT", "/n/connections", {"authority": AUTHORITY.to_dict(), "generation": 1, "connections": {}}),
    (
        "PUT",
        "/n/connections",
        {
            "authority": AUTHORITY.to_dict(),
            "generation": 1,
            "connections": [connection().to_dict(), connection().to_dict()],
        },
    ),
    ("PUT", "/n/maintenance", {"on": 1}),
    ("PUT", "/n/maintenance", {"on": True, "off": False}),
    ("GET", "/n/events?after=-1", None),
    ("GET", "/n/events?after=1&after=2", None),
    ("GET", "/n/events?journal=x", None),
    ("GET", "/n/events?since=1", None),
    ("GET", "/n/info?x=1", None),
]


async def test_wrong_shapes_are_400_and_change_nothing(
    openvpn_settings: Settings, management: CertificateAuthority
) -> None:
    """N11, R56."""
    async with running(openvpn_settings, management) as node:
        for method, path, body in BAD:
            status, answer = await node.call(method, path, body)
            assert status == 400, (method, path, body)
            assert answer["error"]
        for raw in (b"", b"{", b"\xff\xfe", b'{"on": true, "on": false}', b'{"on": NaN}', b"[" * 100_000):
            status, _ = await node.call("PUT", "/n/maintenance", data=raw)
            assert status in (400, 413), raw[:20]
        cut_short = json.dumps(admission(connection())).encode()[:-1]
        assert (await node.call("PUT", PATH, data=cut_short))[0] == 400
        info = await node.info()
        assert (info["connection_count"], info["generation"], info["deployment_id"]) == (0, 0, None)
        assert not info["maintenance_mode"]


async def test_unknown_paths_and_wrong_methods(
    openvpn_settings: Settings, management: CertificateAuthority
) -> None:
    """N11."""
    async with running(openvpn_settings, management) as node:
        for method, path, status in (
            ("GET", "/", 404),
            ("GET", "/n/nothing", 404),
            ("GET", "/status", 404),
            ("POST", "/accept", 404),
            ("POST", "/n/info", 405),
            ("HEAD", "/n/info", 405),
            ("GET", PATH, 405),
            ("GET", "/n/connections", 405),
            ("PATCH", PATH, 405),
        ):
            answer = await node.call(method, path)
            assert answer[0] == status, (method, path)


async def test_a_large_body_is_413(openvpn_settings: Settings, management: CertificateAuthority) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1024

    async with running(openvpn_settings, management) as node:
        assert (await node.call("PUT", PATH, data=b" " * 70_000))[0] == 413
        assert (await node.call("PUT", PATH, data=endless()))[0] == 413


async def test_what_the_node_does_not_serve_is_422(
    settings: Settings, management: CertificateAuthority
) -> None:
    """N8."""
    async with running(settings, management) as node:
        for c in (
            replace(peer(1), profile_id="other"),
            replace(peer(1), ipv4="10.65.0.9"),
            replace(peer(1), ipv6="fd00:65::9"),
            replace(peer(1), ipv4="10.64.0.1"),
            replace(peer(1), ipv4="10.64.0.0"),
            replace(peer(1), ipv4="10.64.127.255"),
            replace(peer(1), ipv6="fd00:64::1"),
            replace(peer(1), ipv6="fd00:64::"),
            replace(peer(1), ipv6="fd00:64::ffff"),
            replace(peer(1), expires_at=1000),
            connection(),
        ):
            assert await node.admit(c) == 422, c
        assert (await node.info())["connection_count"] == 0


async def test_a_full_disk_stops_nobody_and_is_reported(
    openvpn_settings: Settings, management: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R72."""

    def full(self: RecordFile, records: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("node_agent.records.RETRY_SECONDS", 0.1)
    async with running(openvpn_settings, management) as node:
        await node.admit(connection())
        with monkeypatch.context() as patch:
            patch.setattr(RecordFile, "_append", full)
            patch.setattr(RecordFile, "_replace", full)

            assert await node.admit(connection(2, 2)) == 204

            info = await node.info()
            assert info["connection_count"] == 2
            assert "cannot save wanted: No space left on device" in info["problems"]
        await until(lambda: not [p for p in node.agent.problems() if "cannot save" in p])

    async with running(openvpn_settings, management) as node:
        assert (await node.info())["connection_count"] == 2


async def test_the_journal_is_acknowledged_only_under_its_own_id(
    openvpn_settings: Settings, management: CertificateAuthority
) -> None:
    """R97."""
    async with running(openvpn_settings, management) as node:
        await node.replace(1, connection())
        process = node.agent.processes[0]
        process._start(1, connection().connection_id, 1_000_000, "10.80.1.2", "fd00:80:1::2", "198.51.100.7")
        process._end_all()
        await until(lambda: node.agent.journal.head == 2)
        journal_id = node.agent.journal.journal_id

        _, first = await node.call("GET", "/n/events?after=0")
        _, foreign = await node.call("GET", f"/n/events?after=2&journal={'e' * 32}")
        _, again = await node.call("GET", f"/n/events?after=1&journal={journal_id}")
        _, done = await node.call("GET", f"/n/events?after=2&journal={journal_id}")

        assert [e.sequence for e in Events.parse(first).events] == [1, 2]
        assert foreign == first
        assert [e.sequence for e in Events.parse(again).events] == [2]
        assert (done["events"], done["first"], done["head"]) == ([], 3, 2)
        assert first["events"][0]["origin"] is None


async def test_expiry_follows_the_portals_time(
    openvpn_settings: Settings, management: CertificateAuthority
) -> None:
    """R61."""
    async with running(openvpn_settings, management) as node:
        date = email.utils.format_datetime(
            datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2), usegmt=True
        )
        body = {"authority": AUTHORITY.to_dict(), "generation": 1, "connections": []}
        assert (await node.call("PUT", "/n/connections", body, headers={"Date": date}))[0] == 200

        problems = (await node.info())["problems"]
        soon = replace(connection(1, 2), expires_at=int(node.agent.clock.now()) - 5)
        assert await node.admit(soon) == 422
        assert any("clock is -17" in p for p in problems)


def in_days(days: int) -> dict[str, str]:
    """Return the ``Date`` header of a portal whose clock is so many days ahead."""
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    return {"Date": email.utils.format_datetime(then, usegmt=True)}


async def test_a_set_that_does_not_count_moves_no_clock(
    openvpn_settings: Settings, management: CertificateAuthority
) -> None:
    """R58, R61: a test system that was restored from a copy a year later ends nobody's connection."""
    other = AUTHORITY.to_dict() | {"deployment_id": "f" * 32}
    async with running(openvpn_settings, management) as node:
        await node.replace(5, connection())
        now = node.agent.clock.now()
        for authority, generation, status in ((other, 9, 409), (AUTHORITY.to_dict(), 4, 200)):
            body = {"authority": authority, "generation": generation, "connections": []}
            headers = in_days(365)
            assert (await node.call("PUT", "/n/connections", body, headers=headers))[0] == status

        assert node.agent.clock.now() - now < 3600
        assert node.agent.store.entries.keys() == {connection().connection_id}


async def test_the_portals_time_is_kept_over_a_restart(
    openvpn_settings: Settings, management: CertificateAuthority
) -> None:
    """R61."""
    body = {"authority": AUTHORITY.to_dict(), "generation": 1, "connections": []}
    async with running(openvpn_settings, management) as node:
        assert (await node.call("PUT", "/n/connections", body, headers=in_days(2)))[0] == 200

    async with running(openvpn_settings, management) as node:
        await node.info()
        assert -3 * 86_400 < node.agent.clock.skew_seconds < -86_400


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\n", b"short\n"])
async def test_a_damaged_instance_id_is_made_anew(
    openvpn_settings: Settings, management: CertificateAuthority, damage: bytes
) -> None:
    """R57, R72: the file was cut short by a full disk or a power cut."""
    path = openvpn_settings.state_directory / "instance-id"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(damage)
    async with running(openvpn_settings, management) as node:
        first = (await node.info())["instance_id"]
    async with running(openvpn_settings, management) as node:
        assert (await node.info())["instance_id"] == first
    assert path.read_text().strip() == first


async def _refused(node: Running, context: ssl.SSLContext) -> None:
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises((aiohttp.ClientError, OSError)):
            async with session.get(node.url + "/n/info", server_hostname="node-1") as answer:
                await answer.read()


async def test_strangers_end_in_the_handshake(
    openvpn_settings: Settings,
    management: CertificateAuthority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """N1, R66: no certificate, or one of a foreign CA, of a node, expired, or not made for clients."""
    foreign = CertificateAuthority(tmp_path, "foreign")
    async with running(openvpn_settings, management) as node:
        without = ssl.create_default_context(cafile=management.file)
        await _refused(node, without)
        for files in (
            foreign.sign("portal", CLIENT),
            management.sign("node-2", SERVER),
            management.sign("node-2", CLIENT, file="node-2-client"),
            management.sign("portal", SERVER, file="portal-server"),
            management.sign("portal", None, file="portal-any"),
            management.sign("portal", CLIENT, days=-1, file="portal-expired"),
            management.sign("portal.example.org", CLIENT),
        ):
            await _refused(node, portal_context(management, files))
        old = portal_context(management)
        old.minimum_version = ssl.TLSVersion.TLSv1_2
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        await _refused(node, old)
        assert (await node.call("GET", "/n/info"))[0] == 200

    lines = [r.getMessage() for r in caplog.records if "event=refused" in r.getMessage()]
    assert len(lines) == 1
    assert "source=127.0.0.1" in lines[0]


async def test_a_stranger_gets_not_one_byte_of_http(
    openvpn_settings: Settings, management: CertificateAuthority
) -> None:
    """R66: also one that writes without waiting for the end of the handshake."""
    files = management.sign("node-3", CLIENT)
    async with running(openvpn_settings, management) as node:
        port = node.service.port
        got = b""
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=portal_context(management, files), server_hostname="node-1"
            )
            writer.write(b"GET /n/info HTTP/1.1\r\nHost: node-1\r\n\r\n")
            got = await reader.read()
            writer.close()
        assert got == b""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /n/info HTTP/1.1\r\nHost: node-1\r\n\r\n")
        assert b"HTTP" not in await reader.read()
        writer.close()


async def test_a_withdrawn_certificate_is_refused(
    openvpn_settings: Settings, management: CertificateAuthority
) -> None:
    """N5."""
    from cryptography import x509

    files = management.sign("portal", CLIENT, file="portal-stolen")
    serial = x509.load_pem_x509_certificate(files[0].read_bytes()).serial_number
    async with running(replace(openvpn_settings, withdrawn=(f"{serial:x}",)), management) as node:
        await _refused(node, portal_context(management, files))
        assert (await node.call("GET", "/n/info"))[0] == 200


async def test_a_renewed_certificate_is_loaded_without_dropping_a_connection(
    openvpn_settings: Settings, management: CertificateAuthority, tmp_path: Path
) -> None:
    """R68: and files that cannot be used leave the old ones in place."""
    certificate, key = tmp_path / "agent.crt", tmp_path / "agent.key"
    certificate.write_bytes(openvpn_settings.certificate_file.read_bytes())
    key.write_bytes(openvpn_settings.key_file.read_bytes())
    renewed = management.sign("node-1", SERVER, file="node-1-renewed")
    async with running(
        replace(openvpn_settings, certificate_file=certificate, key_file=key), management
    ) as node:
        await node.info()

        async def serial() -> int:
            _, writer = await asyncio.open_connection(
                "127.0.0.1", node.service.port, ssl=portal_context(management), server_hostname="node-1"
            )
            found = writer.get_extra_info("peercert")["serialNumber"]
            writer.close()
            return int(found, 16)

        first = await serial()
        certificate.write_bytes(b"not a certificate")
        assert await serial() == first
        assert "the old ones serve on" in (await node.info())["problems"][0]
        certificate.write_bytes(renewed[0].read_bytes())
        key.write_bytes(renewed[1].read_bytes())
        os.utime(certificate, (2_000_000_000, 2_000_000_000))
        assert await serial() != first
        assert "serve on" not in str((await node.info())["problems"])


async def test_what_goes_wrong_inside_is_500_and_tells_nothing(
    openvpn_settings: Settings, management: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(openvpn_settings, management) as node:
        monkeypatch.setattr(node.agent, "info", lambda: 1 / 0)
        logging.getLogger("node_agent.app").disabled = True
        try:
            assert await node.call("GET", "/n/info") == (500, {"error": "internal error"})
        finally:
            logging.getLogger("node_agent.app").disabled = False

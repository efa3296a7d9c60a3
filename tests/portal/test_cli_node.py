"""``vpn-portal node``, ``deployment``, ``status`` and ``check``."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from sqlalchemy import insert, text, update

from portal_app import db, migrations
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import Offer, VpnSession
from portal_app.settings import Settings
from tests.portal.agent_server import AgentServer
from tests.portal.commands import Done
from tests.portal.conftest import apply_plan, seen_up


def info(**changes: object) -> dict[str, object]:
    return {
        "v": "1.2", "rel_load_average": [37, 20, 10], "cpu_count": 2, "node_uptime": 60, "w_peer_count": 3,
        "o_client_count": 4, "held": "", "problems": [], "clock_skew_seconds": 0,
    } | changes  # fmt: skip


def only_node(run: Callable[..., Done]) -> dict[str, object]:
    (found,) = json.loads(run("node", "list", "--json").out)
    return dict(found)


def test_list_shows_a_node_as_it_was_last_seen(run):
    apply_plan({0: "192.0.2.10"})
    seen_up(0, info=info())

    head, line = run("node", "list").out.splitlines()

    assert head.split() == [
        "node", "number", "state", "connections", "active", "load", "version", "seen", "remarks",
    ]  # fmt: skip
    assert line.split()[:7] == ["node0", "0", "up", "0", "7", "37%", "1.2"]


def test_load_is_told_beside_what_the_node_has(run):
    apply_plan({0: "192.0.2.10"})
    seen_up(0, info=info(rel_load_average=[178, 20, 10]))

    (line,) = [x for x in run("node", "show", "node0").out.splitlines() if x.startswith("  load ")]

    assert line.split(maxsplit=1)[1] == "178 %: work for 3.6 CPU, it has 2"


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        ({}, "up"),
        ({"maintenance_mode": True}, "maintenance"),
        ({"failing_since": utc_now(), "error": "node0: no answer"}, "down"),
        ({"answered_at": utc_now() - timedelta(seconds=60)}, "down"),
        ({"failing_since": utc_now(), "error": "held: x", "info": info(held="x")}, "held"),
        ({"answered_at": None, "error": None}, "never seen"),
        ({"answered_at": None, "error": "node0: no answer"}, "down"),
    ],
)
def test_state_is_one_word_and_only_up_takes_connections(run, seen, state):
    apply_plan({0: "192.0.2.10"})
    seen_up(0, **({"info": info()} | seen))

    assert only_node(run)["state"] == state


def test_remarks_tell_what_is_wrong(run):
    """R61, R72."""
    apply_plan({0: "192.0.2.10"})
    seen_up(0, info=info(problems=["cannot save wanted: No space left on device"], clock_skew_seconds=-90))

    assert only_node(run)["remarks"] == [
        "cannot save wanted: No space left on device",
        "clock is 90 s behind",
    ]


def test_unknown_node_is_refused_with_the_known_ones(run):
    apply_plan({0: "192.0.2.10", 1: "192.0.2.11"})

    done = run("node", "maintenance", "nod0", "on")

    assert (done.status, done.error) == (1, "vpn-portal: no node 'nod0'; known are node0, node1\n")


def test_node_that_does_not_answer_is_one_line(run):
    apply_plan({0: "127.0.0.254"})

    done = run("node", "reconcile", "node0")

    assert done.status == 1
    assert done.error.startswith("vpn-portal: node0: ")
    assert done.error.count("\n") == 1


def fill(profile_id: str, *, active: int = 0, allocated: int = 0, protocol: str = "wireguard") -> None:
    """Let a profile on node 0 have sessions going on, and addresses given out."""
    sessions = [
        {"node_number": 0, "session_id": f"{n:032x}", "connection_id": f"{n:032x}", "profile_id": profile_id,
         "protocol": protocol, "started_at": utc_now(), "ended_at": None if n < active else utc_now()}
        for n in range(active + 2)
    ]  # fmt: skip
    with transaction() as session:
        session.execute(insert(VpnSession), sessions)
        session.execute(update(Offer).where(Offer.profile_id == profile_id).values(allocated=allocated))


def test_status_by_node_counts_connections_and_users_of_each_share_and_process(run):
    """What a deployment would interrupt: a user with two devices is one user, who left is none."""
    plan = apply_plan({0: "192.0.2.10", 1: "192.0.2.11"})
    process = next(p for p in plan["nodes"]["node1"]["openvpn"] if p["name"] == "legacy-1")
    rows = [
        ("employees", "wireguard", "alice", None, None),
        ("employees", "wireguard", "alice", None, None),
        ("lab", "wireguard", "alice", None, None),
        ("lab", "wireguard", "bob", None, utc_now()),
        ("legacy", "openvpn", "bob", str(IPv4Address(process["ipv4_address"]) + 2), None),
    ]
    with transaction() as session:
        session.execute(
            insert(VpnSession),
            [{"node_number": 1, "session_id": f"{n:032x}", "connection_id": f"{n:032x}", "ended_at": ended,
              "profile_id": profile, "protocol": protocol, "user_name": user, "ipv4": ipv4,
              "started_at": utc_now()}
             for n, (profile, protocol, user, ipv4, ended) in enumerate(rows)],
        )  # fmt: skip
        session.execute(update(Offer).where(Offer.profile_id == "lab").values(allocated=3))

    empty, node1 = json.loads(run("status", "--by-node", "--json").out)

    assert (node1["node"], node1["number"]) == ("node1", 1)
    assert node1["wireguard"] == {"connections": 3, "users": 1}
    assert {s["profile_id"]: (s["connected"]["connections"], s["allocated"]) for s in node1["shares"]} == {
        "employees": (2, 0), "lab": (1, 3),
    }  # fmt: skip
    processes = {
        p["name"]: (p["connected"]["connections"], p["connected"]["users"]) for p in node1["processes"]
    }
    assert processes == {
        "employees-0": (0, 0), "employees-1": (0, 0), "legacy-0": (0, 0), "legacy-1": (1, 1)
    }  # fmt: skip
    assert empty["wireguard"]["connections"] == 0
    line = next(x for x in run("status", "--by-node").out.splitlines() if "tcp/1195" in x and "node1" in x)
    assert line.split() == [
        "node1",
        "legacy",
        "OpenVPN",
        "tcp/1195",
        "1",
        "1",
        "-",
        str(process["max_clients"]),
    ]


def test_status_by_node_has_no_csv(run):
    assert run("status", "--by-node", "--csv").error == "vpn-portal: --by-node has no --csv; use --json\n"


def test_status_has_the_known_columns(run):
    """Spec portal.md, section 7."""
    apply_plan({0: "192.0.2.10"})
    fill("employees", active=5, allocated=511)

    first = json.loads(run("status", "--json").out)[0]

    assert first == {
        "profile_id": "employees",
        "active_connection_count": 5,
        "max_connection_count": 1021 + 2 * 508,
        "percentage_in_use": 0,
        "openvpn_max_connection_count": 2 * 508,
        "openvpn_active_connection_count": 0,
        "wireguard_max_connection_count": 1021,
        "wireguard_active_connection_count": 5,
        "wireguard_allocated_ip_count": 511,
        "wireguard_free_ip_count": 510,
        "wireguard_percentage_allocated": 50,
    }
    lines = run("status", "--csv").out.splitlines()
    assert lines[0].split(",") == list(first)
    assert lines[1] == ",".join(str(value) for value in first.values())
    assert run("status").out.splitlines()[1].split()[:2] == ["employees", "5"]


def test_alert_prints_full_profiles_only(run):
    """R62: an alarm before the range is full; nothing for cron to mail otherwise."""
    apply_plan({0: "192.0.2.10"})
    fill("lab", allocated=920)

    assert run("status", "--alert", "91").out == ""
    assert run("status", "--alert", "90").out.splitlines()[1].split()[0] == "lab"
    assert len(run("status", "--alert").out.splitlines()) == 2
    assert [p["profile_id"] for p in json.loads(run("status", "--json", "--alert", "50").out)] == ["lab"]


def test_session_of_openvpn_counts_as_such(run):
    apply_plan({0: "192.0.2.10"})
    fill("legacy", active=2, protocol="openvpn")

    legacy = json.loads(run("status", "--json").out)[2]

    assert (legacy["openvpn_active_connection_count"], legacy["wireguard_active_connection_count"]) == (2, 0)


def test_alert_wants_a_percentage(run):
    with pytest.raises(SystemExit) as ended:
        run("status", "--alert", "200")
    assert ended.value.code == 2


def test_deployment_is_shown_and_its_epoch_goes_up(run):
    assert run("deployment", "show").status == 1
    assert run("deployment", "new-epoch").status == 1
    apply_plan({0: "192.0.2.10"})
    shown = json.loads(run("deployment", "show", "--json").out)
    seen_up(0, info=info(epoch=7, deployment_id=shown["deployment_id"]))

    assert run("deployment", "new-epoch").out == "epoch 1 → 8; the nodes follow within seconds\n"

    assert run("deployment", "show").out == f"deployment {shown['deployment_id']}, epoch 8\n"


@pytest.fixture
def private(settings: Settings) -> Iterator[list[Path]]:
    """Give secrets the modes that the role gives them."""
    assert settings.database_url_file is not None
    files = [
        settings.secret_key_file, settings.client_ca_key_file, settings.management_key_file,
        settings.database_url_file, *settings.tls_crypt_directory.glob("*.key"),
    ]  # fmt: skip
    modes = [file.stat().st_mode for file in files]
    for file in files:
        file.chmod(0o640)
    yield files
    for file, mode in zip(files, modes, strict=True):
        file.chmod(mode)


@pytest.fixture
def shown(deployment, monkeypatch) -> None:
    """A web server on this host that shows a certificate of ten years."""
    certificate = x509.load_pem_x509_certificate(deployment.portal.certificate.read_bytes())
    monkeypatch.setattr("portal_app.services.peers.web_certificate", lambda _name: certificate)


@pytest.mark.usefixtures("migrated", "private", "shown")
def test_check_passes_on_a_healthy_portal(node: AgentServer, run):
    done = run("check")

    lines = {line.split()[1]: line.split()[0] for line in done.out.splitlines()[1:]}
    assert set(lines.values()) == {"PASS"}, done.out
    assert done.status == 0
    assert "node node0" in done.out


@pytest.mark.usefixtures("migrated", "private", "shown")
def test_check_finds_what_is_wrong(node: AgentServer, run, settings):
    """Each finding has its own line, and all of them are looked at."""
    key = settings.management_key_file
    node.mode = "silent"
    key.chmod(0o644)

    done = run("check")

    failed = [line for line in done.out.splitlines() if line.startswith("FAIL")]
    assert done.status == 1
    assert len(failed) == 2
    assert failed[0].split()[1] == str(key)
    assert failed[0].endswith("mode 0644 lets others in; make it 0640 or 0600")
    assert "node node0" in failed[1]


@pytest.mark.usefixtures("migrated", "private", "node")
@pytest.mark.parametrize(("days", "passed"), [(0, True), (2400, True), (2500, False), (3700, False)])
@pytest.mark.parametrize("whose", ["management certificate", "certificate of node0"])
def test_check_says_long_before_that_certificates_end(run, monkeypatch, days, passed, whose):
    """R68: of ten years a third is left after 2433 days, the time to renew it."""
    monkeypatch.setattr("portal_app.cli.check.utc_now", lambda: utc_now() + timedelta(days=days))

    (line,) = [line for line in run("check").out.splitlines() if whose in line]

    assert line.startswith("PASS" if passed else "FAIL")
    assert ("serial " in line) == passed
    assert line.endswith("run site.yml, which renews it") != passed


@pytest.mark.usefixtures("shown")
@pytest.mark.parametrize(("days", "passed"), [(0, True), (2400, True), (2500, False), (3700, False)])
def test_check_says_long_before_that_the_web_certificate_ends(run, monkeypatch, days, passed):
    """R67."""
    monkeypatch.setattr("portal_app.cli.check.utc_now", lambda: utc_now() + timedelta(days=days))

    (line,) = [line for line in run("check").out.splitlines() if "web certificate" in line]

    assert line.startswith("PASS" if passed else "FAIL")
    assert line.endswith(" days left") == passed
    assert ("Look at its renewal on this host" in line) != passed


def test_check_fails_where_no_web_server_shows_a_certificate(run, monkeypatch):
    monkeypatch.setattr("portal_app.services.peers.web_certificate", lambda _name: None)

    (line,) = [line for line in run("check").out.splitlines() if "web certificate" in line]

    assert line.startswith("FAIL")
    assert line.endswith("systemctl status nginx")


def test_check_without_migration_says_so(run):
    done = run("check")

    assert done.status == 1
    assert "at nothing, needs" in done.out
    assert "run vpn-portal migrate" in done.out


@pytest.fixture
def migrated(app: object) -> Iterator[None]:
    """The schema of the tests was made from the models; say that migrations did it."""
    with db.engine().begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": migrations.head()})
    yield
    with db.engine().begin() as connection:
        connection.exec_driver_sql("DROP TABLE alembic_version")

"""What must be the same on every portal, and how a difference is named."""

import dataclasses
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID
from sqlalchemy import select

from portal_app.clock import utc_now
from portal_app.controller.loop import Controller
from portal_app.db import transaction
from portal_app.models import AuditEvent
from portal_app.services import peers
from portal_app.settings import Settings
from tests.portal.commands import Done


@pytest.fixture
def other(app: object, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let portal p2 say what it has: ``other(portal_name="x")`` is what differs in its settings."""

    def introduce(ago: timedelta = timedelta(), **changes: object) -> None:
        theirs = peers.digests(dataclasses.replace(settings, **changes))  # type: ignore[arg-type]
        peers.introduce("p2", theirs, utc_now() - ago)

    monkeypatch.setattr(peers, "host_name", lambda: "p1")
    return introduce


def compared(run: Callable[..., Done]) -> tuple[int, list[str]]:
    done = run("check", "--peers")
    return done.status, [" ".join(line.split()) for line in done.out.splitlines()[1:]]


def test_portals_that_have_the_same_pass(other, run):
    other()

    status, (line,) = compared(run)

    assert status == 0
    assert line.startswith("PASS portal p2 has the same, ")


def test_difference_is_named(other, run, settings, tmp_path):
    key = tmp_path / "other.key"
    key.write_text("f" * 64)
    other(portal_name="Another", secret_key_file=key)

    status, (line,) = compared(run)

    assert status == 1
    subjects = "secret key, setting portal_name, setting secret_key_file"
    assert line == f"FAIL portal p2 differs in {subjects}; run site.yml for both"


def certificate(days: int, names: tuple[str, ...] = ("vpn.example.org",)) -> x509.Certificate:
    """Return a certificate of the one issuer of these tests."""
    key, now = ec.generate_private_key(ec.SECP256R1()), utc_now()
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA")])
    return (
        x509.CertificateBuilder(issuer, issuer, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, SHA256())
    )


@pytest.mark.parametrize("is_own", [False, True], ids=["from the vault", "of the own CA"])
def test_an_older_certificate_differs_unless_each_portal_has_its_own(
    other, run, monkeypatch, tmp_path, is_own
):
    own_ca = tmp_path / "ca.crt"
    if is_own:
        own_ca.touch()
    monkeypatch.setattr(peers, "OWN_TLS_CA", own_ca)
    monkeypatch.setattr(peers, "web_certificate", lambda _name: certificate(30))
    other()
    monkeypatch.setattr(peers, "web_certificate", lambda _name: certificate(90))

    status, (line,) = compared(run)

    if is_own:
        assert status == 0
    else:
        assert (status, line) == (1, "FAIL portal p2 differs in TLS certificate; run site.yml for both")


def test_a_certificate_for_other_names_differs(other, run, monkeypatch, tmp_path):
    (tmp_path / "ca.crt").touch()
    monkeypatch.setattr(peers, "OWN_TLS_CA", tmp_path / "ca.crt")
    monkeypatch.setattr(peers, "web_certificate", lambda _name: certificate(30, ("old.example.org",)))
    other()
    monkeypatch.setattr(peers, "web_certificate", lambda _name: certificate(30))

    assert compared(run)[0] == 1


def test_portal_that_is_silent_is_named_for_a_day(other, run):
    other(ago=timedelta(minutes=7))
    status, (line,) = compared(run)
    assert status == 1
    assert line == "FAIL portal p2 not seen for 7 minutes; does vpn-portal-controller run there?"

    other(ago=timedelta(days=1, minutes=1))
    assert compared(run) == (0, [])


def test_portal_that_is_not_named_is_not_asked_for(other, run):
    other(ago=timedelta(minutes=7))

    assert compared(run)[0] == 1
    done = run("check", "--peers", "p1", "p3")
    assert (done.status, done.out.splitlines()[1:]) == (0, [])
    assert run("check", "--peers", "p1", "p2").status == 1


def test_portal_that_was_taken_away_is_forgotten_at_deployment(other, run):
    other(ago=timedelta(minutes=3))
    assert run("deployment", "portals", "p1", "p2").out == "no changes: no other portal is silent\n"
    assert compared(run)[0] == 0

    assert run("deployment", "portals", "p1").out == "forgot p2\n"

    assert compared(run) == (0, [])


def test_portal_that_runs_is_not_forgotten(other, run):
    """Its name may be another one than in the inventory."""
    other()

    assert run("deployment", "portals", "p1").out == "no changes: no other portal is silent\n"

    assert len(compared(run)[1]) == 1


def test_no_digest_holds_what_it_was_made_of(app, settings):
    secret = settings.secret_key_file.read_text().strip()

    found = peers.digests(settings)

    assert secret not in str(found)
    assert settings.portal_name not in str(found)
    assert found["client CA's key"] != "-"


@pytest.mark.usefixtures("app")
def test_every_controller_says_what_its_portal_has(settings, monkeypatch):
    """Also one that does not lead."""

    class Taken:
        def hold(self) -> bool:
            return False

        def release(self) -> None:
            pass

    monkeypatch.setattr(peers, "host_name", lambda: "p1")
    controller = Controller(settings, lock=Taken())
    controller._turn()
    controller.agents.close()

    monkeypatch.setattr(peers, "host_name", lambda: "p2")
    (seen,) = peers.compare("p2")
    assert seen.name == "p1"
    assert "release" in seen.different


def deployments() -> list[tuple[str | None, object]]:
    with transaction(read_only=True) as db:
        rows = db.scalars(
            select(AuditEvent).where(AuditEvent.action == "portal.deployed").order_by(AuditEvent.id)
        )
        return [(row.object, row.details.get("changed")) for row in rows]


def test_what_was_deployed_is_in_the_audit_log_once(other, run):
    other()
    other()
    assert deployments() == [("p2", None)]

    other(portal_name="Another")
    other(portal_name="Another")

    assert deployments() == [("p2", None), ("p2", ["setting portal_name"])]


def test_a_web_server_that_does_not_answer_for_a_while_is_no_deployment(other, run, monkeypatch):
    other()
    monkeypatch.setattr(peers, "_web_certificate", lambda _name: {"issuer": "CN=x", "names": []})
    other()

    assert deployments() == [("p2", None)]
    assert compared(run)[0] == 0, "both show it"


def test_a_release_of_the_same_number_is_told_from_another(other, run, monkeypatch):
    other()
    monkeypatch.setattr(peers, "build", lambda: "0" * 32)

    status, (line,) = compared(run)

    assert status == 1
    assert line == "FAIL portal p2 differs in release; run site.yml for both"


def test_the_build_is_that_of_every_file_of_the_package(monkeypatch, tmp_path):
    before = peers.build()
    copied = tmp_path / "portal_app"
    shutil.copytree(Path(peers.portal_app.__file__).parent, copied, ignore=shutil.ignore_patterns("*.pyc"))
    monkeypatch.setattr(peers.portal_app, "__path__", [str(copied)])
    assert peers.build.__wrapped__() == before, "the place says nothing"

    with (copied / "translations/nl.po").open("a") as file:
        file.write("# changed")

    assert peers.build.__wrapped__() != before

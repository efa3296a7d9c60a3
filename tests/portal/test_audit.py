"""Every act is a row: who, what, on what, from where, when (reliability.md A4)."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError

import portal_app
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import AuditEvent, Authorization, Connection
from portal_app.services import retention, users
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import VpnApp
from tests.portal.pages import PASSWORD, add_account, send


def rows() -> list[AuditEvent]:
    with transaction(read_only=True) as db:
        return list(db.scalars(select(AuditEvent).order_by(AuditEvent.id)))


def test_acts_of_a_user_name_whom_what_and_where_from(app: Flask, node: AgentServer) -> None:
    """A4."""
    add_account()
    with transaction(read_only=True) as db:
        alice = users.find(db, "alice")
    assert alice is not None
    already = len(rows())
    before = utc_now()

    phone = VpnApp(app, alice).authorize()
    phone.connect()
    with transaction(read_only=True) as db:
        (authorization_id,), (connection_id,) = db.scalars(select(Authorization.id)).all(), db.scalars(
            select(Connection.id)
        ).all()  # fmt: skip
    send(phone.browser, f"/connections/{connection_id}/end")
    send(phone.browser, f"/apps/{authorization_id}/revoke")
    new = "another phrase 88"
    send(phone.browser, "/password", current_password=PASSWORD, new_password=new, repeated_password=new)

    found = rows()[already:]
    assert [(row.action, row.object) for row in found] == [
        ("app approved", phone.client_id),
        ("connection ended", "alice"),
        ("app revoked", "alice"),
        ("password set", "alice"),
    ]
    assert found[1].details == {"connection": connection_id, "profile": "employees", "node": "node0"}
    assert found[2].details == {"client": phone.client_id}
    assert {(row.actor, row.source) for row in found} == {("alice", "127.0.0.1")}
    assert all(before <= row.at <= utc_now() for row in found)
    assert new not in str([row.details for row in found])


def test_acts_at_the_command_line_are_rows(app: Flask, node: AgentServer) -> None:
    """A4."""
    already, now = len(rows()), utc_now()
    users.add("bob", password=PASSWORD, actor="cli", now=now)
    users.set_permissions("bob", ["staff"], access_permissions=None, actor="cli", now=now)
    users.set_password("bob", "another phrase 88", actor="cli", now=now)
    users.one_time_link("bob", actor="cli", now=now)
    users.disable("bob", actor="cli", now=now)
    users.enable("bob", actor="cli", now=now)
    users.delete("bob", actor="cli", now=now)

    found = rows()[already:]
    assert [row.action for row in found] == [
        "user added",
        "permissions set",
        "password set",
        "one-time link made",
        "user disabled",
        "user enabled",
        "user deleted",
    ]
    assert {(row.actor, row.object) for row in found} == {("cli", "bob")}


def test_rows_are_written_and_forgotten_with_age_and_nothing_else() -> None:
    """A4: no page, call or command alters them."""
    package = Path(portal_app.__file__).parent
    users_of_it = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"\bAuditEvent\b|audit_events", path.read_text())
    }
    migrations = {path for path in users_of_it if path.startswith("migrations/")}
    assert users_of_it - migrations == {
        "models/__init__.py",
        "models/event.py",
        "services/audit.py",
        "services/retention.py",
    }
    assert not re.search(r"\b(update|delete)\(", (package / "services/audit.py").read_text())


def test_the_database_refuses_to_change_a_row(app: Flask) -> None:
    """A4: not even by hand; what is old enough goes as a whole."""
    add_account()
    before = [(row.id, row.actor, row.action) for row in rows()]
    assert before

    with pytest.raises(DBAPIError, match="never changed"), transaction() as db:
        db.execute(update(AuditEvent).values(actor="somebody else"))

    assert [(row.id, row.actor, row.action) for row in rows()] == before
    later = utc_now() + timedelta(days=366)
    assert retention.prune(retention=timedelta(days=30), now=later)["audit_events"] == len(before)
    assert rows() == []

"""Whatever people, apps, nodes and other programs wrote into the database is only text on every page.

Three tables say of each column whether pages show it, and whether it can hold any text. A new column fails
here until it is in one of them, and one that is said to be shown must be seen on a page.
"""

import re

import pytest
from flask import Flask
from playwright.sync_api import Dialog, Page
from sqlalchemy import JSON, Column, String, select, text, update
from sqlalchemy.orm import Session

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import (
    AddressUse,
    BackgroundError,
    Base,
    Connection,
    NodeStatus,
    PeriodicJob,
    Portal,
    User,
    VpnSession,
)
from portal_app.services import peers
from portal_app.settings import Settings
from tests.browser.world import WITH_VALUES, fill_for_pictures, pages_of, sign_in
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import ORIGIN, VpnApp

pytestmark = pytest.mark.slow

#: Shown on a page, each with where its text comes from.
SHOWN = {
    "address_uses.choice": "our code, with names of nodes, permissions and devices",
    "address_uses.client_id": "the registered apps",
    "address_uses.device": "users, apps",
    "address_uses.user_name": "users",
    "api_tokens.created_by": "administrators",
    "api_tokens.name": "administrators",
    "audit_events.actor": "users, scripts, the command line",
    "audit_events.action": "our code",
    "audit_events.object": "users, apps, nodes",
    "audit_events.source": "addresses, as nginx tells them",
    "audit_events.details": "our code, with what acts were about",
    "authorizations.client_id": "the registered apps",
    "background_errors.host": "the system",
    "background_errors.message": "our code",
    "background_errors.part": "our code, with names of nodes",
    "connections.choice": "our code, with names of nodes, permissions and devices",
    "connections.display_name": "users, apps",
    "node_status.error": "nodes, TLS, the network",
    "node_status.info": "nodes",
    "node_status.notice": "administrators",
    "nodes.hostname": "the inventory",
    "nodes.name": "the inventory",
    "periodic_jobs.error": "what a job failed with",
    "portals.digests": "our code, with names of files",
    "portals.name": "the system",
    "profiles.display_name": "the inventory",
    "profiles.permissions": "the inventory",
    "refused_connects.answer": "our code",
    "refused_connects.device": "the registered apps, users",
    "refused_connects.profile_id": "apps",
    "refused_connects.why": "our code, with permissions of users and profiles",
    "users.name": "administrators, an identity provider",
    "users.permissions": "administrators, an identity provider",
    "vpn_sessions.ipv4": "nodes",
    "vpn_sessions.origin": "nodes",
    "vpn_sessions.user_name": "users",
}
#: Shown on a page, and never any text: what it is, as that is checked before it is written.
CHECKED = {
    "address_uses.connection_id": "32 hex digits of ours",
    "address_uses.ipv4": "an address of the plan",
    "address_uses.ipv6": "an address of the plan",
    "address_uses.profile_id": "as of the profile",
    "address_uses.protocol": "one of two words",
    "connections.id": "32 hex digits of ours",
    "connections.ipv4": "an address of the plan",
    "connections.ipv6": "an address of the plan",
    "connections.profile_id": "as of the profile",
    "connections.protocol": "one of two words",
    "nodes.agent_address": "an address or a host name (vpn_core/node.py)",
    "periodic_jobs.name": "a word of ours",
    "profiles.dns_search_domains": "domains (vpn_core/profile.py)",
    "profiles.dns_servers": "addresses and two words (vpn_core/profile.py)",
    "profiles.excluded_routes": "networks (vpn_core/profile.py)",
    "profiles.openvpn": "networks and ports (vpn_core/profile.py)",
    "profiles.preferred_protocol": "one of two words (vpn_core/profile.py)",
    "profiles.profile_id": "letters, digits, dots and hyphens (vpn_core/profile.py)",
    "profiles.routes": "networks (vpn_core/profile.py)",
    "profiles.wireguard": "networks (vpn_core/profile.py)",
    "vpn_sessions.connection_id": "32 hex digits (vpn_core/messages.py)",
    "vpn_sessions.ipv6": "an address (vpn_core/messages.py)",
    "vpn_sessions.profile_id": "letters, digits, dots and hyphens (vpn_core/messages.py)",
    "vpn_sessions.protocol": "one of two words (vpn_core/messages.py)",
}
#: On no page: secrets and their digests, ids of ours, and words of which the database holds some only.
NOT_SHOWN = {
    "access_tokens", "api_tokens.scopes", "authorization_codes", "browser_sessions",
    "deployment",
    "free_addresses", "idempotent_calls", "local_accounts", "offers", "one_time_links",
    "refresh_tokens", "throttles", "usage_days", "usage_samples",
    "address_uses.end_reason", "authorizations.scope", "background_errors.key", "connections.public_key",
    "node_status.instance_id", "node_status.issued_public_key", "node_status.journal_id",
    "node_status.wireguard_public_key", "vpn_sessions.session_id",
}  # fmt: skip


def hostile(name: str, number: object = "") -> str:
    return f"\"><img src=x onerror=alert(1) data-from={name}><script>alert(2)</script>' {number}"


def columns() -> dict[str, Column[object]]:
    """Return every column that holds text, by ``table.column``."""
    return {
        f"{table.name}.{column.name}": column
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if isinstance(column.type, String | JSON)
    }


def fill_with_hostile_text(db: Session) -> None:
    # Which lets nobody write into what was written.
    db.execute(text("DROP TRIGGER audit_events_stay"))
    for name in SHOWN:
        column = columns()[name]
        keys = list(column.table.primary_key.columns)
        for number, row in enumerate(db.execute(column.table.select()).mappings().all()):
            old, value = row[column.name], hostile(name, number)
            if name.endswith(".permissions"):
                # Root goes on using this profile.
                new: object = old if row.get("profile_id") == "employees" else [*(old or []), value]
            elif isinstance(column.type, JSON):
                new = {**(old or {}), "v": value, "problems": [value], "client": value}
            else:
                new = value
            matches = [key == row[key.name] for key in keys]
            db.execute(update(column.table).where(*matches).values({column.name: new}))


def test_each_column_is_in_the_table() -> None:
    tables = [
        SHOWN.keys(),
        CHECKED.keys(),
        {name for name in columns() if {name, name.partition(".")[0]} & NOT_SHOWN},
    ]
    assert sorted(columns()) == sorted(name for table in tables for name in table)


@pytest.mark.parametrize("scripts", [True])
def test_what_others_wrote_is_only_text(
    app: Flask, settings: Settings, page: Page, node: AgentServer
) -> None:
    fill_for_pictures(app, settings)
    with transaction(read_only=True) as db:
        root = db.scalars(select(User).where(User.name == "root")).one()
    assert VpnApp(app, root).authorize().connect(prefer_tcp="no").status_code == 200
    said: list[str] = []

    def note(dialog: Dialog) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", note)
    page.goto(f"{ORIGIN}/sign-in")
    sign_in(page, "root")
    page.wait_for_url(f"{ORIGIN}/")
    with transaction() as db:
        now = utc_now()
        db.add(
            BackgroundError(
                key="job", part="job", message="", host="", first_seen_at=now, last_seen_at=now, count=1
            )
        )
        db.flush()
        fill_with_hostile_text(db)
        db.add(Portal(name=peers.host_name(), seen_at=now, digests={}))
        digests = {hostile("portals.digests"): "-"}
        db.add(Portal(name=hostile("portals.name"), seen_at=now, digests=digests))
        db.execute(update(PeriodicJob).values(failed_at=utc_now()))
        db.execute(update(NodeStatus).values(maintenance_mode=True))
        chosen = db.scalars(select(Connection.id)).first()
        had = db.scalars(select(AddressUse.ipv4).where(AddressUse.ipv4.is_not(None))).first()
        # Of what is over nobody has a name elsewhere.
        db.execute(update(AddressUse).values(connection_id="f" * 32))
    asked_with = {"/admin/connections/end": f"?connection={chosen}"}
    seen: set[str] = set()

    def look(url: str) -> None:
        assert page.locator("[data-from]").count() == 0, url
        seen.update(re.findall(r"data-from=([a-z0-9_.]+)", page.locator("body").text_content() or ""))

    for url in pages_of(app):
        answer = page.goto(f"{ORIGIN}{url}{asked_with.get(url, '')}")
        assert answer is not None
        assert answer.status == 200, url
        look(url)
    with transaction() as db:
        alice = db.scalars(select(User.name).where(User.id == WITH_VALUES["admin.user"]["user_id"])).one()
        over = VpnSession.ended_at.is_not(None)
        db.execute(update(VpnSession).where(over).values(user_name=alice, connection_id="f" * 32, ipv4=had))
        ended = AddressUse.ended_at.is_not(None)
        db.execute(update(AddressUse).where(ended).values(user_name=alice))
    page.goto(f"{ORIGIN}/admin/users/2")
    look("how a connect that has ended was decided")
    page.goto(f"{ORIGIN}/admin/who-had-it")
    page.get_by_label("Address").fill(str(had))
    page.get_by_role("button", name="Search").click()
    look("who had an address")
    assert said == []
    assert sorted(SHOWN.keys() - seen) == []

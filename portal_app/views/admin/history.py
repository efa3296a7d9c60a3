"""Who was connected when: sessions as the nodes told them."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

from flask import Response, render_template, request
from sqlalchemy import select
from sqlalchemy.orm import Session

from portal_app import login, portal
from portal_app.clock import utc_now
from portal_app.db import retried, transaction
from portal_app.errors import N_, BadRequest
from portal_app.language import said
from portal_app.login import requires
from portal_app.models import Node, Profile
from portal_app.roles import Right
from portal_app.services import audit, users
from portal_app.services import history as service
from portal_app.services.paging import Page
from portal_app.views import forms
from portal_app.views.admin import bp
from vpn_core.messages import OPENVPN, WIREGUARD

FILTERS = ("user", "profile", "node", "protocol", "from", "to")
#: What lies beyond is a slip of the pen, and not what every database can hold.
_YEARS = range(1970, 9001)


@bp.get("/history")
@requires(Right.SEARCH)
def history() -> tuple[str, int]:
    asked = {name: forms.query(name) for name in FILTERS}
    problem, page = "", Page([], None, None)
    with transaction(read_only=True) as db:
        try:
            wanted = _filter(asked)
            page = service.page(db, wanted, before=forms.cursor("before"), after=forms.cursor("after"))
        except BadRequest as error:
            problem = said(error)
        profiles, nodes = profile_choices(db), node_choices(db)
    return render_template(
        "admin/history.html",
        page=page,
        asked=asked,
        problem=problem,
        profiles=with_chosen(profiles, asked["profile"]),
        nodes=with_chosen(nodes, asked["node"]),
        now=utc_now(),
        most=service.MOST_EXPORTED,
        retention_days=portal().settings.retention_days,
        log_origins=portal().settings.log_origins,
    ), 400 if problem else 200


@bp.post("/history/export")
@requires(Right.SEARCH)
def export_history() -> Response:
    """Answer with a file: asking for it is an act, so it is a form that is sent."""
    asked = {name: forms.field(name, forms.LONGEST_NAME).strip() for name in FILTERS}
    wanted = _filter(asked)
    record_export("history exported", asked)
    return download(service.lines(wanted), "sessions.csv", "text/csv")


def _filter(asked: dict[str, str]) -> service.Filter:
    """Return what was asked for; raises BadRequest for what cannot be read."""
    begin, end = days(asked["from"], asked["to"])
    if asked["node"] and not (asked["node"].isascii() and asked["node"].isdigit() and len(asked["node"]) < 6):
        raise BadRequest(N_("There is no such node. Choose one from the list."))
    if asked["protocol"] not in ("", WIREGUARD, OPENVPN):
        raise BadRequest(N_("There is no such protocol. Choose one from the list."))
    return service.Filter(
        user=users.normalized(asked["user"]),
        profile_id=asked["profile"],
        node_number=int(asked["node"]) if asked["node"] else None,
        protocol=asked["protocol"],
        begin=begin,
        end=end,
    )


def days(first: str, last: str) -> tuple[datetime | None, datetime | None]:
    """Return the begin of the first day and the end of the last, in UTC; raises BadRequest."""
    begin, end = _day(first), _day(last)
    if begin is not None and end is not None and end < begin:
        raise BadRequest(N_("The last day is before the first one."))
    return begin, None if end is None else end + timedelta(days=1)


def _day(text: str) -> datetime | None:
    if not text:
        return None
    try:
        found = date.fromisoformat(text)
    except ValueError:
        found = date.min
    if found.year not in _YEARS:
        raise BadRequest(N_("A day is written like 2026-11-22; “%(text)s” is none."), text=text[:40])
    return datetime(found.year, found.month, found.day, tzinfo=UTC)


def profile_choices(db: Session) -> list[tuple[str, str]]:
    rows = db.execute(select(Profile.profile_id, Profile.display_name).order_by(Profile.position))
    return [(row.profile_id, row.display_name) for row in rows]


def node_choices(db: Session) -> list[tuple[str, str]]:
    return [
        (str(row.number), row.name)
        for row in db.execute(select(Node.number, Node.name).order_by(Node.number))
    ]


def with_chosen(choices: list[tuple[str, str]], value: str) -> list[tuple[str, str]]:
    """Add what is chosen to the choices: what the plan does not have any more has a history all the same."""
    return choices if not value or value in dict(choices) else [*choices, (value, value)]


@retried
def record_export(action: str, asked: dict[str, Any]) -> None:
    filters = {name: value for name, value in asked.items() if value}
    with transaction() as db:
        audit.record(
            db,
            action,
            actor=login.required().user.name,
            source=request.remote_addr,
            now=utc_now(),
            filters=filters,
        )


def download(lines: Any, name: str, content_type: str) -> Response:
    """Return a file that goes out while it is read."""
    stem, _, ending = name.partition(".")
    name = f"{stem}-{utc_now():%Y-%m-%d}.{ending}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(lines, content_type=f"{content_type}; charset=utf-8", headers=headers)

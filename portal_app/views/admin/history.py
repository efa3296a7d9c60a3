"""Who was connected when: sessions as the nodes told them."""

from flask import Response, render_template

from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import Database, connected
from portal_app.errors import N_, BadRequest
from portal_app.language import said
from portal_app.login import requires
from portal_app.roles import Right
from portal_app.services import history as service
from portal_app.services import users
from portal_app.services.paging import Page
from portal_app.views import forms
from portal_app.views.admin import bp
from portal_app.views.admin.filters import (
    choices,
    days,
    download,
    node_number,
    record_export,
    with_chosen,
)
from vpn_core.messages import OPENVPN, WIREGUARD

FILTERS = ("user", "profile", "node", "protocol", "from", "to")


@bp.get("/history")
@requires(Right.SEARCH)
def history() -> tuple[str, int]:
    asked = {name: forms.query(name) for name in FILTERS}
    problem, page = "", Page([], None, None)
    with connected(read_only=True) as db:
        try:
            wanted = _filter(db, asked)
            page = service.page(db, wanted, before=forms.cursor("before"), after=forms.cursor("after"))
        except BadRequest as error:
            problem = said(error)
        profiles, nodes = choices(db)
    return render_template(
        "admin/history.html",
        page=page,
        asked=asked,
        problem=problem,
        names=dict(profiles),
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
    with connected(read_only=True) as db:
        wanted = _filter(db, asked)
    record_export("history exported", asked)
    return download(service.lines(wanted), "sessions.csv", "text/csv")


def _filter(db: Database, asked: dict[str, str]) -> service.Filter:
    """Return what was asked for; raises BadRequest for what cannot be read."""
    begin, end = days(asked["from"], asked["to"])
    if asked["protocol"] not in ("", WIREGUARD, OPENVPN):
        raise BadRequest(N_("There is no such protocol. Choose one from the list."))
    return service.Filter(
        user=users.normalized(asked["user"]),
        profile_id=asked["profile"],
        node_number=node_number(db, asked["node"]),
        protocol=asked["protocol"],
        begin=begin,
        end=end,
    )

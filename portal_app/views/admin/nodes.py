"""The nodes as the controller last saw them, and what an administrator tells them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from flask import abort, redirect, render_template, request, url_for
from sqlalchemy import select
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from portal_app import login
from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.errors import N_, BadRequest, NodeRefused, NodeUnreachable, PortalError
from portal_app.language import gettext
from portal_app.login import requires
from portal_app.models import Node, NodeStatus
from portal_app.roles import Right
from portal_app.services import attention, capacity, fullness, maintenance, paging, reconciliation, statistics
from portal_app.services.attention import Concern
from portal_app.services.capacity import Part
from portal_app.services.maintenance import Occupants
from portal_app.services.reconciliation import Preview
from portal_app.services.statistics import NodeReport, Seen
from portal_app.texts import Text, text
from portal_app.views import forms
from portal_app.views.admin import bp, kept
from vpn_core.messages import WIREGUARD

#: Load in percent of the processors from which a node is shown as busy (spec portal.md, section 2).
BUSY_PERCENT = 75
#: As a page of one node shows names; more of them nobody reads.
MOST_NAMES = 100
#: A node takes a kilobyte of the page of all.
NODES_OF_PAGE = 40
OCCUPANTS_SECONDS = 3.0
#: Minutes until those who are left on a node are cut.
DELAYS = (0, 5, 15, 60, 240, 720)
_STATES = {
    statistics.UP_STATE: ("good", N_("Up")),
    statistics.DOWN: ("bad", N_("Does not answer")),
    statistics.HELD: ("bad", N_("Holds still")),
    statistics.MAINTENANCE: ("warn", N_("Maintenance")),
    statistics.NEVER_SEEN: ("warn", N_("Not seen yet")),
}


@dataclass(frozen=True)
class State:
    kind: str
    text: Text


@dataclass(frozen=True)
class NodeView:
    """One node: the report, what is wrong, and what it serves. ``free`` are WireGuard addresses."""

    status: NodeStatus | None
    report: NodeReport
    state: State
    concerns: list[Concern]
    parts: list[Part]

    @property
    def addresses(self) -> fullness.Use:
        of_wireguard = [part.use for part in self.parts if part.use.protocol == WIREGUARD]
        return fullness.Use(
            WIREGUARD, sum(use.used for use in of_wireguard), sum(use.places for use in of_wireguard)
        )

    @property
    def profiles(self) -> list[str]:
        return list(dict.fromkeys(part.display_name for part in self.parts))

    @property
    def uptime(self) -> timedelta | None:
        seconds = self.report.uptime_seconds
        return None if seconds is None else timedelta(seconds=seconds)

    @property
    def certificate_days(self) -> int | None:
        ends = self.report.certificate_ends
        return None if ends is None else (ends - utc_now()).days


def state_of(report: NodeReport) -> State:
    if report.state == statistics.UP_STATE and (report.load_percent or 0) >= BUSY_PERCENT:
        return State("warn", text(N_("Up, busy")))
    kind, said = _STATES[report.state]
    return State(kind, text(said))


@bp.get("/nodes")
@requires(Right.SEE)
def nodes() -> str:
    connections = kept.connections_of_nodes()
    with transaction(read_only=True) as db:
        page = paging.read(
            db,
            select(Node.number),
            paging.Order([Node.number]),
            before=forms.cursor("before"),
            after=forms.cursor("after"),
            size=NODES_OF_PAGE,
        )
        views = _views(db, page.rows[0][0], page.rows[-1][0], connections) if page.rows else []
    return render_template("admin/nodes.html", nodes=views, page=page)


def _views(db: Session, first: int, last: int, connections: Mapping[int, int]) -> list[NodeView]:
    seen = statistics.seen(db, first, last)
    parts: dict[int, list[Part]] = {}
    for part in capacity.parts(db, seen):
        parts.setdefault(part.node_number, []).append(part)
    return [_view(one, parts.get(one.node.number, []), connections.get(one.node.number, 0)) for one in seen]


def _view(seen: Seen, parts: list[Part], connections: int) -> NodeView:
    now = utc_now()
    report = statistics.report(seen, connections=connections, now=now)
    return NodeView(seen.status, report, state_of(report), attention.of_node(seen, now), parts)


@bp.get("/nodes/<int:number>")
@requires(Right.SEE)
def node(number: int) -> str:
    return _page(_find(number))


def _find(number: int) -> Node:
    with transaction(read_only=True) as db:
        found = db.get(Node, number) if number < 2**31 else None
    if found is None:
        abort(404)
    return found


def _page(node: Node, *, problem: str = "", preview: Preview | None = None) -> str:
    with transaction(read_only=True) as db:
        by_app, downloaded = maintenance.in_the_way(db, node.number)
        (view,) = _views(db, node.number, node.number, {node.number: by_app + downloaded})
    may_manage = Right.MANAGE in login.required().rights
    if preview is None and may_manage and view.report.state == statistics.HELD:
        preview = _preview(node)
    drained = view.report.state == statistics.MAINTENANCE
    return render_template(
        "admin/node.html",
        node=view,
        status=view.status,
        by_app=by_app,
        downloaded=downloaded,
        delays=[(str(minutes), _delay(minutes)) for minutes in DELAYS],
        drain=_typed(view.status),
        occupants=_occupants(node, view.report) if drained else None,
        live=drained and request.method == "GET" and "still" not in request.args,
        preview=preview,
        problem=problem,
        added=_count("added"),
        removed=_count("removed"),
        may_manage=may_manage,
        longest_notice=maintenance.LONGEST_NOTICE,
        now=utc_now(),
    )


@dataclass(frozen=True)
class Typed:
    """What the form that drains a node begins with; ``carried``: typed before the password was asked for."""

    minutes: str
    notice: str
    downloads: bool
    carried: bool


def _typed(status: NodeStatus | None) -> Typed:
    if "minutes" not in request.args:
        return Typed("15", (status and status.notice) or "", downloads=False, carried=False)
    minutes = forms.chosen("minutes", [str(one) for one in DELAYS], "15")
    notice = forms.query("notice", maintenance.LONGEST_NOTICE)
    return Typed(minutes, notice, downloads="downloads" in request.args, carried=True)


def _delay(minutes: int) -> Text:
    if minutes == 0:
        return text(N_("now"))
    return text(N_("in %(time)s"), time=timedelta(minutes=minutes))


def _count(name: str) -> int | None:
    """Return what the act before told this page."""
    said = forms.query(name, 9)
    return int(said) if said.isascii() and said.isdecimal() else None


def _preview(node: Node) -> Preview | None:
    try:
        return reconciliation.preview(portal().agents, node)
    except (NodeUnreachable, NodeRefused):
        return None


def _occupants(node: Node, report: NodeReport) -> Occupants | None:
    """Ask a node who is still there; None when it does not say, or they are too many for names."""
    if report.active > MOST_NAMES:
        return None
    try:
        return maintenance.occupants(portal().agents, node, seconds=OCCUPANTS_SECONDS)
    except (NodeUnreachable, NodeRefused):
        return None


@bp.post("/nodes/<int:number>/maintenance")
@requires(Right.MANAGE)
def maintain(number: int) -> AnyResponse | tuple[str, int]:
    """Switch maintenance; open tunnels stay."""
    found, on = _find(number), forms.field("state", 3)
    if on not in ("on", "off"):
        raise BadRequest(N_("The form's field %(field)s is missing or too long."), field="state")
    notice = _notice() if on == "on" else None
    return _switch(found, on=on == "on", notice=notice)


@bp.post("/nodes/<int:number>/drain")
@requires(Right.MANAGE, recently=True, carried=("minutes", "notice", "downloads"))
def drain(number: int) -> AnyResponse | tuple[str, int]:
    """Take nobody new, and have the controller cut those who are left at a time that they are told."""
    found = _find(number)
    minutes = forms.field("minutes", 4)
    if minutes not in map(str, DELAYS):
        raise BadRequest(N_("The form's field %(field)s is missing or too long."), field="minutes")
    downloads = request.form.get("downloads") == "yes"
    return _switch(found, on=True, notice=_notice(), minutes=int(minutes), cuts_downloads=downloads)


def _notice() -> str:
    return " ".join(forms.field("notice", 4 * maintenance.LONGEST_NOTICE).split())


def _switch(
    found: Node,
    *,
    on: bool,
    notice: str | None,
    minutes: int | None = None,
    cuts_downloads: bool | None = None,
) -> AnyResponse | tuple[str, int]:
    now = utc_now()
    try:
        maintenance.switch(
            portal().agents,
            found,
            on=on,
            actor=login.required().user.name,
            source=request.remote_addr,
            now=now,
            notice=notice,
            cut_at=None if minutes is None else now + timedelta(minutes=minutes),
            cuts_downloads=cuts_downloads,
        )
    except (NodeUnreachable, NodeRefused) as error:
        return _failed(found, error)
    return _back(found)


@bp.post("/nodes/<int:number>/call-off")
@requires(Right.MANAGE)
def call_off(number: int) -> AnyResponse:
    """Let those stay who were to be cut; maintenance stays on."""
    found = _find(number)
    maintenance.call_off(found, actor=login.required().user.name, source=request.remote_addr, now=utc_now())
    return _back(found)


@bp.post("/nodes/<int:number>/reconcile")
@requires(Right.MANAGE)
def reconcile(number: int) -> AnyResponse | tuple[str, int]:
    """Hand over everything now, unless the node holds it back."""
    return _reconcile(_find(number), confirmed=False)


@bp.post("/nodes/<int:number>/reconcile/confirmed")
@requires(Right.MANAGE, recently=True)
def reconcile_confirmed(number: int) -> AnyResponse | tuple[str, int]:
    """Let through what the node holds back, if it removes no more than the page said."""
    found, said = _find(number), forms.field("removed", 9)
    preview = _preview(found)
    if preview is None or not said.isdecimal() or preview.removed > int(said):
        changed = gettext("This has changed meanwhile. Nothing was done; look at it again.")
        return _page(found, problem=changed, preview=preview), 409
    return _reconcile(found, confirmed=True)


def _reconcile(found: Node, *, confirmed: bool) -> AnyResponse | tuple[str, int]:
    try:
        answer = reconciliation.by_operator(
            portal().agents,
            found,
            confirmed=confirmed,
            actor=login.required().user.name,
            source=request.remote_addr,
            now=utc_now,
        )
    except reconciliation.AnotherMachine:
        said = gettext("Another machine answers as this node. Nothing was changed.")
        return _page(found, problem=said, preview=_preview(found)), 409
    except NodeRefused as error:
        return _page(found, problem=str(error), preview=_preview(found)), 409
    except NodeUnreachable as error:
        return _failed(found, error)
    return _back(found, added=answer.get("added", 0), removed=answer.get("removed", 0))


def _failed(found: Node, error: PortalError) -> tuple[str, int]:
    said = gettext("The node did not do it, nothing was changed: %(reason)s", reason=str(error))
    return _page(found, problem=said), error.status


def _back(found: Node, **done: int) -> AnyResponse:
    return redirect(url_for("admin.node", number=found.number, **done), 303)  # type: ignore[arg-type]

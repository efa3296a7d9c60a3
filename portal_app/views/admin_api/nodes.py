"""Nodes and profiles: how they are, and what an operator tells a node."""

from collections import defaultdict
from importlib.metadata import version
from typing import Any

from sqlalchemy import select

from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.errors import BadRequest, Conflict, NodeRefused, NotFound
from portal_app.models import Node, NodeStatus, Offer, Profile
from portal_app.services import maintenance, reconciliation, statistics
from portal_app.services.reconciliation import AnotherMachine
from portal_app.services.tokens import Scope
from portal_app.views.admin_api import shapes
from portal_app.views.admin_api.operation import Call, Operation, page
from portal_app.views.admin_api.schema import array, boolean, integer, maybe, moment, record, ref, text

_NOTICE = text("What users connected there read in the portal.", least=1, most=maintenance.LONGEST_NOTICE)
_DOWNLOADS = boolean(
    "End downloaded configurations for this node too; their owners need new ones.", default=False
)


def _list(call: Call) -> dict[str, Any]:
    with transaction(read_only=True) as db:
        found = statistics.nodes(db, now=call.now)
    return page([shapes.node(report) for report in found])


def _get(call: Call) -> dict[str, Any]:
    return _shown(call, _node(call))


def _maintain(call: Call) -> dict[str, Any]:
    node, on = _node(call), call.body["on"]
    notice, cut_at, downloads = (call.body.get(name) for name in ("notice", "cut_at", "downloads"))
    if not on and (notice is not None or cut_at is not None):
        raise BadRequest("notice and cut_at go with maintenance on; off removes what users read")
    if cut_at is not None and cut_at < call.now:
        raise BadRequest("cut_at: is over already")
    if cut_at is None and downloads is not None:
        raise BadRequest("downloads: goes with cut_at, of which it says whom it cuts")
    _check_notice(notice)
    maintenance.switch(
        portal().agents,
        node,
        on=on,
        notice=notice,
        cut_at=cut_at,
        cuts_downloads=None if cut_at is None else bool(downloads),
        **call.who,
    )
    return _shown(call, node)


def _drain(call: Call) -> dict[str, Any]:
    node, notice = _node(call), call.body.get("notice")
    _check_notice(notice)
    agents = portal().agents
    maintenance.switch(agents, node, on=True, notice=notice, **call.who)
    cut = maintenance.cut(agents, node, downloads=call.body.get("downloads", False), **call.who)
    return {"node": _shown(call, node), "connections_ended": cut}


def _reconcile(call: Call) -> dict[str, Any]:
    node, confirmed = _node(call), call.body.get("confirm", False)
    try:
        answer = reconciliation.by_operator(
            portal().agents,
            node,
            confirmed=confirmed,
            actor=call.caller.actor,
            source=call.source,
            now=utc_now,
        )
    except AnotherMachine:
        raise Conflict(
            f"{node.name}: another machine answers than before; if it was reinstalled, repeat with confirm"
        ) from None
    except NodeRefused as error:
        if error.agent_status != 409:
            raise
        raise Conflict(f"{error}; look at the node first, then repeat with confirm") from error
    return {"added": answer.get("added", 0), "removed": answer.get("removed", 0)}


def _profiles(_call: Call) -> dict[str, Any]:
    serving: defaultdict[str, list[str]] = defaultdict(list)
    with transaction(read_only=True) as db:
        offers = select(Offer.profile_id, Node.name).join(Node, Node.number == Offer.node_number)
        for profile_id, node in db.execute(offers.order_by(Node.number)):
            serving[profile_id].append(node)
        rows = db.scalars(select(Profile).order_by(Profile.position)).all()
    return page([shapes.profile(row, serving[row.profile_id]) for row in rows])


def _status(call: Call) -> dict[str, Any]:
    with transaction(read_only=True) as db:
        reports = statistics.nodes(db, now=call.now)
        profiles = statistics.profiles(db)
    return {
        "now": shapes.time(call.now),
        "version": version("causeway"),
        "nodes": [shapes.node(report) for report in reports],
        "profiles": [shapes.profile_status(report) for report in profiles],
    }


def _node(call: Call) -> Node:
    with transaction(read_only=True) as db:
        node = db.scalar(select(Node).where(Node.name == call.path["node"]))
    if node is None:
        raise NotFound(f"no node {call.path['node']!r}")
    return node


def _shown(call: Call, node: Node) -> dict[str, Any]:
    with transaction(read_only=True) as db:
        report = statistics.node(db, node.number, now=call.now)
        status = db.get(NodeStatus, node.number)
        offers = db.scalars(
            select(Offer).where(Offer.node_number == node.number).order_by(Offer.profile_id)
        ).all()
    if report is None:
        raise NotFound(f"no node {node.name!r}")
    return shapes.node(report) | {
        "maintenance": bool(status and status.maintenance_mode),
        "notice": status.notice if status else None,
        "cut_at": shapes.time_or_null(status.cut_at if status else None),
        "profiles": [
            {
                "profile": offer.profile_id,
                "addresses": offer.capacity,
                "allocated": offer.allocated,
                "openvpn_places": sum(process["max_clients"] for process in offer.openvpn),
            }
            for offer in offers
        ],
    }


def _check_notice(notice: str | None) -> None:
    if notice is not None and (not notice.isprintable() or not notice.strip()):
        raise BadRequest("notice: use printable characters, in one line")


OPERATIONS = (
    Operation(
        "list_nodes", "GET", "/nodes", Scope.NODES_READ, _list, shapes.page_of("Node"),
        "List nodes by number",
    ),
    Operation("get_node", "GET", "/nodes/{node}", Scope.NODES_READ, _get, ref("NodeDetails"), "Show a node"),
    Operation(
        "set_maintenance", "PUT", "/nodes/{node}/maintenance", Scope.NODES_WRITE, _maintain,
        ref("NodeDetails"), "Take a node out of service, or back",
        "In maintenance it takes no new connections; open ones stay. Users with connections there read"
        " `notice` and `cut_at`, and are cut then, as far as they are still there.",
        body=record(
            {
                "on": boolean(),
                "notice": maybe(_NOTICE),
                "cut_at": maybe(moment("When those who are left are cut.")),
                "downloads": _DOWNLOADS,
            },
            optional=("notice", "cut_at", "downloads"),
        ),
    ),
    Operation(
        "drain_node", "POST", "/nodes/{node}/drain", Scope.NODES_WRITE, _drain,
        record({"node": ref("NodeDetails"), "connections_ended": integer(least=0)}),
        "Set maintenance and cut who is there, now",
        "Apps get another node when they connect again.",
        body=record(
            {
                "notice": maybe(_NOTICE),
                "downloads": _DOWNLOADS,
            },
            optional=("notice", "downloads"),
        ),
    ),
    Operation(
        "reconcile_node", "POST", "/nodes/{node}/reconcile", Scope.NODES_WRITE, _reconcile,
        record({"added": integer(least=0), "removed": integer(least=0)}),
        "Hand a node everything it should have, now",
        body=record(
            {
                "confirm": boolean(
                    "Let through what the node holds back; accept a reinstalled machine.", default=False
                )
            },
            optional=("confirm",),
        ),
        statuses=(409,),
    ),
    Operation(
        "list_profiles", "GET", "/profiles", Scope.NODES_READ, _profiles, shapes.page_of("Profile"),
        "List profiles in the order of the inventory",
    ),
    Operation(
        "status", "GET", "/status", Scope.NODES_READ, _status,
        record(
            {
                "now": moment(),
                "version": text("Of this portal."),
                "nodes": array(ref("Node")),
                "profiles": array(ref("ProfileStatus")),
            }
        ),
        "Show how nodes are and how full profiles are",
    ),
)  # fmt: skip

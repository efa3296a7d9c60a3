"""The profiles as the plan has them: to read, because they are Ansible's."""

from dataclasses import dataclass

from flask import abort, render_template
from sqlalchemy import select

from portal_app.db import transaction
from portal_app.login import requires
from portal_app.models import Deployment, Node, Offer, Profile
from portal_app.render import client_config
from portal_app.roles import Right
from portal_app.services import capacity, paging, statistics, transports
from portal_app.services.capacity import Part, Range
from portal_app.services.statistics import Live
from portal_app.views import forms
from portal_app.views.admin import bp, kept
from vpn_core.profile import GATEWAY_DNS


@dataclass(frozen=True)
class ProfileView:
    profile: Profile
    ranges: list[Range]
    connected: int


@bp.get("/profiles")
@requires(Right.SEE)
def profiles() -> str:
    counts = kept.counts()
    with transaction(read_only=True) as db:
        found = list(db.scalars(select(Profile).order_by(Profile.position)))
        seen = statistics.seen(db)
        ranges = capacity.ranges(db, seen, capacity.parts(db, seen))
    views = [_view(profile, ranges, counts) for profile in found]
    return render_template("admin/profiles.html", profiles=views)


def _view(profile: Profile, ranges: list[Range], counts: Live) -> ProfileView:
    own = [one for one in ranges if one.profile_id == profile.profile_id]
    connected = sum(
        n for (profile_id, _), n in counts.connections.items() if profile_id == profile.profile_id
    )
    return ProfileView(profile, own, connected)


@bp.get("/profiles/<profile_id>")
@requires(Right.SEE)
def profile(profile_id: str) -> str:
    counts = kept.counts()
    with transaction(read_only=True) as db:
        found = db.get(Profile, profile_id)
        if found is None:
            abort(404)
        seen = statistics.seen(db)
        parts = capacity.parts(db, seen)
        ranges = capacity.ranges(db, seen, parts)
        row = db.execute(
            select(Offer, Node.hostname)
            .join(Node, Node.number == Offer.node_number)
            .where(Offer.profile_id == profile_id)
            .order_by(Offer.node_number)
            .limit(1)
        ).one_or_none()
        plan = db.scalar(select(Deployment.plan))
    names = {one.node.number: one.node.name for one in seen}
    page = paging.among(
        [part for part in parts if part.profile_id == profile_id],
        _fullest_first,
        before=forms.cursor("before"),
        after=forms.cursor("after"),
    )
    examples = []
    if row is not None:
        port = (plan or {}).get("wireguard", {}).get("port")
        examples = client_config.examples(found, row.Offer, row.hostname, port)
    return render_template(
        "admin/profile.html",
        view=_view(found, ranges, counts),
        profile=found,
        dns_servers=[server for server in found.dns_servers if server not in GATEWAY_DNS],
        dns_of_node=any(server in GATEWAY_DNS for server in found.dns_servers),
        transports=transports.supported(found),
        page=page,
        parts=[(names[part.node_number], part) for part in page.rows],
        examples=examples,
    )


def _fullest_first(part: Part) -> tuple[int, int, str]:
    return -part.use.percent, part.node_number, part.use.protocol

"""How the service is, at a glance: what needs attention first, then who uses what."""

from collections.abc import Sequence
from datetime import datetime

from flask import render_template
from sqlalchemy import select

from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.login import requires
from portal_app.models import Deployment
from portal_app.roles import Right
from portal_app.services import attention, audit, authorities, capacity, jobs, peers, statistics
from portal_app.services.authorities import CertificateReport
from portal_app.services.statistics import NodeReport, Seen
from portal_app.views.admin import bp, kept
from portal_app.views.admin.nodes import state_of

#: Rows of each list; the rest is on the pages of its own.
MOST_CONCERNS, MOST_NODES, MOST_CERTIFICATES = 20, 10, 12


@bp.get("/")
@requires(Right.SEE)
def overview() -> str:
    now, counts, web = utc_now(), kept.counts(), kept.web_certificate()
    portals = list(peers.compare(peers.host_name()))
    settings = portal().settings
    with transaction(read_only=True) as db:
        seen = statistics.seen(db)
        ranges = capacity.ranges(db, seen, capacity.parts(db, seen))
        applied_at = db.scalar(select(Deployment.plan_applied_at))
        deployed_at = audit.last_deployment(db) or applied_at
        certificates = authorities.of_portal(settings, web, now=now) + _of_nodes(seen, now)
        found = attention.found(
            db,
            nodes=seen,
            applied_at=applied_at,
            ranges=ranges,
            certificates=certificates,
            reports=jobs.reports(db, settings, now=now),
            portals=portals,
            now=now,
        )
    nodes = [statistics.report(one, connections=0, now=now) for one in seen]
    return render_template(
        "admin/overview.html",
        found=found[:MOST_CONCERNS],
        more=max(0, len(found) - MOST_CONCERNS),
        counts=counts,
        ranges=ranges,
        nodes=[(report, state_of(report)) for report in sorted(nodes, key=_first)[:MOST_NODES]],
        up=sum(report.state == statistics.UP_STATE for report in nodes),
        total=len(nodes),
        certificates=sorted(certificates, key=_days_left)[:MOST_CERTIFICATES],
        web_known=web is not None,
        release=peers.release(),
        deployed_at=deployed_at,
    )


def _of_nodes(seen: Sequence[Seen], now: datetime) -> list[CertificateReport]:
    reports = [authorities.of_node(one.node.number, one.node.name, one.info, now=now) for one in seen]
    return [report for report in reports if report is not None]


def _first(report: NodeReport) -> tuple[bool, int, int]:
    """Put those that are not up first, then the busiest."""
    return report.state == statistics.UP_STATE, -(report.load_percent or 0), report.number


def _days_left(report: CertificateReport) -> int:
    return report.days_left if report.not_after is not None else -1

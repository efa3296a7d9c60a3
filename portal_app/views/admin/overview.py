"""How the service is, at a glance: what needs attention first, then who uses what."""

from flask import render_template
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from portal_app import portal
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.login import requires
from portal_app.models import Deployment, Node, NodeStatus
from portal_app.roles import Right
from portal_app.services import attention, authorities, capacity, jobs, peers, statistics
from portal_app.services.authorities import CertificateReport
from portal_app.services.statistics import NodeReport
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
        ranges = capacity.ranges(db)
        certificates = authorities.of_portal(settings, web, now=now) + _of_nodes(db)
        found = attention.found(
            db,
            ranges=ranges,
            certificates=certificates,
            reports=jobs.reports(db, settings, now=now),
            portals=portals,
            now=now,
        )
        nodes = statistics.nodes(db, now=now, counted=False)
        total = db.scalar(select(func.count()).select_from(Node))
        applied_at = db.scalar(select(Deployment.plan_applied_at))
    return render_template(
        "admin/overview.html",
        found=found[:MOST_CONCERNS],
        more=max(0, len(found) - MOST_CONCERNS),
        counts=counts,
        ranges=ranges,
        nodes=[(report, state_of(report)) for report in sorted(nodes, key=_first)[:MOST_NODES]],
        up=sum(report.state == statistics.UP_STATE for report in nodes),
        total=total,
        certificates=sorted(certificates, key=_days_left)[:MOST_CERTIFICATES],
        web_known=web is not None,
        release=peers.release(),
        applied_at=applied_at,
    )


def _of_nodes(db: Session) -> list[CertificateReport]:
    rows = db.execute(select(Node.number, Node.name, NodeStatus.info).join(NodeStatus))
    now = utc_now()
    reports = [authorities.of_node(number, name, info or {}, now=now) for number, name, info in rows]
    return [report for report in reports if report is not None]


def _first(report: NodeReport) -> tuple[bool, int, int]:
    """Put those that are not up first, then the busiest."""
    return report.state == statistics.UP_STATE, -(report.load_percent or 0), report.number


def _days_left(report: CertificateReport) -> int:
    return report.days_left if report.not_after is not None else -1

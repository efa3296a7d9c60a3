"""What needs an administrator first: each concern is a sentence, with the place where it is mended."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from portal_app.errors import N_
from portal_app.services import background_errors, checks, peers, statistics
from portal_app.services.authorities import CertificateReport
from portal_app.services.capacity import Range
from portal_app.services.jobs import JobReport
from portal_app.services.peers import Comparison
from portal_app.services.statistics import Seen
from portal_app.statements import run
from portal_app.texts import Percent, Text, text
from vpn_core.messages import WIREGUARD

BAD, WARN = "bad", "warn"


@dataclass(frozen=True)
class Concern:
    """``level``: bad or warn. ``detail`` is what somebody else said, such as a node, in its own words.

    ``node`` or ``profile`` says where it is mended; without either it is the page of the system.
    """

    level: str
    text: Text
    detail: Text | str | None = None
    node: int | None = None
    profile: str | None = None


def found(
    db: Session,
    *,
    nodes: Iterable[Seen],
    applied_at: datetime | None,
    ranges: Sequence[Range],
    certificates: Sequence[CertificateReport],
    reports: Sequence[JobReport],
    portals: Sequence[Comparison],
    now: datetime,
) -> list[Concern]:
    """Return every concern, the bad ones first."""
    concerns = [
        *_of_database(db, applied_at),
        *_of_jobs(reports),
        *(concern for seen in nodes for concern in of_node(seen, now)),
        *_of_portals(portals, now),
        *_of_certificates(certificates),
        *_of_ranges(ranges),
        *_of_background(db, now),
    ]
    return sorted(concerns, key=lambda concern: concern.level != BAD)


def of_node(seen: Seen, now: datetime) -> list[Concern]:
    """Return what is wrong with one node."""
    node, status = seen.node, seen.status
    concerns = []
    state = statistics.state(status, now)
    if message := _STATES.get(state):
        level = WARN if state in (statistics.NEVER_SEEN, statistics.MAINTENANCE) else BAD
        detail = status.error if status and state in (statistics.DOWN, statistics.HELD) else None
        concerns.append(Concern(level, text(message, node=node.name), detail, node.number))
    elif status is not None and status.error:
        concerns.append(
            Concern(BAD, text(N_("%(node)s has a problem."), node=node.name), status.error, node.number)
        )
    for problem in statistics.problems(seen.info, now):
        said = text(N_("%(node)s reports a problem."), node=node.name)
        concerns.append(Concern(WARN, said, problem, node.number))
    concerns += [
        Concern(WARN, text(N_("%(node)s is nearly full."), node=node.name), remark, node.number)
        for remark in seen.full
    ]
    return concerns


_STATES = {
    statistics.DOWN: N_("%(node)s does not answer. Open tunnels may go on, nobody new connects there."),
    statistics.HELD: N_("%(node)s holds still: what it was told looks wrong to it. Look at it and confirm."),
    statistics.NEVER_SEEN: N_("%(node)s has not been seen yet."),
    statistics.MAINTENANCE: N_("%(node)s is in maintenance and takes nobody new."),
}


def _of_database(db: Session, applied_at: datetime | None) -> Iterator[Concern]:
    if applied_at is None:
        yield Concern(BAD, text(N_("No plan was applied yet, so there are no nodes. Run site.yml.")))
    replication = checks.replication(db)
    if replication is not None and replication.waits and not replication.standbys:
        said = N_("The database waits for a standby server that is not connected. Look at that server.")
        yield Concern(BAD, text(said))


def _of_jobs(reports: Sequence[JobReport]) -> Iterator[Concern]:
    missed = [report for report in reports if report.missed]
    known = [report for report in reports if report.interval is not None]
    if missed and len(missed) == len(known):
        said = N_("No controller works: nodes are not watched. Start vpn-portal-controller on a portal host.")
        yield Concern(BAD, text(said))
    else:
        for report in missed:
            yield Concern(
                WARN, text(N_("The job “%(job)s” has not run when it should have."), job=report.name)
            )
    for report in reports:
        if report.error is not None:
            yield Concern(WARN, text(N_("The job “%(job)s” failed."), job=report.name), report.error)


def _of_portals(portals: Sequence[Comparison], now: datetime) -> Iterator[Concern]:
    for other in portals:
        if (problem := other.problem(now)) is not None:
            silent = now - other.seen_at > peers.SILENT
            said = (
                N_("Portal %(portal)s is silent.")
                if silent
                else N_("Portal %(portal)s differs from this one.")
            )
            yield Concern(BAD if silent else WARN, text(said, portal=other.name), problem)


def _of_certificates(certificates: Sequence[CertificateReport]) -> Iterator[Concern]:
    for report in certificates:
        # That of a node is among the problems of the node.
        if report.level == "good" or report.node is not None:
            continue
        if report.not_after is None:
            said = text(N_("A certificate cannot be read: %(subject)s."), subject=report.subject)
        else:
            said = text(
                N_("A certificate ends on %(day)s: %(subject)s."),
                day=report.not_after.date(),
                subject=report.subject,
            )
        yield Concern(report.level, said, report.remedy)


def _of_background(db: Session, now: datetime) -> Iterator[Concern]:
    found = run(db, *background_errors.asking(now=now, within=background_errors.RECENT))
    if found:
        yield Concern(WARN, text(N_("Something failed in the background within the last day.")), found[0].key)


def _of_ranges(ranges: Sequence[Range]) -> Iterator[Concern]:
    for one in ranges:
        if one.use.level == "good" or not one.use.places:
            continue
        said = (
            N_("Profile %(profile)s: %(percent)s of its WireGuard addresses are given out.")
            if one.use.protocol == WIREGUARD
            else N_("Profile %(profile)s: %(percent)s of its OpenVPN places are taken.")
        )
        yield Concern(
            one.use.level,
            text(said, profile=one.display_name, percent=Percent(one.use.percent)),
            text(N_("Add a node, or give the profile a larger range in vpn_profiles.")),
            profile=one.profile_id,
        )

"""What keeps the service going: checks, jobs, portals, settings. Changes nothing."""

from dataclasses import dataclass
from typing import Any

from flask import render_template

from portal_app import login
from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.errors import N_
from portal_app.login import requires
from portal_app.roles import Right
from portal_app.services import audit, background_errors, checks, in_force, jobs, leading, peers, statistics
from portal_app.services.checks import Finding
from portal_app.services.peers import Comparison
from portal_app.statements import run_together
from portal_app.texts import Text, text
from portal_app.views.admin import bp


@dataclass(frozen=True)
class Check:
    """A finding with what it is good for."""

    finding: Finding
    why: Text


@bp.get("/system")
@requires(Right.SEE)
def system() -> str:
    now, settings, name = utc_now(), portal().settings, peers.host_name()
    found = [
        Check(one, text(_WHY_PLAN if one.subject is checks.PLAN else _WHY_DATABASE))
        for one in checks.database()
    ]
    found += [Check(one, text(_WHY_FILES)) for one in _files(list(checks.secrets(settings, now=now)))]
    found.append(Check(checks.disk(settings.state_directory), text(_WHY_DISK)))
    with transaction(read_only=True) as db:
        nodes = [seen for seen in statistics.seen(db) if seen.status is not None]
        infos = {seen.node.name: seen.info for seen in nodes}
        states = [statistics.state(seen.status, now) for seen in nodes]
        found.append(Check(_answering(states), text(_WHY_NODES)))
        found.append(Check(checks.clocks(infos), text(_WHY_CLOCK)))
        if (replication := checks.replication(db)) is not None:
            found.append(Check(_replicated(replication), text(_WHY_REPLICATION)))
        leader = leading.leader(db, name, now=now)
        asked = [jobs.asking(), peers.asking(), background_errors.asking(now=now)]
        if Right.SEARCH in login.required().rights:
            asked.append(audit.asking_controllers())
        ran, portals, faults, *alarms = run_together(db, asked)
    others = {other.name: other for other in peers.differences(portals, name)}
    return render_template(
        "admin/system.html",
        checks=sorted(found, key=lambda check: check.finding.passed),
        reports=jobs.reported(ran, settings, now=now),
        leader=leader,
        own_name=name,
        portals=[(one, _problem(one, others, name, now)) for one in portals],
        errors=[(seen.node, seen.status) for seen in nodes if seen.status and seen.status.error],
        alarms=alarms[0] if alarms else None,
        faults=faults,
        settings=in_force.settings(settings),
        release=peers.release(),
    )


_WHY_DATABASE = N_(
    "Without the database nobody can sign in or connect; its tables must be those of this release."
)
_WHY_PLAN = N_("It says which profiles and nodes there are; without it there is nothing to connect to.")
_WHY_FILES = N_("Keys are for the portal alone, certificates have to be there.")
_WHY_DISK = N_("The portal writes into this directory; when it is full, nothing can be changed.")
_WHY_NODES = N_("New connections go to nodes that answer.")
_WHY_CLOCK = N_("Certificates, sign-ins and the record of who had which address depend on the time.")
_WHY_REPLICATION = N_("A standby server has everything that was confirmed if the first one is lost.")


def _files(found: list[Finding]) -> list[Finding]:
    """Put those that are as they should be into one."""
    failed = [one for one in found if not one.passed]
    if len(failed) == len(found):
        return failed
    said = N_("the others are as they should be") if failed else N_("all are as they should be")
    return [*failed, Finding(True, text(N_("keys and certificates")), text(said))]


def _answering(states: list[str]) -> Finding:
    silent = sum(state in (statistics.DOWN, statistics.HELD, statistics.NEVER_SEEN) for state in states)
    values: dict[str, Any] = {"up": len(states) - silent, "all": len(states)}
    if silent or not states:
        return Finding(
            False, text(N_("nodes")), text(N_("%(up)s of %(all)s answer and obey; see the nodes"), **values)
        )
    return Finding(True, text(N_("nodes")), text(N_("%(up)s of %(all)s answer"), **values))


def _replicated(replication: checks.Replication) -> Finding:
    subject = text(N_("standby of the database"))
    if replication.waits and not replication.standbys:
        return Finding(
            False, subject, text(N_("none is connected, but commits wait for one; look at that server"))
        )
    if replication.waits:
        return Finding(True, subject, text(N_("connected; every commit waits for it")))
    return Finding(True, subject, text(N_("connected; commits do not wait for it")))


def _problem(one: Any, others: dict[str, Comparison], own_name: str, now: Any) -> Text | None:
    if one.name in others:
        return others[one.name].problem(now)
    return Comparison(one.name, one.seen_at, []).problem(now) if one.name == own_name else None

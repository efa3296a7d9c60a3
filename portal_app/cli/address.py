"""``vpn-portal address``: who had an address when, as the page "Who had it" asks it, audit row included."""

import argparse
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from portal_app.agents import Agents
from portal_app.clock import utc_now
from portal_app.errors import BadRequest
from portal_app.services import audit, who_had
from portal_app.services.who_had import Answer, Flow, Holder
from portal_app.settings import Settings

_UTC = "UTC"
_MOST_TOLERANCE = 86_400
_INCOMPLETE = 2


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "address",
        help="who had an address when",
        description=(
            "Lists who had an address, latest first; with --at only who had it at that moment. The address is"
            " one inside the tunnel, or one that somebody came from, where those are kept (vpn_log_origins)."
            " A WireGuard address belongs to its user as long as the configuration lives, an OpenVPN one as"
            " long as the session lasts. Records are kept for the retention time after their end. Each"
            " search is written into the audit log. Exit status 2: the answer may not be all of it, because"
            " a node did not answer, records are missing or forgotten, or there are more; stderr says which."
        ),
    )
    parser.add_argument("address", help="IPv4 or IPv6 address, without a port")
    parser.add_argument(
        "--port",
        type=int,
        metavar="PORT",
        help="of a public address of a node: whose packets left it from this port at --at; nodes are asked"
        " (vpn_log_nat)",
    )
    parser.add_argument("--at", metavar="TIME", help="moment, such as 2026-11-22T14:30:00")
    parser.add_argument(
        "--zone",
        metavar="ZONE",
        help="time zone of --at, such as Europe/Amsterdam or UTC+02:00 (default: UTC)",
    )
    parser.add_argument(
        "--tolerance",
        type=int,
        metavar="SECONDS",
        help="how far the clock behind --at may have been off (default: 0)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, what the answer lacks included")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    answer = who_had.ask(
        _question(arguments),
        agents=lambda: Agents(settings),
        retention=timedelta(days=settings.retention_days),
        zone_name=arguments.zone or _UTC,
        actor=audit.CLI,
        source=None,
        now=utc_now(),
    )
    if answer.is_old:
        print(
            f"vpn-portal: records are kept for {settings.retention_days} days; of this time some may be"
            " forgotten",
            file=sys.stderr,
        )
    if answer.is_cut:
        print(
            f"vpn-portal: there are more than the last {who_had.MOST_HOLDERS}; name a time with --at",
            file=sys.stderr,
        )
    for nodes, what in (
        (answer.silent, "did not answer"),
        (answer.without_log, "keep no log of NAT"),
        (answer.begins_later, "the log of NAT begins after the time that was asked for"),
        (answer.with_gap, "the log of NAT has a gap at the time that was asked for"),
    ):
        if nodes:
            print(f"vpn-portal: {what}: {', '.join(nodes)}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(_answer(answer)))
    else:
        _print(answer)
    return 0 if answer.is_whole else _INCOMPLETE


def _print(answer: Answer) -> None:
    for holder in answer.holders:
        until = _written(holder.ended_at) or "now"
        what = f"{holder.profile_id} {holder.protocol}  {holder.connection_id}"
        if holder.flow:
            what += f"  {_flow(holder.flow)}"
        print(f"{holder.user_name or '-'}  {_written(holder.started_at)} - {until}  {what}")
    for one in answer.unnamed:
        print(f"client {one.client} of {one.node}, person not known any more  {_flow(one.flow)}")
    if not answer.holders and not answer.unnamed:
        print("nobody" if answer.is_whole else "nobody found")


def _flow(flow: Flow) -> str:
    return f"{flow.protocol} {_written(flow.began_at)} - {_written(flow.ended_at) or 'now'}"


def _question(arguments: argparse.Namespace) -> who_had.Question:
    """Return what is asked; raises BadRequest with the option that is wrong."""
    address, tolerance = who_had.address(arguments.address), arguments.tolerance or 0
    if arguments.at is None:
        if arguments.port is not None:
            raise BadRequest("--port: only with --at: others had the same port before and after")
        for name in ("zone", "tolerance"):
            if getattr(arguments, name) is not None:
                raise BadRequest(f"--{name}: only with --at; without it every time is searched")
        return who_had.Question(address, (), timedelta())
    if not 0 <= tolerance <= _MOST_TOLERANCE:
        raise BadRequest(f"--tolerance: from 0 to {_MOST_TOLERANCE} seconds")
    if arguments.port is not None and not 0 <= arguments.port <= 65535:
        raise BadRequest("--port: from 0 to 65535")
    moments = _moments(arguments.at, arguments.zone)
    return who_had.Question(address, moments, timedelta(seconds=tolerance), arguments.port)


def _moments(written: str, zone: str | None) -> tuple[datetime, ...]:
    try:
        parsed = datetime.fromisoformat(written)
    except ValueError:
        raise BadRequest(f"--at: {written!r} is no time; write it like 2026-11-22T14:30:00") from None
    if parsed.tzinfo is None:
        return who_had.moments(f"{parsed:%Y-%m-%d}", f"{parsed:%H:%M:%S}", zone or _UTC)
    if zone is not None:
        raise BadRequest("--zone: the time of --at has a zone already")
    return (who_had.in_range(parsed).astimezone(UTC),)


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "holders": [_row(holder) for holder in answer.holders],
        "unnamed": [
            {"node": one.node, "client": one.client, "flow": _row_of_flow(one.flow)} for one in answer.unnamed
        ],
        "is_whole": answer.is_whole,
        "is_cut": answer.is_cut,
        "is_old": answer.is_old,
        "silent": answer.silent,
        "without_log": answer.without_log,
        "begins_later": answer.begins_later,
        "with_gap": answer.with_gap,
    }


def _row(holder: Holder) -> dict[str, Any]:
    return {
        "user": holder.user_name,
        "from": _written(holder.started_at),
        "until": _written(holder.ended_at),
        "end_reason": holder.end_reason,
        "profile": holder.profile_id,
        "node": holder.node,
        "protocol": holder.protocol,
        "connection": holder.connection_id,
        "app": holder.client_id,
        "device": holder.device,
        "ipv4": holder.ipv4,
        "ipv6": holder.ipv6,
        "sessions": [_session(session) for session in holder.sessions],
        "flow": holder.flow and _row_of_flow(holder.flow),
    }


def _row_of_flow(flow: Flow) -> dict[str, str | None]:
    return {
        "protocol": flow.protocol,
        "from": _written(flow.began_at),
        "until": _written(flow.ended_at),
    }


def _session(session: Any) -> dict[str, str | None]:
    return {
        "from": _written(session.started_at),
        "until": _written(session.ended_at),
        "origin": session.origin,
    }


def _written(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")

"""``vpn-portal address``: who had an address when."""

import argparse
import json
from datetime import UTC, datetime
from ipaddress import ip_address

from sqlalchemy import or_, select

from portal_app.db import transaction
from portal_app.errors import BadRequest
from portal_app.models import AddressUse
from portal_app.settings import Settings


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "address",
        help="who had an address when",
        description=(
            "Lists who had a tunnel address, latest first; with --at only who had it at that moment."
            " A WireGuard address belongs to its user as long as the configuration lives, an OpenVPN one"
            " as long as the session lasts. Rows are kept for the retention time after their end."
        ),
    )
    parser.add_argument("address", help="IPv4 or IPv6 address inside the tunnel")
    parser.add_argument("--at", metavar="TIME", help="moment in UTC, such as 2026-11-22T14:30:00")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, _settings: Settings) -> int:
    rows = [_row(use) for use in find(arguments.address, _moment(arguments.at))]
    if arguments.json:
        print(json.dumps(rows))
    elif not rows:
        print("nobody")
    else:
        for row in rows:
            until = row["until"] or "now"
            what = f"{row['profile']} {row['protocol']}  {row['connection']}"
            print(f"{row['user']}  {row['from']} - {until}  {what}")
    return 0


def find(address: str, at: datetime | None) -> list[AddressUse]:
    """Return the uses of an address, latest first; raises BadRequest when it is none."""
    try:
        parsed = ip_address(address)
    except ValueError:
        raise BadRequest(f"{address!r} is not an IP address") from None
    column = AddressUse.ipv4 if parsed.version == 4 else AddressUse.ipv6
    query = select(AddressUse).where(column == str(parsed)).order_by(AddressUse.started_at.desc()).limit(1000)
    if at is not None:
        query = query.where(
            AddressUse.started_at <= at, or_(AddressUse.ended_at.is_(None), AddressUse.ended_at >= at)
        )
    with transaction(read_only=True) as db:
        return list(db.scalars(query))


def _moment(written: str | None) -> datetime | None:
    if written is None:
        return None
    try:
        parsed = datetime.fromisoformat(written)
    except ValueError:
        raise BadRequest(f"--at: {written!r} is no time; write it like 2026-11-22T14:30:00") from None
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)


def _row(use: AddressUse) -> dict[str, str | None]:
    return {
        "user": use.user_name,
        "from": use.started_at.isoformat(timespec="seconds"),
        "until": use.ended_at.isoformat(timespec="seconds") if use.ended_at else None,
        "end_reason": use.end_reason,
        "profile": use.profile_id,
        "protocol": use.protocol,
        "connection": use.connection_id,
        "app": use.client_id,
        "ipv4": use.ipv4,
        "ipv6": use.ipv6,
    }

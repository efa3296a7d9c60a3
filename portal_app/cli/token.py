"""``vpn-portal token``: tokens of the admin API. A token is printed once, when it is made."""

import argparse
import json
import re
import sys
from datetime import datetime, timedelta

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.services import audit, tokens
from portal_app.services.tokens import Listed, Scope
from portal_app.settings import Settings
from vpn_core import table


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("token", help="make, list and revoke tokens of the admin API")
    commands = parser.add_subparsers(dest="token_command", required=True, metavar="COMMAND")

    add = commands.add_parser(
        "add",
        help="make a token and print it",
        description=(
            "The token is printed once and kept only as a digest. A scope is one of "
            + ", ".join(Scope)
            + ". Whoever has users:write can make administrators."
        ),
    )
    add.add_argument("name", help="what lists and the audit log call it")
    add.add_argument(
        "--scope", action="append", required=True, choices=list(Scope), help="may come several times"
    )
    add.add_argument(
        "--expires",
        type=_life,
        default=tokens.DEFAULT_LIFE,
        metavar="TIME",
        help=f"how long it is good: 12h, 30d (default {tokens.DEFAULT_LIFE.days}d,"
        f" at most {tokens.LONGEST_LIFE.days}d)",
    )
    add.set_defaults(run=_add)

    listing = commands.add_parser("list", help="list the tokens, without what is secret")
    listing.add_argument("--json", action="store_true", help="print a JSON list")
    listing.set_defaults(run=_list)

    revoke = commands.add_parser("revoke", help="end a token at once")
    revoke.add_argument("name", metavar="NAME", help="its name, or its number in the list")
    revoke.set_defaults(run=_revoke)


def _life(text: str) -> timedelta:
    """Return a time span.

    >>> _life("12h"), _life("30d")
    (datetime.timedelta(seconds=43200), datetime.timedelta(days=30))
    """
    found = re.fullmatch(r"([0-9]{1,5})([hd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time span; write 12h or 30d")
    return timedelta(hours=int(found[1]) * {"h": 1, "d": 24}[found[2]])


def _add(arguments: argparse.Namespace, settings: Settings) -> int:
    now = utc_now()
    token = tokens.make(arguments.name, arguments.scope, life=arguments.expires, settings=settings, now=now)
    print(token)
    ends = f"{now + arguments.expires:%Y-%m-%d %H:%M} UTC"
    print(f"{arguments.name} is good until {ends}; this is the only time it is shown.", file=sys.stderr)
    return 0


def _list(arguments: argparse.Namespace, settings: Settings) -> int:
    with transaction(read_only=True) as db:
        found = tokens.listed(db, settings, now=utc_now())
    if arguments.json:
        print(json.dumps([_facts(one) for one in found], indent=2, ensure_ascii=False))
        return 0
    heads = ("number", "name", "state", "scopes", "made by", "expires", "last used")
    rows = [
        (
            one.token.id,
            one.token.name,
            one.state,
            " ".join(one.token.scopes),
            one.token.created_by,
            f"{one.token.expires_at:%Y-%m-%d %H:%M}",
            f"{one.token.last_used_at:%Y-%m-%d %H:%M}" if one.token.last_used_at else "never",
        )
        for one in found
    ]
    print("\n".join(table.lines(heads, rows)))
    return 0


def _facts(listed: Listed) -> dict[str, object]:
    token = listed.token

    def moment(at: datetime | None) -> str | None:
        return at.isoformat(timespec="seconds") if at else None

    return {
        "id": token.id,
        "name": token.name,
        "state": listed.state,
        "scopes": token.scopes,
        "created_by": token.created_by,
        "created_at": moment(token.created_at),
        "expires_at": moment(token.expires_at),
        "last_used_at": moment(token.last_used_at),
        "revoked_at": moment(token.revoked_at),
    }


def _revoke(arguments: argparse.Namespace, _settings: Settings) -> int:
    name = tokens.revoke(arguments.name, actor=audit.CLI, now=utc_now())
    print(f"{name} is good for nothing any more")
    return 0

"""``vpn-portal database``: the database moves from SQLite to PostgreSQL."""

import argparse
import time
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from portal_app import database_copy, db
from portal_app.errors import BadRequest
from portal_app.settings import Settings
from vpn_core import table


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("database", help="copy the database from SQLite to PostgreSQL")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    copy = commands.add_parser(
        "copy",
        help="copy everything from SQLite into an empty PostgreSQL database",
        description=(
            "Copies every table and reads everything back: rows and checksums must be equal. The portal and"
            " its controller must be stopped; playbooks/move_database.yml does all of it. Repeated after an"
            " interruption it goes on where it was. Then the file is named portal.sqlite.copied; renaming"
            " it back is the way back."
        ),
    )
    copy.add_argument(
        "--to",
        metavar="URL",
        help=(
            "an empty database, such as postgresql+psycopg://causeway@db1/causeway, or @FILE: a file that the"
            " portal's user may read; a URL with a password belongs there (default: that of the settings)"
        ),
    )
    copy.set_defaults(run=_copy)


def _copy(arguments: argparse.Namespace, settings: Settings) -> int:
    # A connection of this process's own would keep the file in use.
    db.engine().dispose()
    began = time.monotonic()
    contents = database_copy.copy(settings.sqlite_file, _target(arguments.to, settings), _say)
    if not contents:
        print("everything had been copied before; the copy is complete now")
        return 0
    rows = [
        (name, f"{content.rows:,}", f"{content.digest:032x}") for name, content in sorted(contents.items())
    ]
    print("\n".join(table.lines(("table", "rows", "checksum"), rows)))
    total = sum(content.rows for content in contents.values())
    kept = db.copied_name(settings.sqlite_file)
    print(f"{total:,} rows copied and compared in {time.monotonic() - began:.1f} s; the file is {kept} now")
    return 0


def _target(said: str | None, settings: Settings) -> str:
    if said is None:
        if settings.database_url_file is None:
            raise BadRequest("--to: name the database to copy into; the settings name none")
        return settings.database_url
    url = Path(said[1:]).read_text().strip() if said.startswith("@") else said
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise BadRequest(
            "--to: no URL of a database, such as postgresql+psycopg://causeway@db1/causeway"
        ) from None
    if parsed.password and not said.startswith("@"):
        raise BadRequest("--to: everyone here would see its password; write it into a file, --to @FILE")
    return url


def _say(line: str) -> None:
    print(line, flush=True)

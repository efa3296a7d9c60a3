"""``vpn-portal``: what operators and the roles run on a portal host. One module per group of commands."""

import argparse
import importlib
import os
import pwd
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from portal_app import db
from portal_app.errors import PortalError, SettingsError
from portal_app.settings import DEFAULT_FILE, Settings

#: Each module has ``register(subparsers)``; its commands set ``run(arguments, settings) -> exit status``. A
#: command with ``as_root`` set keeps root, every other gives it up before it opens anything.
GROUPS = (
    "user",
    "token",
    "plan",
    "node",
    "status",
    "deployment",
    "migrate",
    "database",
    "check",
    "address",
    "verify",
    "controller",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Errors are one line on stderr: exit status 1, or 2 for a wrong command line."""
    words = sys.argv[1:] if argv is None else argv
    arguments = _parser(words).parse_args(words)
    try:
        settings = Settings.load(arguments.settings)
        if not getattr(arguments, "as_root", False):
            become_portal(settings)
        db.connect_to(settings.database_url)
        status: int = arguments.run(arguments, settings)
        sys.stdout.flush()
    except (PortalError, SettingsError) as error:
        if "no such table" in str(error.__cause__):
            return _fail("the database has no tables yet; run vpn-portal migrate")
        if re.search(r"no such column|column .* does not exist", str(error.__cause__)):
            return _fail("the database has the tables of another release; run vpn-portal migrate")
        return _fail(str(error), getattr(error, "exit_status", 1))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except SQLAlchemyError as error:
        # Its text holds the statement and its values.
        return _fail(f"the database refused: {type(error).__name__}; is it migrated? (vpn-portal migrate)")
    return status


def become_portal(settings: Settings) -> None:
    """Root becomes the owner of the state directory, so that no file of the portal ends up as root's."""
    owner = settings.state_directory.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    name = pwd.getpwuid(owner.st_uid).pw_name
    # What this process makes (the database above all) is nobody else's to read.
    os.umask(0o077)
    os.initgroups(name, owner.st_gid)
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)
    # PostgreSQL's library looks there for certificates and passwords.
    os.environ["HOME"] = str(settings.state_directory)


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument(
        "--settings",
        type=Path,
        default=DEFAULT_FILE,
        metavar="PATH",
        help="settings file (default: %(default)s)",
    )
    parser = argparse.ArgumentParser(
        prog="vpn-portal", description="Operate the portal of this host.", parents=[common]
    )
    subparsers = parser.add_subparsers(dest="group", required=True, metavar="COMMAND")
    # Importing all of them takes longer than most commands.
    named = common.parse_known_args(argv)[1][:1]
    for group in named if named and named[0] in GROUPS else GROUPS:
        importlib.import_module(f"portal_app.cli.{group}").register(subparsers)
    return parser


def _fail(message: str, status: int = 1) -> int:
    print(f"vpn-portal: {message}", file=sys.stderr)
    return status

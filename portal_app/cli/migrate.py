"""``vpn-portal migrate``: bring the database to this release's tables."""

import argparse

from portal_app import database_copy, db, migrations
from portal_app.errors import Conflict, PortalError
from portal_app.settings import Settings


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "migrate",
        help="bring the database to this release's tables",
        description="Safe to repeat, and safe on two portals at once: one migrates, the other waits.",
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 if a migration is needed"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, _settings: Settings) -> int:
    engine = db.engine()
    before = migrations.current(engine)
    if migrations.is_ahead(before):
        raise PortalError(
            f"the database is at {before}, which this release does not know: a later release migrated it;"
            " install that one, or restore the backup made before the upgrade"
        )
    if before is not None and database_copy.is_unfinished(engine):
        raise Conflict(
            "a copy into this database was begun and is not complete; repeat playbooks/move_database.yml, or"
            " vpn-portal database copy"
        )
    if arguments.check:
        if before == migrations.head():
            print(f"the database is at {before}")
            return 0
        print(f"the database is at {before or 'nothing'}, this release needs {migrations.head()}")
        return 1
    before, after = migrations.upgrade(engine)
    if before == after:
        print(f"no changes: the database is at {after}")
    else:
        print(f"migrated from {before or 'nothing'} to {after}")
    return 0

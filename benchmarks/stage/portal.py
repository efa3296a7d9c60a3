"""A portal on this host without a web server: settings, a database with a plan, and its controller."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import select

from benchmarks.stage.node import portal_settings
from portal_app import db
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import Base, Node, NodeStatus
from portal_app.services import plan, plan_file
from portal_app.settings import Settings
from tests.portal import postgresql
from tests.portal.certificates import Deployment
from tests.portal.commands import start_vpn_portal, write_settings
from vpn_core.plan import make_plan

DATABASES = ("sqlite", "postgresql")
PROFILE = "employees"
STOP_SECONDS = 20


@dataclass(frozen=True)
class Portal:
    """``database_pid`` is that of PostgreSQL's first process; SQLite has none."""

    directory: Path
    deployment: Deployment
    settings: Settings
    database_pid: int | None

    @property
    def settings_file(self) -> Path:
        return self.directory / "settings.toml"


@contextmanager
def portal(kind: str, directory: Path, *, durable: bool = False, **settings: Any) -> Iterator[Portal]:
    """Yield a portal with an empty database; this process talks to the same.

    ``durable``: PostgreSQL with Debian's settings, not those of the tests.
    """
    directory.mkdir(parents=True)
    deployment = Deployment(directory)
    with _database(kind, directory, durable) as (url, pid):
        Base.metadata.create_all(db.connect_to(url))
        (directory / "database-url").write_text(url)
        made = portal_settings(
            deployment, directory, database_url_file=directory / "database-url", **settings
        )
        portal = Portal(directory, deployment, made, pid)
        write_settings(made, portal.settings_file)
        try:
            yield portal
        finally:
            # Perhaps another engine by now: each application that is made connects anew.
            db.engine().dispose()


@contextmanager
def _database(kind: str, directory: Path, durable: bool) -> Iterator[tuple[str, int | None]]:
    if kind == "sqlite":
        yield f"sqlite:///{directory}/portal.sqlite", None
        return
    with postgresql.cluster(durable=durable) as url:
        admin = sqlalchemy.create_engine(url.format("postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.exec_driver_sql("CREATE DATABASE portal")
            where = Path(str(connection.exec_driver_sql("SHOW data_directory").scalar_one()))
        admin.dispose()
        yield url.format("portal"), int((where / "postmaster.pid").read_text().split()[0])


def apply_plan(count: int, max_nodes: int, **protocols: Any) -> list[dict[str, Any]]:
    """Apply a plan with so many nodes, and one profile with WireGuard and other ``protocols``; return what
    the plan says of each node.
    """
    profile = {
        "display_name": "Employees",
        "dns_servers": ["198.51.100.53"],
        "wireguard": {"ipv4": "10.0.0.0/9", "ipv6": "fd43:61::/96"},
    }
    entries = {
        f"node{number}": {
            "number": number,
            "hostname": f"node{number}.example.org",
            "agent_address": f"127.{10 + number // 250}.1.{1 + number % 250}",
        }
        for number in range(count)
    }
    found = make_plan({PROFILE: profile | protocols}, entries, {"max_nodes": max_nodes}).to_dict()
    plan.apply(plan_file.parse(found), now=utc_now())
    return list(found["nodes"].values())


@contextmanager
def controller(portal: Portal) -> Iterator[int]:
    """Run ``vpn-portal controller``; yield its process id."""
    process = start_vpn_portal(portal.settings_file, "controller", log=portal.directory / "controller.log")
    try:
        yield process.pid
        assert process.poll() is None, (portal.directory / "controller.log").read_text()
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Look:
    """What the portal knows of its nodes; ``at`` is monotonic.

    ``ages`` are seconds since the last answer, of those seen up; ``reconciled`` is the generation up to which
    each got a full set; ``in_step`` have got one with all there is.
    """

    at: float
    ages: dict[int, float]
    failing: frozenset[int]
    reconciled: dict[int, int]
    in_step: frozenset[int]


def look() -> Look:
    with transaction(read_only=True) as session:
        rows = session.execute(
            select(
                NodeStatus.node_number,
                NodeStatus.answered_at,
                NodeStatus.failing_since,
                NodeStatus.reconciled_generation,
                Node.generation,
            ).join(Node, Node.number == NodeStatus.node_number)
        ).all()
    now = datetime.now(UTC)
    up = [row for row in rows if row.answered_at is not None and row.failing_since is None]
    return Look(
        time.monotonic(),
        {row.node_number: (now - row.answered_at).total_seconds() for row in up},
        frozenset(row.node_number for row in rows if row.failing_since is not None),
        {row.node_number: row.reconciled_generation for row in rows},
        frozenset(row.node_number for row in up if row.reconciled_generation == row.generation),
    )

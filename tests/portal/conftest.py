"""The portal on SQLite and on a real PostgreSQL, with nodes that answer over mutual TLS."""

import shutil
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from flask import Flask
from flask.testing import FlaskClient
from jinja2 import FileSystemBytecodeCache
from jinja2.bccache import Bucket
from sqlalchemy import delete, update
from werkzeug.routing import Rule

from portal_app import db
from portal_app.agents import Agents
from portal_app.application import create_app
from portal_app.cli import main
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import Base, NodeStatus
from portal_app.services import background_errors, plan, plan_file
from portal_app.settings import Settings
from tests.portal import postgresql
from tests.portal.agent_server import WIREGUARD_KEY, AgentServer
from tests.portal.app_user import ORIGIN, HttpsClient, VpnApp, add_user
from tests.portal.certificates import Deployment
from tests.portal.commands import Done, run_vpn_portal, write_settings
from tests.portal.real_agent import RealAgent, loopback_address
from vpn_core.plan import make_plan

PROFILES: dict[str, Any] = {
    "employees": {
        "display_name": "Employees",
        "dns_servers": ["198.51.100.53", "@GW6@"],
        "wireguard": {"ipv4": "10.61.0.0/20", "ipv6": "fd43:61::/108"},
        "openvpn": {"ipv4": "10.62.0.0/20", "ipv6": "fd43:62::/96"},
    },
    "lab": {
        "display_name": "Laboratory",
        "default_gateway": False,
        "routes": ["10.0.0.0/8"],
        "excluded_routes": ["10.1.0.0/16"],
        "wireguard": {"ipv4": "10.63.0.0/20", "ipv6": "fd43:63::/108", "keepalive": True},
    },
    "legacy": {
        "display_name": "Legacy",
        "dns_servers": ["198.51.100.53"],
        "openvpn": {"ipv4": "10.64.0.0/20", "ipv6": "fd43:64::/96", "udp_ports": [1195], "tcp_ports": [1195]},
    },
}


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return Deployment(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """The URL of one database with the schema, in a cluster of this test session."""
    with postgresql.cluster() as url:
        admin = sqlalchemy.create_engine(url.format("postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.exec_driver_sql("CREATE DATABASE portal")
        admin.dispose()
        engine = db.make_engine(url.format("portal"))
        Base.metadata.create_all(engine)
        engine.dispose()
        yield url.format("portal")


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sqlite") / "portal.sqlite"
    engine = db.make_engine(f"sqlite:///{file}")
    Base.metadata.create_all(engine)
    engine.dispose()  # the last one to close writes the log back into the file
    return file


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """Which database a test runs on; a test that needs one of them parametrizes this."""
    return str(request.param)


@pytest.fixture
def database_url(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database with the schema."""
    if database == "sqlite":
        file = tmp_path / "portal.sqlite"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), file)
        return f"sqlite:///{file}"
    url: str = request.getfixturevalue("postgresql_url")
    engine = db.make_engine(url)
    with engine.begin() as connection:
        # TRUNCATE makes new files for each table and index: a quarter of a second.
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(delete(table))
        connection.exec_driver_sql("SELECT setval(sequencename::regclass, 1, false) FROM pg_sequences")
    engine.dispose()
    return url


@pytest.fixture
def settings_changes() -> dict[str, Any]:
    """What a test sets differently; override by parametrizing or in the module."""
    return {}


@pytest.fixture
def settings(
    database_url: str, deployment: Deployment, tmp_path: Path, settings_changes: dict[str, Any]
) -> Settings:
    url_file = tmp_path / "database-url"
    url_file.write_text(database_url)
    values: dict[str, Any] = {
        "portal_url": ORIGIN,
        "secret_key_file": deployment.directory / "secret",
        "client_ca_certificate_file": deployment.client_ca.pair.certificate,
        "client_ca_key_file": deployment.client_ca.pair.key,
        "server_ca_certificate_file": deployment.server_ca.pair.certificate,
        "management_ca_certificate_file": deployment.management.pair.certificate,
        "management_certificate_file": deployment.portal.certificate,
        "management_key_file": deployment.portal.key,
        "tls_crypt_directory": deployment.tls_crypt,
        "state_directory": tmp_path,
        "database_url_file": url_file,
    }
    return Settings.parse(values | settings_changes)


@pytest.fixture
def agent_servers() -> Iterator[list[AgentServer]]:
    """The agents of a test; they outlive the portal, whose last calls in the background still go to them."""
    started: list[AgentServer] = []
    yield started
    for agent in started:
        agent.stop()


@pytest.fixture(autouse=True)
def start_writer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """What starts the thread that writes background errors down. In tests nothing does by itself: it would
    still be at work when the next test has another database.
    """
    start = background_errors._start_writer
    monkeypatch.setattr(background_errors, "_start_writer", lambda: None)
    yield start
    background_errors._pending.clear()
    background_errors._writer = None


@pytest.fixture(scope="session", autouse=True)
def compiled_rules() -> Iterator[None]:
    """Werkzeug compiles two functions for each address of each portal, a sixth of what a test takes. They
    depend on nothing but what is the key here.
    """
    compile_builder = Rule._compile_builder
    compiled: dict[tuple[Any, ...], Callable[..., tuple[str, str]]] = {}

    def remembered(rule: Rule, append_unknown: bool = True) -> Callable[..., tuple[str, str]]:
        key = (rule.rule, tuple(rule._trace), repr(rule.defaults), append_unknown)
        if key not in compiled:
            compiled[key] = compile_builder(rule, append_unknown)
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rule, "_compile_builder", remembered)
        yield


class TemplateCache(FileSystemBytecodeCache):
    """Keeps each template once for each language: its texts are compiled in."""

    def get_bucket(self, environment: Any, name: str, filename: str | None, source: str) -> Bucket:
        return super().get_bucket(environment, f"{environment.writer.tag}/{name}", filename, source)


@pytest.fixture(scope="session")
def compiled_templates(tmp_path_factory: pytest.TempPathFactory) -> FileSystemBytecodeCache:
    """Templates that one test had compiled need not be by the next one, which took a third of its time."""
    return TemplateCache(str(tmp_path_factory.mktemp("templates")))


@pytest.fixture(scope="session")
def share_statements() -> Callable[[sqlalchemy.Engine], None]:
    """What gives an engine the compiled statements of those before it; to compile them anew for each portal
    took a seventh of what a test takes. They are kept for a dialect, which goes with them.
    """
    shared: dict[str, tuple[Any, Any]] = {}

    def share(engine: sqlalchemy.Engine) -> None:
        if engine.dialect.name not in shared:
            engine.connect().close()  # from the first connection it knows which server this is
            shared[engine.dialect.name] = engine.dialect, engine._compiled_cache
        engine.dialect, engine._compiled_cache = shared[engine.dialect.name]

    return share


@pytest.fixture
def app(
    settings: Settings,
    agent_servers: list[AgentServer],
    compiled_templates: FileSystemBytecodeCache,
    share_statements: Callable[[sqlalchemy.Engine], None],
) -> Iterator[Flask]:
    app = create_app(settings)
    share_statements(db.engine())
    app.jinja_env.bytecode_cache = compiled_templates
    app.test_client_class = HttpsClient
    with app.app_context():
        yield app
    app.extensions["causeway"].agents.close()
    db.engine().dispose()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def apply_plan(
    addresses: dict[int, str], profiles: dict[str, Any] = PROFILES, *, max_nodes: int = 4
) -> dict[str, Any]:
    """Apply and return a plan whose nodes ``node<number>.example.org`` have agents at these addresses."""
    entries = {
        f"node{number}": {
            "number": number,
            "hostname": f"node{number}.example.org",
            "agent_address": address,
        }
        for number, address in addresses.items()
    }
    found = make_plan(profiles, entries, {"max_nodes": max_nodes}).to_dict()
    plan.apply(plan_file.parse(found), now=utc_now())
    return found


def seen_up(number: int, now: datetime | None = None, **changes: Any) -> None:
    """Let the database say what the controller writes when a node has answered."""
    values = {
        "answered_at": now or utc_now(),
        "failing_since": None,
        "suspect_until": None,
        "wireguard_public_key": WIREGUARD_KEY,
        "info": {"rel_load_average": [0, 0, 0], "o_client_count": 0},
    } | changes
    with transaction() as session:
        session.execute(update(NodeStatus).where(NodeStatus.node_number == number).values(**values))


@pytest.fixture
def make_nodes(
    app: Flask, agent_servers: list[AgentServer], deployment: Deployment
) -> Callable[..., list[AgentServer]]:
    """Start agents and put them into the plan: ``make_nodes(2)`` gives numbers 0 and 1, both Up."""

    def make(count: int = 1, profiles: dict[str, Any] = PROFILES) -> list[AgentServer]:
        agent_servers.extend(start_agent(deployment, number) for number in range(count))
        apply_plan({agent.number: agent.address for agent in agent_servers}, profiles)
        for agent in agent_servers:
            # Nobody asks them again in this test, which may take longer than an answer counts.
            seen_up(agent.number, utc_now() + timedelta(minutes=2))
        return list(agent_servers)

    return make


def start_agent(deployment: Deployment, number: int, **details: Any) -> AgentServer:
    return AgentServer(deployment, number, loopback_address(), **details)


@pytest.fixture
def node(make_nodes: Callable[..., list[AgentServer]]) -> AgentServer:
    """One node that serves every profile."""
    return make_nodes(1)[0]


@pytest.fixture
def make_app_user(app: Flask) -> Callable[..., VpnApp]:
    """Make a user with an authorized app: ``make_app_user("alice", permissions=["staff"])``."""

    def make(name: str = "alice", permissions: list[str] | None = None, **details: Any) -> VpnApp:
        return VpnApp(app, add_user(name, permissions), **details).authorize()

    return make


@pytest.fixture
def agents(app: Flask) -> Agents:
    found: Agents = app.extensions["causeway"].agents
    return found


@pytest.fixture
def make_agents(
    app: Flask, agents: Agents, deployment: Deployment, tmp_path: Path
) -> Iterator[Callable[..., list[RealAgent]]]:
    """Apply a plan with this many nodes and start their real agents; the controller has not seen them yet."""
    started: list[RealAgent] = []

    def make(count: int = 1) -> list[RealAgent]:
        shares = apply_plan({number: loopback_address() for number in range(count)})["nodes"]
        started.extend(
            RealAgent(deployment, tmp_path / name, share, share["agent_address"])
            for name, share in shares.items()
        )
        for agent in started:
            agent.start(agents)
        return list(started)

    yield make
    for agent in started:
        agent.stop()


@pytest.fixture
def run(
    settings: Settings, app: Flask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Done]]:
    """Run ``vpn-portal`` in this process, which a test can look into: ``run("node", "list").out``."""
    file = tmp_path / "settings.toml"
    write_settings(settings, file)

    def command(*words: str) -> Done:
        capsys.readouterr()
        status = main(["--settings", str(file), *words])
        output = capsys.readouterr()
        return Done(status, output.out, output.err)

    yield command
    db.engine().dispose()


@pytest.fixture
def run_command(settings: Settings, tmp_path: Path) -> Callable[..., Done]:
    """Run ``vpn-portal`` in a process of its own: ``run_command("node", "list").out``."""
    file = tmp_path / "settings.toml"
    write_settings(settings, file)
    return partial(run_vpn_portal, file)

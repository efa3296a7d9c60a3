"""The controller against real agents: what it sees, repairs, ends and refuses to believe."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, update

from portal_app import db
from portal_app.agents import Agents
from portal_app.clock import utc_now
from portal_app.controller.leader import leader_lock
from portal_app.controller.loop import Controller
from portal_app.controller.observation import Timing
from portal_app.db import transaction
from portal_app.models import AuditEvent, Connection, Deployment, Node, NodeStatus
from portal_app.services import nodes, plan, plan_file
from portal_app.settings import Settings
from tests.portal.app_user import VpnApp
from tests.portal.certificates import Deployment as Certificates
from tests.portal.conftest import PROFILES
from tests.portal.real_agent import RealAgent, loopback_address
from vpn_core.plan import make_plan

QUICK = Timing(poll=0.2, moved=0.5, full=5.0)


def eventually(condition: Callable[[], bool], seconds: float = 15) -> None:
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, "did not come true in time"
        time.sleep(0.05)


@pytest.fixture
def agents(app: Flask) -> Agents:
    found: Agents = app.extensions["causeway"].agents
    return found


@pytest.fixture
def make_agents(
    app: Flask, agents: Agents, deployment: Certificates, tmp_path: Path
) -> Iterator[Callable[..., list[RealAgent]]]:
    """Apply a plan with this many nodes and start their agents."""
    started: list[RealAgent] = []

    def make(count: int = 1) -> list[RealAgent]:
        entries = {
            f"node{number}": {
                "number": number,
                "hostname": f"node{number}.example.org",
                "agent_address": loopback_address(),
            }
            for number in range(count)
        }
        data = make_plan(PROFILES, entries, {"max_nodes": 4}).to_dict()
        plan.apply(plan_file.parse(data), now=utc_now())
        for name, share in data["nodes"].items():
            agent = RealAgent(deployment, tmp_path / name, share, share["agent_address"])
            started.append(agent)
            agent.start(agents)
        return list(started)

    yield make
    for agent in started:
        agent.stop()


@contextmanager
def running(settings: Settings, agents: Agents, timing: Timing = QUICK) -> Iterator[Controller]:
    controller = Controller(settings, agents=agents, timing=timing)
    thread = threading.Thread(target=controller.run)
    thread.start()
    try:
        yield controller
    finally:
        controller.stop()
        thread.join(20)
        assert not thread.is_alive()


def status(number: int = 0) -> NodeStatus:
    with transaction(read_only=True) as session:
        return session.get_one(NodeStatus, number)


def is_up(number: int = 0) -> bool:
    found = status(number)
    return found.answered_at is not None and found.failing_since is None and found.error is None


def ids() -> set[str]:
    with transaction(read_only=True) as session:
        return set(session.scalars(select(Connection.id)))


def connect(user: VpnApp) -> str:
    """Connect over OpenVPN and return the connection's id."""
    before = ids()
    response = user.connect("legacy")
    assert response.status_code == 200, response.text
    (new,) = ids() - before
    return new


def test_node_that_answers_is_up_and_usable(make_agents, agents, settings, make_app_user):
    (agent,) = make_agents()
    with running(settings, agents):
        eventually(is_up)
        found = status()
        assert found.info["v"] and found.info["deployment_id"] is None or found.instance_id
        connection = connect(make_app_user())
    assert agent.connections(agents) == {connection}

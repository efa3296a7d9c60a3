"""What tests ask of the portal's database and tell it, on the portal's host: one JSON question a line in,
one JSON answer out.

Runs as the portal's user with its installed release. To start Python and the portal's modules takes two
seconds of a processor, and a test asks dozens of times, so that one process answers them all.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import Any

from sqlalchemy import select, update

from portal_app import db
from portal_app.agents import Agents
from portal_app.clock import utc_now
from portal_app.models import Connection, Node, User, VpnSession
from portal_app.services import audit, maintenance, nodes, statistics, users
from portal_app.settings import DEFAULT_FILE, Settings

ACTOR = audit.CLI


def states() -> dict[str, str]:
    """Return how each node is, as ``vpn-portal node list`` says."""
    with db.transaction(read_only=True) as session:
        return {node.name: node.state for node in statistics.nodes(session, now=utc_now())}


def switch_maintenance(names: list[str], on: bool) -> None:
    with closing(Agents(Settings.load())) as agents:
        for node in [_node(name) for name in names]:
            maintenance.switch(agents, node, on=on, actor=ACTOR, now=utc_now())


def wanted(node: str) -> list[str]:
    """Return the public keys of a node's live connections."""
    asked = select(Connection.public_key).where(Connection.node_number == _node(node).number)
    with db.transaction(read_only=True) as session:
        return [key for key in session.scalars(asked) if key]


def sessions(user: str) -> list[dict[str, Any]]:
    """Return the sessions of a user in the order of their begin; moments are seconds since 1970."""
    asked = select(VpnSession).where(VpnSession.user_name == user).order_by(VpnSession.started_at)
    with db.transaction(read_only=True) as session:
        return [
            {
                "connection": found.connection_id,
                "node": found.node_number,
                "protocol": found.protocol,
                "started": found.started_at.timestamp(),
                "ended": found.ended_at and found.ended_at.timestamp(),
            }
            for found in session.scalars(asked)
        ]


def open_sessions(node: str) -> list[dict[str, Any]]:
    asked = select(VpnSession).where(
        VpnSession.node_number == _node(node).number, VpnSession.ended_at.is_(None)
    )
    with db.transaction(read_only=True) as session:
        return [
            {"user": found.user_name, "connection": found.connection_id} for found in session.scalars(asked)
        ]


def expire(user: str, seconds: int) -> None:
    """Let a user's connections end in some seconds, and tell their nodes as the controller would."""
    with db.transaction() as session:
        number = session.scalar(select(User.id).where(User.name == user))
        its_nodes = session.scalars(select(Connection.node_number).where(Connection.user_id == number)).all()
        at = utc_now() + timedelta(seconds=seconds)
        session.execute(update(Connection).where(Connection.user_id == number).values(expires_at=at))
        changed = update(Node).where(Node.number.in_(its_nodes)).values(generation=Node.generation + 1)
        session.execute(changed)
    with closing(Agents(Settings.load())) as agents:
        for one in its_nodes:
            with db.transaction(read_only=True) as session:
                node, everything = session.get_one(Node, one), nodes.wanted_set(session, one)
            agents.put_set(node, everything)


def add_users(passwords: dict[str, str]) -> None:
    """Make accounts, or give those that are there these passwords."""
    for name, password in passwords.items():
        users.add(name, permissions=[], password=password, exists_ok=True, actor=ACTOR, now=utc_now())
        users.set_password(name, password, actor=ACTOR, now=utc_now())


QUESTIONS: dict[str, Callable[..., Any]] = {
    asked.__name__: asked
    for asked in (states, switch_maintenance, wanted, sessions, open_sessions, expire, add_users)
}


def _node(name: str) -> Node:
    with db.transaction(read_only=True) as session:
        return session.scalars(select(Node).where(Node.name == name)).one()


def _deployed() -> tuple[str, int, str]:
    """Return what tells one deployment of the portal from the next."""
    release = os.path.realpath("/opt/causeway/current")
    return release, DEFAULT_FILE.stat().st_mtime_ns, Settings.load().database_url


def main() -> None:
    """Answer until nobody asks any more, or the portal was deployed anew and whoever asks starts another."""
    deployed = _deployed()
    db.connect_to(Settings.load().database_url)
    for line in sys.stdin:
        if _deployed() != deployed:
            return
        question = json.loads(line)
        try:
            answer = {"ok": True, "answer": QUESTIONS[question.pop("do")](**question)}
        except Exception as error:  # whoever asked shall read it
            answer = {"ok": False, "error": repr(error), "trace": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


main()

"""Real nodes of one portal that really hold connections of others: agents, interfaces, rows."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from sqlalchemy import insert, text, update

from benchmarks.stage import node, openvpn
from benchmarks.stage.node import RealNode
from benchmarks.stage.portal import PROFILE, Portal, apply_plan
from portal_app.clock import utc_now
from portal_app.db import is_postgresql, transaction
from portal_app.models import (
    AccessToken,
    AddressUse,
    Authorization,
    Connection,
    FreeAddress,
    Node,
    NodeStatus,
    Offer,
    User,
)
from portal_app.services.authorizations import hashed
from portal_app.services.nodes import wanted_set
from tests.portal.app_user import LINUX
from vpn_core.ranges import client_addresses

#: One OpenVPN process each.
OPENVPN = {"openvpn": {"ipv4": "10.128.0.0/18", "ipv6": "fd43:62::/96", "udp_ports": [1194], "tcp_ports": []}}
MOST_NODES = 16
HAND_OVER_SECONDS = 60
#: Addresses of a node that wait to be given again, once each has been given out.
WAITING = 500
#: Ids of what is there already, out of the way of others.
FIRST_ID = 1_000_000
_CHUNK = 10_000


class Fleet:
    """``held`` connections of others are in the database and on the nodes."""

    def __init__(self, nodes: Sequence[RealNode], shares: Sequence[dict[str, Any]]) -> None:
        self.nodes, self._shares, self.held = nodes, shares, 0

    def hold(self, count: int) -> None:
        """Let others have so many connections in all, each of a user and an app of its own."""
        for first in range(self.held, count, _CHUNK):
            self._add(range(first, min(first + _CHUNK, count)))
        self.held = count
        with transaction() as db:
            if is_postgresql(db):
                db.execute(text("ANALYZE"))  # as autovacuum does some time after so many rows
        for running in self.nodes:
            with transaction(read_only=True) as db:
                wanted = wanted_set(db, running.node.number)
            running.agents.put_set(running.node, wanted, seconds=HAND_OVER_SECONDS)
            assert len(running.interface.peers()) == len(wanted.connections)

    def look(self) -> None:
        """Write down what the agents say, as the controller does; it counts for an hour, as no controller is
        here.
        """
        for running in self.nodes:
            info = running.agents.info(running.node)
            values = {
                "answered_at": utc_now() + timedelta(hours=1),
                "wireguard_public_key": info.wireguard_public_key,
                "info": info.to_dict(),
            }
            with transaction() as db:
                db.execute(
                    update(NodeStatus).where(NodeStatus.node_number == running.node.number).values(**values)
                )

    def _add(self, numbers: range) -> None:
        now = utc_now()
        later = now + timedelta(days=1)
        rows: dict[Any, list[dict[str, Any]]] = {
            model: [] for model in (User, Authorization, AccessToken, Connection, AddressUse)
        }
        for number in numbers:
            share = self._shares[number % len(self._shares)]
            ipv4, ipv6 = _addresses(share, position := number // len(self._shares))
            connection_id, id_ = f"{number:032x}", FIRST_ID + number
            place = {
                "profile_id": PROFILE,
                "node_number": share["number"],
                "protocol": "wireguard",
                "ipv4": ipv4,
                "ipv6": ipv6,
            }
            rows[User].append({"id": id_, "name": f"user{number}", "permissions": [], "created_at": now})
            rows[Authorization].append(
                {
                    "id": id_,
                    "user_id": id_,
                    "client_id": LINUX,
                    "scope": "config",
                    "authorized_at": now,
                    "expires_at": later,
                }
            )
            rows[AccessToken].append(
                {"token_hash": hashed(f"{number}"), "authorization_id": id_, "expires_at": later}
            )
            rows[Connection].append(
                place
                | {
                    "id": connection_id,
                    "user_id": id_,
                    "authorization_id": id_,
                    "public_key": node.key_of(number),
                    "position": position,
                    "display_name": "eduVPN for Linux",
                    "created_at": now,
                    "expires_at": later,
                    "generation": 1,
                }
            )
            rows[AddressUse].append(
                place
                | {
                    "connection_id": connection_id,
                    "user_name": f"user{number}",
                    "client_id": LINUX,
                    "started_at": now,
                }
            )
        with transaction() as db:
            for model, values in rows.items():
                db.execute(insert(model), values)
            db.execute(update(Node).values(generation=Node.generation + 1))
            for share in self._shares:
                count = sum(row["node_number"] == share["number"] for row in rows[Connection])
                db.execute(
                    update(Offer)
                    .where(Offer.node_number == share["number"])
                    .values(allocated=Offer.allocated + count)
                )


@contextmanager
def fleet(place: Portal, count: int) -> Iterator[Fleet]:
    """Start so many nodes. Each of their addresses has been given out before, so that one waits longest."""
    shares = apply_plan(count, MOST_NODES, **OPENVPN)
    with ExitStack() as stack:
        sockets = stack.enter_context(openvpn.simulated(place.directory / "openvpn", count, count))
        nodes = [
            stack.enter_context(
                node.started(place.directory / share["name"], place.deployment, share, [socket])
            )
            for share, socket in zip(shares, sockets, strict=True)
        ]
        with transaction() as db:
            for share in shares:
                last = share["wireguard"][0]["capacity"]
                values = [
                    {
                        "node_number": share["number"],
                        "profile_id": PROFILE,
                        "position": position,
                        "freed_at": utc_now(),
                    }
                    for position in range(last - WAITING, last)
                ]
                db.execute(insert(FreeAddress), values)
            db.execute(update(Offer).values(next_position=Offer.capacity))
        yield Fleet(nodes, shares)


def _addresses(share: dict[str, Any], position: int) -> tuple[str, str]:
    network = share["wireguard"][0]
    return client_addresses(IPv4Network(network["ipv4"]), IPv6Network(network["ipv6"]), position)

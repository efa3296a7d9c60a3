"""Parse and check one node of the inventory: a host's ``vpn_node``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vpn_core import fields
from vpn_core.errors import PlanError

#: An upper bound for vpn_max_nodes; a /8 cut for so many nodes leaves each a /18.
MOST_NODES = 1024


@dataclass(frozen=True)
class Node:
    """A host that ends tunnels. ``number`` never changes.

    Clients reach it by ``hostname``, portals reach its agent by ``agent_address``.
    """

    name: str
    number: int
    hostname: str
    agent_address: str
    is_portal: bool = False

    @classmethod
    def parse(cls, name: str, entry: Mapping[str, Any], *, max_nodes: int) -> "Node":
        """Return the node of inventory host ``name``; raises PlanError naming variable, value and fix."""
        name = fields.text("a host in group 'nodes'", name, longest=100)
        where = f"vpn_node of {name}"
        entry = fields.mapping(where, entry)
        fields.refuse_unknown_keys(where, entry, ("number", "hostname", "agent_address", "is_portal"))
        for key in ("number", "hostname"):
            if key not in entry:
                example = "{number: 1, hostname: node1.example.org}"
                raise PlanError(f"{where}: '{key}' is missing; write vpn_node: {example}")
        node_number = fields.number(f"{where}.number", entry["number"], 0, MOST_NODES - 1)
        if node_number >= max_nodes:
            raise PlanError(
                f"{where}.number: {node_number} is not below vpn_max_nodes ({max_nodes});"
                f" take a free number from 0 to {max_nodes - 1}"
            )
        hostname = fields.host_name(f"{where}.hostname", entry["hostname"])
        return cls(
            name=name,
            number=node_number,
            hostname=hostname,
            agent_address=fields.host_name(f"{where}.agent_address", entry.get("agent_address", hostname)),
            is_portal=fields.typed(f"{where}.is_portal", entry.get("is_portal", False), bool),
        )


def agent_name(number: int) -> str:
    """Return the DNS name in the certificate of a node's agent: who it is, wherever it is reached.

    >>> agent_name(3)
    'node-3'
    """
    return f"node-{number}"

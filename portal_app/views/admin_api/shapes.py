"""What the admin API answers with: each thing as its schema and as made from a row."""

from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Any

from portal_app.models import Authorization, Profile
from portal_app.oauth.clients import Client
from portal_app.services.listing import ConnectionRow, UserRow
from portal_app.services.statistics import (
    DOWN,
    HELD,
    MAINTENANCE,
    NEVER_SEEN,
    UP_STATE,
    NodeReport,
    ProfileReport,
)
from portal_app.views.admin_api.schema import (
    Schema,
    array,
    boolean,
    integer,
    maybe,
    moment,
    one_of,
    record,
    ref,
    text,
)
from vpn_core.messages import OPENVPN, WIREGUARD

PROTOCOLS = (WIREGUARD, OPENVPN)
_ADDRESSES = {
    "ipv4": maybe(text("Address in the tunnel.")),
    "ipv6": maybe(text("Address in the tunnel.")),
}

_USER = record(
    {
        "name": text(example="alice"),
        "permissions": array(text()),
        "disabled": boolean(),
        "has_password": boolean("A local password is set."),
        "connections": integer("Configurations handed out that are good.", least=0),
        "created_at": moment(),
        "last_seen_at": maybe(moment()),
    }
)
_AUTHORIZATION = record(
    {
        "id": integer(),
        "client_id": text(example="org.eduvpn.app.linux"),
        "app": text("The app's name, if it is known."),
        "authorized_at": moment(),
        "expires_at": moment(),
        "last_used_at": maybe(moment()),
    },
    "A user's consent for one app.",
)
_CONNECTION = record(
    {
        "id": text(),
        "user": text(),
        "profile": text(),
        "protocol": one_of(PROTOCOLS),
        "node": text(),
        "display_name": text("The device or app, as its owner knows it."),
        "client_id": maybe(text("The app; null for a configuration that was downloaded.")),
        "public_key": maybe(text("Of WireGuard.")),
        **_ADDRESSES,
        "created_at": moment(),
        "expires_at": moment(),
        "active": boolean("It is in use now."),
        "sessions": array(
            record(
                {
                    "started_at": moment(),
                    "origin": maybe(text("Where the client calls from, if that is kept.")),
                    **_ADDRESSES,
                }
            ),
            "Its uses that go on.",
        ),
        "choice": maybe(text("Why this node was chosen.")),
    },
    "One configuration handed out: a WireGuard peer or an OpenVPN certificate.",
)
_NODE = record(
    {
        "name": text(),
        "number": integer(),
        "hostname": text(),
        "agent_address": text(),
        "state": one_of([UP_STATE, DOWN, MAINTENANCE, HELD, NEVER_SEEN]),
        "connections": integer("Configurations handed out for it."),
        "active": integer("In use now, as the node said last."),
        "load_percent": maybe(integer()),
        "cpu_count": maybe(integer()),
        "version": maybe(text()),
        "software": {
            "type": "object",
            "additionalProperties": text(),
            "description": "Versions of system, wireguard, openvpn; empty from an older agent.",
        },
        "uptime_seconds": maybe(integer()),
        "answered_at": maybe(moment()),
        "failing_since": maybe(moment()),
        "reconciled_at": maybe(moment()),
        "certificate_ends": maybe(moment()),
        "remarks": array(text(), "What is wrong."),
    }
)
_NODE_DETAILS = record(
    {
        **_NODE["properties"],
        "maintenance": boolean(),
        "notice": maybe(text("What users connected there read.")),
        "cut_at": maybe(moment("When connections of apps there end, as their users are told.")),
        "profiles": array(
            record(
                {
                    "profile": text(),
                    "addresses": integer("WireGuard addresses."),
                    "allocated": integer("Of them, given out."),
                    "openvpn_places": integer("Clients that its OpenVPN servers take."),
                }
            ),
            "What it serves.",
        ),
    }
)
_PROFILE = record(
    {
        "id": text(),
        "display_name": text(),
        "priority": integer(),
        "hidden": boolean(),
        "permissions": maybe(array(text(), "Any one of them is needed; null lets everybody use it.")),
        "protocols": array(one_of(PROTOCOLS)),
        "preferred_protocol": one_of(PROTOCOLS),
        "default_gateway": boolean(),
        "routes": array(text()),
        "excluded_routes": array(text()),
        "dns_servers": array(text()),
        "dns_search_domains": array(text()),
        "nodes": array(text(), "Nodes that serve it."),
    },
    "Managed by Ansible: `vpn_profiles` in the inventory changes it.",
)
_SESSION = record(
    {
        "id": text(),
        "node": text("The node's name, or its number if it is gone."),
        "user": maybe(text()),
        "profile": text(),
        "protocol": one_of(PROTOCOLS),
        "connection": text(),
        **_ADDRESSES,
        "origin": maybe(text("Where the client called from, if that is kept.")),
        "started_at": moment(),
        "ended_at": maybe(moment("Null while it goes on.")),
        "received_bytes": maybe(integer("By the node.")),
        "sent_bytes": maybe(integer("By the node.")),
    },
    "One observed use of a connection.",
)
_ACT = record(
    {
        "id": integer(),
        "at": moment(),
        "actor": text(
            "A user's name, `cli`, `controller`, or `api:` with the name of a token.", example="api:inventory"
        ),
        "action": text(),
        "object": maybe(text()),
        "source": maybe(text("The address it came from.")),
        "details": {"type": "object"},
    },
    "One row of the audit log.",
)
_PROFILE_STATUS = record(
    {
        "profile_id": text(),
        **{name: integer() for name in ProfileReport.__dataclass_fields__ if name != "profile_id"},
    },
    "How full a profile is; `vpn-portal status --json` has the same fields.",
)
_CONFIGURATION = record(
    {
        "connection_id": text(),
        "configuration": text("The file's content. It holds a private key, which is kept nowhere."),
        "content_type": text(),
        "file_name": text(),
        "expires_at": moment(),
    }
)

COMPONENTS: dict[str, Schema] = {
    "Error": record({"error": text("What was wrong, and the way out, in English.")}),
    "User": _USER,
    "Authorization": _AUTHORIZATION,
    "Connection": _CONNECTION,
    "Node": _NODE,
    "NodeDetails": _NODE_DETAILS,
    "Profile": _PROFILE,
    "Session": _SESSION,
    "Act": _ACT,
    "ProfileStatus": _PROFILE_STATUS,
    "Configuration": _CONFIGURATION,
}


def page_of(name: str) -> Schema:
    """Return the schema of one page of a list."""
    return record(
        {"items": array(ref(name)), "next": maybe(text("The cursor of what follows; null at the end."))}
    )


def time(at: datetime) -> str:
    """Return a moment as RFC 3339 has it, in UTC."""
    return f"{at:%Y-%m-%dT%H:%M:%S}Z"


def time_or_null(at: datetime | None) -> str | None:
    return None if at is None else time(at)


def user(row: UserRow) -> dict[str, Any]:
    return {
        "name": row.user.name,
        "permissions": row.user.permissions,
        "disabled": row.user.is_disabled,
        "has_password": row.has_password,
        "connections": row.connections,
        "created_at": time(row.user.created_at),
        "last_seen_at": time_or_null(row.user.last_seen_at),
    }


def authorization(row: Authorization, apps: dict[str, Client]) -> dict[str, Any]:
    app = apps.get(row.client_id)
    return {
        "id": row.id,
        "client_id": row.client_id,
        "app": app.name if app else "",
        "authorized_at": time(row.authorized_at),
        "expires_at": time(row.expires_at),
        "last_used_at": time_or_null(row.last_used_at),
    }


def connection(row: ConnectionRow) -> dict[str, Any]:
    one = row.connection
    return {
        "id": one.id,
        "user": row.user,
        "profile": one.profile_id,
        "protocol": one.protocol,
        "node": row.node,
        "display_name": one.display_name,
        "client_id": row.client_id,
        "public_key": one.public_key,
        "ipv4": one.ipv4,
        "ipv6": one.ipv6,
        "created_at": time(one.created_at),
        "expires_at": time(one.expires_at),
        "active": bool(row.sessions),
        "sessions": [
            {"started_at": time(s.started_at), "origin": s.origin, "ipv4": s.ipv4, "ipv6": s.ipv6}
            for s in row.sessions
        ],
        "choice": one.choice,
    }


def node(report: NodeReport) -> dict[str, Any]:
    facts = asdict(report)
    return {
        name: time(value) if isinstance(value, datetime) else value
        for name, value in facts.items()
        if name in _NODE["properties"]
    }


def profile(row: Profile, nodes: Iterable[str]) -> dict[str, Any]:
    return {
        "id": row.profile_id,
        "display_name": row.display_name,
        "priority": row.priority,
        "hidden": row.hidden,
        "permissions": row.permissions,
        "protocols": [name for name in PROTOCOLS if getattr(row, name) is not None],
        "preferred_protocol": row.preferred_protocol,
        "default_gateway": row.default_gateway,
        "routes": row.routes,
        "excluded_routes": row.excluded_routes,
        "dns_servers": row.dns_servers,
        "dns_search_domains": row.dns_search_domains,
        "nodes": list(nodes),
    }


def session(row: Any) -> dict[str, Any]:
    """``row`` is one of ``history.page``."""
    return {
        "id": row.session_id,
        "node": row.node or str(row.node_number),
        "user": row.user_name,
        "profile": row.profile_id,
        "protocol": row.protocol,
        "connection": row.connection_id,
        "ipv4": row.ipv4,
        "ipv6": row.ipv6,
        "origin": row.origin,
        "started_at": time(row.started_at),
        "ended_at": time_or_null(row.ended_at),
        "received_bytes": row.received_bytes,
        "sent_bytes": row.sent_bytes,
    }


def act(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "at": time(row.at),
        "actor": row.actor,
        "action": row.action,
        "object": row.object,
        "source": row.source,
        "details": row.details,
    }


def profile_status(report: ProfileReport) -> dict[str, Any]:
    return asdict(report)

"""The HTTP surface (ARCHITECTURE.md, "The agent API"). What arrives is untrusted: sizes, shapes, types."""

import asyncio
import email.utils
import json
import logging
import time
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from aiohttp import web

from node_agent import nat_log
from node_agent.agent import Agent
from node_agent.errors import AgentError, AnotherBoot
from vpn_core.addresses import is_canonical
from vpn_core.errors import MessageError
from vpn_core.messages import CONNECTION_ID, MOST, Admit, Cut, Translations, WantedSet

log = logging.getLogger(__name__)

MOST_BYTES = 64 * 1024
MOST_SET_BYTES = 64 * 1024 * 1024
#: Connections that one question names; more do not fit into its line.
MOST_ASKED = 200
BODY_SECONDS = 10.0
#: Bodies above this are read by a thread, so that others are served meanwhile.
LARGE_BYTES = 64 * 1024

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
agent_key = web.AppKey("agent", Agent)


def make_app(agent: Agent) -> web.Application:
    """Return the application that portals call."""
    app = web.Application(middlewares=[_answer_errors], client_max_size=MOST_SET_BYTES)
    app[agent_key] = agent
    for path in ("/n/info", "/i/node"):
        app.router.add_get(path, _info, allow_head=False)
    app.router.add_put("/n/connections", _replace)
    app.router.add_put("/n/connections/{id}", _admit)
    app.router.add_delete("/n/connections/{id}", _cut)
    app.router.add_get("/n/usage", _usage, allow_head=False)
    app.router.add_get("/n/events", _events, allow_head=False)
    app.router.add_put("/n/maintenance", _maintenance)
    app.router.add_get("/n/translations", _translations, allow_head=False)
    return app


def make_local_app(agent: Agent) -> web.Application:
    """Return the application that ``vpn-node`` calls over a socket that is root's and the agent's."""
    app = web.Application(middlewares=[_answer_errors])
    app[agent_key] = agent
    app.router.add_get("/status", _info, allow_head=False)
    app.router.add_post("/accept", _accept)
    app.router.add_put("/maintenance", _maintenance)
    return app


def error(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPException as exception:
        response = error(exception.status, exception.reason)
        if "Allow" in exception.headers:
            response.headers["Allow"] = exception.headers["Allow"]
    except MessageError as exception:
        response = error(400, str(exception))
    except AgentError as exception:
        response = error(exception.status, str(exception))
    except Exception:
        log.exception("event=error method=%s path=%r", request.method, request.path)
        response = error(500, "internal error")
    if not response.prepared:
        response.headers["Server"] = "causeway"
    return response


async def _read(request: web.Request, most: int) -> bytes:
    if (request.content_length or 0) > most:
        raise web.HTTPRequestEntityTooLarge(most, request.content_length or 0)
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_any():
                data += chunk
                if len(data) > most:
                    raise web.HTTPRequestEntityTooLarge(most, len(data))
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    return bytes(data)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _parse_json(data: bytes) -> Any:
    try:
        return json.loads(data, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exception:
        raise MessageError(f"body: {exception!s:.100}") from None


def _query(request: web.Request, *known: str) -> dict[str, str]:
    """Return the query's values; each name must be known and come once."""
    for name in request.query:
        if name not in known or len(request.query.getall(name)) > 1:
            raise MessageError(f"query: {name!r:.80}")
    return dict(request.query)


def _portal_time(request: web.Request) -> float | None:
    """Return the portal's time, which expiry follows (R61).

    Only with a full set, so only from the leader: a portal with a wrong clock must not end what lives.
    """
    date = request.headers.get("Date")
    if date is None:
        return None
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        raise MessageError(f"Date: {date!r:.80}") from None


def _check_boot(request: web.Request) -> None:
    """Obey nobody who means another boot; one who names none means whoever is here."""
    meant, boot_id = request.headers.get("If-Match"), request.app[agent_key].boot_id
    if meant not in (None, f'"{boot_id}"'):
        raise AnotherBoot(f"this is boot {boot_id}, not {meant:.40}")


def _id(request: web.Request) -> str:
    connection_id = request.match_info["id"]
    if not CONNECTION_ID.fullmatch(connection_id):
        raise MessageError(f"connection_id: bad value {connection_id!r:.80}")
    return connection_id


async def _info(request: web.Request) -> web.Response:
    _query(request)
    return web.json_response(request.app[agent_key].info().to_dict())


async def _admit(request: web.Request) -> web.Response:
    _query(request)
    connection_id = _id(request)
    _check_boot(request)
    message = Admit.parse(_parse_json(await _read(request, MOST_BYTES)))
    if message.connection.connection_id != connection_id:
        raise MessageError("connection_id: not that of the path")
    await request.app[agent_key].admit(message.authority, message.connection)
    return web.Response(status=204)


async def _cut(request: web.Request) -> web.Response:
    _query(request)
    connection_id = _id(request)
    message = Cut.parse(_parse_json(await _read(request, MOST_BYTES)))
    usage = await request.app[agent_key].cut(message.authority, connection_id, message.generation)
    return web.json_response(usage.to_dict())


async def _replace(request: web.Request) -> web.Response:
    _query(request)
    _check_boot(request)
    data = await _read(request, MOST_SET_BYTES)
    if len(data) > LARGE_BYTES:
        wanted = await asyncio.to_thread(lambda: WantedSet.parse(_parse_json(data)))
    else:
        wanted = WantedSet.parse(_parse_json(data))
    return web.json_response(await request.app[agent_key].replace(wanted, _portal_time(request)))


async def _usage(request: web.Request) -> web.Response:
    only = _ids(_query(request, "connections"))
    parts = [json.dumps(p)[1:-1] async for p in request.app[agent_key].usage(only)]
    return web.Response(text=f'{{"usage": [{", ".join(parts)}]}}', content_type="application/json")


def _ids(query: dict[str, str]) -> list[str] | None:
    """Return the connections that somebody asks for, each once; None when all are meant."""
    if "connections" not in query:
        return None
    ids = list(dict.fromkeys(query["connections"].split(",")))
    if len(ids) > MOST_ASKED or not all(CONNECTION_ID.fullmatch(i) for i in ids):
        raise MessageError(f"connections: bad value {query['connections']!r:.80}")
    return ids


async def _events(request: web.Request) -> web.Response:
    query = _query(request, "after", "journal")
    after, journal_id = query.get("after", "0"), query.get("journal", "")
    if not (after.isascii() and after.isdigit() and len(after) < 20 and int(after) <= MOST):
        raise MessageError(f"after: bad value {after!r:.80}")
    if journal_id and not CONNECTION_ID.fullmatch(journal_id):
        raise MessageError(f"journal: bad value {journal_id!r:.80}")
    return web.json_response(request.app[agent_key].events(int(after), journal_id).to_dict())


async def _translations(request: web.Request) -> web.Response:
    query = _query(request, "address", "port", "first", "last")
    address = query.get("address", "")
    if not any(is_canonical(family, address) for family in (IPv4Address, IPv6Address)):
        raise MessageError(f"address: bad value {address!r:.80}")
    port, first, last = (_number(query, name) for name in ("port", "first", "last"))
    settings = request.app[agent_key].settings
    found = Translations(is_kept=False, translations=())
    if settings.log_nat:
        found = await asyncio.to_thread(
            nat_log.find, settings.nat_log_directory, address, port, first, last, time.time()
        )
    return web.json_response(found.to_dict())


def _number(query: dict[str, str], name: str) -> int:
    value = query.get(name, "")
    if not (value.isascii() and value.isdigit() and len(value) < 13):
        raise MessageError(f"{name}: bad value {value!r:.80}")
    return int(value)


async def _maintenance(request: web.Request) -> web.Response:
    _query(request)
    body = _parse_json(await _read(request, MOST_BYTES))
    if not isinstance(body, dict) or set(body) != {"on"} or not isinstance(body["on"], bool):
        raise MessageError('maintenance: write {"on": true} or {"on": false}')
    await request.app[agent_key].set_maintenance(body["on"])
    return web.Response(status=204)


async def _accept(request: web.Request) -> web.Response:
    return web.json_response({"result": await request.app[agent_key].accept()})

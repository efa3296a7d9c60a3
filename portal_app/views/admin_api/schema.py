"""JSON Schemas as the admin API uses them: what its document says and what it checks are one thing.

A small part of JSON Schema 2020-12, as plain dicts. ``check`` knows the keywords that requests use.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from portal_app.errors import BadRequest

Schema = dict[str, Any]

#: As RFC 3339 has it; Python takes other forms of ISO 8601, too.
_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9:]{8}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})")


def text(
    description: str = "", *, least: int = 0, most: int | None = None, pattern: str = "", example: str = ""
) -> Schema:
    found: Schema = {"type": "string"} | _described(description)
    if least:
        found["minLength"] = least
    if most is not None:
        found["maxLength"] = most
    if pattern:
        found["pattern"] = pattern
    if example:
        found["examples"] = [example]
    return found


def one_of(values: Sequence[str], description: str = "") -> Schema:
    return {"type": "string", "enum": list(values)} | _described(description)


def integer(description: str = "", *, least: int | None = None, most: int | None = None) -> Schema:
    found: Schema = {"type": "integer"} | _described(description)
    if least is not None:
        found["minimum"] = least
    if most is not None:
        found["maximum"] = most
    return found


def boolean(description: str = "", *, default: bool | None = None) -> Schema:
    found: Schema = {"type": "boolean"} | _described(description)
    return found if default is None else found | {"default": default}


def moment(description: str = "") -> Schema:
    return {"type": "string", "format": "date-time"} | _described(description)


def array(items: Schema, description: str = "", *, most: int | None = None) -> Schema:
    found: Schema = {"type": "array", "items": items} | _described(description)
    return found if most is None else found | {"maxItems": most}


def maybe(schema: Schema) -> Schema:
    """Return the schema of a value that may be null."""
    return schema | {"type": [schema["type"], "null"]}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def record(
    properties: Mapping[str, Schema], description: str = "", *, optional: Sequence[str] = ()
) -> Schema:
    """Return the schema of an object with these fields and no others."""
    found: Schema = {"type": "object"} | _described(description)
    found |= {"properties": dict(properties), "additionalProperties": False}
    if required := [name for name in properties if name not in optional]:
        found["required"] = required
    return found


def _described(description: str) -> Schema:
    return {"description": description} if description else {}


def parsed_json(body: bytes) -> Any:
    """Return what a body says; raises BadRequest for what is no JSON, or says one thing twice."""
    try:
        return json.loads(body, object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise BadRequest("the body is no JSON, or names a field twice") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("twice")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(name)


_KINDS: dict[str, tuple[type, str]] = {
    "string": (str, "a text"),
    "integer": (int, "a whole number"),
    "boolean": (bool, "true or false"),
    "array": (list, "a list"),
    "object": (dict, "an object"),
    "null": (type(None), "null"),
}


def check(schema: Schema, value: Any, where: str) -> Any:
    """Return the value as views use it (moments as such); raises BadRequest naming the place."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    kind = next((k for k in kinds if _is(value, k)), None)
    if kind is None:
        raise BadRequest(f"{where}: {' or '.join(_KINDS[k][1] for k in kinds)} is needed")
    if kind == "object":
        return _checked_object(schema, value, where)
    if kind == "array":
        if len(value) > schema.get("maxItems", len(value)):
            raise BadRequest(f"{where}: at most {schema['maxItems']} are allowed")
        return [check(schema["items"], item, f"{where}[{place}]") for place, item in enumerate(value)]
    if kind == "integer":
        return _checked_integer(schema, value, where)
    return _checked_text(schema, value, where) if kind == "string" else value


def _is(value: Any, kind: str) -> bool:
    if kind == "integer":
        # JSON knows one kind of number: 2.0 is 2.
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    return isinstance(value, _KINDS[kind][0])


def _checked_object(schema: Schema, value: dict[str, Any], where: str) -> dict[str, Any]:
    known = schema["properties"]
    if unknown := [name for name in value if name not in known]:
        raise BadRequest(
            f"{where}: unknown field {unknown[0][:60]!r}; known are {', '.join(known) or 'none'}"
        )
    if missing := [name for name in schema.get("required", ()) if name not in value]:
        raise BadRequest(f"{where}: the field {missing[0]!r} is missing")
    if len(value) < schema.get("minProperties", 0):
        raise BadRequest(f"{where}: name at least one of {', '.join(known)}")
    return {name: check(known[name], item, name) for name, item in value.items()}


def _checked_integer(schema: Schema, value: float, where: str) -> int:
    least, most = schema.get("minimum", value), schema.get("maximum", value)
    if not least <= value <= most:
        raise BadRequest(f"{where}: use {schema.get('minimum', '')} to {schema.get('maximum', '')}")
    return int(value)


def _checked_text(schema: Schema, value: str, where: str) -> Any:
    if "enum" in schema and value not in schema["enum"]:
        raise BadRequest(f"{where}: use one of {', '.join(schema['enum'])}")
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        most = schema.get("maxLength", "more")
        raise BadRequest(f"{where}: use {schema.get('minLength', 0)} to {most} characters")
    if "\0" in value or (not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value)):
        raise BadRequest(f"{where}: has a character that no text has")
    if schema.get("format") == "date-time":
        return _checked_moment(value, where)
    if "pattern" in schema and not re.search(schema["pattern"], value):
        raise BadRequest(f"{where}: does not look like one")
    return value


def _checked_moment(value: str, where: str) -> datetime:
    try:
        if _MOMENT.fullmatch(value):
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise BadRequest(f"{where}: use a time with its zone, such as 2026-11-30T08:00:00Z")


def from_query(schema: Schema, value: str, where: str) -> Any:
    """Return a value of the address as its schema has it."""
    if schema["type"] == "boolean":
        if value not in ("true", "false"):
            raise BadRequest(f"{where}: use true or false")
        return value == "true"
    if schema["type"] == "integer":
        if not re.fullmatch(r"-?[0-9]{1,9}", value):
            raise BadRequest(f"{where}: a whole number is needed")
        return check(schema, int(value), where)
    return check(schema, value, where)

"""A script at the admin API, through HTTP only, but for its token."""

from collections.abc import Collection
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from flask import Flask
from werkzeug.test import TestResponse

from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.services import tokens
from portal_app.services.tokens import Scope

API = "/api/admin/v1"


def make_token(
    name: str = "script",
    scopes: Collection[str] = tuple(Scope),
    *,
    life: timedelta = tokens.DEFAULT_LIFE,
    maker: str | None = None,
) -> str:
    return tokens.make(name, scopes, life=life, maker=maker, settings=portal().settings, now=utc_now())


class Script:
    """Calls the admin API: ``script.get("/users")``. By default with a token that is good for everything."""

    def __init__(self, app: Flask, token: str | None = None, *, source: str = "") -> None:
        self.http = app.test_client()
        self.token = make_token() if token is None else token
        self.headers = {"X-Forwarded-For": source} if source else {}

    def call(self, method: str, path: str, body: Any = None, **options: Any) -> TestResponse:
        headers = self.headers | {"Authorization": f"Bearer {self.token}"} | options.pop("headers", {})
        if body is not None:
            options["json"] = body
        return self.http.open(API + path, method=method, headers=headers, **options)

    def get(self, path: str, **query: Any) -> TestResponse:
        return self.call("GET", path, query_string=query)

    def post(self, path: str, body: Any = None, **options: Any) -> TestResponse:
        return self.call("POST", path, body, **options)

    def put(self, path: str, body: Any = None, **options: Any) -> TestResponse:
        return self.call("PUT", path, body, **options)

    def patch(self, path: str, body: Any = None, **options: Any) -> TestResponse:
        return self.call("PATCH", path, body, **options)

    def delete(self, path: str, body: Any = None, **options: Any) -> TestResponse:
        return self.call("DELETE", path, body, **options)

    def all_items(self, path: str, **query: Any) -> list[Any]:
        """Read a list page by page to its end."""
        found, cursor = [], ""
        for _page in range(1000):
            page = self.get(path, **query, **({"cursor": cursor} if cursor else {}))
            assert page.status_code == 200, page.text
            found += page.json["items"]
            cursor = page.json["next"]
            if cursor is None:
                return found
        raise AssertionError("the list has no end")


def of_user(name: str, rest: str = "") -> str:
    """Return the path of a user, whose name may hold anything."""
    return f"/users/{quote(name, safe='')}{rest}"


def configured(script: Script, name: str = "alice", **body: Any) -> dict[str, Any]:
    """Return a new configuration of a user, as it was answered."""
    wanted = {"profile_id": "employees", "protocol": "wireguard"} | body
    answer = script.post(of_user(name, "/configurations"), wanted)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json
    return found

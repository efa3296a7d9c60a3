"""Where the links of pages lead."""

import hashlib
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import flask
from flask import Flask, request


def init_app(app: Flask) -> None:
    """Give templates ``here``, ``static_url``, and a ``url_for`` that remembers what it answered."""

    @cache
    def static_url(name: str) -> str:
        """Return the address of a static file. It has a digest: browsers keep the file until that changes."""
        content = Path(app.static_folder or "", name).read_bytes()
        return flask.url_for("static", filename=name, v=hashlib.sha256(content).hexdigest()[:12])

    # A list has a link in each row, and every page the same menu.
    @lru_cache(maxsize=4096)
    def path(endpoint: str, values: tuple[tuple[str, Any], ...]) -> str:
        return flask.url_for(endpoint, **dict(values))

    def url_for(endpoint: str, **values: str | int) -> str:
        """Return the path to a page of ours, without the host."""
        return path(endpoint, tuple(values.items()))

    app.jinja_env.globals.update(here=here, static_url=static_url, url_for=url_for)


def here(**changes: str | None) -> str:
    """Return the path and query of this page with some values changed; None takes one away."""
    values = {name: value for name, value in request.args.items() if name not in changes}
    values |= {name: value for name, value in changes.items() if value}
    return quote(request.path) + (f"?{urlencode(values)}" if values else "")

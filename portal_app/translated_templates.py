"""Templates are compiled once for each language, with the texts of that language in them.

A list of fifty rows has several hundred texts. A text without values, ``_("Profile")``, is translated when
its template is compiled and costs a page nothing; one with values is a call.
"""

from collections.abc import Iterator
from typing import Any, cast

import flask.templating
from flask import Flask
from jinja2 import Template
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from markupsafe import Markup

from portal_app import language

#: What the lexer makes of ``_("…")``.
_CONSTANT = ("name", "lparen", "string", "rparen")


def init_app(app: Flask) -> None:
    """Let the templates of an application speak; before anything else asks for its ``jinja_env``."""
    app.jinja_environment = Environment
    app.jinja_options = {**app.jinja_options, "extensions": ["jinja2.ext.i18n", _Constants]}
    environment = app.jinja_env
    environment.install_gettext_callables(  # type: ignore[attr-defined]  # of its i18n extension
        lambda text: language.translated(text, language.tag()),
        lambda one, many, count: language.translated_count(one, many, count, language.tag()),
        newstyle=True,
    )
    environment.policies["ext.i18n.trimmed"] = True
    # Jinja's own makes a context of its own for each call in a loop.
    environment.globals["_"] = _with_values


def _with_values(message: str, **values: object) -> Markup:
    return Markup(language.translated(message, language.tag())) % values  # noqa: S704 - texts are ours


class Environment(flask.templating.Environment):
    """The templates as Flask knows them, each as it was compiled for the language of the request."""

    #: Tag of the language whose texts are compiled in; None reads that of the request.
    language: str | None = None

    def _load_template(self, name: str, globals: Any) -> Template:
        """Return a template. All that asks for one comes here: render, extends, include, import."""
        if self.language is not None:
            return super()._load_template(name, globals)
        speaking: dict[str, Environment] = self.__dict__.setdefault("speaking", {})
        tag = language.tag()
        if tag not in speaking:
            speaking[tag] = self.overlay()
            speaking[tag].language = tag
        return speaking[tag]._load_template(name, globals)


class _Constants(Extension):
    """Puts the translation in the place of each ``_("…")`` without values."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        tag = cast(Environment, self.environment).language or "en"
        seen: list[Token] = []
        for token in stream:
            seen.append(token)
            if seen[0].value != "_" or any(t.type != kind for t, kind in zip(seen, _CONSTANT, strict=False)):
                yield from seen
                seen = []
            elif len(seen) == len(_CONSTANT):
                yield from _constant(seen[2], tag)
                seen = []
        yield from seen


def _constant(text: Token, tag: str) -> list[Token]:
    """Return ``("…" | safe)`` in a language: Jinja makes it part of the page around it."""
    said = Markup(language.translated(text.value, tag)) % {}  # noqa: S704 - texts are ours
    parts = (("lparen", "("), ("string", str(said)), ("pipe", "|"), ("name", "safe"), ("rparen", ")"))
    return [Token(text.lineno, kind, value) for kind, value in parts]

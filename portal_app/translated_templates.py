"""Templates are compiled once for each language, with the texts of that language in them.

A list of fifty rows has several hundred texts. A text without values, ``_("Profile")``, is translated when
its template is compiled and costs a page nothing; one with values is a call that finds it translated.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import flask.templating
from flask import Flask
from jinja2 import Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from markupsafe import Markup, escape

from portal_app import language, writing
from portal_app.writing import Writer

#: What the lexer makes of the begin of ``_("…")`` and ``_("…", name=value)``.
_CALL = (("name",), ("lparen",), ("string",), ("rparen", "comma"))


def init_app(app: Flask) -> None:
    """Let the templates of an application speak; before anything else asks for its ``jinja_env``."""
    app.jinja_environment = Environment
    app.jinja_options = {**app.jinja_options, "extensions": ["jinja2.ext.i18n", _Constants]}
    environment = app.jinja_env
    environment.install_gettext_callables(  # type: ignore[attr-defined]  # of its i18n extension
        lambda text: language.writer().translated(text),
        lambda one, many, count: language.writer().translated_count(one, many, count),
        newstyle=True,
    )
    environment.policies["ext.i18n.trimmed"] = True
    # Jinja's own makes a context of its own for each call in a loop.
    environment.globals.update(_=_translated, _filled=_filled)


def _translated(message: str, /, **values: object) -> Markup:
    return _filled(language.writer().translated(message), **values)


def _filled(said: str, /, **values: object) -> Markup:
    """Return a text, which is ours, with its values; those are escaped."""
    return Markup(said % {name: escape(value) for name, value in values.items()})  # noqa: S704


class _Generator(CodeGenerator):
    """Lets what is put into a page pass ``_shown``, which knows the two kinds of values that are most."""

    def _output_child_pre(
        self, node: nodes.Expr, frame: Frame, finalize: CodeGenerator._FinalizeInfo
    ) -> None:
        if frame.eval_ctx.volatile or not frame.eval_ctx.autoescape or finalize.src is not None:
            super()._output_child_pre(node, frame, finalize)
        else:
            self.write("environment.shown(")


def _shown(value: object) -> str:
    """Return a value as HTML."""
    kind = type(value)
    if kind is Markup:
        return value  # type: ignore[return-value]
    if kind is int:
        return str(value)
    return escape(value)


class Environment(flask.templating.Environment):
    """The templates as Flask knows them, each as it was compiled for the language of the request."""

    #: Whose texts are compiled in, and who writes times and numbers; None takes that of the request.
    writer: Writer | None = None
    code_generator_class = _Generator
    shown = staticmethod(_shown)

    def _load_template(self, name: str, globals: Any) -> Template:
        """Return a template. All that asks for one comes here: render, extends, include, import."""
        if self.writer is not None:
            return super()._load_template(name, globals)
        speaking: dict[str, Environment] = self.__dict__.setdefault("speaking", {})
        tag = language.tag()
        if tag not in speaking:
            speaking[tag] = self._speaking(writing.writer(tag))
        return speaking[tag]._load_template(name, globals)

    def _speaking(self, writer: Writer) -> "Environment":
        found: Environment = self.overlay()
        found.writer = writer
        found.filters = {**self.filters, **writer.filters()}
        found.globals = {**self.globals, "time_element": writer.time_element}
        return found


class _Constants(Extension):
    """Puts the translation in the place of each constant text: of all of ``_("…")``, or of the text alone."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        writer = cast(Environment, self.environment).writer or writing.writer("en")
        seen: list[Token] = []
        for token in stream:
            seen.append(token)
            if seen[0].value != "_" or token.type not in _CALL[len(seen) - 1]:
                yield from seen
                seen = []
            elif len(seen) == len(_CALL):
                said = writer.translated(seen[2].value)
                yield from _constant(seen, said) if token.type == "rparen" else _call(seen, said)
                seen = []
        yield from seen


def _constant(seen: Sequence[Token], said: str) -> list[Token]:
    """Return ``("…" | safe)``: Jinja makes it part of the page around it."""
    parts = (
        ("lparen", "("),
        ("string", str(_filled(said))),
        ("pipe", "|"),
        ("name", "safe"),
        ("rparen", ")"),
    )
    return [Token(seen[0].lineno, kind, value) for kind, value in parts]


def _call(seen: Sequence[Token], said: str) -> list[Token]:
    """Return ``_filled("…",``: the call finds the text translated."""
    name, opening, text, comma = seen
    return [Token(name.lineno, "name", "_filled"), opening, Token(text.lineno, "string", said), comma]

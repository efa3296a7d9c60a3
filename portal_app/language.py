"""In which language a page speaks.

Every text of a page goes through gettext; ``portal_app/translations`` has a catalogue for each language but
English, which is in the code. Apps and scripts read English: their answers are not translated.
"""

from datetime import timedelta

from flask import Flask, current_app, g, request

from portal_app import writing
from portal_app.errors import N_, PortalError, SettingsError
from portal_app.writing import Writer

__all__ = ["LANGUAGES", "N_", "gettext", "ngettext", "said", "tag", "writer"]

#: Language tags (RFC 5646) and what their speakers call them.
LANGUAGES = {"en": "English", "de": "Deutsch", "fr": "Français", "nl": "Nederlands"}
COOKIE = "__Host-language"
#: How long a browser remembers the choice.
COOKIE_LIFE = timedelta(days=365)


def init_app(app: Flask, default: str = "en") -> None:
    """Let pages speak; ``default`` is for browsers that ask for no language we have."""
    if default not in LANGUAGES:
        raise SettingsError(f"default_language: {default!r} is none of {', '.join(LANGUAGES)}")
    app.extensions["default language"] = default
    app.jinja_env.globals.update(language_tag=tag, languages=LANGUAGES)


def tag() -> str:
    """Return the tag of this request's language: the one chosen before, or what the browser asks for."""
    found: str | None = g.get("language")
    if found is None:
        chosen = request.cookies.get(COOKIE, "")
        if chosen in LANGUAGES:
            found = chosen
        else:
            default: str = current_app.extensions["default language"]
            # The first of those that a browser likes equally well wins: it likes all that it does not name.
            found = request.accept_languages.best_match([default, *LANGUAGES], default)
        g.language = found
    return found or "en"


def writer() -> Writer:
    """Return who writes for the reader of this request."""
    return writing.writer(tag())


def gettext(message: str, /, **values: object) -> str:
    """Return a text in the reader's language, with its values."""
    said = writer().translated(message)
    return said % values if values else said


def ngettext(one: str, many: str, num: int, /, **values: object) -> str:
    """Return the one of two texts that the reader's language uses for a count, with its values."""
    return writer().translated_count(one, many, num) % ({"num": num} | values)


def said(error: PortalError) -> str:
    """Return what an error says, in the reader's language."""
    return gettext(error.message, **error.values) if error.message else ""

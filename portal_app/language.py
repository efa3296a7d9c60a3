"""In which language pages speak, and how they write times and numbers.

Every text of a page goes through gettext; ``portal_app/translations`` has a catalogue for each language but
English, which is in the code. Apps and scripts read English: their answers are not translated.
"""

import math
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Literal

from babel import Locale, dates, numbers
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.support import NullTranslations, Translations
from flask import Flask, current_app, g, request
from flask_babel import Babel, Domain, gettext, ngettext  # type: ignore[import-untyped]
from markupsafe import Markup

from portal_app.errors import N_, PortalError, SettingsError
from portal_app.texts import Size, Text

__all__ = ["LANGUAGES", "N_", "gettext", "ngettext", "put", "said"]

#: Language tags (RFC 5646) and what their speakers call them.
LANGUAGES = {"en": "English", "de": "Deutsch", "fr": "Français", "nl": "Nederlands"}
#: Times are written as in Britain, with 24 hours.
_LOCALES = {"en": "en_GB", "de": "de", "fr": "fr", "nl": "nl"}
COOKIE = "__Host-language"
#: How long a browser remembers the choice.
COOKIE_LIFE = timedelta(days=365)
_DIRECTORY = Path(__file__).parent / "translations"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class _Catalogues(Domain):  # type: ignore[misc]  # the package has no types
    """Reads ``.po`` files itself: nothing generated lies beside them."""

    def get_translations(self) -> NullTranslations:
        return _catalogue(tag())


@cache
def _catalogue(language: str) -> NullTranslations:
    file = _DIRECTORY / f"{language}.po"
    if not file.exists():
        return Translations()
    compiled = BytesIO()
    with file.open("rb") as source:
        write_mo(compiled, read_po(source, locale=language))
    compiled.seek(0)
    return Translations(compiled)


def init_app(app: Flask, default: str = "en") -> None:
    """Let pages speak; ``default`` is for browsers that ask for no language we have."""
    if default not in LANGUAGES:
        raise SettingsError(f"default_language: {default!r} is none of {', '.join(LANGUAGES)}")
    app.extensions["default language"] = default
    babel = Babel(app, locale_selector=lambda: _LOCALES[tag()], configure_jinja=False)
    babel.domain_instance = _Catalogues()
    app.jinja_env.filters.update(
        time=time, machine_time=machine_time, day=day, size=size, rate=rate, number=number, percent=percent,
        ago=ago, duration=duration, exact_time=exact_time, put=put,
    )  # fmt: skip
    app.jinja_env.globals.update(language_tag=tag, languages=LANGUAGES, time_element=time_element)


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


def translated(message: str, language: str) -> str:
    """Return a text in a language, with the places of its values still in it."""
    return str(_catalogue(language).ugettext(message))


def translated_count(one: str, many: str, count: int, language: str) -> str:
    """Return the one of two texts that a language uses for a count, with the places of its values."""
    return str(_catalogue(language).ungettext(one, many, count))


def said(error: PortalError) -> str:
    """Return what an error says, in the reader's language."""
    return str(gettext(error.message, **error.values)) if error.message else ""


def put(text: Text | str) -> str:
    """Return what a service says, in the reader's language; what is no ``Text`` stays as it is."""
    if isinstance(text, str):
        return text
    if not text.values:
        return str(gettext(text.message))
    return str(gettext(text.message, **{name: _written(value) for name, value in text.values.items()}))


def _written(value: object) -> object:
    if isinstance(value, datetime):
        return time(value)
    if isinstance(value, date):
        return day(value)
    if isinstance(value, timedelta):
        return duration(value)
    if isinstance(value, Size):
        return size(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    return put(value) if isinstance(value, Text) else value


def _locale() -> Locale:
    return _locale_of(tag())


@cache
def _locale_of(language: str) -> Locale:
    return Locale.parse(_LOCALES[language])


def time(moment: datetime) -> str:
    """Return date and time of day in UTC: ``29 Nov 2026, 14:05``."""
    locale, moment = _locale(), moment.astimezone(UTC)
    return f"{_day(moment.date(), locale)}, {minute(moment)}"


def minute(moment: datetime) -> str:
    """Return the time of day, which all our languages write like this (tests/unit/test_language.py)."""
    return f"{moment.hour:02}:{moment.minute:02}"


# A list has a hundred times, and many lists the same days.
@lru_cache(maxsize=4096)
def _day(moment: date, locale: Locale) -> str:
    return dates.format_skeleton("yMMMd", moment, locale=locale)


def exact_time(moment: datetime, zone: tzinfo = UTC) -> str:
    """Return date and time of day with seconds, in a time zone: ``29 Nov 2026, 14:05:09 UTC+01:00``."""
    moment = moment.astimezone(zone)
    offset = f"{moment:%z}"
    name = "UTC" if offset == "+0000" else f"UTC{offset[:3]}:{offset[3:5]}"
    return f"{day(moment.date())}, {minute(moment)}:{moment.second:02} {name}"


def machine_time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def time_element(moment: datetime) -> Markup:
    """Return ``time`` as an element that tells it to machines, too. Of Python, as lists have a hundred."""
    return Markup(f'<time datetime="{machine_time(moment)}">{time(moment)}</time>')  # noqa: S704 - all ours


def day(moment: date) -> str:
    return _day(moment, _locale())


def ago(moment: datetime, now: datetime, *, short: bool = False) -> str:
    """Return how long ago something was, roughly: ``3 minutes ago``, or ``3 min ago``."""
    form: Literal["short", "long"] = "short" if short else "long"
    return _length(moment - now, 0.85, form, True, _locale())


def duration(length: timedelta) -> str:
    """Return a length of time, roughly: ``3 hours``."""
    return _length(length, 1.5, "long", False, _locale())


def _length(
    length: timedelta, threshold: float, form: Literal["short", "long"], directed: bool, locale: Locale
) -> str:
    """Write a length as Babel does; of those that are written alike it is asked for one."""
    seconds = length.total_seconds()
    count, limit = abs(seconds), math.inf
    for _unit, unit in dates.TIMEDELTA_UNITS:
        if count >= unit * threshold:
            rounded = unit * round(count / unit)
            # Not where it would be enough for the next longer unit.
            count = rounded if rounded < limit else count
            break
        limit = unit * threshold
    return _rounded(-count if seconds < 0 else count, threshold, form, directed, locale)


@lru_cache(maxsize=4096)
def _rounded(
    seconds: float, threshold: float, form: Literal["short", "long"], directed: bool, locale: Locale
) -> str:
    return dates.format_timedelta(
        timedelta(seconds=seconds), threshold=threshold, add_direction=directed, format=form, locale=locale
    )


def number(value: float) -> str:
    return _decimal(value, None, _locale())


@lru_cache(maxsize=4096)
def _decimal(value: float, pattern: str | None, locale: Locale) -> str:
    return numbers.format_decimal(value, format=pattern, locale=locale)


def percent(value: float) -> str:
    """Return a share of 100 as the language writes it."""
    return _percent(value, _locale())


@lru_cache(maxsize=4096)
def _percent(value: float, locale: Locale) -> str:
    return numbers.format_percent(value / 100, locale=locale)


def size(count: int | None) -> str:
    """Return a number of bytes for people: ``1.5 KiB``; None is unknown."""
    if count is None:
        return str(gettext("unknown"))
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    pattern = "#,##0.0" if unit else "#,##0"
    return f"{_decimal(value, pattern, _locale())} {_UNITS[unit]}"


def rate(bytes_a_second: float) -> str:
    """Return a speed in bits, as networks are sold: ``12.5 Mbit/s``."""
    value, unit = 8 * bytes_a_second, 0
    units = ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s")
    while value >= 1000 and unit < len(units) - 1:
        value, unit = value / 1000, unit + 1
    pattern = "#,##0.0" if unit else "#,##0"
    return f"{_decimal(value, pattern, _locale())} {units[unit]}"

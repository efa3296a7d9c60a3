"""How a language writes texts, times and numbers.

A ``Writer`` writes one language. Lists have hundreds of times and sizes, so what Babel found is remembered,
and templates hold the functions of the language that they are compiled for (translated_templates.py).
"""

import math
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, cast

from babel import Locale, dates, numbers
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.support import NullTranslations, Translations
from markupsafe import Markup

from portal_app.errors import N_
from portal_app.texts import Percent, Size, Text

#: Times are written as in Britain, with 24 hours.
LOCALES = {"en": "en_GB", "de": "de", "fr": "fr", "nl": "nl"}
_DIRECTORY = Path(__file__).parent / "translations"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SPEEDS = ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s")
_Form = Literal["short", "long"]


def machine_time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def minute(moment: datetime) -> str:
    """Return the time of day, which all our languages write like this (tests/unit/test_language.py)."""
    return f"{moment.hour:02}:{moment.minute:02}"


class Writer:
    """Writes the language with this tag."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self._locale = Locale.parse(LOCALES[tag])
        self._catalogue = _catalogue(tag)

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of templates."""
        return {
            "ago": self.ago,
            "day": self.day,
            "duration": self.duration,
            "exact_time": self.exact_time,
            "machine_time": machine_time,
            "number": self.number,
            "percent": self.percent,
            "put": self.put,
            "rate": self.rate,
            "size": self.size,
            "time": self.time,
        }

    def translated(self, message: str) -> str:
        """Return a text with the places of its values still in it."""
        return str(self._catalogue.ugettext(message))

    def translated_count(self, one: str, many: str, count: int) -> str:
        """Return the one of two texts that is used for a count, with the places of its values."""
        return str(self._catalogue.ungettext(one, many, count))

    def put(self, text: Text | str) -> str:
        """Return what a service says; what is no ``Text`` stays as it is."""
        if isinstance(text, str):
            return text
        if text.one:
            said = self.translated_count(text.one, text.message, cast(int, text.values["num"]))
        else:
            said = self.translated(text.message)
        if not text.values:
            return said
        return said % {name: self._written(value) for name, value in text.values.items()}

    def _written(self, value: object) -> object:
        if isinstance(value, datetime):
            return self.time(value)
        if isinstance(value, date):
            return self.day(value)
        if isinstance(value, timedelta):
            return self.duration(value)
        if isinstance(value, Size):
            return self.size(value)
        if isinstance(value, Percent):
            return self.percent(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return self.number(value)
        return self.put(value) if isinstance(value, Text) else value

    def time(self, moment: datetime) -> str:
        """Return date and time of day in UTC: ``29 Nov 2026, 14:05``."""
        moment = moment.astimezone(UTC)
        return f"{_day(moment.date(), 'yMMMd', self._locale)}, {minute(moment)}"

    def time_element(self, moment: datetime) -> Markup:
        """Return ``time`` as an element that tells it to machines, too: of Python, as lists have many."""
        return Markup(f'<time datetime="{machine_time(moment)}">{self.time(moment)}</time>')  # noqa: S704 - ours

    def exact_time(self, moment: datetime, zone: tzinfo = UTC) -> str:
        """Return date and time of day with seconds in a time zone: ``29 Nov 2026, 14:05:09 UTC+01:00``."""
        moment = moment.astimezone(zone)
        offset = f"{moment:%z}"
        name = "UTC" if offset == "+0000" else f"UTC{offset[:3]}:{offset[3:5]}"
        return f"{self.day(moment.date())}, {minute(moment)}:{moment.second:02} {name}"

    def day(self, moment: date) -> str:
        return _day(moment, "yMMMd", self._locale)

    def short_day(self, moment: date) -> str:
        """Return a day without its year: ``29 Nov``."""
        return _day(moment, "MMMd", self._locale)

    def ago(self, moment: datetime, now: datetime, *, short: bool = False) -> str:
        """Return how long ago something was, roughly: ``3 minutes ago``, or ``3 min ago``."""
        return _length(moment - now, 0.85, "short" if short else "long", True, self._locale)

    def duration(self, length: timedelta) -> str:
        """Return a length of time, roughly: ``3 hours``."""
        return _length(length, 1.5, "long", False, self._locale)

    def number(self, value: float) -> str:
        return _decimal(value, None, self._locale)

    def percent(self, value: float) -> str:
        """Return a share of 100 as the language writes it."""
        return _percent(value, self._locale)

    def size(self, count: int | None) -> str:
        """Return a number of bytes for people: ``1.5 KiB``; None is unknown."""
        return self.translated(N_("unknown")) if count is None else self._scaled(count, 1024, _UNITS)

    def rate(self, bytes_a_second: float) -> str:
        """Return a speed in bits, as networks are sold: ``12.5 Mbit/s``."""
        return self._scaled(8 * bytes_a_second, 1000, _SPEEDS)

    def _scaled(self, count: float, step: int, units: tuple[str, ...]) -> str:
        value, unit = float(count), 0
        while value >= step and unit < len(units) - 1:
            value, unit = value / step, unit + 1
        return f"{_decimal(value, '#,##0.0' if unit else '#,##0', self._locale)} {units[unit]}"


@cache
def writer(tag: str) -> Writer:
    return Writer(tag)


def _catalogue(tag: str) -> NullTranslations:
    file = _DIRECTORY / f"{tag}.po"
    if not file.exists():
        return Translations()
    compiled = BytesIO()
    with file.open("rb") as source:
        write_mo(compiled, read_po(source, locale=tag))
    compiled.seek(0)
    return Translations(compiled)


@lru_cache(maxsize=4096)
def _day(moment: date, skeleton: str, locale: Locale) -> str:
    return dates.format_skeleton(skeleton, moment, locale=locale)


@lru_cache(maxsize=4096)
def _decimal(value: float, pattern: str | None, locale: Locale) -> str:
    return numbers.format_decimal(value, format=pattern, locale=locale)


@lru_cache(maxsize=4096)
def _percent(value: float, locale: Locale) -> str:
    return numbers.format_percent(value / 100, locale=locale)


def _length(length: timedelta, threshold: float, form: _Form, directed: bool, locale: Locale) -> str:
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
def _rounded(seconds: float, threshold: float, form: _Form, directed: bool, locale: Locale) -> str:
    return dates.format_timedelta(
        timedelta(seconds=seconds), threshold=threshold, add_direction=directed, format=form, locale=locale
    )

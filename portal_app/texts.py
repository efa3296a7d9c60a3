"""Texts that a service says and a page translates: the English text with its values beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime


class Size(int):
    """A number of bytes."""

    def __str__(self) -> str:
        return f"{int(self) / 2**30:.1f} GiB"


class Percent(int):
    """A share of 100."""

    def __str__(self) -> str:
        return f"{int(self)} %"


@dataclass(frozen=True)
class Text:
    """``str`` is the English text, for commands and logs; ``Writer.put`` gives that of the reader.

    The message is marked with ``N_`` and names its values by ``%(name)s``. Values may be moments, days,
    lengths of time and numbers: each reader gets them in their own way. ``one`` is the message for a count
    of one, which the messages name ``%(num)s``.
    """

    message: str
    values: Mapping[str, object] = field(default_factory=dict)
    one: str = ""

    def __str__(self) -> str:
        message = self.one if self.one and self.values["num"] == 1 else self.message
        if not self.values:
            return message
        return message % {name: _plain(value) for name, value in self.values.items()}


def text(message: str, /, **values: object) -> Text:
    return Text(message, values)


def counted(one: str, many: str, num: int, /, **values: object) -> Text:
    """Return the one of two texts that is used for a count."""
    return Text(many, {"num": num} | values, one)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"{value:%Y-%m-%d}" if isinstance(value, date) else value

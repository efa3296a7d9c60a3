"""Colours of pages: how well one is read on another."""

import re

#: Grounds on which text in the accent colour stands, as in the portal's stylesheet: cards and the page.
LIGHT_GROUNDS = ("#ffffff", "#f3f5f7")
DARK_GROUNDS = ("#1a232c", "#11181f")
#: WCAG 2.2, success criterion 1.4.3.
LEAST_CONTRAST = 4.5
_HEX = re.compile("#[0-9a-fA-F]{6}")


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours written ``#rrggbb``, 1 to 21 (WCAG 2.2).

    >>> round(contrast("#000000", "#ffffff"), 1)
    21.0
    """
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def accent_problem(colour: str, *, dark: bool) -> str:
    """Return why this cannot be the accent colour of light or dark pages, "" if it can."""
    if not _HEX.fullmatch(colour):
        return f"{colour!r} is no colour written #rrggbb"
    ground, ratio = min(
        ((ground, contrast(colour, ground)) for ground in (DARK_GROUNDS if dark else LIGHT_GROUNDS)),
        key=lambda pair: pair[1],
    )
    if ratio < LEAST_CONTRAST:
        way_out = "lighter" if dark else "darker"
        return (
            f"{colour} has a contrast of {ratio:.2f}:1 on {ground}, text needs {LEAST_CONTRAST}:1;"
            f" choose a {way_out} colour"
        )
    return ""


def mixed(colour: str, other: str, share: float) -> str:
    """Return ``colour`` with a ``share`` (0 to 1) of another one.

    >>> mixed("#000000", "#ffffff", 0.2)
    '#333333'
    """
    pairs = zip(_parts(colour), _parts(other), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _parts(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _luminance(colour: str) -> float:
    red, green, blue = (_linear(part / 255) for part in _parts(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4

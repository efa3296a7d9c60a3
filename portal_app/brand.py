"""How a deployment looks: its logo and its accent colour, checked when the portal starts."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from portal_app.errors import SettingsError
from portal_app.settings import Settings
from vpn_core.colour import mixed
from vpn_core.look import LARGEST_LOGO, logo_problem, logo_type

#: How much darker (or lighter, on dark pages) the accent is where one points at it.
_STRONGER = 0.25


@dataclass(frozen=True)
class File:
    """Something to serve; ``digest`` goes into its address, so that browsers keep it until it changes."""

    content: bytes
    content_type: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:12]


@dataclass(frozen=True)
class Brand:
    logo: File | None = None
    style: File | None = None


def load(settings: Settings) -> Brand:
    """Return what the settings name; raises SettingsError for a logo that cannot be served."""
    css = stylesheet(settings.accent_color, settings.accent_color_dark)
    return Brand(
        logo=None if settings.logo_file is None else _logo(settings.logo_file),
        style=File(css.encode(), "text/css") if css else None,
    )


def stylesheet(accent: str, accent_dark: str) -> str:
    """Return the rules that replace the colours of static/style.css; "" when there is nothing to replace."""
    rules = []
    if accent:
        rules.append(_rule(accent, mixed(accent, "#000000", _STRONGER)))
    if accent_dark:
        dark = _rule(accent_dark, mixed(accent_dark, "#ffffff", _STRONGER))
        rules.append(f"@media (prefers-color-scheme: dark) {{\n{dark}}}\n")
    elif accent:
        # Without one of its own, dark pages keep theirs: the light one would be unreadable there.
        rules = [f"@media not (prefers-color-scheme: dark) {{\n{rules[0]}}}\n"]
    return "".join(rules)


def _rule(accent: str, strong: str) -> str:
    return f":root {{\n  --accent: {accent};\n  --accent-strong: {strong};\n}}\n"


def _logo(path: Path) -> File:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_LOGO + 1)
    except OSError as error:
        raise SettingsError(f"logo_file: {path}: {error.strerror}") from error
    if problem := logo_problem(content):
        raise SettingsError(f"logo_file: {path}: {problem}")
    return File(content, logo_type(content))

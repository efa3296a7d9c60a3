"""Whatever people read is translated, and into each language."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from babel import Locale, dates
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment, nodes

from portal_app.language import LANGUAGES
from portal_app.texts import counted
from portal_app.writing import LOCALES, minute, writer
from vpn_control import translations

TEMPLATES = Path(translations.PORTAL, "templates")
READ_ALOUD = ("alt", "aria-label", "content", "data-label", "placeholder", "title")
#: Names, and what is the same in every language.
NAMES = {
    *("WireGuard", "OpenVPN", "eduVPN", "Let's", "Connect!", "Ansible"),
    *("Windows", "macOS", "Linux", "Android", "iOS"),
    *("UTC", "IPv4", "IPv6", "DNS", "TCP", "UDP"),
    *("CSV", "JSON", "QR", "SHA-256", "CPU", "MTU", "TLS", "ID", "VPN"),
    *("width=device-width", "initial-scale=1", "light", "dark"),
}  # fmt: skip


@pytest.fixture(scope="module")
def found() -> translations.Catalog:
    return translations.texts()


@pytest.mark.parametrize("language", sorted(LANGUAGES.keys() - {"en"}))
def test_every_text_is_translated(found: translations.Catalog, language: str) -> None:
    """`make translations` brings new texts into the catalogues."""
    assert list(translations.check(language, found)) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_asks_first_ends_alike_everywhere(found: translations.Catalog, language: str) -> None:
    """“End…” and “End …” are two texts for one thing."""
    asking = [message.id for message in found if str(message.id).endswith("…")]
    ends = {writer(language).translated(text)[-2] == " " for text in asking}

    assert len(ends) == 1


def test_catalogues_are_those_of_the_languages() -> None:
    assert {file.stem for file in translations.DIRECTORY.glob("*.po")} == LANGUAGES.keys() - {"en"}
    assert set(translations.LANGUAGES) == LANGUAGES.keys() - {"en"}


@pytest.mark.parametrize(
    "template", sorted(TEMPLATES.rglob("*.html")), ids=lambda file: str(file.relative_to(TEMPLATES))
)
def test_no_text_of_a_template_is_without_translation(template: Path) -> None:
    assert list(untranslated(template.read_text())) == []


@pytest.mark.parametrize(
    "template",
    [
        "<p>Hello</p>",
        '<p title="Hello">{{ x }}</p>',
        '<p>{{ "yes" if x else y }}</p>',
        "<p>{{ x or 'none' }}</p>",
        '<td data-label="{{ "User" }}">{{ _("User") }}</td>',
        "<p>{{ count }} connections</p>",
    ],
)
def test_a_text_without_translation_is_found(template: str) -> None:
    assert list(untranslated(template))


@pytest.mark.parametrize(
    "template",
    [
        '<p class="{{ "bad" if x else "good" }}">{{ _("Hello") }}</p>',
        "<p>{% trans name=x %}Hello {{ name }}{% endtrans %} · WireGuard</p>",
        "<script nonce='{{ x }}'>let word;</script>",
    ],
)
def test_what_nobody_reads_needs_none(template: str) -> None:
    assert list(untranslated(template)) == []


#: A number and what is counted, perhaps with one word between them.
A_COUNT = re.compile(r"%\((?P<value>\w+)\)s(?: [\w-]+)? (?P<noun>[a-z]+s)\b")
#: Values that are no numbers, and numbers that are never one: bounds, and what is far above it.
NO_NUMBER = {"field", "mode", "name", "node", "percent", "portal"}
NEVER_ONE = {"least", "most", "minutes", "places", "within"}


def test_what_is_counted_has_a_text_for_one(found: translations.Catalog) -> None:
    """``ngettext`` and ``counted`` have both, whatever a count may be."""
    without = [message.id for message in found if isinstance(message.id, str) and is_counted(message.id)]

    assert without == []


@pytest.mark.parametrize("text", ["%(n)s connections added", "serial %(serial)s, %(days)s full days left"])
def test_a_count_without_a_text_for_one_is_found(text: str) -> None:
    assert is_counted(text)


def is_counted(text: str) -> bool:
    if text == "More than %(count)s configurations":
        return False
    return any(there["value"] not in NO_NUMBER | NEVER_ONE for there in A_COUNT.finditer(text))


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_a_service_counts_is_said_for_one_and_for_more(language: str) -> None:
    one, two = "serial %(serial)s, %(num)s day left", "serial %(serial)s, %(num)s days left"
    found = [writer(language).put(counted(one, two, count, serial="4f")) for count in (1, 2)]

    assert found[0] != found[1].replace("2", "1")
    assert str(counted(one, two, 1, serial="4f")) == "serial 4f, 1 day left"


class _Text(HTMLParser):
    """Collects what is read: text, and attributes that are read aloud."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in ("script", "style", "code")
        self.words += [word for name, value in attrs if name in READ_ALOUD for word in (value or "").split()]

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("script", "style", "code")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.words += data.split()


def untranslated(source: str) -> Iterator[str]:
    """Yield the words of a template that a reader sees as they stand there."""
    environment = Environment(extensions=["jinja2.ext.i18n"], autoescape=True)
    parser = _Text()
    parser.feed("".join(_pieces(environment.parse(source))))
    parser.close()
    for word in parser.words:
        if any(letter.isalpha() for letter in word) and word.strip(".,:;()…") not in NAMES:
            yield word


def _pieces(tree: nodes.Node) -> Iterator[str]:
    # What this block gives is the class of an element.
    unread = {
        id(o) for b in tree.find_all(nodes.Block) if b.name == "width" for o in b.find_all(nodes.Output)
    }
    for output in tree.find_all(nodes.Output):
        if id(output) in unread:
            continue
        for node in output.nodes:
            yield node.data if isinstance(node, nodes.TemplateData) else " ".join(_constants(node)) or "0"


def _constants(node: nodes.Node) -> Iterator[str]:
    """Yield the texts that an expression may come to."""
    if isinstance(node, nodes.Const):
        yield str(node.value)
    elif isinstance(node, nodes.CondExpr):
        yield from _constants(node.expr1)
        if node.expr2 is not None:
            yield from _constants(node.expr2)
    elif isinstance(node, nodes.Or | nodes.And | nodes.Add):
        yield from _constants(node.left)
        yield from _constants(node.right)
    elif isinstance(node, nodes.Concat):
        for part in node.nodes:
            yield from _constants(part)
    elif isinstance(node, nodes.Filter) and node.node is not None:
        yield from _constants(node.node)


@pytest.mark.parametrize("language", LANGUAGES)
@given(
    seconds=st.integers(-4 * 10**7, 4 * 10**7) | st.integers(-6000, 6000),
    micro=st.integers(0, 999_999),
)
def test_lengths_are_written_as_babel_writes_them(language: str, seconds: int, micro: int) -> None:
    length, now = timedelta(seconds=seconds, microseconds=micro), datetime(2026, 11, 29, tzinfo=UTC)
    locale, found = Locale.parse(LOCALES[language]), writer(language)
    assert found.duration(length) == dates.format_timedelta(length, threshold=1.5, locale=locale)
    for short, form in ((False, "long"), (True, "short")):
        wanted = dates.format_timedelta(length, add_direction=True, format=form, locale=locale)  # type: ignore[arg-type]
        assert found.ago(now + length, now, short=short) == wanted


@pytest.mark.parametrize("language", LANGUAGES)
@given(moment=st.datetimes(timezones=st.just(UTC)))
def test_times_of_day_are_written_as_the_language_does(language: str, moment: datetime) -> None:
    locale = Locale.parse(LOCALES[language])
    assert minute(moment) == dates.format_skeleton("Hm", moment, tzinfo=UTC, locale=locale)
    exact = dates.format_skeleton("Hms", moment, tzinfo=UTC, locale=locale)
    assert exact in writer(language).exact_time(moment)

"""Templates compiled for a language: texts without values are part of them, those with values are calls."""

from datetime import UTC, datetime

import pytest
from flask import Flask, g, render_template_string
from jinja2 import DictLoader
from markupsafe import Markup

from portal_app.writing import Writer

MOMENT = datetime(2026, 11, 29, 14, 5, 9, tzinfo=UTC)


@pytest.fixture
def said(app: Flask, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Texts as each language says them; what is missing stays English."""
    texts: dict[str, str] = {}
    monkeypatch.setattr(
        Writer,
        "translated",
        lambda self, text: text if self.tag == "en" else texts.get(text, f"{self.tag}:{text}"),
    )
    return texts


def shown(app: Flask, template: str, tag: str, **values: object) -> str:
    app.jinja_env.loader = DictLoader({"page.html": template})
    with app.test_request_context(headers={"Accept-Language": tag}):
        g.pop("language", None)  # the fixture's application context is that of each
        return app.jinja_env.get_template("page.html").render(**values)


@pytest.mark.parametrize("tag", ["de", "en", "fr"])
def test_each_language_has_templates_of_its_own(app: Flask, said: dict[str, str], tag: str) -> None:
    expected = {"en": "User: <b>User</b>", "de": "de:User: <b>de:User</b>", "fr": "fr:User: <b>fr:User</b>"}
    assert shown(app, '{{ _("User") }}: <b>{{ _("User") }}</b>', tag) == expected[tag]


def test_one_application_answers_in_each_language_it_is_asked_in(app: Flask, said: dict[str, str]) -> None:
    app.jinja_env.loader = DictLoader(
        {"page.html": '{% include "part.html" %}', "part.html": '{{ _("User") }}'}
    )
    found = []
    for tag in ("de", "en", "fr", "de"):
        with app.test_request_context(headers={"Accept-Language": tag}):
            g.pop("language", None)  # the fixture's application context is that of each
            found.append(app.jinja_env.get_template("page.html").render())
    assert found == ["de:User", "User", "fr:User", "de:User"]


def test_no_call_is_left_for_a_text_without_values(
    app: Flask, said: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with app.test_request_context(headers={"Accept-Language": "de"}):
        app.jinja_env.loader = DictLoader({"page.html": '<td title="{{ _("User") }}">{{ _("Since") }}</td>'})
        template = app.jinja_env.get_template("page.html")
        monkeypatch.setattr(Writer, "translated", None)
        assert template.render() == '<td title="de:User">de:Since</td>'


def test_call_for_a_text_with_values_finds_it_translated(
    app: Flask, said: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said["End %(name)s"] = "%(name)s beenden"
    with app.test_request_context(headers={"Accept-Language": "de"}):
        app.jinja_env.loader = DictLoader({"page.html": '<a title="{{ _("End %(name)s", name=x) }}">'})
        template = app.jinja_env.get_template("page.html")
        monkeypatch.setattr(Writer, "translated", None)
        assert template.render(x="<x>") == '<a title="&lt;x&gt; beenden">'


def test_one_application_writes_times_and_sizes_in_each_language(app: Flask) -> None:
    found = {
        tag: shown(app, "{{ time_element(at) }} {{ at | time }} {{ 1536 | size }}", tag, at=MOMENT)
        for tag in ("de", "en", "fr")
    }
    times = {"de": "29. Nov. 2026", "en": "29 Nov 2026", "fr": "29 nov. 2026"}
    sizes = {"de": "1,5 KiB", "en": "1.5 KiB", "fr": "1,5 KiB"}
    assert found == {
        tag: f'<time datetime="2026-11-29T14:05:09Z">{day}, 14:05</time> {day}, 14:05 {sizes[tag]}'
        for tag, day in times.items()
    }


class Badge(Markup):
    """What says by itself that it is HTML."""


class Icon:
    def __html__(self) -> str:
        return "<svg>"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("<b>'\"&", "&lt;b&gt;&#39;&#34;&amp;"),
        (Markup("<b>"), "<b>"),
        (Badge("<b>"), "<b>"),
        (Icon(), "<svg>"),
        (None, "None"),
        (True, "True"),
        (7, "7"),
        (1.5, "1.5"),
        (["<b>"], "[&#39;&lt;b&gt;&#39;]"),
        (b"<b>", "b&#39;&lt;b&gt;&#39;"),
    ],
)
def test_what_is_put_into_a_page_is_no_markup_unless_it_says_so(
    app: Flask, value: object, expected: str
) -> None:
    assert shown(app, "{{ value }}", "en", value=value) == expected
    assert shown(app, "{{ missing }}", "en") == ""


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ('{{ _("5 %% of %(n)s", n=x) }}', "5 % of &lt;x&gt;"),
        ('{{ _("5 %%") }}', "5 %"),
        ('{{ _("Tom & <b>") }}', "Tom & <b>"),  # markup of ours, as gettext's new style gives it
        ("{{ _('Say \"yes\"') }}", 'Say "yes"'),
        ('{% set a = _("One") %}{{ a ~ _("Two") }}', "OneTwo"),
        ("{{ _(x) }}", "<x>"),
        ('{{ _("One" "Two %(n)s", n=x) }}', "OneTwo &lt;x&gt;"),
        ('{{ _("%(a)s", a=_("%(n)s", n=x)) }}', "&lt;x&gt;"),
        ("{% trans name=x %}Hello {{ name }}{% endtrans %}", "Hello &lt;x&gt;"),
        ('{{ ngettext("%(num)s user", "%(num)s users", 2) }}', "2 users"),
    ],
)
def test_texts_come_out_as_gettext_makes_them(
    app: Flask, said: dict[str, str], template: str, expected: str
) -> None:
    assert shown(app, template, "en", x="<x>") == expected


def test_a_template_that_is_no_file_speaks_too(app: Flask, said: dict[str, str]) -> None:
    with app.test_request_context(headers={"Accept-Language": "en"}):
        assert render_template_string('{{ _("User") }}') == "User"

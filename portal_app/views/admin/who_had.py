"""Who had an address when. Asking is a form that is sent: the answer leaves no trace in an address or a log
line, and each question is an audit row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from zoneinfo import available_timezones

from flask import Response, make_response, render_template, request
from markupsafe import Markup

from portal_app import login
from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.errors import N_, BadRequest
from portal_app.language import gettext, said
from portal_app.login import requires
from portal_app.roles import Right
from portal_app.services import who_had as service
from portal_app.views import forms
from portal_app.views.admin import bp

#: Seconds and what they are called.
_TOLERANCES = {
    "0": N_("exactly"),
    "60": N_("± 1 minute"),
    "300": N_("± 5 minutes"),
    "1800": N_("± 30 minutes"),
    "3600": N_("± 1 hour"),
}
_AREAS = (
    "Africa", "America", "Antarctica", "Arctic", "Asia", "Atlantic", "Australia", "Europe", "Indian",
    "Pacific",
)  # fmt: skip
#: Lines of one page: a holder has some, and one for each session.
_LINES, _LINES_OF_HOLDER = 60, 5
#: As complaints and logs name a zone: all whole hours, and what else some place keeps or kept lately.
_OFFSETS = (
    *(f"UTC-{hours:02}:00" for hours in range(12, 0, -1)), "UTC-09:30", "UTC-03:30", "UTC-02:30",
    *(f"UTC+{hours:02}:00" for hours in range(1, 15)), "UTC+03:30", "UTC+04:30", "UTC+05:30", "UTC+05:45",
    "UTC+06:30", "UTC+08:45", "UTC+09:30", "UTC+10:30", "UTC+12:45", "UTC+13:45",
)  # fmt: skip
_FIELDS = ("address", "date", "time", "zone", "tolerance")


@dataclass(frozen=True)
class _Part:
    """Which page of an answer this is, and which of all holders are on it; all count from 1."""

    page: int
    pages: int
    first: int
    last: int
    found: int


@bp.get("/who-had-it")
@requires(Right.SEARCH)
def who_had() -> Response:
    now = utc_now()
    nothing = {"address": "", "port": "", "zone": "UTC"}
    return _page(nothing | {"date": f"{now:%Y-%m-%d}", "time": f"{now:%H:%M:%S}"})


@bp.post("/who-had-it")
@requires(Right.SEARCH)
def ask_who_had() -> Response:
    # The port is only asked for where NAT is logged.
    names = (*_FIELDS, "port") if portal().settings.log_nat else _FIELDS
    asked = {name: forms.field(name, forms.LONGEST_NAME).strip() for name in names}
    now, user = utc_now(), login.required().user
    try:
        if asked["tolerance"] not in _TOLERANCES:
            raise BadRequest(N_("Choose a tolerance from the list."))
        question = service.Question(
            service.address(asked["address"]),
            service.moments(asked["date"], asked["time"], asked["zone"]),
            timedelta(seconds=int(asked["tolerance"])),
            service.port(asked.get("port", "")),
        )
        answer = service.ask(
            question,
            agents=lambda: portal().agents,
            retention=timedelta(days=portal().settings.retention_days),
            zone_name=asked["zone"],
            actor=user.name,
            source=request.remote_addr,
            now=now,
            page=forms.number("page") + 1,
        )
    except BadRequest as error:
        response = _page(asked, problem=said(error))
        response.status_code = error.status
        return response
    pages = _pages([*answer.holders, *answer.unnamed])
    place = min(forms.number("page"), len(pages) - 1)
    skipped = sum(len(page) for page in pages[:place])
    return _page(
        asked,
        question=question,
        answer=replace(
            answer,
            holders=tuple(one for one in pages[place] if isinstance(one, service.Holder)),
            unnamed=tuple(one for one in pages[place] if isinstance(one, service.Unnamed)),
        ),
        before=None if place == 0 else place - 1,
        after=None if place == len(pages) - 1 else place + 1,
        part=_Part(place + 1, len(pages), skipped + 1, skipped + len(pages[place]), sum(map(len, pages))),
        zone=service.time_zone(asked["zone"]),
        asked_at=now,
        tolerance=gettext(_TOLERANCES[asked["tolerance"]]),
        apps={client_id: client.name for client_id, client in portal().clients.items()},
    )


def _pages(found: Sequence[service.Holder | service.Unnamed]) -> list[list[service.Holder | service.Unnamed]]:
    """Cut an answer into pages of no more lines than one may have; at least one, which may be empty."""
    pages: list[list[service.Holder | service.Unnamed]] = [[]]
    left = _LINES
    for one in found:
        lines = _LINES_OF_HOLDER + (len(one.sessions) if isinstance(one, service.Holder) else 0)
        if lines > left and pages[-1]:
            pages.append([])
            left = _LINES
        pages[-1].append(one)
        left -= lines
    return pages


def _page(asked: dict[str, str], **values: object) -> Response:
    settings = portal().settings
    return make_response(
        render_template(
            "admin/who_had.html",
            asked=asked,
            zones=_zones_with(asked["zone"]),
            tolerances=[(seconds, gettext(text)) for seconds, text in _TOLERANCES.items()],
            retention_days=settings.retention_days,
            log_origins=settings.log_origins,
            log_nat=settings.log_nat,
            **values,
        )
    )


def _zones_with(chosen: str) -> Markup:
    """Return the options of all time zones, this one chosen."""
    name = Markup("<option%s>%s</option>")
    return _zones().replace(name % ("", chosen), name % (Markup(" selected"), chosen))


@cache
def _zones() -> Markup:
    """Return an option for each distance from UTC and for each place of each part of the world; other names
    are old ones of the same zones.

    They are several hundred, and always the same.
    """
    found: dict[str, list[str]] = {area: [] for area in _AREAS}
    for name in sorted(available_timezones()):
        area = name.partition("/")[0]
        if area in found:
            found[area].append(name)
    offsets = sorted(_OFFSETS, key=lambda name: service.time_zone(name).utcoffset(None) or timedelta())
    page = render_template("admin/time_zones.html", places=found, offsets=offsets)
    return Markup(page)  # noqa: S704 - ours, escaped

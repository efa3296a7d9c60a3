"""How much the service is used: now, and over days, weeks, months and years."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from flask import Response, render_template

from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import Database, transaction
from portal_app.errors import N_, BadRequest
from portal_app.language import gettext, said, writer
from portal_app.login import requires
from portal_app.models.usage import ALL, ALL_NODES
from portal_app.roles import Right
from portal_app.services import exports, paging
from portal_app.services import usage_history as service
from portal_app.views import charts, forms
from portal_app.views.admin import bp
from portal_app.views.admin.filters import Choices, choices, download, node_number, with_chosen
from portal_app.writing import minute

_PERIODS = {"day": N_("Day"), "week": N_("Week"), "month": N_("Month"), "year": N_("Year")}
#: Apps that few use are added up.
_MOST_APPS = 8
#: Beside the charts there is no room for as many as a list has.
_NODES_OF_PAGE = 10
_CSV = (
    "from", "to", "most_connections", "most_users", "different_users", "sessions", "received_bytes",
    "sent_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What the address says. ``node_number`` and ``profile_id`` may be those over all; ``node`` is the number
    as a text, empty for all, or what was typed and is none.
    """

    period: str
    profile_id: str
    node: str
    node_number: int = ALL_NODES


@bp.get("/statistics")
@requires(Right.SEE)
def statistics() -> str | tuple[str, int]:
    now = utc_now()
    kept = timedelta(days=portal().settings.retention_days)
    with transaction(read_only=True) as db:
        profiles, nodes = choices(db)
        try:
            asked = _asked(db)
        except BadRequest as error:
            return _page(_typed(), profiles, nodes, problem=said(error)), 400
        which, period = (asked.profile_id, asked.node_number), service.PERIODS[asked.period]
        days = service.read_days(db, period, *which, now=now)
        points = service.points(db, days, now=now)
        of_profiles = service.by_profile(db, period, which[1], now=now)
        of_nodes = service.by_node(db, period, which[0], now=now)
        users = [] if asked.profile_id or asked.node else service.users_of_last_days(db, kept, now=now)
    traffic = service.traffic(days)
    total, clients = service.summary(days)
    first, last = service.span(period, now)
    counted = [(int(n), name) for n, name in nodes if int(n) in of_nodes]
    nodes_shown, nodes_page = _page_of(
        [n for n, _ in counted], _parts([(name, of_nodes[n]) for n, name in counted])
    )
    values: dict[str, Any] = {
        "current": next((p for p in reversed(points) if p.connections is not None), None),
        "is_counted": total.users is not None,
        "is_sampled": any(p.connections is not None for p in points),
        "total": total,
        "users": [(one.period.days, one.count, _days(one.first, one.last)) for one in users],
        "peak": max((p.connections for p in points if p.connections is not None), default=None),
        "days": _days(first, last),
        "use": _use(points, period),
        "use_rows": [[_begin(p.begin, period), _count(p.connections), _count(p.users)] for p in points],
        "traffic": _traffic(traffic) if len(traffic) > 1 else None,
        "traffic_rows": [
            [
                writer().day(t.begin.date()), _count(t.users), writer().number(t.sessions),
                writer().size(t.received_bytes), writer().size(t.sent_bytes),
            ]
            for t in traffic
        ],
        "of_profiles": _parts([(name, of_profiles.get(p)) for p, name in profiles]),
        "of_nodes": nodes_shown,
        "nodes_page": nodes_page,
        "clients": _clients(clients),
    }  # fmt: skip
    return _page(asked, profiles, nodes, **values)


def _page(asked: Asked, profiles: Choices, nodes: Choices, **values: Any) -> str:
    return render_template(
        "admin/statistics.html",
        asked=asked,
        kept_days=portal().settings.statistics_retention_days,
        periods=[(value, gettext(text)) for value, text in _PERIODS.items()],
        profiles=with_chosen(profiles, asked.profile_id),
        nodes=with_chosen(nodes, asked.node),
        **values,
    )


@bp.get("/statistics.csv")
@requires(Right.SEE)
def download_statistics() -> Response:
    """Answer with the numbers of the charts: counts only, nobody's name."""
    now = utc_now()
    with transaction(read_only=True) as db:
        asked = _asked(db)
        which, period = (asked.profile_id, asked.node_number), service.PERIODS[asked.period]
        days = service.read_days(db, period, *which, now=now)
        points = service.points(db, days, now=now)
    traffic = service.traffic(days)
    by_day = {t.begin: t for t in traffic} if not period.is_of_samples else {}
    rows = [_cells(point, by_day.get(point.begin)) for point in points]
    if period.is_of_samples:
        rows += [[t.begin, t.end, None, None, *_of(t)] for t in traffic]
    lines = exports.csv_lines(_CSV, rows, lambda row: row, most=len(rows))
    return download(lines, f"statistics-{asked.period}.csv", "text/csv")


def _asked(db: Database) -> Asked:
    """Return what the address says; raises BadRequest for a node that there is not."""
    typed = _typed()
    number = node_number(db, typed.node)
    return typed if number is None else replace(typed, node=str(number), node_number=number)


def _typed() -> Asked:
    return Asked(
        forms.chosen("period", _PERIODS, "day"), forms.query("profile", 60) or ALL, forms.query("node")
    )


def _cells(point: service.Point, traffic: service.Traffic | None) -> list[object]:
    cells: list[object] = [point.begin, point.end, point.connections, point.users]
    return cells + (_of(traffic) if traffic else [None] * 4)


def _of(traffic: service.Traffic) -> list[object]:
    return [traffic.users, traffic.sessions, traffic.received_bytes, traffic.sent_bytes]


def _use(points: Sequence[service.Point], period: service.Period) -> charts.LineChart:
    series = [
        charts.Series(gettext("Connections"), [p.connections for p in points], "a"),
        charts.Series(gettext("Users"), [p.users for p in points], "b"),
    ]
    return charts.line_chart(series, [_label(p.begin, period) for p in points], writer().number)


def _traffic(traffic: Sequence[service.Traffic]) -> charts.LineChart:
    known = [t.users is not None for t in traffic]
    series = [
        charts.Series(name, [value if ok else None for value, ok in zip(values, known, strict=True)], kind)
        for name, values, kind in (
            (gettext("From users"), [t.received_bytes for t in traffic], "a"),
            (gettext("To users"), [t.sent_bytes for t in traffic], "b"),
        )
    ]
    return charts.line_chart(
        series,
        [writer().short_day(t.begin.date()) for t in traffic],
        lambda value: writer().size(int(value)),
        step=1024,
    )


@dataclass(frozen=True)
class Parts:
    """Bars, and the numbers behind them."""

    bars: list[charts.Bar]
    rows: list[list[str]]


def _parts(found: Sequence[tuple[str, service.Days | None]]) -> Parts:
    """Compare profiles or nodes by the most connections at a time."""
    known = [(name, days) for name, days in found if days is not None]
    return Parts(
        charts.bars([(name, days.peak_connections or 0) for name, days in known], writer().number),
        [
            [
                name, _count(days.users), _count(days.peak_connections), writer().number(days.sessions),
                writer().size(days.received_bytes), writer().size(days.sent_bytes),
            ]
            for name, days in known
        ],
    )  # fmt: skip


def _page_of(numbers: Sequence[int], parts: Parts) -> tuple[Parts, paging.Page]:
    """Return what one page shows of all nodes, whose longest bar is the longest of all."""
    page = paging.among(
        list(zip(numbers, parts.bars, parts.rows, strict=True)),
        lambda line: line[:1],
        before=forms.cursor("before"),
        after=forms.cursor("after"),
        size=_NODES_OF_PAGE,
    )
    return Parts([bar for _, bar, _ in page.rows], [row for _, _, row in page.rows]), page


def _clients(counts: Counter[str]) -> Parts:
    total = sum(counts.values())
    if not total:
        return Parts([], [])
    names = {client_id: client.name for client_id, client in portal().clients.items()}
    found = [
        (names.get(client_id, client_id) if client_id else gettext("Made by hand"), count)
        for client_id, count in counts.most_common()
    ]
    few = found[_MOST_APPS:]
    shown = found[:_MOST_APPS] + ([(gettext("Other apps"), sum(c for _, c in few))] if few else [])
    write: Callable[[float], str] = lambda count: writer().percent(100 * count / total)  # noqa: E731
    return Parts(
        charts.bars(shown, write), [[name, writer().number(count), write(count)] for name, count in found]
    )


def _count(value: int | None) -> str:
    return gettext("unknown") if value is None else writer().number(value)


def _days(first: Any, last: Any) -> str:
    if first == last:
        return writer().day(first)
    return gettext("%(first)s to %(last)s", first=writer().day(first), last=writer().day(last))


def _begin(moment: datetime, period: service.Period) -> str:
    return writer().time(moment) if period.is_of_samples else writer().day(moment.date())


def _label(moment: datetime, period: service.Period) -> str:
    if period.point < timedelta(hours=1):
        return minute(moment)
    return writer().short_day(moment.date())

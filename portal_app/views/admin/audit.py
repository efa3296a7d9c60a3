"""The audit log: who did what, when, from where. Nothing here changes it."""

from typing import Any

from flask import Response, render_template

from portal_app.application import portal
from portal_app.db import connected
from portal_app.errors import N_, BadRequest
from portal_app.language import said
from portal_app.login import requires
from portal_app.roles import Right
from portal_app.services import audit as service
from portal_app.services import users
from portal_app.services.paging import Page
from portal_app.views import forms
from portal_app.views.admin import bp
from portal_app.views.admin.filters import days, download, record_export, with_chosen

#: A plan may name a thousand nodes, and a page is short.
_LONGEST_DETAIL = 500
FILTERS = ("actor", "action", "object", "from", "to")


@bp.get("/audit")
@requires(Right.SEARCH)
def audit() -> tuple[str, int]:
    asked = {name: forms.query(name) for name in FILTERS}
    problem, page = "", Page([], None, None)
    with connected(read_only=True) as db:
        try:
            page = service.page(
                db, _filter(asked), before=forms.cursor("before"), after=forms.cursor("after")
            )
        except BadRequest as error:
            problem = said(error)
        actions = [(action, action) for action in service.actions(db)]
    return render_template(
        "admin/audit.html",
        page=page,
        asked=asked,
        problem=problem,
        actions=with_chosen(actions, asked["action"]),
        most=service.MOST_EXPORTED,
        kept_days=portal().settings.audit_days,
    ), 400 if problem else 200


@bp.post("/audit/export")
@requires(Right.SEARCH)
def export_audit() -> Response:
    asked = {name: forms.field(name, forms.LONGEST_NAME).strip() for name in FILTERS}
    file_format = forms.field("format", 10)
    wanted = _filter(asked)
    if file_format not in ("csv", "jsonl"):
        raise BadRequest(N_("The audit log can be had as CSV or as JSON lines."))
    record_export("audit log exported", asked | {"format": file_format})
    if file_format == "csv":
        return download(service.csv_lines(wanted), "audit.csv", "text/csv")
    return download(service.json_lines(wanted), "audit.jsonl", "application/x-ndjson")


def _filter(asked: dict[str, str]) -> service.Filter:
    begin, end = days(asked["from"], asked["to"])
    return service.Filter(
        actor=users.normalized(asked["actor"]),
        action=asked["action"],
        object=users.normalized(asked["object"]),
        begin=begin,
        end=end,
    )


@bp.app_template_filter("facts")
def facts(details: dict[str, Any]) -> list[tuple[str, str]]:
    """Return an act's details as names and texts; what is empty is left out, what is long is cut: files
    have it whole.
    """
    return [
        (name.replace("_", " "), _cut(_text(value)))
        for name, value in details.items()
        if value not in (None, "", [], {})
    ]


def _cut(value: str) -> str:
    return value if len(value) <= _LONGEST_DETAIL else value[: _LONGEST_DETAIL - 1] + "…"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(one)}" for name, one in value.items())
    return ", ".join(_text(one) for one in value) if isinstance(value, list) else str(value)

"""Who is connected now and who could be; ending one, or several at once."""

from urllib.parse import urlencode

from flask import redirect, render_template, request, url_for
from sqlalchemy import select
from werkzeug.wrappers import Response as AnyResponse

from portal_app import login, portal
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.errors import N_, BadRequest, NotFound
from portal_app.login import requires
from portal_app.models import Node, Profile
from portal_app.roles import Right
from portal_app.services import connection_list
from portal_app.services.connection_list import Filter, Row
from portal_app.views import forms
from portal_app.views.admin import bp
from vpn_core.messages import OPENVPN, WIREGUARD

_LONGEST_ID = 32


@bp.get("/connections")
@requires(Right.SEE)
def connections() -> str:
    found = login.required()
    now_only = forms.chosen("show", ("now", "all"), "now") == "now"
    wanted = Filter(
        search=forms.query("search"),
        profile_id=forms.query("profile"),
        node=forms.query("node"),
        protocol=forms.chosen("protocol", (WIREGUARD, OPENVPN)),
        now_only=now_only,
        by_origin=Right.SEARCH in found.rights,
    )
    sort = forms.chosen("sort", ("user", "since"), "since")
    descending = forms.chosen("order", ("asc", "desc"), "desc" if sort == "since" else "asc") == "desc"
    connection_list.record_search(
        wanted.search,
        by_itself="X-Live" in request.headers,
        actor=found.user.name,
        source=request.remote_addr,
        now=utc_now(),
    )
    with transaction(read_only=True) as db:
        listed = connection_list.read(
            db,
            wanted,
            by_user=sort == "user",
            descending=descending,
            before=forms.cursor("before"),
            after=forms.cursor("after"),
        )
        profiles = db.execute(select(Profile.profile_id, Profile.display_name).order_by(Profile.position))
        choices = {
            "profiles": [(row.profile_id, row.display_name) for row in profiles],
            "nodes": [(name, name) for name in db.scalars(select(Node.name).order_by(Node.number))],
        }
    # Asked when the database is free for others again.
    rows: list[Row] = connection_list.with_usage(portal().agents, listed.page.rows)
    return render_template(
        "admin/connections.html",
        rows=rows,
        page=listed.page,
        count=listed.count,
        most_counted=connection_list.MOST_COUNTED,
        wanted=wanted,
        sort=sort,
        descending=descending,
        now=utc_now(),
        done=forms.number("done"),
        **choices,
    )


@bp.get("/connections/end")
@requires(Right.END)
def ask_to_end() -> AnyResponse | str:
    """Say what would be cut. Ticked boxes come here with GET: nothing is done yet."""
    ids = list(dict.fromkeys(request.args.getlist("connection")))
    back = _back(request.args.get("next"))
    if not 1 <= len(ids) <= connection_list.MOST_ENDED or any(len(i) > _LONGEST_ID for i in ids):
        raise BadRequest(
            N_("Choose 1 to %(most)s connections in the list, then press the button again."),
            most=connection_list.MOST_ENDED,
        )
    with transaction(read_only=True) as db:
        rows = connection_list.chosen(db, [i.replace("\0", "") for i in ids])
    if not rows:
        raise NotFound(connection_list.GONE)
    return render_template("admin/end_connections.html", rows=rows, back=back, gone=len(ids) - len(rows))


@bp.post("/connections/end")
@requires(Right.END)
def end_connections() -> AnyResponse:
    ids = set(forms.fields("connection", _LONGEST_ID, connection_list.MOST_ENDED))
    count = connection_list.end(
        ids, actor=login.required().user.name, source=request.remote_addr, now=utc_now()
    )
    path, _, query = _back(request.form.get("next")).partition("?")
    kept = [part for part in query.split("&") if part and not part.startswith("done=")]
    return redirect(f"{path}?{'&'.join([*kept, urlencode({'done': count})])}", 303)


def _back(target: str | None) -> str:
    """Return the page to come back to: a list, or a user's page."""
    path = login.own_path(target)
    return path if path.startswith("/admin/") else url_for("admin.connections")

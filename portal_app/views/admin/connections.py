"""Who is connected now and who could be; ending one, or several at once."""

from dataclasses import replace
from urllib.parse import urlencode

from flask import redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from portal_app import login
from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import connected, transaction
from portal_app.errors import N_, BadRequest, NotFound
from portal_app.language import said
from portal_app.login import requires
from portal_app.roles import Right
from portal_app.services import connection_list, ending_by_operator, users
from portal_app.services.connection_list import Filter, Row
from portal_app.services.connections import GONE
from portal_app.views import forms
from portal_app.views.admin import bp
from portal_app.views.admin.filters import node_number, with_chosen
from vpn_core.messages import OPENVPN, WIREGUARD

_LONGEST_ID = 32


@bp.get("/connections")
@requires(Right.SEE)
def connections() -> tuple[str, int]:
    found = login.required()
    now_only = forms.chosen("show", ("now", "all"), "now") == "now"
    wanted = Filter(
        search=users.normalized(forms.query("search")),
        profile_id=forms.query("profile"),
        protocol=forms.chosen("protocol", (WIREGUARD, OPENVPN)),
        now_only=now_only,
        by_origin=Right.SEARCH in found.rights,
    )
    sort = forms.chosen("sort", connection_list.sorts(now_only), "since")
    descending = forms.chosen("order", ("asc", "desc"), "desc" if sort == "since" else "asc") == "desc"
    connection_list.record_search(
        wanted.search,
        by_itself="X-Live" in request.headers,
        actor=found.user.name,
        source=request.remote_addr,
        now=utc_now(),
    )
    node, problem, listed = forms.query("node"), "", None
    with connected(read_only=True) as db:
        try:
            wanted = replace(wanted, node_number=node_number(db, node))
            listed = connection_list.read(
                db,
                portal().agents,
                wanted,
                sort=sort,
                descending=descending,
                before=forms.cursor("before"),
                after=forms.cursor("after"),
            )
        except BadRequest as error:
            problem = said(error)
        known = listed.names if listed else connection_list.Names(db)
    rows: list[Row] = connection_list.with_usage(listed.page.rows, listed.asked) if listed else []
    nodes = [(str(number), row.name) for number, row in known.nodes.items()]
    if wanted.node_number is not None:
        node = str(wanted.node_number)
    return render_template(
        "admin/connections.html",
        rows=rows,
        problem=problem,
        page=listed.page if listed else None,
        count=listed.count if listed else 0,
        most_counted=connection_list.MOST_COUNTED,
        wanted=wanted,
        node=node,
        sort=sort,
        descending=descending,
        now=utc_now(),
        done=forms.number("done"),
        profiles=list(known.profiles.items()),
        nodes=with_chosen(nodes, node),
    ), 400 if problem else 200


@bp.get("/connections/end")
@requires(Right.END)
def ask_to_end() -> AnyResponse | str:
    """Say what would be cut. Ticked boxes come here with GET: nothing is done yet."""
    ids = list(dict.fromkeys(request.args.getlist("connection")))
    back = _back(request.args.get("next"))
    if not 1 <= len(ids) <= ending_by_operator.MOST_ENDED or any(len(i) > _LONGEST_ID for i in ids):
        raise BadRequest(
            N_("Choose 1 to %(most)s connections in the list, then press the button again."),
            most=ending_by_operator.MOST_ENDED,
        )
    with transaction(read_only=True) as db:
        rows = connection_list.chosen(db, [i.replace("\0", "") for i in ids])
    if not rows:
        raise NotFound(GONE)
    return render_template("admin/end_connections.html", rows=rows, back=back, gone=len(ids) - len(rows))


@bp.post("/connections/end")
@requires(Right.END)
def end_connections() -> AnyResponse:
    ids = set(forms.fields("connection", _LONGEST_ID, ending_by_operator.MOST_ENDED))
    count = ending_by_operator.end_connections(
        ids, actor=login.required().user.name, source=request.remote_addr, now=utc_now()
    )
    path, _, query = _back(request.form.get("next")).partition("?")
    kept = [part for part in query.split("&") if part and not part.startswith("done=")]
    return redirect(f"{path}?{'&'.join([*kept, urlencode({'done': count})])}", 303)


def _back(target: str | None) -> str:
    """Return the page to come back to: a list, or a user's page."""
    path = login.own_path(target)
    return path if path.startswith("/admin/") else url_for("admin.connections")

"""Users: lists, all about one, and what administrators do to their accounts."""

from collections.abc import Callable
from typing import Any

from flask import current_app, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from portal_app import login, roles
from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import connected, transaction
from portal_app.errors import N_, NotFound, PortalError
from portal_app.language import gettext, said
from portal_app.login import requires
from portal_app.models import User
from portal_app.roles import Right
from portal_app.services import audit, connection_list, devices, ending_by_operator, people, profiles, users
from portal_app.views import forms
from portal_app.views.admin import bp

_LONGEST_PERMISSIONS = 8000
_USER = "/users/<int(max=2147483647):user_id>"
#: What a page says was done, and how many connections it cut.
_DONE = ("added", "disabled", "enabled", "deleted", "permissions", "app", "ended")


@bp.get("/users", endpoint="users")
@requires(Right.SEE)
def users_list() -> str:
    search = forms.query("search")
    state = forms.chosen("state", ("active", "disabled", "role"))
    sort = forms.chosen("sort", ("name", "added"), "name")
    descending = forms.chosen("order", ("asc", "desc"), "desc" if sort == "added" else "asc") == "desc"
    with connected(read_only=True) as db:
        page = people.read(
            db,
            portal().settings,
            search=users.normalized(search),
            state=state,
            by_time=sort == "added",
            descending=descending,
            before=forms.cursor("before"),
            after=forms.cursor("after"),
        )
    return render_template(
        "admin/users.html",
        page=page,
        search=search,
        state=state,
        sort=sort,
        descending=descending,
        now=utc_now(),
        done=forms.chosen("done", _DONE),
        cut=forms.number("cut"),
    )


@bp.get("/users/add")
@requires(Right.MANAGE, recently=True)
def new_user() -> AnyResponse:
    return _new_user_form()


@bp.post("/users/add")
@requires(Right.MANAGE, recently=True)
def add_user() -> AnyResponse | str:
    """Add a user, and show the link for the first password in this very answer: it is kept nowhere."""
    typed = forms.field("name", 4 * users.LONGEST_NAME).strip()
    name = users.normalized(typed)
    try:
        users.add(name, permissions=_permissions(), **_act())
    except PortalError as error:
        return _new_user_form(error)
    return _link_page(name, added=True)


@bp.get(_USER)
@requires(Right.SEE)
def user(user_id: int) -> str:
    now, settings = utc_now(), portal().settings
    with connected(read_only=True) as db:
        found = people.get(db, user_id)
        in_use = connection_list.of_user(db, found)
        asked = connection_list.ask(portal().agents, in_use)
        about = people.about(db, found, now=now)
        own = devices.current(db, found, portal().clients, now=now)
    return render_template(
        "admin/user.html",
        user=found,
        roles=roles.held(found.permissions, settings),
        about=about,
        read=_read,
        devices=own,
        connected=connection_list.with_usage(in_use, asked),
        has_access=profiles.meets(settings.access_permissions, found.permissions),
        access_permissions=settings.access_permissions,
        most_apps=settings.max_app_connections,
        most_by_hand=settings.max_portal_connections,
        is_self=found.id == login.required().user.id,
        may_reset=_may_reset(found),
        has_history=_has_history(),
        now=now,
        done=forms.chosen("done", _DONE) or ("ended" if request.args.get("done") else ""),
        cut=forms.number("cut") or forms.number("done"),
    )


@bp.post(f"{_USER}/link")
@requires(Right.RESET, recently=True)
def make_link(user_id: int) -> str:
    """Show a new one-time link in this very answer; older ones of the user end."""

    def check(user: User) -> None:
        if user.id != user_id:
            raise NotFound(N_("This user is gone; somebody else has the name now."))
        people.check_may_reset(user, login.required().rights, portal().settings)

    found = _get(user_id)
    check(found)
    return _link_page(found.name, user_id=user_id, check=check)


@bp.post(f"{_USER}/end")
@requires(Right.END)
def end_all_connections(user_id: int) -> AnyResponse:
    count = ending_by_operator.end_all_of(_get(user_id), **_act())
    return _back(user_id, "ended", count)


@bp.post(f"{_USER}/apps/<int(max=2147483647):authorization_id>/end")
@requires(Right.END)
def end_app(user_id: int, authorization_id: int) -> AnyResponse:
    _apps, count = ending_by_operator.end_authorizations(_get(user_id).name, authorization_id, **_act())
    return _back(user_id, "app", count)


@bp.post(f"{_USER}/disable")
@requires(Right.MANAGE, recently=True)
def disable_user(user_id: int) -> AnyResponse:
    return _cut_off(user_id, "disabled", users.disable)


@bp.post(f"{_USER}/enable")
@requires(Right.MANAGE)
def enable_user(user_id: int) -> AnyResponse:
    users.enable(_get(user_id).name, **_act())
    return _back(user_id, "enabled", 0)


@bp.post(f"{_USER}/delete")
@requires(Right.MANAGE, recently=True)
def delete_user(user_id: int) -> AnyResponse:
    return _cut_off(user_id, "deleted", users.delete)


@bp.get(f"{_USER}/permissions")
@requires(Right.MANAGE, recently=True)
def permissions(user_id: int) -> AnyResponse:
    """Show what the user has, or with ``former`` what they had before it was set last: the way back."""
    found = _get(user_id)
    shown: list[str] | None = found.permissions
    if "former" in request.args:
        with transaction(read_only=True) as db:
            shown = audit.former_permissions(db, found)
    return _permissions_form(found, "\n".join(found.permissions if shown is None else shown))


@bp.post(f"{_USER}/permissions")
@requires(Right.MANAGE, recently=True)
def set_permissions(user_id: int) -> AnyResponse:
    """Say first what new permissions would cut; ``confirmed`` comes with the second form."""
    found, settings = _get(user_id), portal().settings
    try:
        wanted = users.check_permissions(_permissions())
        people.check_keeps_role(found, login.required().user, wanted, settings)
    except PortalError as error:
        return _permissions_form(found, request.form.get("permissions", ""), error=error)
    if "confirmed" not in request.form:
        return _permissions_form(found, "\n".join(wanted), ask=wanted)
    cut = users.set_permissions(found.name, wanted, access_permissions=settings.access_permissions, **_act())
    if found.id == login.required().user.id:
        # Their sessions ended, this one too.
        return redirect(url_for("sign_in.page", next=url_for("admin.user", user_id=user_id)), 303)
    return _back(user_id, "permissions", cut)


def _get(user_id: int) -> User:
    with transaction(read_only=True) as db:
        return people.get(db, user_id)


def _act() -> dict[str, Any]:
    """Return who acts, from where, when: what services note in the audit log."""
    return {"actor": login.required().user.name, "source": request.remote_addr, "now": utc_now()}


def _cut_off(user_id: int, done: str, act: Callable[..., int]) -> AnyResponse:
    found = _get(user_id)
    people.check_other(found, login.required().user)
    cut = act(found.name, **_act())
    if done == "deleted":
        return redirect(url_for("admin.users", done=done, cut=cut or None), 303)
    return _back(user_id, done, cut)


def _back(user_id: int, done: str, cut: int) -> AnyResponse:
    return redirect(url_for("admin.user", user_id=user_id, done=done, cut=cut or None), 303)


def _read(answer: str) -> str:
    """Return what an app was answered in the reader's language, if it is a text of ours without values."""
    return gettext(answer) if answer else ""


def _may_reset(found: User) -> bool:
    try:
        people.check_may_reset(found, login.required().rights, portal().settings)
    except PortalError:
        return False
    return True


def _has_history() -> bool:
    return "admin.history" in current_app.view_functions and Right.SEARCH in login.required().rights


def _permissions() -> list[str]:
    """Return the permissions of a form: one in each line."""
    lines = forms.field("permissions", _LONGEST_PERMISSIONS).splitlines()
    return [line.strip() for line in lines if line.strip()]


def _link_page(
    name: str,
    *,
    user_id: int | None = None,
    added: bool = False,
    check: Callable[[User], None] = lambda _user: None,
) -> str:
    token = users.one_time_link(name, check=check, **_act())
    if user_id is None:
        with transaction(read_only=True) as db:
            made = users.find(db, name)
        user_id = made.id if made is not None else None
    return render_template(
        "admin/one_time_link.html",
        name=name,
        user_id=user_id,
        added=added,
        link=f"{portal().settings.portal_url}/set-password/{token}",
        life=users.LINK_LIFE,
        until=utc_now() + users.LINK_LIFE,
    )


def _new_user_form(error: PortalError | None = None) -> AnyResponse:
    with transaction(read_only=True) as db:
        known = people.known_permissions(db, portal().settings)
    page = render_template(
        "admin/add_user.html",
        known=known,
        name=request.form.get("name", "")[: users.LONGEST_NAME],
        permissions=request.form.get("permissions", "")[:_LONGEST_PERMISSIONS],
        problem=said(error) if error else "",
    )
    return current_app.make_response((page, error.status if error else 200))


def _permissions_form(
    found: User, text: str, *, ask: list[str] | None = None, error: PortalError | None = None
) -> AnyResponse:
    settings = portal().settings
    with transaction(read_only=True) as db:
        known = people.known_permissions(db, settings)
        loses = people.loses(db, found, ask, settings, now=utc_now()) if ask is not None else None
    page = render_template(
        "admin/permissions.html",
        user=found,
        known=known,
        text=text[:_LONGEST_PERMISSIONS],
        ask=ask,
        loses=loses,
        roles_after=roles.held(ask, settings) if ask is not None else [],
        is_self=found.id == login.required().user.id,
        problem=said(error) if error else "",
    )
    return current_app.make_response((page, error.status if error else 200))

"""The choice of a language, kept in the browser."""

from flask import Blueprint, redirect, request
from werkzeug.wrappers import Response as AnyResponse

from portal_app import language, login
from portal_app.errors import N_, BadRequest
from portal_app.views import forms

bp = Blueprint("language", __name__)


@bp.post("/language")
def choose() -> AnyResponse:
    tag = forms.field("language", 10)
    if tag not in language.LANGUAGES:
        raise BadRequest(N_("Choose one of the languages in the list."))
    response = redirect(login.own_path(request.form.get("next")), 303)
    response.set_cookie(
        language.COOKIE,
        tag,
        max_age=language.COOKIE_LIFE,
        path="/",
        secure=True,
        httponly=True,
        samesite="Lax",
    )
    return response

"""The authorization endpoint (spec api-v3.md, section 3): every error row, redirect URIs, approval,
form_post.
"""

import re
from html import unescape
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from sqlalchemy import func, select, update

from portal_app.db import transaction
from portal_app.models import Authorization, User
from tests.portal.app_user import CALLBACK, VpnApp, add_user, csrf_token

WINDOWS = "org.eduvpn.app.windows"


@pytest.fixture
def visitor(app):
    """A signed-in user whose app is about to ask."""
    return VpnApp(app, add_user("alice"))


def authorizations() -> int:
    with transaction(read_only=True) as db:
        return int(db.scalar(select(func.count()).select_from(Authorization)) or 0)


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"client_id": None}, 400, "invalid_request"),
        ({"client_id": ""}, 400, "invalid_request"),
        ({"client_id": "ümlaut"}, 400, "invalid_request"),
        ({"client_id": ["a", "b"]}, 400, "invalid_request"),
        ({"client_id": "org.example.unknown"}, 401, "invalid_client"),
        ({"redirect_uri": None}, 400, "invalid_request"),
        ({"redirect_uri": "https://evil.example.org/callback"}, 401, "invalid_client"),
        ({"response_type": None}, 400, "invalid_request"),
        ({"response_type": "token"}, 400, "unsupported_response_type"),
        ({"response_type": "code token"}, 400, "unsupported_response_type"),
        ({"scope": None}, 400, "invalid_request"),
        ({"scope": "config admin"}, 400, "invalid_scope"),
        ({"scope": "admin"}, 400, "invalid_scope"),
        ({"scope": ' "config"'}, 400, "invalid_scope"),
        ({"state": None}, 400, "invalid_request"),
        ({"state": "a\nb"}, 400, "invalid_request"),
        ({"state": ["a", "b"]}, 400, "invalid_request"),
        ({"code_challenge_method": None}, 400, "invalid_request"),
        ({"code_challenge_method": "plain"}, 400, "invalid_request"),
        ({"code_challenge": None}, 400, "invalid_request"),
        ({"code_challenge": "A" * 42}, 400, "invalid_request"),
        ({"code_challenge": "A" * 44}, 400, "invalid_request"),
        ({"code_challenge": "A" * 42 + "="}, 400, "invalid_request"),
        ({"state": "x" * 5000}, 400, "invalid_request"),
    ],
)
def test_wrong_request_is_a_page_and_never_a_redirect(visitor, changes, status, code):
    """O1, O2, O4"""
    for response in (
        visitor.ask(**changes),
        visitor.browser.post("/oauth/authorize", query_string=visitor.query(**changes)),
    ):
        if response.status_code == 403:
            continue  # the form's protection refuses a bare POST before anything else
        assert response.status_code == status
        assert response.mimetype == "text/html"
        assert code in response.text
        assert "Location" not in response.headers
    assert authorizations() == 0


def test_state_that_is_no_text_is_refused(visitor):
    """O5: it would go back changed."""
    query = urlencode(visitor.query(state=None))

    assert visitor.browser.get(f"/oauth/authorize?{query}&state=%FF").status_code == 400
    assert visitor.browser.get(f"/oauth/authorize?{query}&state=%25FF").status_code == 200


@pytest.mark.parametrize(
    "changes", [{"unknown": "x"}, {"response_mode": "query"}, {"response_mode": "web_message"}]
)
def test_unknown_parameters_are_ignored(visitor, changes):
    assert visitor.code(**changes)


@pytest.mark.parametrize(
    ("client_id", "redirect_uri"),
    [
        (WINDOWS, "http://127.0.0.1:1024/callback"),
        (WINDOWS, "http://127.0.0.1:65535/callback"),
        (WINDOWS, "http://[::1]:8080/callback"),
        ("org.eduvpn.app.android", "org.eduvpn.app:/api/callback"),
        ("org.eduvpn.app.android", "org.eduvpn.app.android:/api/callback"),
        ("org.eduvpn.app.ios", "org.eduvpn.app.ios:/api/callback"),
        ("org.eduvpn.app.macos", "org.eduvpn.app.macos:/api/callback"),
        ("org.eduvpn.app.macos", "http://127.0.0.1:53211/callback"),
        ("org.letsconnect-vpn.app.linux", "http://127.0.0.1:53211/callback"),
        ("org.letsconnect-vpn.app.android", "org.letsconnect-vpn.app:/api/callback"),
        ("org.letsconnect-vpn.app.ios", "org.letsconnect-vpn.app.ios:/api/callback"),
    ],
)
def test_registered_redirect_uri_gets_the_answer(app, client_id, redirect_uri):
    user = VpnApp(app, add_user(), client_id=client_id, redirect_uri=redirect_uri)

    response = user.answer()

    assert response.status_code == 302
    location, _, query = response.location.partition("?")
    assert location == redirect_uri
    values = parse_qs(query, strict_parsing=True)
    assert values.keys() == {"code", "state", "iss"}
    assert values["iss"] == ["https://vpn.example.org"]
    assert values["state"] == [user.state]
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "redirect_uri",
    [
        "http://127.0.0.1:1023/callback",
        "http://127.0.0.1:65536/callback",
        "http://127.0.0.1:80/callback",
        "http://127.0.0.1:053211/callback",
        "http://127.0.0.1:0x1F90/callback",
        "http://127.0.0.1/callback",
        "http://127.0.0.1:{PORT}/callback",
        "http://127.0.0.1:53211/callback/",
        "http://127.0.0.1:53211/callback?x=1",
        "http://127.0.0.1:53211/callback#f",
        "http://127.0.0.1:53211/Callback",
        "http://127.0.0.1:53211/callback\n",
        "http://127.0.0.1:53211/%63allback",
        "http://user@127.0.0.1:53211/callback",
        "http://127.0.0.1:53211@evil.example.org/callback",
        "http://localhost:53211/callback",
        "http://127.0.0.2:53211/callback",
        "http://127.0.0.1.:53211/callback",
        "https://127.0.0.1:53211/callback",
        "HTTP://127.0.0.1:53211/callback",
        "http://[::1]/callback",
        "http://[0:0:0:0:0:0:0:1]:53211/callback",
        "org.eduvpn.app.windows:/api/callback",
        "org.eduvpn.app.windows://api/callback",
    ],
)
def test_any_other_redirect_uri_is_refused(app, redirect_uri):
    """O3"""
    user = VpnApp(app, add_user(), client_id=WINDOWS, redirect_uri=redirect_uri)

    response = user.ask()

    assert response.status_code == 401
    assert "invalid_client" in response.text


def test_user_who_is_not_signed_in_comes_back_to_exactly_this_url(app):
    user = VpnApp(app, add_user())
    query = user.query()
    stranger = app.test_client()

    response = stranger.get("/oauth/authorize", query_string=query)

    assert response.status_code in (302, 303)
    target = urlsplit(response.location)
    assert target.path == "/sign-in"
    (back,) = parse_qs(target.query)["next"]
    assert urlsplit(back).path == "/oauth/authorize"
    assert parse_qs(urlsplit(back).query) == {key: [value] for key, value in query.items()}


def test_refusal_travels_by_redirect(visitor):
    response = visitor.answer("no")

    assert response.status_code == 302
    values = parse_qs(urlsplit(response.location).query)
    assert values == {
        "error": ["access_denied"],
        "state": [visitor.state],
        "iss": ["https://vpn.example.org"],
    }
    assert authorizations() == 0


def test_approval_page_names_app_and_scope_and_cannot_be_framed(visitor):
    """O13"""
    response = visitor.ask()

    assert response.status_code == 200
    assert "eduVPN for Linux" in response.text
    assert response.headers["Cache-Control"] == "no-store"
    policy = response.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy
    # The redirect that answers the form has to be allowed, too.
    assert "form-action 'self' http://127.0.0.1:53211" in policy


def test_approval_page_names_the_page_that_ends_it_as_the_menu_does(visitor):
    page = visitor.ask().text
    found = re.search(r"You can end this at any time under (\w+)\.", page)

    assert found
    assert f">{found[1]}</a>" in page


def test_approval_without_the_pages_token_or_from_elsewhere_is_refused(visitor):
    """O13"""
    query = visitor.query()
    token = csrf_token(visitor.browser.get("/oauth/authorize", query_string=query).text)

    def post(data, **headers):
        return visitor.browser.post("/oauth/authorize", query_string=query, data=data, headers=headers)

    assert post({"approve": "yes"}).status_code == 403
    assert (
        post({"approve": "yes", "csrf_token": token}, **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
    )
    assert post({"approve": "yes", "csrf_token": token}, Origin="https://evil.example.org").status_code == 403
    assert authorizations() == 0
    assert (
        post({"approve": "yes", "csrf_token": token}, **{"Sec-Fetch-Site": "same-origin"}).status_code == 302
    )


def test_answer_that_is_neither_yes_nor_no_is_refused(visitor):
    assert visitor.answer("perhaps").status_code == 400
    assert authorizations() == 0


@pytest.mark.parametrize("when", ["ask", "answer"])
def test_disabled_account_gets_a_page(visitor, when):
    query = visitor.query()
    token = csrf_token(visitor.browser.get("/oauth/authorize", query_string=query).text)
    with transaction() as db:
        db.execute(update(User).values(is_disabled=True))

    if when == "ask":
        response = visitor.browser.get("/oauth/authorize", query_string=query)
    else:
        response = visitor.browser.post(
            "/oauth/authorize", query_string=query, data={"approve": "yes", "csrf_token": token}
        )

    assert response.status_code == 403
    assert "disabled" in response.text
    assert authorizations() == 0


@pytest.mark.parametrize("settings_changes", [{"access_permissions": ["vpn"]}])
def test_account_without_the_access_permission_gets_a_page(app):
    assert VpnApp(app, add_user("without")).ask().status_code == 403
    assert VpnApp(app, add_user("with", ["vpn"])).ask().status_code == 200


@pytest.mark.parametrize("approve", ["yes", "no"])
def test_form_post_answers_with_a_page_that_posts_to_the_app(visitor, approve):
    response = visitor.answer(approve, response_mode="form_post")

    assert response.status_code == 200
    assert response.mimetype == "text/html"
    (form,) = re.findall(rf'<form[^>]*action="{CALLBACK}".*?</form>', response.text, re.DOTALL)
    assert 'method="post"' in form
    hidden = re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', form)
    fields = {unescape(name): unescape(value) for name, value in hidden}
    assert fields["state"] == visitor.state
    assert fields["iss"] == "https://vpn.example.org"
    assert fields.keys() - {"state", "iss"} == ({"code"} if approve == "yes" else {"error"})
    policy = response.headers["Content-Security-Policy"]
    assert "http://127.0.0.1:53211" in policy
    assert re.search(r"script-src 'nonce-[^']+'", policy)
    assert response.headers["Cache-Control"] == "no-store"
    if approve == "yes":
        assert visitor.redeem(fields["code"]).status_code == 200


def test_form_post_to_a_custom_scheme_is_a_redirect(app):
    uri = "org.eduvpn.app.ios:/api/callback"
    user = VpnApp(app, add_user(), client_id="org.eduvpn.app.ios", redirect_uri=uri)

    assert user.answer(response_mode="form_post").location.startswith(uri + "?code=")


@pytest.mark.parametrize("settings_changes", [{"issuer": "https://vpn.example.org/"}])
def test_issuer_is_what_is_configured(visitor):
    """O5"""
    values = parse_qs(urlsplit(visitor.answer().location).query)

    assert values["iss"] == ["https://vpn.example.org/"]
    assert visitor.http.get("/.well-known/oauth-authorization-server").json["issuer"] == values["iss"][0]


OWN = {
    "client_id": "org.example.cli",
    "client_name": "Example <CLI>",
    "redirect_uris": ["http://127.0.0.1:{PORT}/cb", "https://app.example.org/cb?tenant=1"],
}


@pytest.mark.parametrize("settings_changes", [{"clients": [OWN]}])
def test_own_client_is_shown_escaped_and_answered_behind_its_own_query(app):
    user = VpnApp(app, add_user(), client_id="org.example.cli", redirect_uri=OWN["redirect_uris"][1])

    assert "Example &lt;CLI&gt;" in user.ask().text
    location = user.answer().location
    assert location.startswith("https://app.example.org/cb?tenant=1&code=")


@pytest.mark.parametrize("settings_changes", [{"clients": [OWN | {"requires_approval": False}]}])
def test_own_client_may_skip_the_approval(app):
    user = VpnApp(app, add_user(), client_id="org.example.cli", redirect_uri="http://127.0.0.1:5000/cb")

    assert user.browser.head("/oauth/authorize", query_string=user.query()).status_code == 200
    assert authorizations() == 0
    assert user.ask().location.startswith("http://127.0.0.1:5000/cb?code=")


@pytest.mark.parametrize("settings_changes", [{"client_sets": ["govVPN"]}])
def test_only_the_configured_sets_are_known(app):
    assert VpnApp(app, add_user("a")).ask().status_code == 401
    assert VpnApp(app, add_user("b"), client_id="org.govvpn.app.linux").ask().status_code == 200


def test_other_methods_are_refused_with_those_that_exist(client):
    response = client.put("/oauth/authorize")

    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "POST"}

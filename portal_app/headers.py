"""Response headers of everything the portal answers (reliability.md W4, W5, W22).

Strict-Transport-Security is nginx's, which also answers what never reaches this application.
"""

import secrets
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, Response, g, request

_FIXED = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # for what does not know frame-ancestors
    # Not no-referrer: with it browsers send "Origin: null" with our own forms.
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": (
        "accelerometer=(), camera=(), display-capture=(), geolocation=(), gyroscope=(), magnetometer=(),"
        " microphone=(), midi=(), payment=(), publickey-credentials-get=(self), usb=()"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def init_app(app: Flask) -> None:
    app.wsgi_app = _Fixed(app.wsgi_app)  # type: ignore[method-assign]
    app.after_request(_add)
    app.jinja_env.globals["csp_nonce"] = csp_nonce


def csp_nonce() -> str:
    """Return this response's nonce; a response that asked for none allows no script at all."""
    if "csp_nonce" not in g:
        g.csp_nonce = secrets.token_urlsafe(16)
    nonce: str = g.csp_nonce
    return nonce


def allow_form_action(response: Response, target: str) -> None:
    """Let the forms of one response also lead to ``target``: a redirect URI, an origin, or ``scheme:``.

    Browsers apply form-action to the redirects of a submitted form too, so the page with the approval form
    needs it.
    """
    response.headers["Content-Security-Policy"] = _policy(_form_source(target))


def _form_source(target: str) -> str:
    url = urlsplit(target)
    if url.scheme not in ("http", "https"):
        return f"{url.scheme}:"
    # An IPv6 literal is no host-source of the CSP grammar; browsers would drop it and block the form.
    return "http:" if "[" in url.netloc else f"{url.scheme}://{url.netloc}"


def _policy(form_source: str = "") -> str:
    script = f"'nonce-{g.csp_nonce}'" if "csp_nonce" in g else "'none'"
    # Scripts of ours read pages of ours again.
    return _policy_of(f"'self' {form_source}".rstrip(), script, "'self'" if "csp_nonce" in g else "'none'")


def _policy_of(form_action: str, script: str, connect: str = "'none'") -> str:
    return (
        f"default-src 'none'; script-src {script}; connect-src {connect}; style-src 'self'; img-src 'self';"
        " base-uri 'none';"
        f" form-action {form_action};"
        " frame-ancestors 'none'"
    )


class _Fixed:
    """Adds to each answer what is the same for all, unless the answer says it itself.

    Around Flask, where headers are a list: adding one after the other through Flask is slow.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        # A response that asked for no nonce allows no script at all.
        pairs = {
            "Content-Security-Policy": _policy_of("'self'", "'none'"),
            "Cache-Control": "no-store",
        } | _FIXED
        self._pairs = [(name.lower(), (name, value)) for name, value in pairs.items()]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            present = {name.lower() for name, _value in headers}
            headers = headers + [pair for lowered, pair in self._pairs if lowered not in present]
            return start_response(status, headers, *more)

        return self._app(environ, start)


def _add(response: Response) -> Response:
    if "csp_nonce" in g:
        response.headers.setdefault("Content-Security-Policy", _policy())
        g.pop("csp_nonce")
    if request.endpoint == "static" and response.status_code in (200, 304):
        # Pages name static files with a digest of their content.
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return response

"""The portal as a WSGI application, and what one process of it holds."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flask import Flask, current_app
from flask.sessions import NullSession, SessionInterface
from werkzeug.middleware.proxy_fix import ProxyFix

from portal_app import db
from portal_app.settings import Settings

if TYPE_CHECKING:
    from portal_app.agents import Agents
    from portal_app.brand import Brand
    from portal_app.oauth.clients import Client
    from portal_app.services.pki import Signer

#: Apps send some hundred bytes, pages little more.
LONGEST_BODY = 64 * 1024


@dataclass(frozen=True)
class Portal:
    """What one process holds: its settings, the way to the nodes, the registered apps, the client CA,
    and how its pages look.
    """

    settings: Settings
    agents: "Agents"
    clients: "dict[str, Client]"
    signer: "Signer"
    brand: "Brand"


class _NoSessions(SessionInterface):
    """Flask's signed cookie is not used: ``login`` has its own, and apps have none."""

    def open_session(self, *_args: Any) -> NullSession:
        return NullSession()


class _App(Flask):
    session_interface = _NoSessions()

    def ensure_sync(self, func: Any) -> Any:
        """No function here is a coroutine; looking at each one at each request is work."""
        return func


def portal() -> Portal:
    """Return the portal of the current application context."""
    found: Portal = current_app.extensions["causeway"]
    return found


def create_app(settings: Settings) -> Flask:
    """Return the portal as a WSGI application. Raises SettingsError when a file or value cannot be used."""
    # Imported here: services and views import this module for portal().
    from portal_app import brand, error_pages, headers, language, login, translated_templates
    from portal_app.agents import Agents
    from portal_app.oauth import bearer, clients
    from portal_app.oauth import views as oauth_views
    from portal_app.services.pki import Signer
    from portal_app.views import account, admin, admin_api, api_v3, health, links
    from portal_app.views import brand as brand_view
    from portal_app.views import language as language_view

    app = _App("portal_app")
    translated_templates.init_app(app)
    app.config.update(
        SECRET_KEY=settings.secret_key_file.read_bytes(),
        MAX_CONTENT_LENGTH=LONGEST_BODY,
        TRUSTED_HOSTS=[settings.host_name],
        PREFERRED_URL_SCHEME="https",
        # Allow of a 405 names what a view does, and nothing answers the preflight of another site's script.
        PROVIDE_AUTOMATIC_OPTIONS=False,
    )
    app.json.sort_keys = False  # type: ignore[attr-defined]  # of the default provider
    db.connect_to(settings.database_url)
    app.extensions["causeway"] = Portal(
        settings=settings,
        agents=Agents(settings),
        clients=clients.registry(settings),
        signer=Signer(settings),
        brand=brand.load(settings),
    )
    # nginx is the only one in front and sets these headers itself, whatever a client sent.
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1)  # type: ignore[method-assign]
    language.init_app(app, settings.default_language)
    error_pages.init_app(app)
    bearer.init_app(app)
    login.init_app(app)
    headers.init_app(app)
    links.init_app(app)
    pages = (account.bp, admin.bp, language_view.bp, brand_view.bp)
    for blueprint in (oauth_views.bp, api_v3.bp, admin_api.bp, health.bp, *pages):
        app.register_blueprint(blueprint)
    return app

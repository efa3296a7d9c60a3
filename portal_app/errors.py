"""Errors of the portal. ``status`` is the HTTP answer; the message names the thing and the way out."""


def N_(text: str) -> str:  # noqa: N802 - gettext's customary name
    """Mark a text that is translated where it is shown."""
    return text


class PortalError(Exception):
    """Base of what services raise. ``retry_after`` (seconds) goes with outage and overload.

    A message that people read on pages is marked for translation (``N_``) and names its ``values``
    by ``%(name)s``; ``str`` is the English text, which apps, scripts and logs get.
    """

    status = 400
    retry_after: int | None = None

    def __init__(self, message: str = "", /, **values: object) -> None:
        super().__init__(message % values if values else message)
        self.message, self.values = message, values


class BadRequest(PortalError):
    """A parameter is missing or malformed."""


class Forbidden(PortalError):
    status = 403


class NotFound(PortalError):
    status = 404


class NoCommonProtocol(PortalError):
    """Nothing that the app can do is offered by the profile."""

    status = 406


class Conflict(PortalError):
    """It exists already, or was done already."""

    status = 409


class KeyInUse(PortalError):
    """The WireGuard public key belongs to another user's connection."""

    status = 409


class TooManyRequests(PortalError):
    status = 429
    retry_after = 30


class Unavailable(PortalError):
    """Something that this portal needs does not answer; it heals by itself."""

    status = 503
    retry_after = 10


class NoCapacity(Unavailable):
    """No node that answers has a free address."""


class NodeUnreachable(Unavailable):
    """An agent did not answer in time, or not as an agent of this deployment."""


class NodeBusy(NodeUnreachable):
    """An agent was not asked, or not for long: others of this process came first."""


class NodeRefused(Unavailable):
    """An agent answered no (``agent_status`` 4xx): it holds still, does not serve this, or heard of a later
    cut.
    """

    def __init__(self, message: str, agent_status: int) -> None:
        super().__init__(message)
        self.agent_status = agent_status


class InvalidToken(PortalError):
    """The access token, or what it stood for, is not good (any more): spec api-v3.md section 5."""

    status = 401


class InsufficientScope(PortalError):
    """The access token is good, but not for this."""

    status = 403


class Superseded(PortalError):
    """A later request of the same app ended what this one was making."""

    status = 409


class SettingsError(Exception):
    """settings.toml cannot be used; the service does not start."""

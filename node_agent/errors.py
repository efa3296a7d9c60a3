"""Errors of the agent. ``status`` is the HTTP status a caller sees."""


class AgentError(Exception):
    """Base of everything this package raises; the message names the thing and the way out."""

    status = 500


class SettingsError(AgentError):
    """The settings file is wrong: the agent does not start."""


class Refused(AgentError):
    """A well-formed message that this node cannot obey, such as an address outside of its ranges."""

    status = 422


class Conflict(AgentError):
    """Old news, or news from another authority: nothing was changed."""

    status = 409


class AnotherBoot(AgentError):
    """The caller means another run of this machine, or another machine with its files (R60)."""

    status = 412


class InterfaceMissing(AgentError):
    """The WireGuard interface is not there."""

"""Errors of the plan and of the messages between portal and agent."""


class CoreError(ValueError):
    """Base of everything this package raises; the message names the thing, the value and the way out."""


class PlanError(CoreError):
    """The inventory does not describe a service that can run."""


class MessageError(CoreError):
    """A message between portal and agent has a wrong field; nothing of it may be applied."""

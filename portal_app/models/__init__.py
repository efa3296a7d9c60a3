"""Every table. A model holds what must never be false; services decide."""

from portal_app.db import Base
from portal_app.models.authorization import AccessToken, Authorization, AuthorizationCode, RefreshToken
from portal_app.models.background_error import BackgroundError
from portal_app.models.connection import Connection, FreeAddress, RefusedConnect
from portal_app.models.event import AuditEvent
from portal_app.models.job import PeriodicJob
from portal_app.models.node import Node, NodeStatus, Offer
from portal_app.models.portal import Portal
from portal_app.models.profile import Deployment, Profile
from portal_app.models.session import AddressUse, VpnSession
from portal_app.models.token import ApiToken, IdempotentCall
from portal_app.models.usage import UsageDay, UsageSample
from portal_app.models.user import BrowserSession, LocalAccount, OneTimeLink, Throttle, User

__all__ = [
    "AccessToken",
    "AddressUse",
    "ApiToken",
    "AuditEvent",
    "Authorization",
    "AuthorizationCode",
    "BackgroundError",
    "Base",
    "BrowserSession",
    "Connection",
    "Deployment",
    "FreeAddress",
    "IdempotentCall",
    "LocalAccount",
    "Node",
    "NodeStatus",
    "Offer",
    "OneTimeLink",
    "PeriodicJob",
    "Portal",
    "Profile",
    "RefreshToken",
    "RefusedConnect",
    "Throttle",
    "UsageDay",
    "UsageSample",
    "User",
    "VpnSession",
]

"""The plan's share that the portal works with: what ``vpn-portal plan apply`` wrote."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, CheckConstraint, String
from sqlalchemy.orm import Mapped, mapped_column

from portal_app.db import Base


class Deployment(Base):
    """One row: who this deployment is (agents obey no other), and the plan that was applied last."""

    __tablename__ = "deployment"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)
    id: Mapped[int] = mapped_column(primary_key=True, default=1)
    deployment_id: Mapped[str] = mapped_column(String(32))
    epoch: Mapped[int] = mapped_column(default=1)
    plan: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    plan_applied_at: Mapped[datetime | None]


class Profile(Base):
    """What a user chooses; columns as in ``vpn_core.profile``. ``position`` is its place in the inventory."""

    __tablename__ = "profiles"
    profile_id: Mapped[str] = mapped_column(String(60), primary_key=True)
    position: Mapped[int]
    display_name: Mapped[str] = mapped_column(String(64))
    priority: Mapped[int] = mapped_column(default=0)
    hidden: Mapped[bool] = mapped_column(default=False)
    permissions: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    default_gateway: Mapped[bool]
    routes: Mapped[list[str]] = mapped_column(JSON)
    excluded_routes: Mapped[list[str]] = mapped_column(JSON)
    dns_servers: Mapped[list[str]] = mapped_column(JSON)
    dns_search_domains: Mapped[list[str]] = mapped_column(JSON)
    preferred_protocol: Mapped[str] = mapped_column(String(10))
    wireguard: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    openvpn: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))

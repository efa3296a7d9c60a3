"""What an auditor asks for: who did what to whom, from where, when."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from portal_app.db import Base


class AuditEvent(Base):
    """One act. ``actor`` is a user's name, ``cli`` or ``controller``; never a secret in ``details``."""

    __tablename__ = "audit_events"
    __table_args__ = (Index("ix_audit_events_object_id", "object", "id"),)
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    actor: Mapped[str] = mapped_column(String(255))
    action: Mapped[str] = mapped_column(String(60))
    object: Mapped[str | None] = mapped_column(String(255))
    source: Mapped[str | None] = mapped_column(String(60))
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)

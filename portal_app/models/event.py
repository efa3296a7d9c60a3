"""What an auditor asks for: who did what to whom, from where, when."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Connection, Index, Integer, String, event
from sqlalchemy.orm import Mapped, mapped_column

from portal_app.db import Base

#: What refuses to change a row, whoever asks, by the kind of database.
_STAYS = {
    "sqlite": (
        "CREATE TRIGGER audit_events_stay BEFORE UPDATE ON audit_events"
        " BEGIN SELECT RAISE(ABORT, 'rows of the audit log are never changed'); END",
    ),
    "postgresql": (
        "CREATE OR REPLACE FUNCTION audit_events_stay() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN RAISE EXCEPTION 'rows of the audit log are never changed'; END$$",
        "CREATE TRIGGER audit_events_stay BEFORE UPDATE ON audit_events"
        " FOR EACH STATEMENT EXECUTE FUNCTION audit_events_stay()",
    ),
}


class AuditEvent(Base):
    """One act. ``actor`` is a user's name, ``cli``, ``controller``, or ``visitor`` for a failed sign-in;
    never a secret in ``details``.
    """

    __tablename__ = "audit_events"
    __table_args__ = (
        Index("ix_audit_events_actor_at", "actor", "at"),
        Index("ix_audit_events_action_at", "action", "at"),
        Index("ix_audit_events_object_at", "object", "at"),
    )
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    actor: Mapped[str] = mapped_column(String(255))
    action: Mapped[str] = mapped_column(String(60))
    object: Mapped[str | None] = mapped_column(String(255))
    source: Mapped[str | None] = mapped_column(String(60))
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


@event.listens_for(AuditEvent.__table__, "after_create")
def _let_rows_stay(_table: Any, connection: Connection, **_more: Any) -> None:
    for statement in _STAYS[connection.dialect.name]:
        connection.exec_driver_sql(statement)

"""Alembic's environment: on the connection that ``portal_app.migrations`` hands over.

In its transaction where it has begun one, else each step in one of its own.
"""

from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection

from portal_app.db import UtcDateTime
from portal_app.models import Base


def render(kind: str, item: Any, _autogenerate_context: Any) -> str | Literal[False]:
    """Write plain types into migrations, which outlive the classes of the application."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


connection = context.config.attributes["connection"]
if not isinstance(connection, Connection):
    raise RuntimeError("migrations run by vpn-portal migrate")
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_item=render,
    transactional_ddl=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()

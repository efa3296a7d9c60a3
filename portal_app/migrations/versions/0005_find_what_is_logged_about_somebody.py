"""Find what the audit log has of one user, as actor and as object, without reading all of it.

Only indexes: the release before does not notice.
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_index("ix_audit_events_actor_at", "audit_events", ["actor", "at"])
    op.create_index("ix_audit_events_object_at", "audit_events", ["object", "at"])


def downgrade() -> None:
    op.drop_index("ix_audit_events_object_at", "audit_events")
    op.drop_index("ix_audit_events_actor_at", "audit_events")

"""Let the database refuse to change a row of the audit log.

No release ever changed one; retention takes whole rows away by age.
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0015"
down_revision: str | None = "0014"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE TRIGGER audit_events_stay BEFORE UPDATE ON audit_events"
            " BEGIN SELECT RAISE(ABORT, 'rows of the audit log are never changed'); END"
        )
        return
    op.execute(
        "CREATE OR REPLACE FUNCTION audit_events_stay() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN RAISE EXCEPTION 'rows of the audit log are never changed'; END$$"
    )
    op.execute(
        "CREATE TRIGGER audit_events_stay BEFORE UPDATE ON audit_events"
        " FOR EACH STATEMENT EXECUTE FUNCTION audit_events_stay()"
    )


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER audit_events_stay")
        return
    op.execute("DROP TRIGGER audit_events_stay ON audit_events")
    op.execute("DROP FUNCTION audit_events_stay")

"""Statements on the session's connection."""

from sqlalchemy import bindparam, select

from portal_app.clock import utc_now
from portal_app.db import run, transaction
from portal_app.models import User

_BY_NAME = select(User.id).where(User.name == bindparam("name"))


def test_statement_sees_what_the_session_has_not_written_yet(app):
    with transaction() as db:
        user = User(name="alice", permissions=[], created_at=utc_now())
        db.add(user)

        assert run(db, _BY_NAME, {"name": "alice"}).scalar_one() == user.id


def test_statement_is_rolled_back_with_its_transaction(app):
    with transaction() as db:
        db.add(User(name="alice", permissions=[], created_at=utc_now()))
        run(db, _BY_NAME, {"name": "alice"})
        db.rollback()

    with transaction(read_only=True) as db:
        assert run(db, _BY_NAME, {"name": "alice"}).one_or_none() is None

"""Transactions and statements on SQLite and on PostgreSQL."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import bindparam, insert, literal, select, text, update
from sqlalchemy.exc import IntegrityError

from portal_app.clock import utc_now
from portal_app.db import WRITERS, connected, transaction
from portal_app.errors import Unavailable
from portal_app.models import User
from portal_app.statements import Statement, run, run_together
from tests.portal.waiting import wait_until

_BY_NAME = Statement(select(User.id, User.permissions, User.created_at).where(User.name == bindparam("name")))
_ADD = Statement(insert(User).inline())
_RENAME = Statement(
    update(User).where(User.name == bindparam("old")).values(name=bindparam("new")).returning(User.name)
)
only_postgresql = pytest.mark.parametrize("database", ["postgresql"])


def add(db, name="alice", **changes):
    values = {"name": name, "permissions": ["staff"], "is_disabled": False, "created_at": utc_now()}
    return run(db, _ADD, values | changes)


def found(name="alice"):
    with connected(read_only=True) as db:
        return run(db, _BY_NAME, {"name": name}).one_or_none()


def end_all_sessions(db):
    db.execute(
        text("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
             " WHERE pid <> pg_backend_pid() AND datname = 'portal'")
    )  # fmt: skip


def test_statement_sees_what_the_session_has_not_written_yet(app):
    with transaction() as db:
        user = User(name="alice", permissions=[], created_at=utc_now())
        db.add(user)

        assert run(db, _BY_NAME, {"name": "alice"})[0].id == user.id


def test_statement_is_rolled_back_with_its_transaction(app):
    with transaction() as db:
        db.add(User(name="alice", permissions=[], created_at=utc_now()))
        run(db, _BY_NAME, {"name": "alice"})
        db.rollback()

    assert found() is None


def test_values_and_columns_are_converted_by_their_types(app):
    now = utc_now()
    with connected() as db:
        add(db, created_at=now)

    row = found()
    with transaction(read_only=True) as db:
        user = db.scalars(select(User)).one()
    assert (row.permissions, row.created_at) == (["staff"], now) == (user.permissions, user.created_at)
    assert user.is_disabled is False


def test_moment_without_zone_is_refused(app):
    with connected() as db, pytest.raises(ValueError, match="naive datetime"):
        add(db, created_at=utc_now().replace(tzinfo=None))


def test_statement_returns_what_it_changed(app):
    with connected() as db:
        add(db)

        assert [row.name for row in run(db, _RENAME, {"old": "alice", "new": "bob"})] == ["bob"]
        assert run(db, _RENAME, {"old": "alice", "new": "bob"}) == []


def add_twice():
    with connected() as db:
        add(db)
        add(db)


def test_error_of_a_statement_is_sqlalchemys_and_rolls_back(app):
    with pytest.raises(IntegrityError):
        add_twice()

    assert found() is None


def test_value_that_is_missing_or_unknown_is_an_error(app):
    with connected(read_only=True) as db:
        for values in ({}, {"nmae": "alice"}, {"name": "alice", "nmae": "alice"}):
            with pytest.raises(KeyError, match="name"):
                run(db, _BY_NAME, values)


@only_postgresql
def test_session_that_ends_under_a_statement_is_an_outage_and_leaves_the_pool(app):
    """R22"""

    def interrupted():
        with connected() as db:
            add(db)
            with transaction() as other:
                end_all_sessions(other)
            run(db, _BY_NAME, {"name": "alice"})

    with pytest.raises(Unavailable):
        interrupted()

    assert [found() for _ in range(3)] == [None] * 3


@only_postgresql
def test_sessions_that_ended_while_they_rested_are_not_used(app):
    """R22: however short the rest was."""
    with connected(read_only=True) as one, connected(read_only=True) as other:
        run(one, _BY_NAME, {"name": "alice"})
        run(other, _BY_NAME, {"name": "alice"})
    with transaction() as db:
        end_all_sessions(db)

    assert [found() for _ in range(3)] == [None] * 3


def test_reading_begins_no_transaction(app):
    with connected(read_only=True) as db:
        run(db, _BY_NAME, {"name": "alice"})

        driver = db.connection.driver_connection
        if db.dialect.name == "sqlite":
            assert not driver.in_transaction
        else:
            assert driver.info.transaction_status is TransactionStatus.IDLE


def test_statements_together_return_their_rows_in_order(app):
    alice, bob = (
        {"name": name, "permissions": ["staff"], "is_disabled": False, "created_at": utc_now()}
        for name in ("alice", "bob")
    )
    with connected() as db:
        asked = [(_ADD, alice), (_BY_NAME, {"name": "alice"}), (_ADD, bob), (_BY_NAME, {"name": "carol"})]
        added, found_alice, _, found_carol = run_together(db, asked)

        assert (added, found_carol) == ([], [])
        assert found_alice[0].permissions == ["staff"]
    assert found("bob") is not None


@pytest.mark.parametrize("words", ["it's", "what?", ":name", "back\\slash", "--"])
def test_own_words_of_a_statement_are_part_of_its_text(app, words):
    own = Statement(
        select(User.name).where(User.name == words, User.is_disabled == bindparam("off")).limit(1)
    )
    with connected() as db:
        add(db, words, is_disabled=True)

        assert [row.name for row in run(db, own, {"off": True})] == [words]
        text = own.text(db.dialect, ("off",))
    assert words.replace("'", "''") in text.sql
    assert words not in [value for _name, _convert, value in text.values]


@pytest.mark.parametrize("name", ["half of 100 %", "%s ?"])
def test_what_cannot_be_part_of_a_text_stays_a_value(app, name):
    with connected() as db:
        add(db, name)
        changed = update(User).where(User.name == name, User.id != -literal(-999)).returning(User.name)

        (row,) = run(db, Statement(changed.values(is_disabled=True, permissions=["a"])))
        assert row.name == name
    assert found(name).permissions == ["a"]


def add_together(*names, last):
    values = {"permissions": [], "is_disabled": False, "created_at": utc_now()}
    with connected() as db:
        run_together(db, [(_ADD, values | {"name": name}) for name in names], last=last)


@pytest.mark.parametrize("last", [False, True])
def test_error_of_one_of_several_statements_rolls_back_all(app, last):
    with pytest.raises(IntegrityError):
        add_together("alice", "alice", "bob", last=last)

    assert (found("alice"), found("bob")) == (None, None)


@pytest.mark.parametrize("names", [("alice",), ("alice", "bob")])
def test_last_statements_are_committed_with_what_came_before(app, names):
    with connected() as db:
        add(db, "carol")
        values = {"permissions": [], "is_disabled": False, "created_at": utc_now()}
        run_together(db, [(_ADD, values | {"name": name}) for name in names], last=True)
        if db.dialect.name == "postgresql":
            assert db.connection.driver_connection.info.transaction_status is TransactionStatus.IDLE

    assert all(found(name) for name in (*names, "carol"))


def test_transaction_in_which_nothing_was_executed_leaves_nothing_to_the_next(app):
    with connected():
        pass

    with connected(read_only=True) as db:
        run(db, _BY_NAME, {"name": "alice"})
        if db.dialect.name == "postgresql":
            assert db.connection.driver_connection.info.transaction_status is TransactionStatus.IDLE


@pytest.mark.parametrize("first", ["its own", "ours"])
def test_statement_of_sqlalchemy_is_rolled_back_with_its_transaction(app, first):
    def interrupted():
        with connected() as db:
            if first == "ours":
                add(db, "bob")
            db.execute(insert(User).values(name="alice", permissions=[], created_at=utc_now()))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()

    assert (found("alice"), found("bob")) == (None, None)


@only_postgresql
def test_session_that_ends_under_statements_together_is_an_outage_and_leaves_the_pool(app):
    """R22"""

    def interrupted():
        with connected() as db:
            add(db)
            with transaction() as other:
                end_all_sessions(other)
            run_together(db, [(_BY_NAME, {"name": name}) for name in ("alice", "bob")])

    with pytest.raises(Unavailable):
        interrupted()

    assert [found() for _ in range(3)] == [None] * 3


def insert_into_users(values, together):
    with connected() as db:
        if together:
            run_together(db, [(_ADD, values)], last=True)
        else:
            run(db, _ADD, values)


@only_postgresql
@pytest.mark.parametrize("together", [False, True])
def test_commit_that_the_server_warns_of_is_not_confirmed(app, together):
    """As when the wait for the standby is cut short: the server has it, and is the only one."""
    with transaction() as db:
        db.execute(
            text("""
            CREATE OR REPLACE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql
            AS $$ BEGIN RAISE WARNING 'canceling wait for synchronous replication'; RETURN NULL; END $$
        """)
        )
        db.execute(
            text("""
            CREATE CONSTRAINT TRIGGER warns AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION warn()
        """)
        )

    values = {"name": "alice", "permissions": [], "is_disabled": False, "created_at": utc_now()}
    with pytest.raises(Unavailable, match="did not confirm a change: canceling wait"):
        insert_into_users(values, together)

    assert found() is not None
    with transaction() as db:
        db.execute(text("DROP TRIGGER warns ON users"))
        add(db, "bob")


@only_postgresql
def test_writers_of_one_process_wait_here_and_few_at_the_server(app):
    """R33: PostgreSQL ends a transaction that waits for a row as long as all the others need."""
    with transaction() as db:
        add(db)
    ends = threading.Event()
    asked = threading.Semaphore(0)

    def rename(_number):
        asked.release()
        with connected() as db:
            db.execute(select(User.id).where(User.name == "alice").with_for_update())
            ends.wait(10)

    def waiting():
        with connected(read_only=True) as db:
            return db.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    with ThreadPoolExecutor(2 * WRITERS) as writers:
        renamed = [writers.submit(rename, number) for number in range(2 * WRITERS)]
        for _ in renamed:
            assert asked.acquire(timeout=10)
        wait_until(lambda: waiting() == WRITERS - 1)
        assert {waiting() for _ in range(50)} == {WRITERS - 1}
        ends.set()
        for one in renamed:
            one.result(10)

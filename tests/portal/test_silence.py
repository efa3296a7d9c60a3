"""A PostgreSQL that says nothing: every request is answered, and threads do not wait (reliability.md R25)."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy

from portal_app import db, statements, waiting
from portal_app.errors import Unavailable
from tests.portal.relay import Relay

pytestmark = pytest.mark.parametrize("database", ["postgresql"])
THREADS = 12


def wait_until(condition, what, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def url_of(*relays: Relay) -> str:
    hosts = "&".join(f"host=127.0.0.1:{relay.port}" for relay in relays)
    return f"postgresql+psycopg://test@/portal?{hosts}&target_session_attrs=read-write"


@pytest.fixture
def make_relay(database_url):
    (directory,) = sqlalchemy.make_url(database_url).query["host"].split(",")
    started = []

    def make() -> Relay:
        started.append(Relay(f"{directory}/.s.PGSQL.5432").__enter__())
        return started[-1]

    yield make
    for relay in started:
        relay.__exit__()


@pytest.fixture
def relay(app, make_relay):
    """What the portal's connections go through."""
    relay = make_relay()
    db.connect_to(url_of(relay))
    return relay


def test_everybody_is_refused_in_time_and_served_again_afterwards(relay, make_app_user):
    """The server's host hangs: its kernel goes on confirming packets, so TCP notices nothing."""
    user = make_app_user()
    assert user.info().status_code == 200

    relay.silent = True
    with ThreadPoolExecutor(THREADS) as threads:
        answers = list(threads.map(lambda _: user.info(), range(THREADS), timeout=30))
    assert {(answer.status_code, "Retry-After" in answer.headers) for answer in answers} == {(503, True)}

    # Nobody asks it now but the thread that asks on: this would take minutes.
    for _ in range(200):
        assert user.info().status_code == 503
    assert user.connect().status_code == 503

    relay.silent = False
    wait_until(lambda: user.info().status_code == 200, "it is served again")


def test_open_connection_that_rested_is_not_waited_for_twice(relay, make_app_user, monkeypatch):
    """It is tried before it is used; when it is silent, another one would be so too."""
    user = make_app_user()
    assert user.info().status_code == 200
    monkeypatch.setattr(db, "RESTED_SECONDS", 0)
    opened = relay.opened

    relay.silent = True
    assert user.info().status_code == 503

    # One may be of the thread that asks on.
    assert relay.opened <= opened + 1
    relay.silent = False
    wait_until(lambda: user.info().status_code == 200, "it is served again")


def test_others_are_served_while_one_question_stays_without_an_answer(relay, caplog):
    """One that waits, as a commit does for a standby that is gone, says nothing about the server."""

    def ask(statement: str, seconds: float = waiting.ANSWER_SECONDS) -> None:
        with db.connected(read_only=True) as connection:
            connection.connection.driver_connection.answer_seconds = seconds
            connection.execute(sqlalchemy.text(statement))

    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(ask, "SELECT pg_sleep(3)", waiting.SILENT_SECONDS + 0.2)
        while not waits.done():
            ask("SELECT 1")
        with pytest.raises(Unavailable):
            waits.result()
    ask("SELECT 1")
    assert "requests are refused" not in caplog.text


def test_all_hosts_are_tried_at_once(app, make_relay, monkeypatch):
    """The first of two is silent: asked one after the other, each new connection would wait for it."""
    monkeypatch.setattr(waiting, "CONNECT_SECONDS", 600)
    first, second = make_relay(), make_relay()
    first.silent = True
    db.connect_to(url_of(first, second))
    found: list[int] = []

    def ask() -> None:
        with db.connected(read_only=True) as connection:
            found.append(connection.scalar(sqlalchemy.text("SELECT 1")))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(15)
    assert found == [1]


def test_what_each_host_said_is_in_the_error(app, tmp_path):
    engine = db.make_engine(
        f"postgresql+psycopg://test@/portal?host={tmp_path}/one&host={tmp_path}/two&target_session_attrs=read-write"
    )
    with pytest.raises(sqlalchemy.exc.OperationalError, match=r"(?s)/one.*/two|/two.*/one"):
        engine.connect()


def test_statement_that_the_server_ends_is_no_silence(relay):
    """R26: a slow or locked table is not the server, and is given up within 5 s."""
    begin = time.monotonic()

    with pytest.raises(Unavailable), db.connected(read_only=True) as connection:
        connection.execute(sqlalchemy.text("SELECT pg_sleep(60)"))

    assert time.monotonic() - begin <= 5
    with db.connected(read_only=True) as connection:
        assert connection.scalar(sqlalchemy.text("SELECT 1")) == 1


def test_migration_may_take_longer(relay, monkeypatch):
    monkeypatch.setattr(waiting.AnsweringConnection, "answer_seconds", 0.5)
    sleep = sqlalchemy.text("SELECT pg_sleep(1)")

    with db.engine().connect() as connection:
        with pytest.raises(sqlalchemy.exc.OperationalError, match="did not answer"):
            connection.execute(sleep)
        assert connection.invalidated
    with db.engine().connect() as connection:
        waiting.let_take(connection, 30)
        connection.execute(sleep)


@pytest.mark.parametrize("statement", ["SELECT 1", "SELECT 1/0"])
@pytest.mark.parametrize("read_only", [True, False])
def test_work_that_nobody_waits_for_may_take_longer_and_only_that(relay, read_only, statement):
    def deadlines(session):
        connection = session.connection()
        said = connection.scalar(sqlalchemy.text("SHOW statement_timeout"))
        return said, connection.connection.driver_connection.answer_seconds

    with contextlib.suppress(sqlalchemy.exc.DataError), db.transaction(read_only=read_only) as session:
        before = deadlines(session)
        with waiting.longer(session.connection(), 30):
            assert deadlines(session) == ("30s", 30.5)
            session.execute(sqlalchemy.text(statement))
        assert deadlines(session) == before

    with db.transaction(read_only=read_only) as session:
        assert deadlines(session) == before == ("4s", 4.5)


def test_long_list_of_statements_is_asked_in_parts(relay, monkeypatch):
    """All of one pipeline have one deadline: so many together that each part is answered within it."""
    monkeypatch.setattr(waiting.AnsweringConnection, "answer_seconds", 1.5)
    monkeypatch.setattr(statements, "MOST_TOGETHER", 2)
    number = sqlalchemy.bindparam("number", type_=sqlalchemy.Integer)
    sleep = sqlalchemy.func.pg_sleep(0.4).label("slept")
    slow = statements.Statement(sqlalchemy.select(number.label("number"), sleep))

    with db.connected() as connection:
        found = statements.run_together(connection, [(slow, {"number": n}) for n in range(5)], last=True)

    assert [rows[0].number for rows in found] == list(range(5))
    with db.connected(read_only=True) as connection:
        assert connection.scalar(sqlalchemy.text("SELECT 1")) == 1

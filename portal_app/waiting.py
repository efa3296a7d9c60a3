"""Nobody waits long for a PostgreSQL that says nothing (reliability.md R21, R23, R25).

A server that is not there is refused at once. One that is silent, since its packets are lost or its host
hangs, costs whoever asks it a deadline, and soon every thread waits. So each question has a deadline, all
hosts are tried at the same time, and after a question that stayed without an answer a thread of its own asks
on: until it is answered, everybody else is refused at once.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any

import psycopg
from psycopg import errors
from sqlalchemy import Connection, Dialect, Engine, event, text
from sqlalchemy.exc import DBAPIError, InvalidatePoolError

from portal_app.errors import Unavailable

log = logging.getLogger(__name__)

#: ``connect_timeout``, which libpq counts for each host; no less than this counts.
CONNECT_SECONDS = 2
#: The server ends a statement that takes longer, and says so.
STATEMENT_SECONDS = 4
#: So long a statement is waited for that the server does not end.
ANSWER_SECONDS = STATEMENT_SECONDS + 0.5
#: As long a packet to the server may stay unconfirmed.
PACKET_SECONDS = 2
#: Whoever waited as long without an answer met silence; who was refused waited for less.
SILENT_SECONDS = 1.0
ASK_AGAIN_SECONDS = 0.5


class AnsweringConnection(psycopg.Connection[Any]):
    """Is closed by a question that stays without an answer for ``answer_seconds``.

    psycopg waits for ever, and TCP notices a host that hangs never: its kernel confirms each packet.
    """

    answer_seconds: float = ANSWER_SECONDS

    def wait(self, gen: Any, *rest: Any, **named: Any) -> Any:
        try:
            return super().wait(gen, *rest, **({"timeout": self.answer_seconds} | named))
        except errors._WaitTimeout as error:
            if "timeout" in named:
                raise
            self.close()
            raise psycopg.OperationalError("the server did not answer") from error


def let_take(connection: Connection, seconds: float) -> None:
    """Wait longer for what is executed on a connection, for as long as it is open: a migration, a copy."""
    driver = connection.connection.driver_connection
    if isinstance(driver, AnsweringConnection):
        driver.answer_seconds = seconds + ANSWER_SECONDS - STATEMENT_SECONDS


@contextmanager
def longer(connection: Connection, seconds: int) -> Iterator[None]:
    """Let what is executed meanwhile take longer: work that nobody waits for."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, AnsweringConnection):
        yield
        return
    connection.execute(text(f"SET statement_timeout = '{seconds}s'"))
    let_take(connection, seconds)
    try:
        yield
    finally:
        driver.answer_seconds = ANSWER_SECONDS
        # Where the transaction failed its rollback takes the setting back.
        with suppress(DBAPIError):
            connection.execute(text("RESET statement_timeout"))


def connect(_dialect: Dialect, _record: Any, arguments: list[Any], named: dict[str, Any]) -> Any:
    """Open a connection, for SQLAlchemy's event ``do_connect``.

    Of several hosts of which one takes writes, all are tried at once: libpq would ask one after the other,
    and wait for each that is silent.
    """
    hosts, ports = str(named.get("host", "")).split(","), str(named.get("port", "")).split(",")
    takes_writes = named.get("target_session_attrs") in ("read-write", "primary")
    if len(hosts) == 1 or not takes_writes or "hostaddr" in named:
        return AnsweringConnection.connect(*arguments, **named)
    places = zip(hosts, ports if len(ports) == len(hosts) else ports[:1] * len(hosts), strict=True)
    return _First([named | {"host": host, "port": port} for host, port in places]).connection()


class _First:
    """Tries several servers at the same time; the first one that takes the connection has it."""

    def __init__(self, places: list[dict[str, Any]]) -> None:
        self._many = len(places)
        self._decided = threading.Lock()
        self._results: SimpleQueue[AnsweringConnection | Exception] = SimpleQueue()
        for place in places:
            try:
                threading.Thread(target=self._try, args=(place,), daemon=True).start()
            except RuntimeError as error:
                self._results.put(error)

    def _try(self, place: dict[str, Any]) -> None:
        try:
            opened = AnsweringConnection.connect(**place)
        except Exception as error:
            self._results.put(error)
            return
        if self._decided.acquire(blocking=False):
            self._results.put(opened)
        else:
            opened.close()

    def connection(self) -> AnsweringConnection:
        """Raises psycopg.OperationalError with what each of them said."""
        ends_at = time.monotonic() + ANSWER_SECONDS
        said = []
        for _ in range(self._many):
            try:
                result = self._results.get(timeout=max(0.0, ends_at - time.monotonic()))
            except Empty:
                said.append("no answer")
                break
            if isinstance(result, AnsweringConnection):
                return result
            said.append(str(result))
        if self._decided.acquire(blocking=False):
            raise psycopg.OperationalError("\n".join(said))
        while True:
            # It came just now.
            result = self._results.get()
            if isinstance(result, AnsweringConnection):
                return result


class Silence:
    """What a process remembers of a server that said nothing: as long as it lasts, nobody else asks it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._begins = threading.Lock()
        self._forgotten = threading.Event()
        self._answered_at = 0.0
        #: Seconds since 1970, as SQLAlchemy counts when a connection was opened.
        self._began_at = 0.0
        self.lasts = False
        event.listen(engine, "checkout", self._leave_old, insert=True)

    def refuse(self) -> None:
        """Raises Unavailable while the server is silent."""
        if self.lasts:
            raise Unavailable("the database does not answer")

    def answered(self) -> None:
        self._answered_at = time.monotonic()

    def begin(self, since: float) -> None:
        """Ask on in the background, unless somebody was answered after ``since`` (``time.monotonic``)."""
        with self._begins:
            if self.lasts or self._forgotten.is_set() or self._answered_at > since:
                return
            try:
                threading.Thread(target=self._ask, name="database", daemon=True).start()
            except RuntimeError:
                # No thread to be had, so everybody goes on asking.
                return
            self._began_at = time.time()
            self.lasts = True
        log.warning("the database does not answer; requests are refused until it does")

    def forget(self) -> None:
        """Ask no more: this process uses another database."""
        self._forgotten.set()

    def _leave_old(self, _connection: Any, record: Any, _proxy: Any) -> None:
        """What was open then leads nowhere, or somewhere else than it should by now."""
        if record.starttime < self._began_at:
            raise InvalidatePoolError("opened before the database was silent")

    def _ask(self) -> None:
        with self._begins:
            pass
        while not self._forgotten.is_set():
            try:
                self._engine.connect().close()
            except Exception as error:
                # Whatever it is: whoever is refused waits for this thread.
                log.debug("the database does not answer: %s", error)
                self._forgotten.wait(ASK_AGAIN_SECONDS)
            else:
                break
        self.answered()
        self.lasts = False
        log.warning("the database answers again")

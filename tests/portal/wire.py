"""What lies between portal and nodes, in the hands of a test: every call is a decision of its own.

Everything a portal does runs as an ``Act`` in a thread that stops at each call to a node until the test says
what becomes of the call, so that any number of acts are under way at once, and yet only one runs at a time.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from enum import Enum, auto
from typing import Any

from flask import Flask

from portal_app import db
from portal_app.agents import Admissions, Agents, _Answer
from portal_app.errors import PortalError
from tests.agent.virtual_node import Node, NodeDown, Time

WAIT_SECONDS = 60


class Fate(Enum):
    """What becomes of one call."""

    DELIVERED = auto()
    LOST = auto()
    ANSWER_LOST = auto()
    TWICE = auto()
    LATE = auto()
    COPY_LATE = auto()
    GARBLED = auto()
    PAUSED = auto()
    PAUSED_AFTER = auto()
    AGENT_DIES_BEFORE = auto()
    AGENT_DIES_TORN = auto()
    AGENT_DIES_AFTER = auto()
    PORTAL_DIES_BEFORE = auto()
    PORTAL_DIES_AFTER = auto()


class PortalDied(BaseException):
    """The process is gone: nothing catches this."""


@dataclass(frozen=True)
class Call:
    node: int
    method: str
    path: str
    request: bytes


class Act:
    """What a portal's process does. ``call`` is what it waits for, ``result`` or ``error`` how it ended."""

    def __init__(self, work: Callable[[], Any], owner: object) -> None:
        self.owner = owner
        self.call: Call | None = None
        self.outcome: _Answer | BaseException | None = None
        self.done = False
        self.result: Any = None
        self.error: PortalError | None = None
        self.failure: BaseException | None = None
        self.was_parked = False
        self._work = work
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """Return at the next call, or at the end."""
        self._go.release()
        assert self._back.acquire(timeout=WAIT_SECONDS), "an act of the portal hangs"
        if self.failure is not None:
            raise self.failure

    def wait_for(self, call: Call) -> _Answer:
        self.call = call
        self._back.release()
        self._go.acquire()
        outcome, self.outcome, self.call = self.outcome, None, None
        if isinstance(outcome, BaseException):
            raise outcome
        assert outcome is not None
        return outcome

    def _run(self) -> None:
        self._go.acquire()
        try:
            self.result = self._work()
        except PortalError as error:
            self.error = error
        except PortalDied:
            pass
        except BaseException as failure:
            self.failure = failure
        self.done = True
        self._back.release()


class Wire(Agents):
    """The portal's client of the agents, with this instead of TLS and sockets."""

    def __init__(self, network: "Network") -> None:
        self._network = network
        self._certificates = {}
        # Acts go on one after the other: none can wait for another's turn.
        self._admissions = Admissions(at_once=1000)

    def _ask(
        self, node: Any, method: str, path: str, sent: bytes, boot_id: str | None, *_bounds: Any
    ) -> _Answer:
        assert not db._sqlite_writer.are_taken(), "a call to a node inside of a transaction"
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: node-{node.number}\r\nConnection: close\r\n"
            f"Date: {formatdate(self._network.time.time(), usegmt=True)}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n"
            + (f'If-Match: "{boot_id}"\r\n' if boot_id else "")
            + "\r\n"
        )
        current = self._network.current
        assert current is not None
        return current.wait_for(Call(node.number, method, path, head.encode() + sent))

    def start(self, call: Callable[[], Any]) -> Any:
        self._network.begin(call)

    def together(self, calls: Iterable[Callable[[], Any]], *, seconds: float = 0) -> list[Any]:  # noqa: ARG002
        return [call() for call in calls]

    def close(self) -> None:
        """Nothing is open."""


class Network:
    """Runs acts and carries their calls. ``late`` are requests that are still on their way."""

    def __init__(self, app: Flask, nodes: dict[int, Node], time: Time) -> None:
        self.app, self.nodes, self.time = app, nodes, time
        self.parked: list[Act] = []
        self.late: list[Call] = []
        self.current: Act | None = None
        self.answered: Callable[[Call, _Answer], None] = lambda _call, _answer: None
        #: Processes of which an act died, and so everything.
        self.dead: list[object] = []
        self._begun: list[Act] = []
        self._owner: object = None

    @contextmanager
    def owned_by(self, owner: object) -> Iterator[None]:
        """Whose process acts that begin now belong to."""
        before, self._owner = self._owner, owner
        try:
            yield
        finally:
            self._owner = before

    def begin(self, work: Callable[[], Any]) -> Act:
        def in_context() -> Any:
            with self.app.app_context():
                return work()

        owner = self.current.owner if self.current is not None else self._owner
        act = Act(in_context, owner)
        self._begun.append(act)
        return act

    def play(self, work: Callable[[], Any], fates: Iterable[Fate] = ()) -> Act:
        act = self.begin(work)
        self.go_on(fates)
        return act

    def go_on(self, fates: Iterable[Fate] = ()) -> None:
        """Let what has begun run to its end, or until it is parked; each call takes the next fate."""
        left = list(fates)
        while self._begun:
            act = self._begun.pop(0)
            while True:
                self.current = act
                try:
                    act.go_on()
                finally:
                    self.current = None
                if act.done:
                    break
                act.outcome = self._decide(act, left.pop(0) if left else Fate.DELIVERED)
                if act.outcome is None or act.was_parked:
                    self.parked.append(act)
                    break

    def resume(self, act: Act, fates: Iterable[Fate] = ()) -> None:
        self.parked.remove(act)
        left = list(fates)
        act.was_parked = False
        if act.outcome is None:
            act.outcome = self._decide(act, left.pop(0) if left else Fate.DELIVERED)
            if act.outcome is None or act.was_parked:
                self.parked.append(act)
                return
        self._begun.append(act)
        self.go_on(left)

    def kill(self, owner: object) -> None:
        """A process of the portal dies, with whatever it waited for; None: all of them."""
        for act in [a for a in self.parked if owner is None or a.owner == owner]:
            act.outcome, act.was_parked = PortalDied(), False
            self.parked.remove(act)
            self._begun.append(act)
        self.go_on()

    def arrive(self, call: Call) -> None:
        """Deliver a request that nobody waits for any more."""
        self._deliver(call)

    def _deliver(self, call: Call, request: bytes | None = None) -> _Answer | OSError:
        try:
            answer = _Answer(*self.nodes[call.node].ask(request or call.request), keeps_open=False)
        except NodeDown as error:
            return error
        self.answered(call, answer)
        return answer

    def _decide(self, act: Act, fate: Fate) -> "_Answer | BaseException | None":
        call = act.call
        assert call is not None
        lost = TimeoutError("lost")
        if fate in (Fate.PORTAL_DIES_BEFORE, Fate.PORTAL_DIES_AFTER):
            self.dead.append(act.owner)
        if fate is Fate.PAUSED:
            return None
        if fate is Fate.LOST:
            return lost
        if fate is Fate.PORTAL_DIES_BEFORE:
            return PortalDied()
        if fate in (Fate.LATE, Fate.COPY_LATE):
            self.late.append(call)
            return lost if fate is Fate.LATE else self._deliver(call)
        if fate is Fate.GARBLED:
            return self._deliver(call, _garbled(call.request))
        node = self.nodes[call.node]
        if fate.name.startswith("AGENT_DIES"):
            node.plan_crash(fate.name.rpartition("_")[2].lower())
        answer = self._deliver(call)
        node.crash_plan = None
        if fate is Fate.TWICE:
            return self._deliver(call)
        if fate is Fate.ANSWER_LOST:
            return lost
        if fate is Fate.PORTAL_DIES_AFTER:
            return PortalDied()
        act.was_parked = fate is Fate.PAUSED_AFTER
        return answer


def _garbled(request: bytes) -> bytes:
    """Return a request that was cut short by somebody who still got its length right."""
    head, _, body = request.partition(b"\r\n\r\n")
    short = body[: len(body) * 2 // 3]
    return head.replace(b"Length: %d" % len(body), b"Length: %d" % len(short)) + b"\r\n\r\n" + short

"""The wanted set on disk: which connections this node should have, on whose word, and what was cut.

Every change has a generation, and late news never undoes later news. A cut leaves a tombstone with its
generation. A full set as of generation G decides about everything up to G, so tombstones up to G go: an
admission of a generation up to G that the set did not contain is refused. An authority of another deployment
or of an older epoch, and a full set that would remove most peers, are held until someone confirms.
"""

import heapq
import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from node_agent import records
from node_agent.errors import Conflict, Refused
from node_agent.records import Record, RecordFile
from vpn_core.errors import MessageError
from vpn_core.messages import Authority, Connection, WantedSet

log = logging.getLogger(__name__)

#: A full set that removes more connections than this, and more than half of the live ones, is held (R58).
FEW = 3
#: How long a hold is shown after the last message that caused it.
HOLD_SHOWN_SECONDS = 600.0


@dataclass
class Changed:
    """What a message changed: ``removed`` connections first, then ``added`` (or altered) ones."""

    removed: list[Connection] = field(default_factory=list)
    added: list[Connection] = field(default_factory=list)
    #: The message was older than what is here, and changed nothing.
    is_old_news: bool = False


@dataclass(frozen=True)
class Difference:
    """What a full set would change: ``incoming`` is all that is to be had, ``added`` what of it is new."""

    incoming: dict[str, Connection] = field(default_factory=dict)
    removed: list[Connection] = field(default_factory=list)
    added: list[Connection] = field(default_factory=list)
    #: Connections of the set that this node cannot serve.
    skipped: int = 0


@dataclass(frozen=True)
class _Hold:
    reason: str
    wanted: WantedSet | None
    at: float


class Store:
    """The wanted set in memory, and its file. Methods decide at once; ``flush`` makes it last."""

    def __init__(self, path: Path, serves: Callable[[Connection], str]) -> None:
        """``serves`` returns why this node cannot serve a connection, "" if it can."""
        self.authority: Authority | None = None
        self.generation = 0
        self.maintenance = False
        self.entries: dict[str, Connection] = {}
        #: A full set was applied and nothing of it was lost since: what is not in ``entries`` is foreign.
        self.known = False
        #: Ids read from a damaged file: perhaps cut since. Neither removed nor added until a portal speaks.
        self.unsure: set[str] = set()
        self.problem = ""
        self._full_generation = -1
        self._tombstones: dict[str, int] = {}
        self._owners: dict[str, str] = {}
        self._expiries: list[tuple[int, str]] = []
        self._serves = serves
        self._holds: dict[Authority, _Hold] = {}
        self._accepted: Authority | None = None
        self._stale_until = 0.0
        self._skipped = 0
        self._file = RecordFile(path, self._snapshot)

    # --- the file

    def load(self) -> None:
        """Read the file; one that is missing or damaged leaves ``known`` False."""
        loaded = records.load(self._file.path)
        try:
            for record in loaded.records:
                self._apply(record)
        except (KeyError, TypeError, MessageError) as error:
            loaded = records.Loaded(records.DAMAGED, [], f"{self._file.path}: {error}")
        if loaded.state == records.DAMAGED:
            self.known = False
            self.unsure = set(self.entries)
            self.problem = f"{loaded.problem}; nothing is removed until a portal sends the whole set"
            log.error("event=state_damaged problem=%r", self.problem)
            self._keep_damaged()
        elif self.unsure:
            self.problem = (
                "the set on disk is not certain; nothing is removed until a portal sends the whole set"
            )
        # The settings may have changed since.
        for connection in [c for c in self.entries.values() if self._serves(c)]:
            log.warning("event=not_served_any_more connection=%s", connection.connection_id)
            self._drop(connection.connection_id)
        self._file.replace()

    def _keep_damaged(self) -> None:
        try:
            self._file.path.rename(self._file.path.with_name(self._file.path.name + ".damaged"))
        except OSError as error:
            log.warning("event=cannot_keep_damaged reason=%r", error.strerror)

    async def flush(self) -> bool:
        return await self._file.flush()

    @property
    def problems(self) -> list[str]:
        found = [text for text in (self.problem, self._file.problem) if text]
        if self._skipped:
            found.append(f"{self._skipped} connections of the last set are not served by this node")
        if time.monotonic() < self._stale_until:
            found.append("a portal sent an older set than the one applied; is its database an old copy?")
        return found

    def _snapshot(self) -> Iterator[Record]:
        yield {
            "op": "state",
            "authority": self.authority.to_dict() if self.authority else None,
            "generation": self.generation,
            "full_generation": self._full_generation,
            "maintenance": self.maintenance,
            # A damaged file written anew is no longer damaged, but still no certain knowledge.
            "known": self.known,
        }
        for connection_id, generation in self._tombstones.items():
            yield {"op": "cut", "id": connection_id, "generation": generation}
        for connection in self.entries.values():
            yield {"op": "admit", "connection": connection}
        # After the admissions, each of which means to be sure of its connection.
        yield {"op": "unsure", "ids": sorted(self.unsure)}

    def _commit(self, *changes: Record) -> None:
        for record in changes:
            self._apply(record)
        self._file.append(*changes)

    def _apply(self, record: Record) -> None:
        op = record["op"]
        if op == "admit":
            connection = record["connection"]
            self._put(connection if isinstance(connection, Connection) else Connection.parse(connection))
        elif op == "cut":
            self._drop(record["id"])
            self._tombstones[record["id"]] = record["generation"]
            self.generation = max(self.generation, record["generation"])
        elif op == "drop":
            self._drop(record["id"])
        elif op == "full":
            self._full_generation = record["generation"]
            self.generation = max(self.generation, self._full_generation)
            self._tombstones = {k: g for k, g in self._tombstones.items() if g > self._full_generation}
            self.known, self.unsure, self.problem = True, set(), ""
        elif op == "authority":
            self.authority = Authority.parse(record["authority"])
            self.generation, self._full_generation = 0, -1
            self._tombstones.clear()
            self.entries = {k: _of_an_older_epoch(c) for k, c in self.entries.items()}
        elif op == "maintenance":
            self.maintenance = record["on"]
        elif op == "state":
            self.authority = Authority.parse(record["authority"]) if record["authority"] else None
            self.generation = record["generation"]
            self._full_generation = record["full_generation"]
            self.maintenance = record["maintenance"]
            self.known = record["known"]
        elif op == "unsure":
            self.unsure = set(record["ids"]) & self.entries.keys()
        else:
            raise KeyError(op)

    def _put(self, connection: Connection) -> None:
        # The deadline stays in the heap when only the rest changes.
        present = self.entries.get(connection.connection_id)
        if present is None or present.expires_at != connection.expires_at:
            heapq.heappush(self._expiries, (connection.expires_at, connection.connection_id))
        if present is not None:
            self._drop(connection.connection_id)
        self._tombstones.pop(connection.connection_id, None)
        self.entries[connection.connection_id] = connection
        for name in _owned(connection):
            self._owners[name] = connection.connection_id
        self.generation = max(self.generation, connection.generation)

    def _drop(self, connection_id: str) -> None:
        self.unsure.discard(connection_id)
        gone = self.entries.pop(connection_id, None)
        if gone is not None:
            for name in _owned(gone):
                if self._owners.get(name) == connection_id:
                    del self._owners[name]

    # --- what portals say

    def admit(self, authority: Authority, connection: Connection, now: float) -> Changed:
        """Admit one; raises Refused when this node cannot serve it, Conflict when it is old news."""
        self._heed(authority)
        if reason := self._serves(connection):
            raise Refused(reason)
        if connection.expires_at <= now:
            raise Refused(f"expired at {connection.expires_at}, it is {now:.0f} here")
        present = self.entries.get(connection.connection_id)
        newest = self._tombstones.get(connection.connection_id, -1)
        if present is None:
            newest = max(newest, self._full_generation)
        if connection.generation <= newest:
            raise Conflict(f"{connection.connection_id} was cut by generation {newest}")
        if present is not None and present.generation > connection.generation:
            return Changed()
        displaced = self.displaced(connection)
        if any(old.generation >= connection.generation for old in displaced):
            raise Conflict("its key or address belongs to a newer connection")
        self._commit(
            *(
                {"op": "cut", "id": old.connection_id, "generation": connection.generation}
                for old in displaced
            ),
            {"op": "admit", "connection": connection},
        )
        return Changed(displaced, [connection])

    def cut(self, authority: Authority, connection_id: str, generation: int) -> Changed:
        """Cut one connection, known or not; an admission of a later generation is left alone."""
        self._heed(authority)
        present = self.entries.get(connection_id)
        if present is not None and present.generation > generation:
            return Changed()
        if present is not None or generation > max(
            self._full_generation, self._tombstones.get(connection_id, -1)
        ):
            self._commit({"op": "cut", "id": connection_id, "generation": generation})
        return Changed([present] if present else [])

    def compare(self, wanted: WantedSet, now: float) -> Difference:
        """Return what a full set would change. Only reads: a thread may do it while nobody changes this."""
        new_authority = wanted.authority != self.authority
        if (
            not new_authority
            and self.known
            and self.entries == {c.connection_id: c for c in wanted.connections}
        ):
            # The usual case, every few minutes and perhaps with 10,000 connections.
            return Difference()
        incoming, skipped = self._incoming(wanted, new_authority, now)
        removed = [
            c
            for c in self.entries.values()
            if c.connection_id not in incoming and (new_authority or c.generation <= wanted.generation)
        ]
        # A new authority counts anew, so each connection gets its generation.
        added = [c for c in incoming.values() if new_authority or self.entries.get(c.connection_id) != c]
        return Difference(incoming, removed, added, skipped)

    def replace(
        self,
        wanted: WantedSet,
        now: float,
        observed: Collection[str] = (),
        difference: Difference | None = None,
    ) -> Changed:
        """Apply a full set; raises Conflict when it is held.

        ``observed`` are the keys on the interface: they count as live peers while the own set is not known.
        ``difference`` is what ``compare`` returned, if nothing was changed since.
        """
        new_authority = self._weigh(wanted.authority, wanted)
        if not new_authority and wanted.generation < self._full_generation:
            self._stale_until = time.monotonic() + 60
            return Changed(is_old_news=True)
        if difference is None:
            difference = self.compare(wanted, now)
        self._hold_mass_removal(wanted, difference, observed, now)
        self._release(wanted.authority)
        if new_authority:
            self._adopt(wanted.authority)
        drops: list[Record] = [{"op": "drop", "id": c.connection_id} for c in difference.removed]
        admits: list[Record] = [{"op": "admit", "connection": c} for c in difference.added]
        full: list[Record] = [{"op": "full", "generation": wanted.generation}]
        if not drops and not admits and self.known and wanted.generation == self._full_generation:
            full = []
        self._commit(*drops, *admits, *full)
        self._skipped = difference.skipped
        return Changed(difference.removed, difference.added)

    def _incoming(
        self, wanted: WantedSet, new_authority: bool, now: float
    ) -> tuple[dict[str, Connection], int]:
        """Return what of a set is to be had, and how many of its connections this node cannot serve."""
        found: dict[str, Connection] = {}
        owners: dict[str, Connection] = {}
        skipped = 0
        newer = (
            [] if new_authority else [c for c in self.entries.values() if c.generation > wanted.generation]
        )
        for kept in newer:
            owners.update(dict.fromkeys(_owned(kept), kept))
        for c in sorted(wanted.connections, key=lambda c: -c.generation):
            if c.expires_at <= now:
                continue
            present = None if new_authority else self.entries.get(c.connection_id)
            # What is here already was checked when it came.
            if c != present and self._serves(c):
                skipped += 1
                continue
            if not new_authority:
                cut_at = self._tombstones.get(c.connection_id, -1)
                if cut_at > wanted.generation and c.generation <= cut_at:
                    continue
                if present is not None and present.generation > c.generation:
                    found[c.connection_id] = present
                    continue
            if any(name in owners and owners[name].connection_id != c.connection_id for name in _owned(c)):
                continue
            owners.update(dict.fromkeys(_owned(c), c))
            found[c.connection_id] = c
        return found, skipped

    def owns(self, public_key: str | None) -> bool:
        """Tell whether any connection has this key."""
        return public_key in self._owners

    def displaced(self, connection: Connection) -> list[Connection]:
        """Return which other connections have this one's key or an address of it."""
        ids = {self._owners.get(name) for name in _owned(connection)} - {None, connection.connection_id}
        return [self.entries[i] for i in ids if i is not None]

    # --- on whose word

    def _heed(self, authority: Authority) -> None:
        if self._weigh(authority, None):
            self._adopt(authority)

    def _weigh(self, authority: Authority, wanted: WantedSet | None) -> bool:
        """Tell whether ``authority`` is to be adopted; raises Conflict when it is held."""
        if authority == self.authority:
            return False
        confirmed = (wanted is not None and wanted.confirmed) or self._accepted == authority
        if self.authority is not None and not confirmed:
            if authority.deployment_id != self.authority.deployment_id:
                self._hold(
                    authority,
                    wanted,
                    f"deployment {authority.deployment_id[:8]} is not {self.authority.deployment_id[:8]}",
                )
            elif authority.epoch < self.authority.epoch:
                self._hold(
                    authority,
                    wanted,
                    f"epoch {authority.epoch} is older than {self.authority.epoch}",
                )
        return True

    def _adopt(self, authority: Authority) -> None:
        log.info("event=authority deployment=%s epoch=%d", authority.deployment_id, authority.epoch)
        self._commit({"op": "authority", "authority": authority.to_dict()})
        # Whatever was held was held against the authority before.
        self._holds.clear()
        self._accepted = None

    def _hold(self, authority: Authority, wanted: WantedSet | None, reason: str) -> None:
        if authority not in self._holds:
            log.warning("event=held reason=%r", reason)
        earlier = self._holds.get(authority)
        kept = wanted or (earlier.wanted if earlier else None)
        self._holds = {authority: _Hold(reason, kept, time.monotonic())}
        raise Conflict(f"held: {reason}")

    def _release(self, obeyed: Authority) -> None:
        """Forget what was held of the authority that is obeyed, and of its older epochs: it was late."""
        self._holds = {
            authority: hold
            for authority, hold in self._holds.items()
            if authority.deployment_id != obeyed.deployment_id or authority.epoch > obeyed.epoch
        }

    def _hold_mass_removal(
        self,
        wanted: WantedSet,
        difference: Difference,
        observed: Collection[str],
        now: float,
    ) -> None:
        if wanted.confirmed or self._accepted == wanted.authority:
            self._accepted = None
            return
        live = sum(c.expires_at > now for c in self.entries.values())
        gone = sum(c.expires_at > now for c in difference.removed)
        if not self.known:
            mine = {c.public_key for c in self.entries.values()}
            strangers = set(observed) - mine
            live += len(strangers)
            gone += len(strangers - {c.public_key for c in difference.incoming.values()})
        if gone > FEW and gone * 2 > live:
            self._hold(wanted.authority, wanted, f"a set would remove {gone} of {live} connections")

    @property
    def held(self) -> str:
        """Why something is held back, "" if nothing is."""
        for hold in self._holds.values():
            if time.monotonic() - hold.at < HOLD_SHOWN_SECONDS:
                return hold.reason
        return ""

    def accept(self, now: float) -> Changed | None:
        """Let through what is held: a set at once, else its sender's next message. None: nothing is held."""
        if not self.held:
            return None
        authority, hold = next(iter(self._holds.items()))
        self._holds.clear()
        log.warning("event=accepted reason=%r", hold.reason)
        if hold.wanted is not None:
            return self.replace(replace(hold.wanted, confirmed=True), now)
        self._accepted = authority
        return Changed()

    # --- what needs no portal

    @property
    def next_expiry(self) -> float:
        """When the next connection expires, or one that is gone would have."""
        return self._expiries[0][0] if self._expiries else float("inf")

    def expire(self, now: float) -> list[Connection]:
        """Drop and return what has expired: that is knowledge, whoever is away."""
        gone: list[Connection] = []
        while self._expiries and self._expiries[0][0] <= now:
            expires_at, connection_id = heapq.heappop(self._expiries)
            present = self.entries.get(connection_id)
            if present is not None and present.expires_at == expires_at:
                gone.append(present)
                self._commit({"op": "drop", "id": connection_id})
        return gone

    def set_maintenance(self, on: bool) -> None:
        if on != self.maintenance:
            log.info("event=maintenance on=%s", on)
            self._commit({"op": "maintenance", "on": on})


def _owned(connection: Connection) -> list[str]:
    """Return what no two connections of a node may share."""
    return [v for v in (connection.public_key, connection.ipv4, connection.ipv6) if v is not None]


def _of_an_older_epoch(connection: Connection) -> Connection:
    """Return it with generation 0; whatever is new is later. What is the same needs no second check."""
    older = object.__new__(Connection)
    vars(older).update(vars(connection), generation=0)
    return older

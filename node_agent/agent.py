"""One node's agent: what portals want, what is, and the loops that make the second like the first."""

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import platform
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

from node_agent import machine, nat_log, records
from node_agent.clock import Clock
from node_agent.errors import AgentError, InterfaceMissing
from node_agent.journal import Journal, OpenSession
from node_agent.notify import notify, watchdog_seconds
from node_agent.openvpn import Decision, Process
from node_agent.reconcile import Change, Remove, Set
from node_agent.serving import Serving
from node_agent.sessions import QUIET_SECONDS, WireGuardSessions
from node_agent.settings import OpenVpnProcess, Settings
from node_agent.store import Changed, Store
from node_agent.wireguard import Counters, WireGuard, peer_of
from vpn_core.messages import (
    CONNECTION_ID,
    OPENVPN,
    WIREGUARD,
    Authority,
    Connection,
    Events,
    NodeInfo,
    Usage,
    WantedSet,
)

log = logging.getLogger(__name__)

ROUND_SECONDS = 5.0
WATCH_SECONDS = 0.5
RESTART_SECONDS = 10.0
SAVE_SECONDS = 1.0
MARK_SECONDS = 60.0
REPAIR_SHOWN_SECONDS = 60.0
SKEW_SECONDS = 60.0
#: Connections that are dealt with in one step of the event loop: ten thousand would keep others waiting.
PORTION = 250


def _system() -> str:
    """Return what this host calls its system; it serves, whether it says so or not."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "Linux"


class Agent:
    """Holds the state and the drivers. The HTTP surfaces call it, ``run`` starts its loops."""

    def __init__(
        self, settings: Settings, *, clock: Clock | None = None, wg_command: tuple[str, ...] = ("wg",)
    ) -> None:
        self.settings = settings
        self.clock = clock or Clock()
        self.wireguard = (
            WireGuard(settings.wireguard.interface, wg_command, lambda: self.clock.skew_seconds)
            if settings.wireguard is not None
            else None
        )
        self._serving = Serving(settings, lambda: self.wireguard.seen.public_key if self.wireguard else None)
        self.store = Store(settings.state_directory / "wanted", self._serving.refusal)
        self.journal = Journal(settings.state_directory / "journal", settings.journal_days)
        self.processes = [
            Process(
                process,
                self.journal,
                decide=self._decide,
                find=lambda common_name: self.store.entries.get(common_name),
                clock=self.clock,
                origins=settings.log_origins,
            )
            for process in settings.openvpn
        ]
        self.certificate_problem: Callable[[], str] = lambda: ""
        self._version = importlib.metadata.version("causeway")
        self._system = _system()
        self.boot_id = machine.boot_id()
        self._instance_id = secrets.token_hex(16)
        self._began = time.monotonic()
        self._wake = asyncio.Event()
        #: Held by whoever changes the store: a thread may be comparing it with a whole set.
        self._changing = asyncio.Lock()
        self._recreated = True
        self._active_peers = 0
        self._problem = ""
        self._repairs: list[tuple[float, str]] = []
        self._restart_asked_at = float("-inf")

    def load(self) -> None:
        """Read what is on disk."""
        self.store.load()
        self.journal.load()
        self.sessions = WireGuardSessions(self.journal, origins=self.settings.log_origins)
        self._load_instance_id()
        self._load_clock()
        if not self.settings.log_nat:
            nat_log.remove(self.settings.nat_log_directory)

    def _load_instance_id(self) -> None:
        path = self.settings.state_directory / "instance-id"
        try:
            known = path.read_text(errors="replace").strip() if path.exists() else ""
            if CONNECTION_ID.fullmatch(known):
                self._instance_id = known
            else:
                records.write(path, self._instance_id + "\n")
        except OSError as error:
            log.error("event=cannot_save file=%s reason=%r", path, error.strerror)

    def _load_clock(self) -> None:
        """Go on with the portal's time; after a reboot the counter that carries it has begun anew."""
        try:
            boot_id, offset = (self.settings.state_directory / "clock").read_text().split()
            if boot_id == self.boot_id:
                self.clock.resume(float(offset))
        except (OSError, ValueError):
            return

    def _hear(self, portal_time: float) -> None:
        before = self.clock.offset
        self.clock.hear(portal_time)
        if self.clock.offset == before:
            return
        path = self.settings.state_directory / "clock"
        try:
            records.write(path, f"{self.boot_id} {self.clock.offset}\n")
        except OSError as error:
            log.error("event=cannot_save file=%s reason=%r", path, error.strerror)

    # --- what portals call

    async def admit(self, authority: Authority, connection: Connection) -> None:
        """Admit one connection; usable when this returns."""
        if self.store.displaced(connection):
            await self._look_again()
        async with self._changing:
            changed = self.store.admit(authority, connection, self.clock.now())
        # Also when nothing is new: the caller may repeat what an interface that was away did not get.
        present = self.store.entries.get(connection.connection_id)
        changed.added = [present] if present is not None else []
        await self._all(self._enforce(changed), self._save())

    async def cut(self, authority: Authority, connection_id: str, generation: int) -> Usage:
        """Cut one connection, and return what it has used."""
        if connection_id in self.store.entries:
            await self._look_again()
        async with self._changing:
            changed = self.store.cut(authority, connection_id, generation)
        if not changed.removed:
            await self._save()
            return Usage(connection_id, WIREGUARD, False, 0, 0)
        connection = changed.removed[0]
        sessions = self._sessions_of(connection)
        usage = self._usage(connection, self.clock.now(), sessions)
        await self._all(self._enforce(changed), self._save())
        # OpenVPN says its last counters when the client is gone.
        return self._usage(connection, self.clock.now(), sessions) if sessions else usage

    async def replace(self, wanted: WantedSet, portal_time: float | None = None) -> dict[str, int]:
        """Apply a full set. Its sender's time counts from now on if the set does (R58, R61)."""
        if self.store.entries.keys() - {c.connection_id for c in wanted.connections}:
            await self._look_again()
        async with self._changing:
            now = self.clock.now() if portal_time is None else portal_time
            difference = await asyncio.to_thread(self.store.compare, wanted, now)
            observed = self.wireguard.seen.peers.keys() if self.wireguard else ()
            changed = self.store.replace(wanted, now, observed, difference)
        if portal_time is not None and not changed.is_old_news:
            self._hear(portal_time)
        await self._settle(changed)
        return {
            "removed": len(changed.removed),
            "added": len(changed.added),
            "generation": self.store.generation,
        }

    async def _look_again(self) -> None:
        """Get the last counters, and sessions that began since the last look, of what is about to go.

        Before the store changes: a round in between would end the session, and its end be told once more.
        """
        if self.wireguard is not None:
            await self.wireguard.refresh_if_cheap()

    async def _settle(self, changed: Changed) -> None:
        """Make many changes: they are accepted, and what fails now is repaired and reported by the rounds."""
        try:
            await self._all(self._enforce(changed), self._save())
        except AgentError as error:
            log.warning("event=set_delayed reason=%r", str(error))
        self._wake.set()

    async def accept(self) -> str:
        """Let through what is held; returns what happened, for the operator."""
        reason = self.store.held
        async with self._changing:
            changed = self.store.accept(self.clock.now())
        if changed is None:
            return "nothing is held"
        await self._settle(changed)
        return f"accepted: {reason}; removed {len(changed.removed)}, added {len(changed.added)}"

    async def set_maintenance(self, on: bool) -> None:
        self.store.set_maintenance(on)
        await self._save()

    def events(self, after: int, journal_id: str) -> Events:
        """Return the journal behind ``after``, which is acknowledged if ``journal_id`` is the journal's."""
        if journal_id == self.journal.journal_id:
            self.journal.acknowledge(after)
        return self.journal.read(after if journal_id == self.journal.journal_id else 0)

    def info(self) -> NodeInfo:
        """Return who this is and how it is, from memory."""
        load = os.getloadavg()
        cpus = os.cpu_count() or 1
        store = self.store
        return NodeInfo(
            v=self._version,
            node_number=self.settings.node_number,
            instance_id=self._instance_id,
            boot_id=self.boot_id,
            node_uptime=int(machine.uptime_seconds()),
            now=int(time.time()),
            maintenance_mode=store.maintenance,
            cpu_count=cpus,
            load_average=load,
            rel_load_average=tuple(int(100 * value / cpus) for value in load),
            profiles=self.settings.profiles,
            wireguard_public_key=self.wireguard.seen.public_key if self.wireguard else None,
            w_peer_count=self._active_peers,
            o_client_count=sum(len(process.clients) for process in self.processes),
            connection_count=len(store.entries),
            deployment_id=store.authority.deployment_id if store.authority else None,
            epoch=store.authority.epoch if store.authority else 0,
            generation=store.generation,
            journal_id=self.journal.journal_id,
            journal_head=self.journal.head,
            held=store.held[:500],
            problems=tuple(text[:500] for text in self.problems()[:50]),
            openvpn_clients=self._openvpn_clients(),
            software=self._software(),
        )

    def _software(self) -> dict[str, str]:
        found = {"system": self._system[:100]}
        if self.wireguard:
            found["wireguard"] = self.wireguard.software
        # One that was installed anew runs only from the next restart on.
        if versions := sorted({process.version for process in self.processes} - {""}):
            found["openvpn"] = ", ".join(versions)
        return found

    def _openvpn_clients(self) -> dict[str, int]:
        counts = dict.fromkeys((process.settings.profile_id for process in self.processes), 0)
        for process in self.processes:
            counts[process.settings.profile_id] += len(process.clients)
        return counts

    def problems(self) -> list[str]:
        """Return what this agent could not do, and what it had to repair."""
        found = self.store.problems + self.journal.problems
        found += [process.problem for process in self.processes if process.problem]
        if self._problem:
            found.append(self._problem)
        if text := self.certificate_problem():
            found.append(text)
        # Both are started together.
        settings, began_long_ago = self.settings, time.monotonic() - self._began > nat_log.SILENT_SECONDS
        if settings.log_nat and began_long_ago and (text := nat_log.problem(settings.nat_log_directory)):
            found.append(text)
        if abs(skew := self.clock.skew_seconds) > SKEW_SECONDS:
            found.append(f"this host's clock is {skew:+.0f} s off the portal's; expiry follows the portal")
        oldest = time.monotonic() - REPAIR_SHOWN_SECONDS
        self._repairs = [item for item in self._repairs if item[0] > oldest]
        return [text if text.isprintable() else repr(text) for text in found] + [t for _, t in self._repairs]

    async def usage(self, only: Collection[str] | None = None) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield what every connection has used, or those of ``only``, in portions: others are served in
        between.
        """
        if self.wireguard is not None:
            # Whoever drains the node asks who is there, and would miss those who came since the last round.
            await self.wireguard.refresh_if_cheap()
        entries = self.store.entries
        connections = list(entries.values()) if only is None else [entries[i] for i in only if i in entries]
        attached: dict[str, list[OpenSession]] = {}
        for process in self.processes:
            for client in process.clients.values():
                attached.setdefault(client.common_name, []).append(client.session)
        for start in range(0, len(connections), PORTION):
            now = self.clock.now()
            yield [
                vars(self._usage(c, now, attached.get(c.connection_id, [])))
                for c in connections[start : start + PORTION]
            ]
            await asyncio.sleep(0)

    def _sessions_of(self, connection: Connection) -> list[OpenSession]:
        """Return the sessions of an OpenVPN connection's attached clients."""
        return [
            client.session
            for process in self.processes
            for client in process.clients.values()
            if client.common_name == connection.common_name
        ]

    def _usage(self, connection: Connection, now: float, sessions: list[OpenSession]) -> Usage:
        if connection.protocol != WIREGUARD:
            last = sessions[-1] if sessions else None
            return Usage(
                connection_id=connection.connection_id,
                protocol=connection.protocol,
                active=last is not None,
                received_bytes=sum(s.received_bytes for s in sessions),
                sent_bytes=sum(s.sent_bytes for s in sessions),
                ipv4=last.ipv4 if last else None,
                ipv6=last.ipv6 if last else None,
                origin=last.origin if last else None,
            )
        counters = self.wireguard.seen.counters.get(connection.public_key or "") if self.wireguard else None
        seen = counters or Counters(0, 0, 0, None)
        return Usage(
            connection_id=connection.connection_id,
            protocol=connection.protocol,
            active=bool(seen.last_handshake_at) and now - seen.last_handshake_at < QUIET_SECONDS,
            received_bytes=seen.received_bytes,
            sent_bytes=seen.sent_bytes,
            ipv4=connection.ipv4,
            ipv6=connection.ipv6,
            last_handshake_at=seen.last_handshake_at or None,
            origin=seen.endpoint if self.settings.log_origins else None,
        )

    # --- making it so

    @staticmethod
    async def _all(*work: Coroutine[Any, Any, object]) -> None:
        """Wait for all of it, whatever fails; then raise what failed first."""
        for result in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _save(self) -> None:
        """Wait for the disk, but not long: one that hangs or is full keeps nobody out or in (R72)."""
        flushing = asyncio.ensure_future(self.store.flush())
        await asyncio.wait([flushing], timeout=SAVE_SECONDS)

    def _enforce(self, changed: Changed) -> Coroutine[Any, Any, None]:
        """Return what makes the network like the store; raises AgentError when an added peer is not usable.

        Sessions of what is gone end before this returns: a round in between would end them, too.
        """
        now = self.clock.now()
        removals: list[Change] = []
        coming = {c.public_key for c in changed.added}
        for connection in changed.removed:
            if connection.protocol != WIREGUARD or self.wireguard is None:
                continue
            key = str(connection.public_key)
            self.sessions.removed(connection, self.wireguard.seen.counters.get(key), now)
            # The same key may have come back with a newer connection while this one was on its way. Where it
            # comes back with this very change it goes first, and takes handshake and counters along.
            if not self.store.owns(key) or key in coming:
                removals.append(Remove(key))
                self.wireguard.leaves(key)
        return self._change_network(changed, removals)

    async def _change_network(self, changed: Changed, removals: list[Change]) -> None:
        work: list[Coroutine[Any, Any, object]] = [
            process.cut(c.connection_id)
            for c in changed.removed
            if c.protocol == OPENVPN
            for process in self.processes
        ]
        if self.wireguard is not None:
            work.append(self._change_peers(self.wireguard, removals, changed.added))
        try:
            await self._all(*work)
        except AgentError as error:
            # The next round repairs it. Where no interface is, nothing is left to remove.
            self._wake.set()
            if changed.added or not isinstance(error, InterfaceMissing):
                raise

    async def _change_peers(
        self, wireguard: WireGuard, batch: list[Change], added: Sequence[Connection]
    ) -> None:
        """Make ``batch``, then add peers, in portions, as a set has ten thousand and others are waiting."""
        for start in range(0, max(1, len(added)), PORTION):
            for connection in added[start : start + PORTION]:
                # Not what was cut or altered since. Queued in this very step, so before what comes later.
                present = self.store.entries.get(connection.connection_id)
                if connection.protocol == WIREGUARD and connection == present:
                    self.sessions.admitted(connection)
                    batch.append(Set(str(connection.public_key), peer_of(connection)))
            await wireguard.apply(batch)
            batch = []

    def _decide(self, common_name: str, organizational_unit: str, process: OpenVpnProcess) -> Decision:
        """Decide about an OpenVPN client whose certificate is good: it must be wanted, here, and still."""
        connection = self.store.entries.get(common_name)
        if organizational_unit != process.profile_id:
            return Decision.REFUSE
        if connection is None or common_name in self.store.unsure:
            return Decision.REFUSE if self.store.known else Decision.LATER
        fits = connection.protocol == OPENVPN and connection.profile_id == process.profile_id
        return Decision.LET_IN if fits and connection.expires_at > self.clock.now() else Decision.REFUSE

    async def _round(self) -> None:
        """Compare the interface with the wanted set, repair it, and follow the sessions."""
        assert self.wireguard is not None  # noqa: S101
        store = self.store
        wanted = [
            c
            for c in store.entries.values()
            if c.protocol == WIREGUARD and c.connection_id not in store.unsure
        ]
        unsure = frozenset(
            str(c.public_key) for i in store.unsure if (c := store.entries[i]).protocol == WIREGUARD
        )
        recreated, self._recreated = self._recreated, False
        try:
            said = await self.wireguard.reconcile(
                wanted, keep=unsure if store.known else None, recreated=recreated
            )
        except AgentError as error:
            self._recreated = True
            self._report(str(error))
            if isinstance(error, InterfaceMissing):
                self._ask_for_restart()
            return
        self._report("")
        for text in said[:20]:
            log.warning("event=foreign_change what=%r", text)
        self._repairs += [(time.monotonic(), text) for text in said[:20]]
        await self._follow_sessions(self.wireguard.seen.counters)

    async def _follow_sessions(self, counters: Mapping[str, Counters]) -> None:
        """Compare the last look with the one before, in portions: others are served meanwhile."""
        store = self.store
        peers = [c for c in store.entries.values() if c.protocol == WIREGUARD]
        for start in range(0, len(peers), PORTION):
            # Whatever was cut or altered meanwhile: these counters may no longer be its own.
            portion = [c for c in peers[start : start + PORTION] if store.entries.get(c.connection_id) is c]
            self.sessions.observe(portion, counters, self.clock.now())
            await asyncio.sleep(0)
        self.sessions.observed(store.entries, counters, self.clock.now())
        quiet_since = self.clock.now() - QUIET_SECONDS
        self._active_peers = sum(c.last_handshake_at > quiet_since for c in counters.values())

    def _report(self, problem: str) -> None:
        """Say once that something is wrong, and once that it is over."""
        if problem and problem != self._problem:
            log.error("event=wireguard_trouble reason=%r", problem)
        elif self._problem and not problem:
            log.info("event=wireguard_fine")
        self._problem = problem

    def _ask_for_restart(self) -> None:
        """Touch the file that a path unit watches: the agent itself has no right over systemd."""
        assert self.settings.wireguard is not None  # noqa: S101
        if time.monotonic() - self._restart_asked_at < RESTART_SECONDS:
            return
        self._restart_asked_at = time.monotonic()
        try:
            self.settings.wireguard.restart_file.write_text(f"{time.time():.0f}\n")
            log.warning("event=restart_asked interface=%s", self.settings.wireguard.interface)
        except OSError as error:
            log.error("event=cannot_ask_for_restart reason=%r", error.strerror)

    # --- the loops

    async def run(self) -> None:
        """Run the loops until cancelled; one that fails ends the agent, and systemd starts it again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._expire_in_time())
            group.create_task(self._save_regularly())
            group.create_task(self._ping_watchdog())
            for process in self.processes:
                group.create_task(process.run())
            if self.wireguard is not None:
                group.create_task(self._reconcile_regularly(self.wireguard))
                group.create_task(self._watch(self.wireguard))

    async def _reconcile_regularly(self, wireguard: WireGuard) -> None:
        while True:
            self._wake.clear()
            try:
                await self._round()
            except Exception:
                log.exception("event=round_failed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUND_SECONDS if wireguard.present else WATCH_SECONDS):
                    await self._wake.wait()

    async def _watch(self, wireguard: WireGuard) -> None:
        """Start a round as soon as the interface was made anew (R47)."""
        identity = wireguard.identity()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if (now := wireguard.identity()) != identity:
                identity = now
                self._recreated = True
                self._wake.set()

    async def _expire_in_time(self) -> None:
        while True:
            await asyncio.sleep(1)
            if self.store.next_expiry > self.clock.now():
                continue
            await self._look_again()
            async with self._changing:
                gone = self.store.expire(self.clock.now())
            if gone:
                log.info("event=expired connections=%d first=%s", len(gone), gone[0].connection_id)
                try:
                    await self._enforce(Changed(gone))
                except AgentError as error:
                    log.error("event=expiry_delayed reason=%r", str(error))

    async def _save_regularly(self) -> None:
        marked_at = time.monotonic()
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            if time.monotonic() - marked_at >= MARK_SECONDS:
                marked_at = time.monotonic()
                self.journal.mark()
                self.journal.forget_old(self.clock.now())
            await self.store.flush()
            await self.journal.flush()

    async def _ping_watchdog(self) -> None:
        seconds = watchdog_seconds()
        while seconds is not None:
            notify("WATCHDOG=1")
            await asyncio.sleep(seconds)

    async def close(self) -> None:
        """Save the last counters."""
        self.journal.mark()
        await self.store.flush()
        await self.journal.flush()

"""The process: leads or waits, round after round, until it is told to stop."""

import contextlib
import logging
import queue
import signal
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from portal_app import clock, db
from portal_app.agents import Agents
from portal_app.clock import utc_now
from portal_app.controller.housekeeping import Job, claim, jobs, note_end
from portal_app.controller.leader import LeaderLock, leader_lock
from portal_app.controller.notify import notify
from portal_app.controller.observation import Timing
from portal_app.controller.watch import Seen, Watch
from portal_app.controller.workers import Lane
from portal_app.errors import PortalError
from portal_app.events import log
from portal_app.services import authorities, background_errors, peers
from portal_app.settings import Settings

logger = logging.getLogger(__name__)

#: The leader shows that it lives, and the others ask for the lead, this often.
TICK_SECONDS = 1.0
#: Answers that come shortly after each other are written in one transaction.
GATHER_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 5.0
COMPLAIN_SECONDS = 60.0
CERTIFICATES_SECONDS = 24 * 3600.0


class Controller:
    """One per portal host. ``run`` returns after ``stop``."""

    def __init__(
        self,
        settings: Settings,
        *,
        agents: Agents | None = None,
        lock: LeaderLock | None = None,
        timing: Timing | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.timing = timing or Timing()
        self.clock = clock
        self.leads = False
        self.agents = agents or Agents(settings)
        self._own_agents = agents is None
        self._lock = lock or leader_lock(db.engine(), settings.state_directory)
        self._watch = Watch(self.agents, log_origins=settings.log_origins, clock=clock, timing=self.timing)
        self._jobs = jobs(settings, self.agents)
        # A thread for each: one that waits for nodes, or counts for long, holds up no other (R19).
        self._jobs_lane = Lane("jobs", len(self._jobs))
        self._jobs_running: set[str] = set()
        # A signal handler may interrupt whoever holds an Event's lock; a flag and a SimpleQueue have none.
        self._stopping = False
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._settings = settings
        self._next_round = 0.0
        self._next_jobs = 0.0
        self._next_introduction = 0.0
        self._next_certificates = 0.0
        self._pause = 0.0
        self._complained_at = float("-inf")

    def stop(self) -> None:
        self._stopping = True
        # The loop waits for one of these.
        self._wake.put(None)
        self._watch.seen.put(None)

    def run(self) -> None:
        notify("READY=1")
        log("controller_started")
        try:
            while not self._stopping:
                notify("WATCHDOG=1")
                self._turn()
        finally:
            notify("STOPPING=1")
            # First the lead, so that the other portal goes on at once.
            self._lock.release()
            self._jobs_lane.stop()
            self._watch.stop()
            self._jobs_lane.join(5)
            if self._own_agents:
                self.agents.close()
            log("controller_stopped")

    def _turn(self) -> None:
        try:
            self._lead(self._lock.hold())
            self._introduce()
            self._report_certificates()
            if self.leads:
                self._work()
            else:
                self._wait(TICK_SECONDS)
            if self._pause:
                log("database_back")
                self._pause = 0.0
        except (PortalError, SQLAlchemyError) as error:
            self._wait_for_database(error)
        except Exception as error:
            # The process ends and is started anew: what it knows has to be written before.
            background_errors.note("controller loop", error)
            background_errors.flush()
            raise

    def _lead(self, leads: bool) -> None:
        if leads == self.leads:
            return
        log("leading" if leads else "following")
        self.leads = leads
        self._watch.forget()
        self._next_round = self._next_jobs = 0.0

    def _introduce(self) -> None:
        """Let the other portals know what this one has, whether it leads or not."""
        now = time.monotonic()
        if now >= self._next_introduction:
            peers.introduce(peers.host_name(), peers.digests(self._settings), self.clock())
            if (behind := clock.behind()) is not None and abs(behind) > clock.SKEW:
                # The database's counts meanwhile.
                log("clock_wrong", level=logging.WARNING, seconds_behind=round(behind.total_seconds()))
            self._next_introduction = now + peers.EVERY.total_seconds()

    def _report_certificates(self) -> None:
        """R67, R68: say each day which of this portal's own ends, whether it leads or not."""
        now = time.monotonic()
        if now < self._next_certificates:
            return
        name, web = peers.host_name(), peers.web_certificate(self._settings.host_name)
        for report in authorities.shown_here(self._settings, web, now=self.clock()):
            if report.warning is not None:
                log(
                    "certificate_ends",
                    level=logging.WARNING,
                    portal=name,
                    certificate=report.subject,
                    remark=report.warning,
                )
        self._next_certificates = now + CERTIFICATES_SECONDS

    def _work(self) -> None:
        now = time.monotonic()
        if now >= self._next_round:
            self._watch.submit()
            # Rounds are as far apart as they begin; one that was missed is not made up for.
            due = self._next_round + self.timing.poll
            self._next_round = due if due > now else now + self.timing.poll
        if now >= self._next_jobs:
            self._start_jobs()
            self._next_jobs = now + self.timing.poll
        self._collect(min(TICK_SECONDS, max(0.0, self._next_round - now)))

    def _collect(self, seconds: float) -> None:
        """Wait for the first answer, gather what comes with it, write it down."""
        batch: list[Seen] = []
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0 or not batch:
            try:
                seen = self._watch.seen.get(timeout=max(0.0, left))
            except queue.Empty:
                break
            if seen is None:
                break
            if not batch:
                ends_at = min(ends_at, time.monotonic() + GATHER_SECONDS)
            batch.append(seen)
        if batch:
            self._write_down(batch)

    def _write_down(self, batch: list[Seen]) -> None:
        # Whoever was paused meanwhile has old news: it would call nodes down that the new leader sees up.
        leads = False
        try:
            leads = self._lock.hold()
        finally:
            if not leads:
                self._watch.drop(batch)
        if leads:
            self._watch.collect(sorted(batch, key=lambda s: s.number))

    def _wait(self, seconds: float) -> None:
        with contextlib.suppress(queue.Empty):
            self._wake.get(timeout=seconds)

    def _start_jobs(self) -> None:
        """Let each job look whether it is due, except those that are still at work."""
        for job in self._jobs:
            if job.name not in self._jobs_running:
                self._jobs_running.add(job.name)
                self._jobs_lane.submit(partial(self._run_job, job))

    def _run_job(self, job: Job) -> None:
        try:
            self._try_job(job, self.clock())
        finally:
            self._jobs_running.discard(job.name)

    def _try_job(self, job: Job, now: datetime) -> None:
        try:
            if claim(job, now):
                job.run(now)
                note_end(job, None, now)
        except Exception as error:
            log("job_failed", level=logging.WARNING, job=job.name, error=_said(error))
            if not isinstance(error, PortalError | SQLAlchemyError):
                logger.exception("job %s", job.name)
            if self._stopping:
                # What it needs may be closed by now: another portal does it, or this one at its next start.
                return
            background_errors.note(f"job {job.name}", error)
            # Where the database does not answer there is nothing to write it into.
            with contextlib.suppress(PortalError, SQLAlchemyError):
                note_end(job, _said(error), now)

    def _wait_for_database(self, error: Exception) -> None:
        """Wait longer each time, within bounds; say so once a minute (R51)."""
        self.leads = False
        now = time.monotonic()
        if now - self._complained_at >= COMPLAIN_SECONDS:
            log("database_unavailable", level=logging.ERROR, error=_said(error))
            self._complained_at = now
        self._pause = min(LONGEST_PAUSE_SECONDS, max(0.5, self._pause * 2))
        self._wait(self._pause)


def _said(error: Exception) -> str:
    """Return an error without the values of a statement."""
    return str(error) if isinstance(error, PortalError) else type(error).__name__


def run(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT."""
    controller = Controller(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: controller.stop())
    controller.run()
    return 0

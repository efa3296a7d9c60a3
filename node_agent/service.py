"""Run the agent: its loops, the HTTPS surface for portals and the socket for local commands."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys

from aiohttp import web

from node_agent.agent import Agent
from node_agent.app import make_app, make_local_app
from node_agent.notify import notify
from node_agent.settings import Settings
from node_agent.tls import Certificates, Door, listen

log = logging.getLogger(__name__)

#: Portals keep connections open between calls.
KEEPALIVE_SECONDS = 900.0
#: A thread that reads 10,000 peers gives way after so long, some ten times in each call of a portal: Python's
#: 5 ms add up, and so does 1 ms where others want the processors too.
SWITCH_SECONDS = 0.0002
#: To look for garbage among all that ten thousand peers consist of takes 20 to 90 ms, in which nobody is
#: answered. Nearly everything is freed without; the rest waits for so long.
COLLECT_SECONDS = 3600.0
_NEVER = 1_000_000_000


def _local_listener(settings: Settings) -> socket.socket:
    """Return the socket of ``vpn-node``; only the agent's user and root can open it."""
    path = settings.local_socket
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    return listener


class Service:
    """Everything of one agent that holds a resource."""

    def __init__(self, settings: Settings, agent: Agent) -> None:
        self.agent = agent
        self.certificates = Certificates(
            settings.certificate_file,
            settings.key_file,
            settings.ca_file,
            settings.portal,
            settings.withdrawn,
        )
        agent.certificate_problem = lambda: self.certificates.problem
        self.listener = listen(settings.listen_address, settings.listen_port)
        self._settings = settings

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    async def run(self) -> None:
        """Serve until cancelled."""
        with contextlib.closing(self.listener):
            self.agent.load()
            await self._serve()

    async def _serve(self) -> None:
        runner = web.AppRunner(
            make_app(self.agent), access_log=None, keepalive_timeout=KEEPALIVE_SECONDS, shutdown_timeout=1.0
        )
        local = web.AppRunner(make_local_app(self.agent), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        await local.setup()
        await web.SockSite(local, _local_listener(self._settings)).start()
        server = runner.server
        assert server is not None  # noqa: S101
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.agent.run())
                group.create_task(_collect_seldom())
                group.create_task(Door(self.listener, self.certificates, server).serve())
                notify("READY=1")
                log.info("event=ready node=%d port=%d", self._settings.node_number, self.port)
        finally:
            await runner.cleanup()
            await local.cleanup()
            await self.agent.close()


async def _main(settings: Settings) -> None:
    service = Service(settings, Agent(settings))
    running = asyncio.create_task(service.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def _collect_seldom() -> None:
    while True:
        await asyncio.sleep(COLLECT_SECONDS)
        gc.collect()


def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    sys.setswitchinterval(SWITCH_SECONDS)
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)
    asyncio.run(_main(settings))

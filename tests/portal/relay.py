"""Stands before a PostgreSQL and passes on what is said, or nothing, as a host does that hangs."""

import contextlib
import selectors
import socket
import threading
from typing import Self


class Relay:
    """Listens on a TCP port of its own; ``to`` is the UNIX socket that it passes everything on to."""

    def __init__(self, to: str) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._other: dict[socket.socket, socket.socket] = {}
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        #: Whether it takes connections and says nothing on any.
        self.silent = False
        #: How many connections were opened.
        self.opened = 0

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ends.set()
        self._thread.join(5)
        for opened in (*self._other, self._listener):
            opened.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._ends.is_set():
            for key, _ in self._selector.select(0.05):
                if self.silent and key.fileobj is not self._listener:
                    self._ends.wait(0.01)
                elif key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._other:
                    self._pass_on(key.fileobj)  # type: ignore[arg-type]

    def _accept(self) -> None:
        caller, _ = self._listener.accept()
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._to)
        self.opened += 1
        self._other |= {caller: server, server: caller}
        for opened in (caller, server):
            self._selector.register(opened, selectors.EVENT_READ)

    def _pass_on(self, said_on: socket.socket) -> None:
        said = b""
        with contextlib.suppress(OSError):
            said = said_on.recv(65536)
        other = self._other[said_on]
        if said:
            with contextlib.suppress(OSError):
                other.sendall(said)
            return
        for opened in (said_on, other):
            self._selector.unregister(opened)
            self._other.pop(opened)
            opened.close()

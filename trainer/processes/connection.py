"""One process at the other end of a socket: messages of bounded size, one JSON object a line."""

import contextlib
import json
import queue
import selectors
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

from trainer.errors import Interrupted, RunError, UsageError

# Largest message: one who has not said who it is, and a process of the run.
HELLO_BYTES = 1 << 16
MESSAGE_BYTES = 1 << 24

# A host that vanished (power, network) is noticed after this many seconds without an answer.
_KEEPALIVE_SECONDS = 20

# With which a failure that a process tells may end the others.
_STATUSES = {error.exit_status: error for error in (UsageError, RunError, Interrupted)}


class Connection:
    """One process at the other end of a socket.

    Attributes:
      name: what to call the process.
      values: what it passed to `gather`.
      progress: what its watchdog said last: [step, what, idle seconds], or None.
      heard: when it sent its last message, time.monotonic().
      limit: bytes that a message may have.
    """

    def __init__(self, sock: socket.socket, limit: int = HELLO_BYTES):
        """Wrap a connected socket."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _KEEPALIVE_SECONDS // 4),
            ("TCP_KEEPINTVL", _KEEPALIVE_SECONDS // 4),
            ("TCP_KEEPCNT", 3),
        ):
            if hasattr(socket, name):  # Linux
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._start(sock, limit)

    def _start(self, sock: socket.socket, limit: int) -> None:
        """Take a connected socket of any kind."""
        sock.settimeout(None)
        self.socket = sock
        self.name = "a process"
        self.values: queue.Queue[Any] = queue.Queue()
        self.progress: list[Any] | None = None
        self.heard = time.monotonic()
        self.limit = limit
        self._buffer = bytearray()
        self._sending = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; that the other end is gone is noticed by whoever reads from it."""
        with self._sending, contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
        """Return the next message; None when there will be none, or none that makes sense.

        Args:
          timeout: seconds that it may take, or None.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (message := self._next()) is None:
            if not self.take(deadline):
                return None
        self.heard = time.monotonic()
        return message or None

    def take(self, deadline: float | None = None) -> bool:
        """Wait for bytes and take them; return whether there can be more.

        Args:
          deadline: until when to wait, time.monotonic(), or None.
        """
        if len(self._buffer) > self.limit:
            return False
        try:
            if deadline is not None and not _readable(self.socket, deadline - time.monotonic()):
                return False
            chunk = self.socket.recv(HELLO_BYTES)
        except (OSError, ValueError):  # It may have been closed.
            return False
        self._buffer += chunk
        return bool(chunk)

    def messages(self) -> list[dict[str, Any]]:
        """Return the messages that have been taken; one that makes no sense is {}."""
        found = []
        while (message := self._next()) is not None:
            found.append(message)
        return found

    def _next(self) -> dict[str, Any] | None:
        """Return the next message among the bytes; {} if it makes no sense, None if it is cut."""
        end = self._buffer.find(b"\n")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return {}
        return message if isinstance(message, dict) else {}

    def close(self) -> None:
        """Close the socket."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # Wakes a thread that reads from it.
        self.socket.close()


def _readable(sock: socket.socket, seconds: float) -> bool:
    """Return whether there is something to read within a time."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        return bool(selector.select(max(seconds, 0)))


def failure(message: dict[str, Any]) -> Exception | None:
    """Return the failure that a message tells, or None if it tells none that makes sense."""
    text, status = message.get("failed"), message.get("status")
    if not isinstance(text, str) or type(status) is not int or status not in _STATUSES:
        return None
    return _STATUSES[status](text)


def tell(connections: Iterable[Connection], message: str, status: int) -> None:
    """Send a failure to all that this process is connected with."""
    for connection in connections:
        connection.send({"failed": message, "status": status})

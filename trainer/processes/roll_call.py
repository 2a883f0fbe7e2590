"""The roll call: every process reports to process 0, and keeps the connection."""

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Collection
from typing import Any, TextIO

from trainer.errors import RunError, UsageError
from trainer.processes.cluster import Cluster

# Seconds that processes wait for each other: clusters start tasks one by one.
_ROLL_CALL_SECONDS = 120.0
# Seconds that one who has connected gets to say who it is.
_HELLO_SECONDS = 5.0
# A host that vanished (power, network) is noticed after this many seconds without an answer.
_KEEPALIVE_SECONDS = 20

# The exit statuses of the command line.
STATUS_USAGE, STATUS_FAILED = 1, 2


class Connection:
    """One process at the other end of a socket; messages are JSON objects, one a line."""

    def __init__(self, sock: socket.socket):
        """Wrap a connected socket."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _KEEPALIVE_SECONDS // 4),
            ("TCP_KEEPINTVL", _KEEPALIVE_SECONDS // 4),
            ("TCP_KEEPCNT", 3),
        ):
            if hasattr(socket, name):  # Linux
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._socket = sock
        self._reader: TextIO = sock.makefile("r", encoding="utf-8")
        self._sending = threading.Lock()
        self.name = "a process"
        self.values: queue.Queue[Any] = queue.Queue()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; that the other end is gone is noticed by whoever reads from it."""
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
        """Return the next message; None when there will be none, or none that makes sense."""
        self._socket.settimeout(timeout)
        try:
            message = json.loads(self._reader.readline())
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        """Close the socket."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # Wakes a thread that reads from it.
        self._reader.close()
        self._socket.close()


def tell(connections: Collection[Connection], message: str, status: int) -> None:
    """Send a failure to all that this process is connected with."""
    for connection in connections:
        connection.send({"failed": message, "status": status})


def meet(cluster: Cluster, settings: dict[str, Any]) -> list[Connection]:
    """Meet the other processes; the coordinator's port is free again afterwards.

    Args:
      cluster: this process and the others.
      settings: JSON values that all processes must have been given alike.

    Returns:
      In process 0 the connections to the others, in their order; elsewhere that to process 0.

    Raises:
      UsageError: the port is taken, or settings differ.
      RunError: some process did not come in time; the message says which, or where it was awaited.
    """
    return _call_roll(cluster, settings) if cluster.process_id == 0 else _report(cluster, settings)


def _call_roll(cluster: Cluster, settings: dict[str, Any]) -> list[Connection]:
    """Wait, as process 0, until all others have reported; jax then takes the same port over."""
    present: dict[int, Connection] = {}
    told: list[Connection] = []
    deadline = time.monotonic() + _ROLL_CALL_SECONDS
    try:
        with _listen(cluster) as server:
            while len(present) < cluster.num_processes - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                connection = Connection(server.accept()[0])
                hello = connection.receive(timeout=_HELLO_SECONDS)
                if hello is None or "process_id" not in hello:
                    connection.close()  # Somebody else's: a port scan, a health check.
                    continue
                told.append(connection)
                _check_hello(cluster, settings, present, hello)
                connection.name = _name(hello)
                present[hello["process_id"]] = connection
    except TimeoutError:
        missing = sorted(set(range(1, cluster.num_processes)) - present.keys())
        problem = RunError(
            f"of {cluster.num_processes} processes, {', '.join(map(str, missing))} did not report "
            f"to process 0 at {cluster.coordinator_address} within {_ROLL_CALL_SECONDS:.0f} s; "
            "are they running, and can they reach this address and port?"
        )
        _dismiss(told, str(problem), STATUS_FAILED)
        raise problem from None
    except UsageError as error:
        _dismiss(told, str(error), STATUS_USAGE)
        raise
    ordered = [present[process_id] for process_id in sorted(present)]
    for connection in ordered:
        connection.send({"welcome": True})
    return ordered


def _dismiss(connections: Collection[Connection], message: str, status: int) -> None:
    """Tell a failure to processes that reported, and let go of them."""
    tell(connections, message, status)
    for connection in connections:
        connection.close()


def _name(hello: dict[str, Any]) -> str:
    """Return what to call a process that reports."""
    return f"process {hello['process_id']} on {hello['host']}"


def _listen(cluster: Cluster) -> socket.socket:
    """Return a socket that listens at the coordinator's port; on loopback if that is enough."""
    try:
        if cluster.local:
            family = socket.getaddrinfo(cluster.host, cluster.port, type=socket.SOCK_STREAM)[0][0]
            return socket.create_server((cluster.host, cluster.port), family=family)
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", cluster.port), family=socket.AF_INET6, dualstack_ipv6=True
            )
        return socket.create_server(("", cluster.port))
    except OSError as error:
        raise UsageError(
            f"--coordinator_address={cluster.coordinator_address}: process 0 cannot listen there "
            f"({error.strerror}); valid: a free port of the host of process 0 (from a launcher "
            "that chooses the port: JAX_COORDINATOR_PORT sets another)"
        ) from error


def _check_hello(
    cluster: Cluster,
    settings: dict[str, Any],
    present: Collection[int],
    hello: dict[str, Any],
) -> None:
    """Raise a UsageError if the process that reports does not belong to the run of process 0."""
    process_id, count = hello["process_id"], hello["num_processes"]
    if count != cluster.num_processes:
        raise UsageError(
            f"{_name(hello)} was started with --num_processes={count}, process 0 with "
            f"{cluster.num_processes}; valid: the same number everywhere"
        )
    if process_id in present or process_id == 0:
        raise UsageError(f"two processes have --process_id={process_id}; valid: each number once")
    for name, value in settings.items():
        if (other := hello["settings"].get(name)) != value:
            raise UsageError(
                f"{_name(hello)} was started with --{name}={other}, process 0 with "
                f"--{name}={value}; valid: the same flags everywhere"
            )


def _report(cluster: Cluster, settings: dict[str, Any]) -> list[Connection]:
    """Report to process 0 and wait until all have; return the connection to it."""
    hello = {
        "process_id": cluster.process_id,
        "num_processes": cluster.num_processes,
        "host": socket.gethostname(),
        "settings": settings,
    }
    deadline = time.monotonic() + _ROLL_CALL_SECONDS
    while time.monotonic() < deadline:
        try:
            connection = Connection(socket.create_connection((cluster.host, cluster.port), 5.0))
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(0.1)
            continue
        connection.name = f"process 0 at {cluster.coordinator_address}"
        connection.send(hello)
        # Process 0 gives up first, and says who is missing.
        answer = connection.receive(timeout=_ROLL_CALL_SECONDS + _HELLO_SECONDS)
        if answer is not None and "welcome" in answer:
            return [connection]
        connection.close()
        if answer is not None and "failed" in answer:
            usage = answer["status"] == STATUS_USAGE
            raise (UsageError if usage else RunError)(answer["failed"])
        # Process 0 ended, or it is another program that answers there.
        reason = "it closes the connection"
        time.sleep(0.1)
    raise RunError(
        f"process {cluster.process_id} could not report to process 0 at "
        f"{cluster.coordinator_address} within {_ROLL_CALL_SECONDS:.0f} s ({reason}); is process 0 "
        "running there, and is the port open between the hosts?"
    )

"""The roll call: every process reports to process 0, and keeps the connection."""

import contextlib
import logging
import selectors
import socket
import time
from collections.abc import Iterator
from typing import Any

from trainer.errors import Interrupted, RunError, UsageError
from trainer.processes import hello
from trainer.processes.cluster import Cluster
from trainer.processes.connection import MESSAGE_BYTES, Connection, failure, tell

# Seconds that processes wait for each other: clusters start tasks one by one.
_ROLL_CALL_SECONDS = 120.0
# Seconds that one who has connected gets to say who it is.
_HELLO_SECONDS = 5.0
# Seconds after which one who waits says so.
_PATIENCE_SECONDS = 5.0
# Connections of which it is not known who they are, at any time; more wait in the system's queue.
_MOST_UNKNOWN = 100

logger = logging.getLogger(__name__)


def meet(cluster: Cluster, settings: dict[str, Any]) -> list[Connection]:
    """Meet the other processes; the coordinator's port is free again afterwards.

    Args:
      cluster: this process and the others.
      settings: JSON values that all processes must have been given alike.

    Returns:
      In process 0 the connections to the others, in their order; elsewhere that to process 0.

    Raises:
      UsageError: the port is taken, or settings or run tokens differ.
      RunError: some process did not come in time; the message says which, or where it was awaited.
      Interrupted: a signal came to another process.
    """
    return _call_roll(cluster, settings) if cluster.process_id == 0 else _report(cluster, settings)


def _call_roll(cluster: Cluster, settings: dict[str, Any]) -> list[Connection]:
    """Wait, as process 0, until all others have reported; jax then takes the same port over."""
    with _listen(cluster) as server, _Roll(cluster, settings, server) as roll:
        present = roll.call(time.monotonic() + _ROLL_CALL_SECONDS)
    for connection, message in present:
        connection.limit = MESSAGE_BYTES
        connection.send({"welcome": hello.prove(cluster.run_token, "welcome", message["nonce"])})
    return [connection for connection, _ in present]


class _Roll:
    """Who has reported, and who has connected and may be anybody.

    All are heard at once: one who says nothing, or too much, keeps nobody waiting.
    """

    def __init__(self, cluster: Cluster, settings: dict[str, Any], server: socket.socket):
        """Wait for connections to `server`."""
        self._cluster, self._settings, self._server = cluster, settings, server
        # Each with its nonce, and with the time when it is closed.
        self._unknown: dict[Connection, tuple[str, float]] = {}
        self._present: dict[int, tuple[Connection, dict[str, Any]]] = {}
        self._selector = selectors.DefaultSelector()
        self._listening = False

    def __enter__(self) -> "_Roll":
        """Start to listen."""
        self._server.setblocking(False)
        self._listen(True)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Let go of strangers; tell a failure to those that have reported."""
        self._selector.close()
        if error is not None:
            text, status = str(error), getattr(error, "exit_status", RunError.exit_status)
            if isinstance(error, KeyboardInterrupt):
                text, status = _interrupted(self._cluster), Interrupted.exit_status
            for connection, _ in self._present.values():
                tell([connection], text, status)
                connection.close()
        for connection in list(self._unknown):
            connection.close()

    def call(self, deadline: float) -> list[tuple[Connection, dict[str, Any]]]:
        """Return the others and what they said, in their order; until `deadline`."""
        said = False
        while len(self._present) < self._cluster.num_processes - 1:
            now = time.monotonic()
            if now > deadline:
                raise self._too_late()
            if not said and now > deadline - _ROLL_CALL_SECONDS + _PATIENCE_SECONDS:
                said = True
                logger.info("waiting for process %s%s", self._missing(), self._cluster.hint)
            for key, _ in self._selector.select(min(deadline - now, 0.5)):
                if key.data is None:
                    self._accept()
                elif key.data in self._unknown:
                    self._hear_unknown(key.data)
                else:
                    self._hear_present(key.data)
            for connection, (_, limit) in list(self._unknown.items()):
                if time.monotonic() > limit:
                    self._forget(connection)
        return [self._present[process_id] for process_id in sorted(self._present)]

    def _missing(self) -> str:
        """Return the numbers of those that have not reported."""
        others = range(1, self._cluster.num_processes)
        return ", ".join(str(i) for i in others if i not in self._present)

    def _too_late(self) -> RunError:
        """Return the error that says who is missing."""
        return RunError(
            f"of {self._cluster.num_processes} processes, {self._missing()} did not report "
            f"to process 0 at {self._cluster.coordinator_address} within {_ROLL_CALL_SECONDS:.0f} "
            f"s; are they running, and can they reach this address and port?{self._cluster.hint}"
        )

    def _accept(self) -> None:
        """Take a connection of anybody."""
        with contextlib.suppress(OSError):
            sock, _ = self._server.accept()
            connection = Connection(sock)
            opening = hello.challenge()
            self._unknown[connection] = opening["nonce"], time.monotonic() + _HELLO_SECONDS
            self._selector.register(sock, selectors.EVENT_READ, connection)
            connection.send(opening)
            self._listen(len(self._unknown) < _MOST_UNKNOWN)

    def _forget(self, connection: Connection) -> None:
        """Close a connection."""
        self._selector.unregister(connection.socket)
        self._drop_unknown(connection)
        connection.close()

    def _drop_unknown(self, connection: Connection) -> None:
        """Make room for another one of whom nothing is known."""
        self._unknown.pop(connection, None)
        self._listen(len(self._unknown) < _MOST_UNKNOWN)

    def _listen(self, wanted: bool) -> None:
        """Wait for connections, or leave them in the system's queue."""
        if wanted and not self._listening:
            self._selector.register(self._server, selectors.EVENT_READ)
        elif self._listening and not wanted:
            self._selector.unregister(self._server)
        self._listening = wanted

    def _hear_unknown(self, connection: Connection) -> None:
        """Take what somebody says who may be anybody."""
        more = connection.take()
        messages = connection.messages()
        if not messages and more:
            return
        if len(messages) != 1 or not hello.is_hello(messages[0]):
            self._forget(connection)  # Somebody else's: a port scan, a health check.
            return
        (message,) = messages
        token, nonce = self._cluster.run_token, self._unknown[connection][0]
        if not hello.is_proof(token, "hello", nonce, message["proof"]):
            logger.warning("%s has another --run_token, and is ignored", hello.name(message))
            text = (
                f"{hello.name(message)} was started with another --run_token than process 0 at "
                f"{self._cluster.coordinator_address}; use the same one everywhere"
            )
            tell([connection], text, UsageError.exit_status)
            self._forget(connection)
            return
        self._drop_unknown(connection)
        connection.name = hello.name(message)
        process_id = message["process_id"]
        try:
            hello.check_hello(self._cluster, self._settings, self._present, message)
        except UsageError as error:
            tell([connection], str(error), error.exit_status)
            connection.close()
            raise
        self._present[process_id] = connection, message

    def _hear_present(self, connection: Connection) -> None:
        """Take what one says that has reported: it fails, or it is gone and may come back."""
        more = connection.take()
        for message in connection.messages():
            if error := failure(message):
                raise error
        if not more:
            self._forget(connection)
            self._present = {i: p for i, p in self._present.items() if p[0] is not connection}


def _interrupted(cluster: Cluster) -> str:
    """Return what the others are told when a signal came to this process."""
    return f"process {cluster.process_id} on {socket.gethostname()} was interrupted"


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
            f"({error.strerror}); use a free port of the host of process 0 (from a launcher that "
            f"chooses the port: JAX_COORDINATOR_PORT sets another){cluster.hint}"
        ) from error


def _report(cluster: Cluster, settings: dict[str, Any]) -> list[Connection]:
    """Report to process 0 and wait until all have; return the connection to it."""
    start, said, reason = time.monotonic(), False, "no answer"
    while (now := time.monotonic()) < start + _ROLL_CALL_SECONDS:
        if not said and now > start + _PATIENCE_SECONDS:
            said = True
            address, hint = cluster.coordinator_address, cluster.hint
            logger.info("waiting for process 0 at %s (%s)%s", address, reason, hint)
        try:
            connection = Connection(socket.create_connection((cluster.host, cluster.port), 5.0))
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(0.1)
            continue
        with _closing_on_failure(connection, cluster):
            if _welcomed(cluster, settings, connection):
                connection.name = f"process 0 at {cluster.coordinator_address}"
                connection.limit = MESSAGE_BYTES
                return [connection]
        connection.close()
        # Process 0 ended, or it is another program that answers there.
        reason = "what answers there is not process 0 of this run"
        time.sleep(0.1)
    raise RunError(
        f"process {cluster.process_id} could not report to process 0 at "
        f"{cluster.coordinator_address} within {_ROLL_CALL_SECONDS:.0f} s ({reason}); is process 0 "
        f"running there, and is the port open between the hosts?{cluster.hint}"
    )


@contextlib.contextmanager
def _closing_on_failure(connection: Connection, cluster: Cluster) -> Iterator[None]:
    """Tell process 0 of a signal that comes while it is awaited; close what is not needed."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            tell([connection], _interrupted(cluster), Interrupted.exit_status)
        connection.close()
        raise


def _welcomed(cluster: Cluster, settings: dict[str, Any], connection: Connection) -> bool:
    """Say who this process is; return whether it is process 0 that answers, and all are there."""
    message = connection.receive(_HELLO_SECONDS)
    if message is None or not hello.is_challenge(message):
        return False
    own = hello.hello(cluster, settings, message["nonce"])
    connection.send(own)
    # Process 0 gives up first, and says who is missing.
    answer = connection.receive(_ROLL_CALL_SECONDS + _HELLO_SECONDS)
    if answer is None:
        return False
    if error := failure(answer):
        raise error
    return hello.is_proof(cluster.run_token, "welcome", own["nonce"], answer.get("welcome"))

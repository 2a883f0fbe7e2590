"""The processes of a run: how they find each other, agree on something, and end together.

`jax.distributed` connects their devices. It says nothing helpful, though, when a process is
missing, dies or fails: the others are aborted after minutes, or wait for ever. So every process
also keeps one TCP connection to process 0, a line of JSON a message, for as long as it lives: the
roll is called over it, a failure is told over it, and when it breaks, a process has died.
"""

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax

from trainer.errors import RunError, Stopped, UsageError
from trainer.processes.cluster import Cluster
from trainer.processes.roll_call import STATUS_FAILED, STATUS_USAGE, Connection, meet, tell

# How long a process that sees its devices fail waits for word of who died first.
_VERDICT_SECONDS = 5.0


class _Link:
    """This process among the others."""

    def __init__(self, cluster: Cluster, connections: list[Connection]):
        """Watch the connections: those to all others in process 0, that to process 0 elsewhere."""
        self.cluster = cluster
        self._connections = connections
        # Whoever holds it decides how this process ends: its own failure, or that of another.
        self._ending = threading.Lock()
        for connection in connections:
            threading.Thread(target=self._watch, args=(connection,), daemon=True).start()

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in order; waits for all."""
        if self.cluster.process_id:
            self._connections[0].send({"value": value})
            return self._connections[0].values.get()
        values = [value, *(connection.values.get() for connection in self._connections)]
        for connection in self._connections:
            connection.send({"value": values})
        return values

    def fail(self, message: str, status: int) -> None:
        """Tell all others that this process fails; they leave with the same status."""
        if self._ending.acquire(blocking=False):
            who = f"process {self.cluster.process_id} on {socket.gethostname()}"
            tell(self._connections, f"{who}: {message}", status)
        else:
            # It was another that failed first; the thread that heard of it ends this process.
            time.sleep(_VERDICT_SECONDS)

    def finish(self) -> None:
        """Wait until all are done, then take leave."""
        self.gather(None)
        # From here on it is no failure that a connection ends.
        self._ending.acquire(blocking=False)
        jax.distributed.shutdown()
        for connection in self._connections:
            connection.close()

    def _watch(self, connection: Connection) -> None:
        """Take the messages of one connection until it breaks."""
        while (message := connection.receive()) is not None:
            if "failed" in message:
                self._end(message["failed"], message["status"])
            else:
                connection.values.put(message["value"])
        self._end(
            f"{connection.name} died; the same command goes on from the newest checkpoint",
            STATUS_FAILED,
        )

    def _end(self, message: str, status: int) -> None:
        """End this process because of another; from a thread, so without ceremony."""
        if self._ending.acquire(blocking=False):
            tell(self._connections, message, status)
            print(f"error: {message}", file=sys.stderr, flush=True)
            # The main thread may be waiting, in C++, for something that never comes.
            os._exit(status)


_link: _Link | None = None


@contextlib.contextmanager
def joined(cluster: Cluster | None, settings: dict[str, Any]) -> Iterator[None]:
    """Train together: meet the others, and part from them as the body ends.

    A body that ends well, or with Stopped, waits for the others to end. One that fails tells them;
    they print the message and leave with the same exit status. An error that nobody foresaw ends
    this process here, with its traceback and status 2.

    Args:
      cluster: this process and the others; None if there are none. jax must not have touched any
        device yet.
      settings: JSON values that all processes must have been given alike.

    Raises:
      UsageError: the port is taken, or settings differ.
      RunError: some process did not come in time (the message says which, or where it was
        awaited).
    """
    if cluster is None:
        yield
        return
    link = _join(cluster, settings)
    try:
        yield
    except (UsageError, RunError) as error:
        link.fail(str(error), STATUS_USAGE if isinstance(error, UsageError) else STATUS_FAILED)
        raise
    except Stopped:
        link.finish()
        raise
    except Exception as error:
        # When a process dies, the devices of the others may fail before word of it comes; and it
        # is the word that a user should read.
        time.sleep(_VERDICT_SECONDS)
        link.fail(f"{type(error).__name__}: {error}", STATUS_FAILED)
        traceback.print_exc()
        # On a usual way out jax would wait for the others.
        os._exit(STATUS_FAILED)
    link.finish()


def _join(cluster: Cluster, settings: dict[str, Any]) -> _Link:
    """Meet the other processes, then let jax connect their devices."""
    global _link
    _link = _Link(cluster, meet(cluster, settings))
    # Its handler would take SIGTERM from ours (signals.py), which all processes obey together.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        cluster.coordinator_address,
        cluster.num_processes,
        cluster.process_id,
        coordinator_bind_address=cluster.coordinator_address if cluster.local else None,
    )
    return _link


def is_first() -> bool:
    """Return whether this is the process that writes: process 0, or the only one."""
    return _link is None or _link.cluster.process_id == 0


def gather(value: Any) -> list[Any]:
    """Return the JSON values that all processes pass, in their order; waits for all of them."""
    return [value] if _link is None else _link.gather(value)


def share(value: Any) -> Any:
    """Return the JSON value that process 0 passes; waits for all processes."""
    return gather(value)[0]


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Let process 0 do something before the others do: what it leaves on a disk, they find."""
    if not is_first():
        gather(None)
    yield
    if is_first():
        gather(None)

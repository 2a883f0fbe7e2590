"""The processes of a run: how they find each other, agree on something, and end together.

`jax.distributed` connects their devices. It says nothing helpful, though, when a process is
missing, dies or fails: the others are aborted after minutes, or wait for ever. So every process
also keeps one TCP connection to process 0, a line of JSON a message, for as long as it lives: the
roll is called over it, a failure is told over it, and when it breaks, or nothing comes over it any
more, a process has died or cannot be reached.
"""

import contextlib
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from trainer.errors import Interrupted, RunError, Stopped, UsageError
from trainer.processes import ending, signals
from trainer.processes.cluster import Cluster
from trainer.processes.connection import Connection, failure, tell
from trainer.processes.roll_call import meet

# How long a process that sees its devices fail waits for word of who died first.
_VERDICT_SECONDS = 5.0
# Every process sends a sign of life so often, and is given up after so long without one: named
# within 30 s, and before jax aborts everybody (83 s).
_BEAT_SECONDS = 2.0
_SILENCE_SECONDS = 25.0
# How long a process that another one ends may take to give back what it holds.
_GIVE_BACK_SECONDS = 3.0


class _Link:
    """This process among the others.

    Attributes:
      cluster: which of them it is.
      connections: to all others in process 0, to process 0 elsewhere.
      report_progress: returns what this process's watchdog says; the others are sent it.
      if_ended: called with the exit status when another process ends this one.
    """

    def __init__(self, cluster: Cluster, connections: list[Connection]):
        """Watch the connections."""
        self.cluster = cluster
        self.connections = connections
        self.report_progress: Callable[[], list[Any] | None] = lambda: None
        self.if_ended: list[Callable[[int], None]] = []
        # Whoever holds it decides how this process ends: its own failure, or that of another.
        self._ending = threading.Lock()
        for connection in connections:
            threading.Thread(target=self._watch, args=(connection,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    @property
    def name(self) -> str:
        """What to call this process."""
        return f"process {self.cluster.process_id} on {socket.gethostname()}"

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in order; waits for all."""
        if self.cluster.process_id:
            self.connections[0].send({"value": value})
            return self.connections[0].values.get()
        values = [value, *(connection.values.get() for connection in self.connections)]
        for connection in self.connections:
            connection.send({"value": values})
        return values

    def fail(self, message: str, status: int) -> None:
        """Tell all others that this process fails; they leave with the same status."""
        if self._ending.acquire(blocking=False):
            tell(self.connections, f"{self.name}: {message}", status)
        else:
            # It was another that failed first; the thread that heard of it ends this process.
            time.sleep(_VERDICT_SECONDS)

    def interrupt(self, signal_name: str) -> None:
        """Tell all others that a signal ends this process, which has nothing to save."""
        if self._ending.acquire(blocking=False):
            message = f"interrupted: {self.name} received {signal_name}"
            tell(self.connections, message, Interrupted.exit_status)

    def hang(self, message: str) -> None:
        """End all processes, with the stacks of those that can still show them."""
        if self._ending.acquire(blocking=False):
            for connection in self.connections:
                connection.send({"failed": message, "status": RunError.exit_status, "stacks": True})
            ending.end_with_stacks(message)

    def finish(self) -> None:
        """Wait until all are done, then take leave."""
        import jax

        with signals.StopRequest("leaving"):
            self.gather(None)
            # From here on it is no failure that a connection ends.
            self._ending.acquire(blocking=False)
            jax.distributed.shutdown()
            for connection in self.connections:
                connection.close()

    def _watch(self, connection: Connection) -> None:
        """Take the messages of one connection until it breaks."""
        while (message := connection.receive()) is not None:
            if "value" in message:
                connection.values.put(message["value"])
            elif "beat" in message:
                beat = message["beat"]
                connection.progress = beat if isinstance(beat, list) and len(beat) == 3 else None
            elif error := failure(message):
                self._end(str(error), message["status"], message.get("stacks") is True)
        self._lost(f"{connection.name} died or cannot be reached")

    def _beat(self) -> None:
        """Send signs of life, and miss those of the others."""
        silent = dict.fromkeys(self.connections, 0.0)
        last = time.monotonic()
        while True:
            for connection in self.connections:
                connection.send({"beat": self.report_progress()})
            time.sleep(_BEAT_SECONDS)
            now = time.monotonic()
            for connection in self.connections:
                # If this process was stopped itself, its clock says nothing about the others.
                silent[connection] += min(now - last, 2 * _BEAT_SECONDS)
                if connection.heard > last:
                    silent[connection] = 0.0
                if silent[connection] > _SILENCE_SECONDS:
                    self._lost(
                        f"{connection.name} has not answered for {_SILENCE_SECONDS:.0f} s: it is "
                        "stopped, has died or cannot be reached"
                    )
            last = now

    def _lost(self, message: str) -> None:
        """End this process, and the others, because one is gone."""
        self._end(
            f"{message}; the same command resumes from the newest checkpoint", RunError.exit_status
        )

    def _end(self, message: str, status: int, stacks: bool = False) -> None:
        """End this process because of another; from a thread, so without ceremony."""
        if self._ending.acquire(blocking=False):
            tell(self.connections, message, status)
            if stacks:
                ending.end_with_stacks(message)
            ending.say(message if status == Interrupted.exit_status else f"error: {message}")
            ending.within(_GIVE_BACK_SECONDS, lambda: self._give_back(status))
            # The main thread may be waiting, in C++, for something that never comes.
            os._exit(status)

    def _give_back(self, status: int) -> None:
        """Do in the main thread's stead what it would do on its way out."""
        for callback in reversed(self.if_ended):
            with contextlib.suppress(Exception):  # What is not given back is awaited by others.
                callback(status)


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
      Interrupted: a signal came to another process before all had met.
    """
    if cluster is None:
        yield
        return
    link = _join(cluster, settings)
    try:
        yield
    except (UsageError, RunError) as error:
        link.fail(str(error), error.exit_status)
        raise
    except Stopped:
        link.finish()
        raise
    except KeyboardInterrupt:
        link.interrupt("SIGINT")
        raise
    except Exception as error:
        # When a process dies, the devices of the others may fail before word of it comes; and it
        # is the word that a user should read.
        time.sleep(_VERDICT_SECONDS)
        link.fail(f"{type(error).__name__}: {error}", RunError.exit_status)
        traceback.print_exc()
        # On a usual way out jax would wait for the others.
        os._exit(RunError.exit_status)
    link.finish()


def _join(cluster: Cluster, settings: dict[str, Any]) -> _Link:
    """Meet the other processes, then let jax connect their devices."""
    global _link
    _link = _Link(cluster, meet(cluster, settings))
    signals.on_interruption(_link.interrupt)
    # They take seconds to import, and a signal is heard meanwhile.
    import jax

    from trainer.processes import network

    address = network.own_address([connection.socket for connection in _link.connections])
    (first, *_) = _link.gather(address)
    # A process on the host of process 0 reached it over loopback; those on other hosts cannot.
    network.announce(first if network.is_loopback(address) else address)
    network.bypass_proxies(cluster.host)
    # Its handler would take SIGTERM from ours (signals.py), which all processes obey together.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        cluster.coordinator_address,
        cluster.num_processes,
        cluster.process_id,
        local_device_ids=cluster.local_id,
        cluster_detection_method="deactivate",  # What is to be believed, cluster.py has decided.
        coordinator_bind_address=cluster.coordinator_address if cluster.local else None,
    )
    return _link


def current() -> _Link | None:
    """Return the link of this process with the others, or None if it trains alone."""
    return _link


def own_name() -> str:
    """Return what to call this process."""
    return "this process" if _link is None else _link.name


def progress_of_others() -> dict[str, list[Any] | None]:
    """Return what the watchdogs of those that this process is connected with said last."""
    connections = [] if _link is None else _link.connections
    return {connection.name: connection.progress for connection in connections}


def is_first() -> bool:
    """Return whether this is the process that writes: process 0, or the only one."""
    return _link is None or _link.cluster.process_id == 0


def several() -> bool:
    """Return whether this process trains together with others."""
    return _link is not None


def gather(value: Any) -> list[Any]:
    """Return the JSON values that all processes pass, in their order; waits for all of them."""
    return [value] if _link is None else _link.gather(value)


def share(value: Any) -> Any:
    """Return the JSON value that process 0 passes; waits for all processes."""
    return gather(value)[0]


@contextlib.contextmanager
def if_ended(callback: Callable[[int], None]) -> Iterator[None]:
    """In the body, call a function, with the exit status, when another process ends this one.

    The main thread cannot clean up then: it may be waiting for something that never comes.
    """
    callbacks = [] if _link is None else _link.if_ended
    callbacks.append(callback)
    try:
        yield
    finally:
        callbacks.remove(callback)


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Let process 0 do something before the others do: what it leaves on a disk, they find."""
    if not is_first():
        gather(None)
    yield
    if is_first():
        gather(None)

"""The processes of a run: how they find each other, agree on something, and end together.

`jax.distributed` connects their devices. It says nothing helpful, though, when a process is
missing, dies or fails: the others are aborted after minutes, or wait for ever. So every process
also keeps one TCP connection to process 0, a line of JSON a message, for as long as it lives: the
roll is called over it, a failure is told over it, and when it breaks, a process has died.
"""

import contextlib
import dataclasses
import ipaddress
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterator
from typing import Any, TextIO

import jax

from trainer.errors import RunError, Stopped, UsageError

# Seconds that processes wait for each other at the start: clusters start tasks one by one.
_ROLL_CALL_SECONDS = 120.0
# A host that vanished (power, network) is noticed after this many seconds without an answer.
_KEEPALIVE_SECONDS = 20
# How long a process that sees its devices fail waits for word of who died first.
_VERDICT_SECONDS = 5.0

# The exit statuses of the command line.
_STATUS_USAGE, _STATUS_FAILED = 1, 2


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several processes that train together.

    Attributes:
      coordinator_address: "host:port" of process 0.
      num_processes: at least 2.
      process_id: of this process, 0 <= process_id < num_processes.
    """

    coordinator_address: str
    num_processes: int
    process_id: int

    @property
    def host(self) -> str:
        """The host of process 0."""
        return self.coordinator_address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port of process 0."""
        return int(self.coordinator_address.rpartition(":")[2])

    @property
    def local(self) -> bool:
        """Whether the address can be reached from this host only."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def find_cluster(
    coordinator_address: str = "", num_processes: int | None = None, process_id: int | None = None
) -> Cluster | None:
    """Return the processes that this one trains with, or None if it trains alone.

    What is not given is asked of the environment that started the process, as
    jax.distributed.initialize does it: Slurm, Open MPI, TPU pods.

    Args:
      coordinator_address: "host:port" of process 0, or "".
      num_processes: or None.
      process_id: or None.

    Raises:
      UsageError: what is given is not enough, or not consistent.
    """
    given = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    address, count, index = given, num_processes, process_id
    if not address or count is None or index is None:
        found = _detect(given, num_processes, process_id)
        address, count, index = found[0] or "", found[1], found[2]
    flags = f"--coordinator_address={address} --num_processes={count} --process_id={index}"
    if count == 1 or not (given or num_processes or process_id is not None or address):
        return None
    if not address or count is None or index is None:
        raise UsageError(
            f"{flags}: all three are needed here; valid: host:port of process 0, the number of "
            "processes, and 0 for the first; Slurm, Open MPI and TPU pods set them by themselves"
        )
    if not 0 <= index < count:
        raise UsageError(f"{flags}; valid: 0 <= process_id < num_processes")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(f"--coordinator_address={address}; valid: host:port, port 1 to 65535")
    if not given and _on_one_host():
        # Nobody else has to reach it.
        address = f"127.0.0.1:{port}"
    return Cluster(address, count, index)


def _detect(
    address: str, count: int | None, index: int | None
) -> tuple[str | None, int | None, int | None]:
    """Return what jax.distributed.initialize would find."""
    # jax has no public way to ask before it connects, and connecting for a single process would
    # hide all GPUs but one from it.
    from jax._src.clusters import ClusterEnv

    found = ClusterEnv.auto_detect_unset_distributed_params(
        address or None, count, index, None, None, int(_ROLL_CALL_SECONDS)
    )
    return found[0], found[1], found[2]


def _on_one_host() -> bool:
    """Return whether the launcher says that all processes are on this host."""
    size = os.environ.get("OMPI_COMM_WORLD_SIZE")
    on_slurm = os.environ.get("SLURM_STEP_NUM_NODES") == "1"
    return on_slurm or (size is not None and size == os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE"))


class _Connection:
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


class _Link:
    """This process among the others."""

    def __init__(self, cluster: Cluster, connections: list[_Connection]):
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
            _tell(self._connections, f"{who}: {message}", status)
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

    def _watch(self, connection: _Connection) -> None:
        """Take the messages of one connection until it breaks."""
        while (message := connection.receive()) is not None:
            if "failed" in message:
                self._end(message["failed"], message["status"])
            else:
                connection.values.put(message["value"])
        self._end(
            f"{connection.name} died; the same command goes on from the newest checkpoint",
            _STATUS_FAILED,
        )

    def _end(self, message: str, status: int) -> None:
        """End this process because of another; from a thread, so without ceremony."""
        if self._ending.acquire(blocking=False):
            _tell(self._connections, message, status)
            print(f"error: {message}", file=sys.stderr, flush=True)
            # The main thread may be waiting, in C++, for something that never comes.
            os._exit(status)


def _tell(connections: Collection[_Connection], message: str, status: int) -> None:
    """Send a failure to all that this process is connected with."""
    for connection in connections:
        connection.send({"failed": message, "status": status})


_link: _Link | None = None


@contextlib.contextmanager
def joined(cluster: Cluster | None, settings: dict[str, Any]) -> Iterator[None]:
    """Train together: meet the others, and part from them as the body ends.

    A body that ends well, or with Stopped, waits for the others to end. One that fails tells them;
    they print the message and leave with the same exit status.

    Args:
      cluster: this process and the others; None if there are none. jax must not have touched any
        device yet.
      settings: JSON values that all processes must have been given alike.

    Raises:
      UsageError: the port is taken, or settings differ.
      RunError: some process did not come in time (the message says which, or where it was
        awaited); or the devices failed, and no other process is known to be the reason.
    """
    if cluster is None:
        yield
        return
    link = _join(cluster, settings)
    try:
        yield
    except (UsageError, RunError) as error:
        link.fail(str(error), _STATUS_USAGE if isinstance(error, UsageError) else _STATUS_FAILED)
        raise
    except Stopped:
        link.finish()
        raise
    except Exception as error:
        # When a process dies, the devices of the others may fail before word of it comes; and it
        # is the word that a user should read.
        time.sleep(_VERDICT_SECONDS)
        link.fail(f"{type(error).__name__}: {error}", _STATUS_FAILED)
        raise
    link.finish()


def _join(cluster: Cluster, settings: dict[str, Any]) -> _Link:
    """Meet the other processes, then let jax connect their devices."""
    global _link
    others = _call_roll if cluster.process_id == 0 else _report
    _link = _Link(cluster, others(cluster, settings))
    # Its handler would take SIGTERM from ours (signals.py), which all processes obey together.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        cluster.coordinator_address,
        cluster.num_processes,
        cluster.process_id,
        coordinator_bind_address=cluster.coordinator_address if cluster.local else None,
    )
    return _link


def _call_roll(cluster: Cluster, settings: dict[str, Any]) -> list[_Connection]:
    """Wait, as process 0, until all others have reported; jax then takes the same port over."""
    present: dict[int, _Connection] = {}
    told: list[_Connection] = []
    deadline = time.monotonic() + _ROLL_CALL_SECONDS
    try:
        with _listen(cluster) as server:
            while len(present) < cluster.num_processes - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                connection = _Connection(server.accept()[0])
                hello = connection.receive(timeout=_VERDICT_SECONDS)
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
        _dismiss(told, str(problem), _STATUS_FAILED)
        raise problem from None
    except UsageError as error:
        _dismiss(told, str(error), _STATUS_USAGE)
        raise
    ordered = [present[process_id] for process_id in sorted(present)]
    for connection in ordered:
        connection.send({"welcome": True})
    return ordered


def _dismiss(connections: Collection[_Connection], message: str, status: int) -> None:
    """Tell a failure to processes that reported, and let go of them."""
    _tell(connections, message, status)
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


def _report(cluster: Cluster, settings: dict[str, Any]) -> list[_Connection]:
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
            connection = _Connection(socket.create_connection((cluster.host, cluster.port), 5.0))
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(0.1)
            continue
        connection.name = f"process 0 at {cluster.coordinator_address}"
        connection.send(hello)
        # Process 0 gives up first, and says who is missing.
        answer = connection.receive(timeout=_ROLL_CALL_SECONDS + _VERDICT_SECONDS)
        if answer is not None and "welcome" in answer:
            return [connection]
        connection.close()
        if answer is not None and "failed" in answer:
            usage = answer["status"] == _STATUS_USAGE
            raise (UsageError if usage else RunError)(answer["failed"])
        # Process 0 ended, or it is another program that answers there.
        reason = "it closes the connection"
        time.sleep(0.1)
    raise RunError(
        f"process {cluster.process_id} could not report to process 0 at "
        f"{cluster.coordinator_address} within {_ROLL_CALL_SECONDS:.0f} s ({reason}); is process 0 "
        "running there, and is the port open between the hosts?"
    )


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

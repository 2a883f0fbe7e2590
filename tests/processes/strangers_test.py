"""Whoever connects to the port of the roll call, the run starts, in bounded time and memory."""

import contextlib
import json
import random
import resource
import socket
import threading
import time
from collections.abc import Callable

import pytest

from tests.helpers import free_port
from trainer.errors import Interrupted, RunError, UsageError
from trainer.processes import hello, roll_call
from trainer.processes.cluster import Cluster
from trainer.processes.connection import HELLO_BYTES, Connection, failure

SETTINGS = {"lr_max": 0.1}


def cluster(port: int, index: int, run_token: str = "") -> Cluster:
    return Cluster(f"127.0.0.1:{port}", 2, index, run_token=run_token)


class Meeting:
    """Process 0 in a thread; `join` lets process 1 report and returns how both ended."""

    def __init__(self, run_token: str = "") -> None:
        self.port = free_port()
        self.ends: dict[int, object] = {}
        self.threads = [self._start(0, run_token)]
        self.connect().close()  # It listens now.

    def connect(self) -> socket.socket:
        """Return a socket to process 0."""
        for _ in range(500):
            try:
                return socket.create_connection(("127.0.0.1", self.port), 5)
            except OSError:
                time.sleep(0.01)
        raise AssertionError("nobody listens")

    def _start(self, index: int, run_token: str) -> threading.Thread:
        def take_part() -> None:
            try:
                self.ends[index] = roll_call.meet(cluster(self.port, index, run_token), SETTINGS)
            except (UsageError, RunError, Interrupted) as error:
                self.ends[index] = error

        thread = threading.Thread(target=take_part, daemon=True)
        thread.start()
        return thread

    def join(self, run_token: str = "", seconds: float = 20) -> dict[int, object]:
        """Let process 1 report; return how both ended."""
        self.threads.append(self._start(1, run_token))
        for thread in self.threads:
            thread.join(seconds)
        for end in self.ends.values():
            for connection in end if isinstance(end, list) else []:
                connection.close()
        return self.ends

    def assert_starts(self, seconds: float = 20, run_token: str = "") -> None:
        """Fail unless both have met."""
        ends = self.join(run_token, seconds)
        assert [isinstance(ends.get(i), list) for i in range(2)] == [True, True], ends


def say(**changes: object) -> bytes:
    """What process 1 would say, but for changes, without having heard a challenge."""
    message = hello.hello(cluster(1, 1), SETTINGS, "") | changes
    return json.dumps(message).encode() + b"\n"


@pytest.mark.parametrize(
    "words",
    [
        b'{"process_id": 1}\n',
        b"[]\n",
        b"[" * 50_000 + b"\n",
        b"\xff\xfe\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"failed": "bye", "status": 0}\n',
        b'{"failed": "bye", "status": 2}\n',
        say(process_id=77),
        say(process_id=-1),
        say(process_id=True),
        say(num_processes="2"),
        say(settings=[]),
        say(host="\x1b[2J"),
        say(host="h" * 300),
        say(proof=None),
        say(),
        say() + say(),
        say()[:40],
    ],
    ids=lambda words: repr(words[:40]),
)
def test_a_stranger_is_closed_and_forgotten(words: bytes) -> None:
    """Also one that says all that a process says, and knows nothing of this meeting's nonce."""
    meeting = Meeting()
    with meeting.connect() as stranger:
        stranger.sendall(words)
        meeting.assert_starts()


def test_a_flood_without_a_newline_is_cut_off() -> None:
    meeting = Meeting()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sent = 0
    with meeting.connect() as stranger, contextlib.suppress(OSError):
        while sent < 300 << 20:
            sent += stranger.send(b"x" * (1 << 16))
    assert sent < 50 << 20  # What the system's own buffers hold.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # kB
    meeting.assert_starts()


def test_slow_strangers_keep_nobody_waiting() -> None:
    meeting = Meeting()
    strangers = [meeting.connect() for _ in range(60)]
    for stranger in strangers:
        stranger.sendall(b"{")
    started = time.monotonic()
    meeting.assert_starts()
    assert time.monotonic() - started < roll_call._HELLO_SECONDS
    for stranger in strangers:
        stranger.close()


def test_who_drips_is_cut_off_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then is no reason to wait longer."""
    monkeypatch.setattr(roll_call, "_HELLO_SECONDS", 0.5)
    meeting = Meeting()
    with meeting.connect() as stranger:
        stranger.settimeout(0.05)
        began, closed = time.monotonic(), False
        while not closed and time.monotonic() < began + 10:
            try:
                stranger.sendall(b"{")
                while stranger.recv(4096):
                    pass
                closed = True
            except TimeoutError:
                pass
            except OSError:
                closed = True
        assert closed
        assert time.monotonic() - began < 5
        meeting.assert_starts()


def test_more_strangers_than_are_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """They fill all places, and are closed when they have said nothing for too long."""
    monkeypatch.setattr(roll_call, "_MOST_UNKNOWN", 5)
    monkeypatch.setattr(roll_call, "_HELLO_SECONDS", 0.5)
    meeting = Meeting()
    strangers = [meeting.connect() for _ in range(12)]
    meeting.assert_starts()
    for stranger in strangers:
        stranger.close()


def test_a_thousand_random_strings() -> None:
    rng = random.Random(0)
    meeting = Meeting()
    whole = say()
    for i in range(1000):
        words = rng.randbytes(rng.randrange(200)) if i % 2 else whole[: rng.randrange(len(whole))]
        with meeting.connect() as stranger:
            stranger.sendall(words)
    meeting.assert_starts()


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("a", ""), ("", "b")])
def test_another_run_token_is_turned_away(first: str, second: str) -> None:
    meeting = Meeting(first)
    stray = Meeting.__new__(Meeting)
    stray.port, stray.ends, stray.threads = meeting.port, {}, []
    ends = stray.join(second)
    assert isinstance(ends[1], UsageError)
    assert "was started with another --run_token than process 0" in str(ends[1])
    meeting.assert_starts(run_token=first)


def test_the_token_is_never_sent() -> None:
    assert "secret" not in json.dumps(hello.hello(cluster(1, 1, "secret"), SETTINGS, "nonce"))


def test_one_who_leaves_may_come_back() -> None:
    """A launcher starts process 1 again while process 2 is still missing."""
    port, ends = free_port(), {}

    def take_part(index: int) -> None:
        ends[index] = roll_call.meet(Cluster(f"127.0.0.1:{port}", 3, index), SETTINGS)

    threads = [threading.Thread(target=take_part, args=(i,), daemon=True) for i in range(3)]
    threads[0].start()
    meeting = Meeting.__new__(Meeting)
    meeting.port = port
    first = Connection(meeting.connect())
    first.send(hello.hello(Cluster("", 3, 1), SETTINGS, first.receive(5)["nonce"]))
    time.sleep(0.1)
    first.close()
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(ends) == [0, 1, 2]
    for end in ends.values():
        for connection in end:
            connection.close()


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ({"failed": "x", "status": 1}, UsageError),
        ({"failed": "x", "status": 2}, RunError),
        ({"failed": "x", "status": 130}, Interrupted),
        ({"failed": "x", "status": 0}, None),
        ({"failed": "x", "status": True}, None),
        ({"failed": "x", "status": [1]}, None),
        ({"failed": {}, "status": 1}, None),
        ({"failed": "x"}, None),
        ({}, None),
    ],
)
def test_failures_that_make_sense(message: dict, kind: type | None) -> None:
    found = failure(message)
    assert found is None if kind is None else type(found) is kind


@pytest.fixture
def pair():
    ends = socket.socketpair()
    # A pair has no TCP options.
    yield [_unix(end) for end in ends]
    for end in ends:
        end.close()


def _unix(sock: socket.socket) -> Connection:
    connection = Connection.__new__(Connection)
    Connection._start(connection, sock, HELLO_BYTES)
    return connection


def test_a_message_in_pieces_and_several_at_once(pair) -> None:
    one, other = pair
    one.socket.sendall(b'{"a": 1}\n{"b"')
    assert other.receive(5) == {"a": 1}
    assert other.receive(0.05) is None
    one.socket.sendall(b": 2}\n")
    assert other.receive(5) == {"b": 2}


def test_the_link_is_bounded_too(pair) -> None:
    one, other = pair

    def flood() -> None:
        with contextlib.suppress(OSError):
            one.socket.sendall(b"x" * (HELLO_BYTES * 40))

    thread = threading.Thread(target=flood)
    thread.start()
    assert other.receive(5) is None
    assert len(other._buffer) <= 2 * HELLO_BYTES
    other.close()
    thread.join(5)


def test_a_signal_in_the_roll_call_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 0 is interrupted while it waits for process 2; process 1 has reported."""
    port = free_port()
    ends: dict[int, BaseException] = {}

    def take_part(index: int, call: Callable) -> None:
        try:
            call(Cluster(f"127.0.0.1:{port}", 3, index), SETTINGS)
        except BaseException as error:
            ends[index] = error

    present = threading.Event()
    hear = roll_call._Roll._hear_unknown

    def hear_then_interrupt(self, connection) -> None:
        hear(self, connection)
        if self._present:
            present.set()
            raise KeyboardInterrupt

    monkeypatch.setattr(roll_call._Roll, "_hear_unknown", hear_then_interrupt)
    threads = [threading.Thread(target=take_part, args=(i, roll_call.meet)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert isinstance(ends[0], KeyboardInterrupt)
    assert isinstance(ends[1], Interrupted)
    assert "process 0 on " in str(ends[1])

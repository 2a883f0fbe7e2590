"""What processes say to each other before either believes that the other belongs to the run.

Process 0 names a nonce; the process that reports answers with who it is, and with a proof that it
knows the run's token (an empty one, if none is set); the welcome proves the same. The token itself
is never sent.
"""

import hashlib
import hmac
import secrets
import socket
from collections.abc import Collection
from typing import Any

from trainer.errors import UsageError
from trainer.processes.cluster import Cluster

# The version of what is said; others are strangers.
_PROTOCOL = "cyclic-trainer/2"

_NAME_CHARACTERS = 255


def challenge() -> dict[str, Any]:
    """Return the first message on a connection, from process 0."""
    return {"protocol": _PROTOCOL, "nonce": secrets.token_hex(16)}


def is_challenge(message: dict[str, Any] | None) -> bool:
    """Return whether it is process 0 of a run that answers."""
    return (
        message is not None
        and message.get("protocol") == _PROTOCOL
        and isinstance(message.get("nonce"), str)
    )


def hello(cluster: Cluster, settings: dict[str, Any], nonce: str) -> dict[str, Any]:
    """Return what a process answers to a challenge."""
    return {
        **challenge(),
        "process_id": cluster.process_id,
        "num_processes": cluster.num_processes,
        "host": socket.gethostname(),
        "settings": settings,
        "proof": prove(cluster.run_token, "hello", nonce),
    }


def is_hello(message: dict[str, Any]) -> bool:
    """Return whether a message is well formed, and from a process that there can be."""
    index, count, host = (message.get(name) for name in ("process_id", "num_processes", "host"))
    return (
        is_challenge(message)
        and type(index) is int
        and type(count) is int
        and 0 <= index < count
        and isinstance(host, str)
        and len(host) <= _NAME_CHARACTERS
        and host.isprintable()
        and isinstance(message.get("settings"), dict)
        and isinstance(message.get("proof"), str)
    )


def prove(run_token: str, what: str, nonce: str) -> str:
    """Return the proof, in a "hello" or a "welcome", that a process knows the run's token."""
    return hmac.new(run_token.encode(), f"{what} {nonce}".encode(), hashlib.sha256).hexdigest()


def is_proof(run_token: str, what: str, nonce: str, proof: object) -> bool:
    """Return whether another process has proved that it knows the run's token."""
    expected = prove(run_token, what, nonce)
    # Not as text: that may not be ASCII, which compare_digest does not take.
    return isinstance(proof, str) and hmac.compare_digest(
        expected.encode(), proof.encode(errors="replace")
    )


def name(message: dict[str, Any]) -> str:
    """Return what to call a process that reports."""
    return f"process {message['process_id']} on {message['host']}"


def check_hello(
    cluster: Cluster,
    settings: dict[str, Any],
    present: Collection[int],
    message: dict[str, Any],
) -> None:
    """Raise a UsageError if the process that reports was not started like process 0.

    Args:
      cluster: as process 0 knows it.
      settings: that all processes must have been given alike.
      present: the processes that have reported.
      message: a well-formed hello.
    """
    process_id, count = message["process_id"], message["num_processes"]
    if count != cluster.num_processes:
        raise UsageError(
            f"{name(message)} was started with --num_processes={count}, process 0 with "
            f"{cluster.num_processes}; use the same number everywhere"
        )
    if process_id in present or process_id == 0:
        raise UsageError(f"two processes have --process_id={process_id}; use each number once")
    for key, value in settings.items():
        if (other := message["settings"].get(key)) != value:
            raise UsageError(
                f"{name(message)} was started with --{key}={other}, process 0 with "
                f"--{key}={value}; use the same flags everywhere"
            )

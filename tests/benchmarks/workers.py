"""Sides of a comparison as processes that take turns: only the one that is asked computes.

jax and torch in one process would fight over its threads. A worker waits on its standard input,
asleep, until it is called.
"""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent.parent


class SkippedError(Exception):
    """A side cannot run here; the message says why."""


class Worker:
    """The calling end of a process that holds one side.

    Attributes:
      started: time.monotonic() just before the process was started.
    """

    def __init__(self, side: str, options: dict[str, Any], env: dict[str, str] | None = None):
        """Start the process; it does not compute until it is called.

        Args:
          side: "module:class", the module one of this folder.
          options: keyword arguments of the class, as JSON can hold them.
          env: variables to add to the environment.
        """
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.workers", side, json.dumps(options)],
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, method: str, **arguments: Any) -> Any:
        """Call a method of the side and return its result.

        Raises:
          SkippedError: the side cannot run here.
          RuntimeError: the process died; what it said stands on standard error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps([method, arguments]), file=self._process.stdin, flush=True)
            answer = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError) as error:
            raise RuntimeError(f"{self._process.args} died: {self._process.wait()}") from error
        if "skipped" in answer:
            raise SkippedError(answer["skipped"])
        return answer["result"]

    def __enter__(self) -> "Worker":
        """Return the worker itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the process: at the end of its input it leaves."""
        self._process.communicate()


def peak_memory() -> float:
    """Return the largest resident set that this process had, in MB (10**6 bytes)."""
    # Not getrusage: its maximum begins with that of the process that forked this one.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def main(side: str, options: str) -> None:
    """Build the side, then answer calls until the input ends."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, name = side.split(":")
    built, skipped = None, None
    try:
        built = getattr(importlib.import_module(f"tests.benchmarks.{module}"), name)(
            **json.loads(options)
        )
    except SkippedError as reason:
        skipped = str(reason)
    for line in sys.stdin:
        method, arguments = json.loads(line)
        if skipped is not None:
            answer = {"skipped": skipped}
        elif method == "peak_memory":
            answer = {"result": peak_memory()}
        else:
            answer = {"result": getattr(built, method)(**arguments)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    # SkippedError must be one class, not one of "__main__" and another of this module.
    from tests.benchmarks import workers

    workers.main(*sys.argv[1:])

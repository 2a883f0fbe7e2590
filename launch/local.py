"""Start n trainer processes on this host, as one run.

Each process is `python -m trainer` with the flags after `--`, and with the flags that tell it which
of the n processes it is. Its lines come out with its number in front: standard output on standard
output, standard error on standard error. Needs nothing but the standard library.
"""

import argparse
import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import Callable
from typing import BinaryIO, NoReturn

EXIT_DONE, EXIT_USAGE, EXIT_STOPPED = 0, 1, 75  # The trainer's, see its --help.

# Handed on to every process. The processes are in sessions of their own: what a terminal sends to
# its foreground group reaches this launcher only, and so every process exactly once.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

# The same failure so many times in a row, and no step gained in between, is no accident.
_SAME_FAILURES = 3
# Of the trainer's line that says where it resumes.
_RESUMING = b"resuming at step "

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_EPILOG = """\
examples:
  two processes, the cores of the CPU shared out between them:
    python launch/local.py -n 2 -- --flagfile=configs/fast.cfg --workdir=runs/two
  a process for each of four GPUs, started again up to three times if one of them dies:
    python launch/local.py -n 4 --max_restarts=3 -- --flagfile=configs/gpu_8.cfg

exit status:
  0 if all processes are done; 75 if they were stopped and a checkpoint is saved (the same command
  resumes from there); else that of the process that failed first, 128 + n for signal n.

Ctrl-C, SIGTERM and SIGUSR1 are handed on to all processes, which save a checkpoint and leave; a
second Ctrl-C makes them leave at once. Ctrl-Z stops them, too. If this launcher is killed, Linux
kills the processes.
"""


def main() -> None:
    """Run the processes and leave with the status of the run."""
    arguments = _parse_arguments()
    try:
        commands = _commands(arguments)
    except ValueError as error:
        _say(f"error: {error}")
        sys.exit(EXIT_USAGE)
    sys.exit(asyncio.run(Launcher(commands, arguments.grace).run(arguments.max_restarts)))


def _parse_arguments() -> argparse.Namespace:
    """Return the launcher's own arguments and, in `flags`, those of the trainer."""
    parser = _Parser(
        usage="python launch/local.py -n N [options] -- [COMMAND] [--flag=value ...]",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    number = _number(minimum=1)
    parser.add_argument("-n", type=number, required=True, help="processes to start")
    parser.add_argument(
        "--max_restarts",
        type=_number(minimum=0),
        default=0,
        help="after a failure start all again from the last checkpoint, up to so many times "
        "(not after status 0, 1 or 75, nor after a signal to the launcher, nor when it failed with "
        "the same message, and from the same step, three times in a row); default 0",
    )
    parser.add_argument(
        "--gpus",
        default="auto",
        help="GPUs to share out equally: a list such as 0,1,2,3; none: run on the CPU; "
        "auto (default): all that nvidia-smi lists, or none",
    )
    parser.add_argument(
        "--cpu_devices",
        type=number,
        help="on a CPU, virtual devices of each process; default: the trainer shares out the cores",
    )
    parser.add_argument(
        "--grace",
        type=_number(minimum=0),
        default=15,
        help="seconds that the other processes get to leave by themselves when one has failed, "
        "and again after SIGTERM; default 15",
    )
    parser.add_argument("flags", nargs="*", help="after --: command and flags of the trainer")
    return parser.parse_args()


class _Parser(argparse.ArgumentParser):
    """Leaves with the trainer's status for wrong flags."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave."""
        self.exit(EXIT_USAGE, f"error: {message} (--help explains all)\n")


def _number(minimum: int) -> Callable[[str], int]:
    """Return a parser of whole numbers that are not below the minimum."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r}; use {minimum} or more")
        return int(text)

    return parse


def _commands(arguments: argparse.Namespace) -> list[tuple[list[str], dict[str, str]]]:
    """Return command and environment of each process; without the coordinator's address.

    Raises:
      ValueError: the GPUs cannot be shared out equally.
    """
    n, gpus = arguments.n, _gpus(arguments.gpus)
    trainer = [sys.executable, "-m", "trainer"]
    if not gpus:
        # In front of the user's flags, so that those win.
        trainer += ["--platform=cpu"]
        if arguments.cpu_devices is not None:
            trainer += [f"--num_cpu_devices={arguments.cpu_devices}"]
        return [(trainer + arguments.flags, {})] * n
    if len(gpus) % n:
        fitting = [str(count) for count in range(1, len(gpus) + 1) if len(gpus) % count == 0]
        raise ValueError(
            f"-n {n}: {len(gpus)} GPUs cannot be shared out equally; use "
            f"-n {' or '.join(fitting)}, or another --gpus (none: run on the CPU)"
        )
    share = len(gpus) // n
    parts = [gpus[i * share : (i + 1) * share] for i in range(n)]
    return [(trainer + arguments.flags, {"CUDA_VISIBLE_DEVICES": ",".join(p)}) for p in parts]


def _gpus(given: str) -> list[str]:
    """Return the names of the GPUs to use, as in CUDA_VISIBLE_DEVICES."""
    if given != "auto":
        return [] if given == "none" else given.split(",")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    except OSError:
        return []
    gpus = [line for line in found.stdout.splitlines() if line.startswith("GPU ")]
    return [str(i) for i in range(len(gpus))]


class Launcher:
    """Runs the processes of one run, and again after a failure.

    Attributes:
      received: the signals that the launcher got; after the first one nothing is started again.
    """

    def __init__(self, commands: list[tuple[list[str], dict[str, str]]], grace: float) -> None:
        """Take command and environment of each process, and seconds to leave after a failure."""
        self._commands = commands
        self._grace = grace
        self._processes: list[Process] = []
        self._last_lines: dict[int, bytes] = {}
        self._resumed = b""
        self._failed_first = -1  # No process.
        self.received: list[signal.Signals] = []

    async def run(self, max_restarts: int) -> int:
        """Run all processes to their end; start all again after a failure.

        Args:
          max_restarts: how often to start again.

        Returns:
          The exit status of the run: of its last attempt.
        """
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                loop.add_signal_handler(number, self._hand_on, number)
        if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGTSTP, self._suspend)
        failures: list[tuple[bytes, bytes]] = []
        for restart in range(max_restarts + 1):
            if restart:
                _say(f"restart {restart} of {max_restarts}, from the last checkpoint")
            status = await self._run_once()
            if status in (EXIT_DONE, EXIT_USAGE, EXIT_STOPPED) or self.received:
                break
            said = self._last_lines.get(self._failed_first, b"")
            failures.append((said, self._resumed))
            if said and failures[-_SAME_FAILURES:] == [failures[-1]] * _SAME_FAILURES:
                _say(
                    f"failed {_SAME_FAILURES} times in the same way and from the same step: "
                    "not started again"
                )
                break
        else:
            if max_restarts:
                _say(f"failed after {max_restarts} restarts")
        if status == EXIT_STOPPED:
            _say("stopped; the same command resumes from the checkpoint")
        return status

    async def _run_once(self) -> int:
        """Start all processes, wait for all, and return the status that they amount to."""
        coordinator = f"127.0.0.1:{_free_port()}"  # Another one each time: the last may linger.
        self._processes, self._failed_first = [], -1
        self._last_lines, self._resumed = {}, b""
        relays = []
        for i in range(len(self._commands)):
            process = await self._start(i, coordinator)
            relays += [
                asyncio.create_task(_relay(process.stdout, sys.stdout.buffer, i)),
                asyncio.create_task(_relay(process.stderr, sys.stderr.buffer, i, self._hear)),
            ]
        status = await self._wait()
        # What a process has written is read to its end; unless it left children that hold it open.
        await asyncio.wait(relays, timeout=1)
        for relay in relays:
            relay.cancel()
        return status

    async def _start(self, i: int, coordinator: str) -> Process:
        """Start process i."""
        command, environment = self._commands[i]
        if len(self._commands) > 1:
            command = [
                *command,
                f"--coordinator_address={coordinator}",
                f"--num_processes={len(self._commands)}",
                f"--process_id={i}",
            ]
        process = await asyncio.create_subprocess_exec(
            *command,
            env=os.environ | environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
        self._processes.append(process)
        for number in self.received:  # It came while the processes were being started.
            _send(process, number)
        return process

    def _hear(self, i: int, lines: list[bytes]) -> None:
        """Remember what process i said last on standard error, and where the run resumes."""
        self._last_lines[i] = lines[-1]
        self._resumed = next((line for line in lines if _RESUMING in line), self._resumed)

    def _hand_on(self, number: signal.Signals) -> None:
        """Give a signal that came to the launcher to every process, once."""
        if number == signal.SIGHUP:  # The terminal is gone; the trainer knows SIGTERM.
            number = signal.SIGTERM
        self.received.append(number)
        for process in self._processes:
            _send(process, number)

    def _suspend(self) -> None:
        """Stop with all processes, which Ctrl-Z does not reach, until the shell says to go on."""
        for process in self._processes:
            _send(process, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        for process in self._processes:
            _send(process, signal.SIGCONT)

    async def _wait(self) -> int:
        """Wait until all processes have left; once one has failed, the others must leave soon."""
        ended: asyncio.Queue[tuple[int, int]] = asyncio.Queue()  # In the order in which they end.
        watchers = [
            asyncio.create_task(_watch(i, process, ended))
            for i, process in enumerate(self._processes)
        ]
        waiting: float | None = None
        means = [signal.SIGKILL, signal.SIGTERM]
        statuses: dict[int, int] = {}
        while len(statuses) < len(watchers):
            try:
                i, returncode = await asyncio.wait_for(ended.get(), waiting)
            except TimeoutError:
                self._end(set(range(len(watchers))) - statuses.keys(), means)
                continue
            statuses[i] = returncode if returncode >= 0 else 128 - returncode
            if statuses[i] not in (EXIT_DONE, EXIT_STOPPED):
                _say(f"process {i} {_describe(returncode)} (status {statuses[i]})")
                if waiting is None and returncode > 0:
                    self._failed_first = i  # Nothing is to be learnt of one that was killed.
                waiting = self._grace
        failures = [s for s in statuses.values() if s not in (EXIT_DONE, EXIT_STOPPED)]
        if failures:
            return failures[0]
        return EXIT_STOPPED if EXIT_STOPPED in statuses.values() else EXIT_DONE

    def _end(self, remaining: set[int], means: list[signal.Signals]) -> None:
        """Make processes leave that do not; with the last of the means, which is used up."""
        if means:
            number = means.pop()
            for i in sorted(remaining):
                _say(f"process {i} does not leave: {number.name}")
                _send(self._processes[i], number)


async def _watch(i: int, process: Process, ended: asyncio.Queue[tuple[int, int]]) -> None:
    """Wait for the end of process i and put it into the queue, with its returncode."""
    ended.put_nowait((i, await process.wait()))


def _send(process: Process, number: signal.Signals) -> None:
    """Send a signal to a process that may have left."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


async def _relay(
    stream: asyncio.StreamReader | None,
    out: BinaryIO,
    i: int,
    hear: Callable[[int, list[bytes]], None] = lambda i, lines: None,
) -> None:
    """Copy a stream line by line, with the number of its process in front; let `hear` hear them."""
    assert stream is not None
    prefix, rest = f"[{i}] ".encode(), b""
    while chunk := await stream.read(1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            hear(i, lines)
        _write(out, b"".join(prefix + line + b"\n" for line in lines))
    if rest:
        _write(out, prefix + rest + b"\n")


def _write(out: BinaryIO, text: bytes) -> None:
    """Write whole lines; if nobody reads them any more, the run continues without."""
    try:
        out.write(text)
        out.flush()
    except OSError:
        # What is left in the buffer must fail neither the next line nor the end of the launcher.
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), out.fileno())


def _describe(returncode: int) -> str:
    """Return how a process ended, in words."""
    return "failed" if returncode >= 0 else f"was ended by {signal.Signals(-returncode).name}"


def _die_with_parent() -> Callable[[], None] | None:
    """Return what a new process runs first: Linux is to kill it when the launcher is gone.

    The launcher's main thread must start the process: its end is what counts. Elsewhere None.
    """
    if sys.platform != "linux":
        return None
    prctl, launcher = ctypes.CDLL(None).prctl, os.getpid()

    def preexec() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:  # It was gone before the call.
            os._exit(EXIT_STOPPED)

    return preexec


def _free_port() -> int:
    """Return a port of this host that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _say(text: str) -> None:
    """Print a line of the launcher itself."""
    _write(sys.stderr.buffer, f"[launch] {text}\n".encode())


if __name__ == "__main__":
    main()

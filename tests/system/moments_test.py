"""A signal at every moment of the life of a run, of one process and of two."""

import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import (
    SAVING,
    assert_no_traceback,
    assert_same_run,
    checkpoint_steps,
    free_port,
    read_metrics,
    wait_for_checkpoint,
    wait_for_step,
    wait_until,
)

pytestmark = pytest.mark.system

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
LONG = (
    *("--workdir=run", "--model=mlp", "--num_steps=1000000", "--num_cpu_devices=1"),
    "--noreport",
)
# Seconds that any process may take to leave; the machine may be busy.
SECONDS = 20


def quick_with(one: object, *others: object) -> list:
    """A parameter of every tier, and others that take their turn in the slow one."""
    return [one, *(pytest.param(other, marks=pytest.mark.slow) for other in others)]


# Lines that a run prints when it comes to a moment; the moment lasts until it is ended.
MOMENTS = {
    # The module, which has the same name as the function.
    "before jax": "import sys, trainer.cli; sys.modules['trainer.cli.main'].parse = {pause}",
    "jax is imported": "import trainer.devices as m; m.configure = {pause}",
    "compilation": "import trainer.run.loop as m; m.start = {pause}",
}
PAUSE = (
    "lambda *a, **k: (print('moment', file=__import__('sys').stderr), __import__('time').sleep(99))"
)


@pytest.fixture(autouse=True)
def signals_are_not_ignored() -> Iterator[None]:
    """As under nohup, or in the background of a script, from which tests may be started."""
    before = {n: signal.signal(n, signal.default_int_handler) for n in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def end(process: subprocess.Popen, number: signal.Signals | None = None) -> str:
    """Send a signal; return what the process said, which must be soon and no traceback."""
    if number is not None:
        process.send_signal(number)
    sent = time.monotonic()
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - sent < SECONDS
    assert_no_traceback(error)
    return error


def wait_for_line(process: subprocess.Popen, start: str) -> None:
    """Read what a process says up to a line; a process that never says it is killed."""
    timer = threading.Timer(60, process.kill)
    timer.start()
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith(start):
            timer.cancel()
            return
    raise AssertionError(f"never said {start}: {said}")


@pytest.mark.parametrize("number", quick_with(*SIGNALS))
@pytest.mark.parametrize("moment", ["before jax", "jax is imported", "compilation"])
def test_nothing_to_save(start: Callable, moment: str, number: signal.Signals) -> None:
    process = start(*LONG, patch=MOMENTS[moment].format(pause=PAUSE))
    wait_for_line(process, "moment")
    error = end(process, number)
    assert process.returncode == 130, error
    assert error.splitlines()[-1] == "interrupted"


def test_python_is_in_another_language(start: Callable) -> None:
    """No handler of Python runs while the main thread is in C++: another thread hears it."""
    block = (
        "lambda *a: (print('moment', file=__import__('sys').stderr), ctypes.CDLL(None).sleep(9))"
    )
    patch = f"import ctypes; import trainer.devices as m; m.configure = {block}"
    process = start(*LONG, patch=patch)
    wait_for_line(process, "moment")
    sent = time.monotonic()
    error = end(process, signal.SIGINT)
    assert time.monotonic() - sent < 8
    assert process.returncode == 130, error


# An extension that a signal comes to as it starts: at that call of a function of Python.
STARTING = """\
import importlib.machinery, os, signal, sys
real = importlib.machinery.ExtensionFileLoader.exec_module
calls = 0
def profile(frame, event, argument):
    global calls
    calls += event == "call"
    if calls == {call}:
        sys.setprofile(None)
        os.kill(os.getpid(), signal.SIGINT)
def exec_module(loader, module):
    if module.__name__ == "{extension}":
        print("moment", file=sys.stderr)
        sys.setprofile(profile)
    real(loader, module)
importlib.machinery.ExtensionFileLoader.exec_module = exec_module
"""


@pytest.mark.parametrize("call", [1, 33, 129])
@pytest.mark.parametrize(
    "extension", ["jaxlib.mlir._mlir_libs._mlir", "jaxlib._jax", "numpy._core._multiarray_umath"]
)
def test_an_extension_is_imported(start: Callable, extension: str, call: int) -> None:
    """One that Python interrupts as it starts aborts, or writes to memory that is not its own."""
    program = STARTING.format(extension=extension, call=call)
    process = start(*LONG, patch=f"exec({program!r}, {{}})")
    assert end(process) == "moment\ninterrupted\n"
    assert process.returncode == 130


# An import, or a callback, that prints what interrupts it; the thread that hears signals is slow.
TELLTALE = """\
import sys, time, traceback, trainer.devices
from trainer.processes import signals
signals.on_interruption(lambda name: time.sleep(0.3))
def configure(*_):
    try:
        print("moment", file=sys.stderr)
        time.sleep(99)
    except KeyboardInterrupt:
        traceback.print_exc()
        raise
trainer.devices.configure = configure
"""


def test_what_libraries_say_of_an_interruption_is_not_shown(start: Callable) -> None:
    process = start(*LONG, patch=f"exec({TELLTALE!r})")
    wait_for_line(process, "moment")
    assert end(process, signal.SIGINT) == "interrupted\n"
    assert process.returncode == 130


@pytest.mark.parametrize("number", quick_with(signal.SIGTERM, SIGNALS[0], *SIGNALS[2:]))
def test_the_first_step(start: Callable, tmp_path: Path, number: signal.Signals) -> None:
    """It is taken, and saved: from here on there is something to resume from."""
    pause = "(print('moment', file=sys.stderr), time.sleep(1))"
    patch = (
        f"import sys, time; import trainer.run.outputs as m; m.Writer.begin = lambda *a: {pause}"
    )
    process = start(*LONG, patch=patch)
    wait_for_line(process, "moment")
    error = end(process, number)
    assert process.returncode == 75, error
    assert f"stopped by {number.name} at step 1 of 1000000, checkpoint saved" in error
    assert checkpoint_steps(tmp_path / "run") == {1}


@pytest.mark.parametrize("number", quick_with(signal.SIGHUP, *SIGNALS[:2], SIGNALS[3]))
def test_steps_evaluations_and_saves(
    start: Callable, trainer: Callable, tmp_path: Path, number: signal.Signals
) -> None:
    """All three are under way all the time."""
    often = ("--eval_every_steps=2", "--checkpoint_every_steps=2", "--keep_checkpoints=1")
    process = start(*LONG, *often)
    wait_for_checkpoint(tmp_path / "run", 4, process)
    error = end(process, number)
    assert process.returncode == 75, error
    stopping, stopped = f"{number.name}: stopping after this step", f"stopped by {number.name} at "
    assert -1 < error.find(stopping) < error.find(stopped), error
    step = max(checkpoint_steps(tmp_path / "run"))
    lines = read_metrics(tmp_path / "run", "train")
    assert [line["step"] for line in lines] == list(range(step))


@pytest.mark.parametrize("seed", quick_with(*range(8)))
def test_the_bits_after_signals_are_those_of_the_unbroken_run(
    start: Callable, unbroken: Path, tmp_path: Path, seed: int
) -> None:
    """Stopped at two steps, and resumed by the same command."""
    rng = random.Random(seed)
    for step in sorted(rng.sample(range(80), 2)):
        process = start("--workdir=run", *SAVING)
        wait_for_step(tmp_path / "run", step, process)
        error = end(process, rng.choice(SIGNALS))
        assert process.returncode == 75, error
    process = start("--workdir=run", *SAVING)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "resuming at step" in error
    assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_the_bits_after_signals_at_any_moment(
    start: Callable, unbroken: Path, tmp_path: Path, seed: int
) -> None:
    """Also while it starts, when there may be nothing to save, and while it ends."""
    rng, statuses = random.Random(seed), []
    while 0 not in statuses:
        process = start("--workdir=run", *SAVING)
        try:
            process.communicate(timeout=rng.uniform(0.5, 5) if len(statuses) < 6 else None)
        except subprocess.TimeoutExpired:
            number = rng.choice(SIGNALS)
            error = end(process, number)
            if process.returncode == -number and not error:
                continue  # On a busy machine Python itself was still starting.
        statuses.append(process.returncode)
    assert {*statuses} <= {0, 75, 130}, statuses
    assert_same_run(tmp_path / "run", unbroken)


def test_the_end_of_a_run_is_not_disturbed(start: Callable) -> None:
    """All is saved, and the picture is drawn."""
    slow = "import time; import trainer.records.figures as m; draw = m.draw_report; "
    slow += "m.draw_report = lambda w: (print('moment', file=sys.stderr), time.sleep(1), draw(w))"
    process = start("--workdir=run", "--model=mlp", "--num_steps=3", patch=f"import sys; {slow}")
    wait_for_line(process, "moment")
    error = end(process, signal.SIGTERM)
    assert process.returncode == 0, error


# The main thread is kept after the end of its steps until a signal has been heard.
AT_THE_END = """\
import sys, time
import trainer.run.loop as loop
from trainer.processes import signals
real = signals.StopRequest.__exit__
def leave(stop, *exception):
    real(stop, *exception)
    print("moment", file=sys.stderr)
    time.sleep(1)
signals.StopRequest.__exit__ = leave
"""


@pytest.mark.parametrize("number", quick_with(signal.SIGTERM, SIGNALS[0], *SIGNALS[2:]))
@pytest.mark.parametrize("stopped", [True, False])
def test_what_is_decided_stays_so(start: Callable, stopped: bool, number: signal.Signals) -> None:
    """A second signal, when the checkpoint is saved, or the run complete: it only hastens."""
    steps = 1_000_000 if stopped else 5
    process = start(*LONG, f"--num_steps={steps}", patch=f"exec({AT_THE_END!r})")
    if stopped:
        wait_for_line(process, "first step after")
        process.send_signal(signal.SIGTERM)
    wait_for_line(process, "moment")
    error = end(process, number)
    assert process.returncode == (75 if stopped else 0), error
    assert ("stopped by SIGTERM" if stopped else "in all ") in error
    assert "interrupted" not in error


def test_nohup(start: Callable, tmp_path: Path) -> None:
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = start(*LONG, patch=ignored)
    wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), process)
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None
    end(process, signal.SIGTERM)
    assert process.returncode == 75


@pytest.mark.parametrize(
    ("moment", "victim"),
    [
        ("jax is joined", 1),
        ("compilation", 0),
        pytest.param("jax is joined", 0, marks=pytest.mark.slow),
        pytest.param("compilation", 1, marks=pytest.mark.slow),
    ],
)
def test_one_of_two_while_they_start(start_one_of: Callable, moment: str, victim: int) -> None:
    places = {"jax is joined": "import trainer.processes.network as m; m.announce = {pause}"}
    patch = (MOMENTS | places)[moment].format(pause=PAUSE)
    port = free_port()
    pair = [start_one_of(i, 2, port, *LONG, patch=patch) for i in range(2)]
    for process in pair:
        wait_for_line(process, "moment")
    error = end(pair[victim], signal.SIGINT)
    other = end(pair[1 - victim])
    assert [process.returncode for process in pair] == [130, 130], error + other
    assert f"interrupted: process {victim} on " in other


def test_one_of_two_in_the_roll_call(start_one_of: Callable) -> None:
    port = free_port()
    pair = [start_one_of(i, 3, port, *LONG) for i in range(2)]
    wait_for_line(pair[0], "waiting for process 2")
    end(pair[1], signal.SIGINT)
    error = end(pair[0])
    assert [process.returncode for process in pair] == [130, 130], error


@pytest.mark.parametrize("seed", quick_with(*range(4)))
def test_two_that_train(start_one_of: Callable, unbroken: Path, tmp_path: Path, seed: int) -> None:
    """Either gets the signal; resumed, they have the bits of one process that never stopped."""
    rng = random.Random(seed)

    def start_pair() -> list[subprocess.Popen]:
        port = free_port()
        flags = ("--workdir=run", *SAVING, "--num_cpu_devices=1")
        return [start_one_of(i, 2, port, *flags) for i in range(2)]

    pair = start_pair()
    wait_for_step(tmp_path / "run", rng.randrange(80))
    pair[rng.randrange(2)].send_signal(rng.choice(SIGNALS))
    errors = [end(process) for process in pair]
    assert [process.returncode for process in pair] == [75, 75], errors
    pair = start_pair()
    errors = [process.communicate(timeout=120)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], errors
    assert_same_run(tmp_path / "run", unbroken)


def test_output_that_is_lost(start: Callable, tmp_path: Path) -> None:
    """Its reader leaves after a line: the run trains to its end."""
    process = start("--workdir=run", "--model=mlp", "--num_steps=30", "--log_every_steps=1")
    process.stderr.readline()
    process.stderr.close()
    process.stderr = None  # Nothing is read from it any more.
    assert process.wait(120) == 0
    assert checkpoint_steps(tmp_path / "run") == {30}

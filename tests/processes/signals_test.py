"""A signal sets a flag; the run saves, says so, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trainer.processes.signals import StopRequest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_sets_the_flag_and_nothing_else(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal_name == number.name
    assert signal.getsignal(number) is before


def test_no_handlers_outside_the_main_thread() -> None:
    found = []

    def enter() -> None:
        with StopRequest() as stop:
            found.append(bool(stop))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [False]


def start(data_dir: Path, tmp_path: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "trainer", "--workdir=run", f"--data_dir={data_dir}", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )


def wait_for_step(workdir: Path, step: int, process: subprocess.Popen) -> None:
    for _ in range(6000):
        assert process.poll() is None, process.stderr.read()
        path = workdir / "metrics.jsonl"
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"never reached step {step}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_stop_with_a_checkpoint_and_go_on(
    data_dir: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """On the CNN, within 5 seconds."""
    process = start(data_dir, tmp_path, "--num_steps=2000")
    wait_for_step(tmp_path / "run", 20, process)
    process.send_signal(number)
    sent = time.monotonic()
    _, err = process.communicate()
    assert time.monotonic() - sent < 5
    assert process.returncode == 75, err
    last = err.strip().splitlines()[-1]
    assert f"stopped by {number.name} at step" in last
    assert "Traceback" not in err
    step = int(last.split(" at step ")[1].split()[0])
    assert (tmp_path / "run" / "checkpoints" / str(step) / "state").is_dir()
    process = start(data_dir, tmp_path, f"--num_steps={step + 3}")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert f"resuming at step {step}:" in err
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if x["split"] == "train"] == list(range(step + 3))


def test_a_signal_while_compiling(data_dir: Path, tmp_path: Path) -> None:
    process = start(data_dir, tmp_path, "--num_steps=2000")
    for line in process.stderr:
        if line.startswith("start"):
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 75, err
    assert "stopped by SIGTERM at step 1 " in err


def test_a_second_interrupt_leaves_at_once(data_dir: Path, tmp_path: Path) -> None:
    process = start(data_dir, tmp_path, "--num_steps=2000", "--checkpoint_every_steps=10")
    wait_for_step(tmp_path / "run", 30, process)
    # Stopped, it gets both signals before it can do anything about the first.
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 5
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGINT)
        time.sleep(0.001)
    _, err = process.communicate()
    assert process.returncode in (130, 75)
    assert "Traceback" not in err
    process = start(data_dir, tmp_path, "--num_steps=60", "--checkpoint_every_steps=10")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert "resuming at step" in err or "is complete" in err

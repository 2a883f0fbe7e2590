"""Launchers, with real processes and real signals; the trainer is mostly a small stand-in."""

import itertools
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.helpers import (
    QUICK,
    ROOT,
    children,
    trainer_environment,
    wait_for_checkpoint,
    wait_until,
)
from trainer.commands import inspection

pytestmark = pytest.mark.system

LOCAL = ROOT / "launch" / "local.py"

GAVE_UP = "[launch] failed 3 times in the same way and from the same step: not started again"

STAND_IN = """
import os, signal, sys, time
from pathlib import Path

flags = dict(arg[2:].split("=", 1) for arg in sys.argv[1:] if "=" in arg)
i, n = int(flags.get("process_id", 0)), int(flags.get("num_processes", 1))
Path(f"pid{i}").write_text(str(os.getpid()))
Path(f"started{i}").open("a").write(f"{os.getpid()} {flags.get('coordinator_address')}\\n")

def say(text):
    print(text, file=sys.stderr, flush=True)

def wait_for_signal(numbers=(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)):
    received = []
    for number in numbers:
        signal.signal(number, lambda number, frame: received.append(signal.Signals(number).name))
    say("ready")
    while not received:
        time.sleep(0.01)
    time.sleep(0.2)  # Another one would be counted.
    return received
"""


class Started:
    """A running launcher: its process, and its standard error as it grows."""

    def __init__(self, folder: Path, process: subprocess.Popen) -> None:
        self.folder = folder
        self.process = process

    def err(self) -> str:
        """What it has written so far."""
        return (self.folder / "err").read_text()

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until the text stands so many times in its standard error."""
        wait_until(lambda: self.err().count(text) >= times, what=self.err)

    def end(self) -> tuple[int, str, str]:
        """Wait for its end; its exit status, standard output and standard error."""
        status = self.process.wait(timeout=60)
        return status, (self.folder / "out").read_text(), self.err()

    def pids(self) -> list[int]:
        """The processes that it started last."""
        return [int(path.read_text()) for path in sorted(self.folder.glob("pid?"))]


def alive(pid: int) -> bool:
    try:
        # A process that has ended and waits to be collected is gone, too.
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.fixture
def local(tmp_path: Path):
    """Start launch/local.py with a stand-in for the trainer that runs the given lines."""
    processes = []
    inherited = {key: os.environ[key] for key in os.environ if key != "CUDA_VISIBLE_DEVICES"}

    def start(lines: str, *arguments: str, **environment: str) -> Started:
        (tmp_path / "trainer").mkdir(exist_ok=True)
        (tmp_path / "trainer" / "__init__.py").touch()
        (tmp_path / "trainer" / "__main__.py").write_text(STAND_IN + textwrap.dedent(lines))
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, str(LOCAL), *arguments],
                cwd=tmp_path,
                env=inherited | environment,
                stdout=out,
                stderr=err,
            )
        processes.append(process)
        return Started(tmp_path, process)

    yield start
    for process in processes:
        process.kill()
        process.wait()
    for pid in (int(path.read_text()) for path in tmp_path.glob("pid?")):
        if alive(pid):  # Only after a test that failed.
            os.kill(pid, signal.SIGKILL)


def test_lines_come_out_with_the_number_in_front(local) -> None:
    run = local(
        """
        print(f"result of {i}")
        say(f"first {i}\\nsecond {i}")
        sys.stderr.write("no newline at the end")
        """,
        *("-n", "2", "--gpus=none", "--", "evaluate", "--seed=3"),
    )
    status, out, err = run.end()
    assert status == 0, err
    assert sorted(out.splitlines()) == ["[0] result of 0", "[1] result of 1"]
    for i in (0, 1):
        lines = [line for line in err.splitlines() if line.startswith(f"[{i}] ")]
        assert lines == [f"[{i}] first {i}", f"[{i}] second {i}", f"[{i}] no newline at the end"]
    assert len(err.splitlines()) == 6


def test_each_process_is_told_who_it_is(local) -> None:
    arguments = ("-n", "2", "--gpus=none", "--cpu_devices=3", "--", "--seed=3")
    run = local("print(sys.argv[1:])", *arguments)
    status, out, err = run.end()
    assert status == 0, err
    flags = [eval(line[4:]) for line in sorted(out.splitlines())]
    address = flags[0][3]
    assert re.fullmatch(r"--coordinator_address=127\.0\.0\.1:[0-9]+", address)
    for i in (0, 1):
        assert flags[i] == [
            *("--platform=cpu", "--num_cpu_devices=3", "--seed=3", address),
            *("--num_processes=2", f"--process_id={i}"),
        ]


def test_one_process_needs_no_coordinator(local) -> None:
    status, out, err = local("print(sys.argv[1:])", "-n", "1", "--gpus=none").end()
    assert status == 0, err
    assert "coordinator" not in out
    assert "--num_cpu_devices" not in out


@pytest.mark.parametrize(
    ("arguments", "given", "expected"),
    [
        (["-n", "4"], {}, ["0", "1", "2", "3"]),
        (["-n", "2"], {}, ["0,1", "2,3"]),
        (["-n", "1"], {}, ["0,1,2,3"]),
        (["-n", "2", "--gpus=3,1"], {}, ["3", "1"]),
        (["-n", "2"], {"CUDA_VISIBLE_DEVICES": "5,7"}, ["5", "7"]),
    ],
)
def test_gpus_are_shared_out(
    local, tmp_path: Path, arguments: list[str], given: dict[str, str], expected: list[str]
) -> None:
    stand_in(tmp_path / "bin" / "nvidia-smi", 'for i in 0 1 2 3; do echo "GPU $i: NVIDIA"; done')
    run = local(
        'print(os.environ["CUDA_VISIBLE_DEVICES"], "--platform=cpu" in sys.argv)',
        *arguments,
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        **given,
    )
    status, out, err = run.end()
    assert status == 0, err
    assert sorted(out.splitlines()) == [f"[{i}] {gpu} False" for i, gpu in enumerate(expected)]


def stand_in(path: Path, script: str) -> None:
    """Make a command."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", "3", "--gpus=0,1,2,3"], "4 GPUs cannot be shared out equally; use -n 1 or 2 or"),
        (["-n", "0"], "'0'; use 1 or more"),
        (["-n", "2", "--max_restarts=-1"], "'-1'; use 0 or more"),
        ([], "the following arguments are required: -n"),
        (["-n", "2", "--seed=3"], "unrecognized arguments: --seed=3"),
    ],
)
def test_wrong_arguments(local, arguments: list[str], message: str) -> None:
    status, _, err = local("", *arguments).end()
    assert status == 1
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_every_process_once(local, number: signal.Signals) -> None:
    run = local('say(" ".join(wait_for_signal())); sys.exit(75)', "-n", "2", "--gpus=none")
    run.wait_for("ready", 2)
    run.process.send_signal(number)
    status, _, err = run.end()
    assert status == 75, err
    assert f"[0] {number.name}\n" in err
    assert f"[1] {number.name}\n" in err
    assert err.endswith("[launch] stopped; the same command resumes from the checkpoint\n")


def test_ctrl_c_in_a_terminal_reaches_every_process_once(local) -> None:
    """A terminal sends it to its whole foreground group."""
    run = local('say(" ".join(wait_for_signal())); sys.exit(75)', "-n", "2", "--gpus=none")
    run.wait_for("ready", 2)
    groups = {os.getpgid(pid) for pid in run.pids()}
    assert os.getpgid(run.process.pid) not in groups
    assert len(groups) == 2
    run.process.send_signal(signal.SIGINT)
    status, _, err = run.end()
    assert (status, err.count("SIGINT")) == (75, 2)


def test_ctrl_z_stops_every_process_until_it_is_continued(local) -> None:
    """The processes are in sessions of their own, which a terminal does not reach."""
    run = local("wait_for_signal()", "-n", "2", "--gpus=none")
    run.wait_for("ready", times=2)
    everyone = [run.process.pid, *run.pids()]

    def all_are(states: str) -> bool:
        found = [
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in everyone
        ]
        return all(fields[0] in states for fields in found)

    run.process.send_signal(signal.SIGTSTP)
    wait_until(lambda: all_are("T"), what=run.err)
    run.process.send_signal(signal.SIGCONT)
    wait_until(lambda: all_are("RS"), what=run.err)
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[0] == 0


def test_a_terminal_that_goes_away_stops_the_run(local) -> None:
    run = local('say(" ".join(wait_for_signal())); sys.exit(75)', "-n", "2", "--gpus=none")
    run.wait_for("ready", 2)
    run.process.send_signal(signal.SIGHUP)
    status, _, err = run.end()
    assert (status, err.count("SIGTERM")) == (75, 2)


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        ("sys.exit(2)", 2, "process 1 failed (status 2)"),
        ("sys.exit(1)", 1, "process 1 failed (status 1)"),
        ("os.kill(os.getpid(), 9)", 137, "process 1 was ended by SIGKILL (status 137)"),
        ("os.abort()", 134, "process 1 was ended by SIGABRT (status 134)"),
    ],
)
def test_the_status_is_that_of_the_first_failure(
    local, failure: str, status: int, message: str
) -> None:
    """The other process notices, and fails in its own way a little later."""
    run = local(
        f"""
        if i == 1:
            {failure}
        time.sleep(1)
        sys.exit(3)
        """,
        *("-n", "2", "--gpus=none"),
    )
    found, _, err = run.end()
    assert found == status
    lines = [line for line in err.splitlines() if line.startswith("[launch]")]
    assert lines == [f"[launch] {message}", "[launch] process 0 failed (status 3)"]


def test_processes_that_do_not_leave_are_ended(local) -> None:
    run = local(
        """
        if i == 2:
            time.sleep(0.5)
            sys.exit(2)
        wait_for_signal([signal.SIGTERM])
        say("got it")
        time.sleep(0 if i == 0 else 1000)
        """,
        *("-n", "3", "--gpus=none", "--grace=1"),
    )
    status, _, err = run.end()
    assert status == 2
    assert "process 0 does not leave: SIGTERM" in err
    assert "[0] got it" in err
    assert "process 0 does not leave: SIGKILL" not in err
    assert "process 1 does not leave: SIGKILL" in err
    assert not any(alive(pid) for pid in run.pids())


def test_restarts_after_failures(local) -> None:
    run = local(
        """
        attempt = len(Path(f"started{i}").read_text().splitlines())
        say(f"attempt {attempt}")
        sys.exit(2 if attempt < 3 and i == 0 else 0)
        """,
        *("-n", "2", "--gpus=none", "--max_restarts=5"),
    )
    status, _, err = run.end()
    assert status == 0, err
    assert "[launch] restart 1 of 5, from the last checkpoint" in err
    assert "[launch] restart 2 of 5, from the last checkpoint" in err
    assert "restart 3" not in err
    started = [(run.folder / f"started{i}").read_text().split()[1::2] for i in (0, 1)]
    assert started[0] == started[1]
    assert len(set(started[0])) == 3  # A new port each time.


def test_restarts_are_counted(local) -> None:
    status, _, err = local("sys.exit(2)", "-n", "2", "--gpus=none", "--max_restarts=2").end()
    assert status == 2
    assert err.count("[launch] restart ") == 2
    assert err.endswith("[launch] failed after 2 restarts\n")


def test_the_same_failure_is_not_repeated_for_ever(local) -> None:
    """Another step, or a kill in between, is another failure."""
    lines = """
    count = len(Path(f"started{i}").read_text().splitlines())
    if count == 2:
        os.kill(os.getpid(), 9)
    say(f"error: the loss is nan at step {min(count, 4)}")
    sys.exit(2)
    """
    status, _, err = local(lines, "-n", "1", "--gpus=none", "--max_restarts=50").end()
    assert status == 2
    assert err.count("[launch] restart") == 5
    assert err.splitlines()[-1] == GAVE_UP


def test_the_same_failure_further_on_is_another(local) -> None:
    """A disk that is full now and then: the message names no step, but the run gets on."""
    lines = """
    count = len(Path(f"started{i}").read_text().splitlines())
    say(f"start     resuming at step {min(count, 4) * 100}: epoch 1, cycle 1")
    say("error: a checkpoint could not be written")
    sys.exit(2)
    """
    status, _, err = local(lines, "-n", "1", "--gpus=none", "--max_restarts=50").end()
    assert status == 2
    assert err.count("[launch] restart") == 5
    assert err.splitlines()[-1] == GAVE_UP


@pytest.mark.parametrize("status", [0, 1, 75])
def test_no_restart_after(local, status: int) -> None:
    run = local(f"sys.exit({status})", "-n", "2", "--gpus=none", "--max_restarts=2")
    found, _, err = run.end()
    assert found == status
    assert "restart" not in err


def test_no_restart_after_a_signal_to_the_launcher(local) -> None:
    run = local("wait_for_signal(); sys.exit(2)", "-n", "2", "--gpus=none", "--max_restarts=2")
    run.wait_for("ready", 2)
    run.process.send_signal(signal.SIGTERM)
    status, _, err = run.end()
    assert status == 2
    assert "restart" not in err


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the children of the dead")
def test_a_killed_launcher_leaves_no_orphans(local) -> None:
    run = local("say('ready'); time.sleep(1000)", "-n", "3", "--gpus=none")
    run.wait_for("ready", 3)
    assert all(alive(pid) for pid in run.pids())
    run.process.kill()
    wait_until(lambda: not any(alive(pid) for pid in run.pids()))


def test_nobody_reads_the_lines(tmp_path: Path, local) -> None:
    """As in `launch/local.py ... | head -1`: the run trains to its end."""
    run = local('print("x" * 9999, flush=True); Path(f"done{i}").touch()', "-n", "2", "--gpus=none")
    run.end()
    command = [sys.executable, str(LOCAL), "-n", "2", "--gpus=none"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.wait(timeout=60) == 0
    assert {path.name for path in tmp_path.glob("done*")} == {"done0", "done1"}


# Of a run that lasts for seconds.
REAL_STEPS = 150


@pytest.fixture
def real(tmp_path: Path, data_dir: Path):
    """Start launch/local.py with the real trainer."""
    processes = []

    def start(*arguments: str, workdir: str = "run") -> Started:
        folder = tmp_path / f"output-{workdir}"
        folder.mkdir()
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            process = subprocess.Popen(
                [
                    *(sys.executable, str(LOCAL), "-n", "2", "--gpus=none", *arguments, "--"),
                    *(
                        *QUICK,
                        f"--num_steps={REAL_STEPS}",
                        f"--data_dir={data_dir}",
                        f"--workdir={tmp_path / workdir}",
                    ),
                    *("--checkpoint_every_steps=5", "--keep_checkpoints=2"),
                ],
                env=trainer_environment(),
                stdout=out,
                stderr=err,
            )
        processes.append(process)
        return Started(folder, process)

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_ctrl_c_stops_the_real_trainer(real, tmp_path: Path) -> None:
    run = real("--max_restarts=3")
    wait_for_checkpoint(tmp_path / "run", 10)
    run.process.send_signal(signal.SIGINT)
    status, _, err = run.end()
    assert status == 75, err
    assert "[0] stopped by SIGINT at step" in err
    assert "restart" not in err


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes in /proc")
@pytest.mark.parametrize(
    "kills", [1, pytest.param(5, marks=pytest.mark.slow)], ids=lambda kills: f"{kills} kills"
)
def test_the_real_trainer_killed_at_random_moments(
    real, trainer, tmp_path: Path, kills: int
) -> None:
    """Kill -9 of either process, while they start, restore, train and save."""
    unbroken = trainer(*QUICK, f"--num_steps={REAL_STEPS}", "--workdir=unbroken")
    assert unbroken.returncode == 0, unbroken.stderr
    rng, left = random.Random(kills), kills
    for attempt in itertools.count():
        workdir = f"run{attempt}"
        run = real("--max_restarts=3", workdir=workdir)
        restarts = 0
        while left and restarts < 3:
            time.sleep(rng.uniform(0.5, 8))
            victims = children(run.process.pid)
            if len(victims) < 2:  # Done already.
                break
            os.kill(rng.choice(victims), signal.SIGKILL)
            left, restarts = left - 1, restarts + 1
            run.wait_for("[launch] restart ", restarts)
        status, _, err = run.end()
        assert status == 0, err
        assert err.count("was ended by SIGKILL") >= restarts
        found, expected = (
            (tmp_path / name / "metrics.jsonl").read_text() for name in (workdir, "unbroken")
        )
        assert found == expected
        digests = [inspection.inspect(tmp_path / name)["digest"] for name in (workdir, "unbroken")]
        assert digests[0] == digests[1]
        if not left:
            break

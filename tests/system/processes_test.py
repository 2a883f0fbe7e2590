"""Several processes: what they must agree on, and how each of their ends is met."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from trainer.commands.inspection import inspect
from trainer.config import TrainConfig
from trainer.errors import RunError, UsageError
from trainer.processes import roll_call as rollcall
from trainer.processes.cluster import Cluster, find_cluster
from trainer.run.loop import train

ROOT = pathlib.Path(__file__).parents[2]

# The processes are told of a failure at once; jax alone would take up to 100 seconds.
SECONDS_TO_END = 30

LONG = ("--model=mlp", "--num_steps=1000000", "--checkpoint_every_steps=50", "--num_cpu_devices=2")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def start(data_dir: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[Callable]:
    """Start `python -m trainer` as one of several processes; what still runs is killed at last."""
    started = []

    def start_one(index: int, count: int, port: int, *flags: str, patch: str = "", **options):
        code = f"import sys; from trainer import cli, rollcall; {patch or None}; cli.main(sys.argv)"
        arguments = [
            f"--coordinator_address=127.0.0.1:{port}",
            f"--num_processes={count}",
            f"--process_id={index}",
            f"--data_dir={data_dir}",
            *flags,
        ]
        options.setdefault("cwd", tmp_path)
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            **options,
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.05)


def has_checkpoint(workdir: pathlib.Path) -> bool:
    folder = workdir / "checkpoints"
    return folder.exists() and any(path.name.isdecimal() for path in folder.iterdir())


@pytest.mark.parametrize("victim", [0, 1])
def test_process_that_dies_ends_the_other(start, tmp_path: pathlib.Path, victim: int) -> None:
    port = free_port()
    pair = [start(i, 2, port, *LONG, "--workdir=run") for i in range(2)]
    wait_for(lambda: has_checkpoint(tmp_path / "run"))
    pair[victim].kill()
    _, error = pair[1 - victim].communicate(timeout=SECONDS_TO_END)
    assert pair[1 - victim].returncode == 2, error
    assert f"error: process {victim} " in error
    assert "died; the same command goes on from the newest checkpoint" in error
    assert "Traceback" not in error


def test_signal_to_one_stops_all_at_the_same_step(start, tmp_path: pathlib.Path) -> None:
    port = free_port()
    pair = [start(i, 2, port, *LONG, "--workdir=run") for i in range(2)]
    wait_for(lambda: has_checkpoint(tmp_path / "run"))
    pair[1].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=SECONDS_TO_END)[1] for process in pair]
    assert [process.returncode for process in pair] == [75, 75], errors
    stopped = [line for error in errors for line in error.splitlines() if "stopped by" in line]
    assert "a signal to another process" in stopped[0]
    assert "SIGTERM" in stopped[1]
    steps = {line.split("at step ")[1].split(" ")[0] for line in stopped}
    saved = max(int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdecimal())
    assert steps == {str(saved)}
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if x["split"] == "train"] == list(range(saved))


def test_save_that_fails_ends_all_within_seconds(start, tmp_path: pathlib.Path) -> None:
    """Process 0 may not make files larger than 50 kB: as on a full disk, a save fails midway."""
    small_files = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    )
    port = free_port()
    first = start(0, 2, port, *LONG, "--workdir=run", patch=small_files)
    second = start(1, 2, port, *LONG, "--workdir=run")
    _, error = first.communicate(timeout=120)
    ended = time.monotonic()
    _, other_error = second.communicate(timeout=SECONDS_TO_END)
    assert time.monotonic() - ended < 10
    assert (first.returncode, second.returncode) == (2, 2), error + other_error
    assert "could not be written" in error
    assert "could not be written" in other_error
    assert "process 0" in other_error


def test_unshared_workdir_is_refused(start, tmp_path: pathlib.Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    port = free_port()
    patch = "from trainer import claim; claim._SHARED_SECONDS = 0.5"
    pair = [
        start(i, 2, port, *LONG, "--workdir=run", cwd=folders[i], patch=patch) for i in range(2)
    ]
    for process in pair:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 1, error
        assert "process 1 cannot see" in error
        assert "gs://bucket/path" in error
    assert not (folders[0] / "run" / "metrics.jsonl").exists()
    assert not list((folders[0] / "run").glob("shared-*"))
    assert not (folders[1] / "run").exists()


def test_missing_process_is_named(start) -> None:
    port = free_port()
    patch = "rollcall._ROLL_CALL_SECONDS = 3"
    pair = [start(i, 3, port, *LONG, "--workdir=run", patch=patch) for i in range(2)]
    for process in pair:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 2, error
        assert "of 3 processes, 2 did not report to process 0" in error
        assert f"127.0.0.1:{port}" in error


def test_missing_first_process_is_named(start) -> None:
    port = free_port()
    patch = "rollcall._ROLL_CALL_SECONDS = 1"
    process = start(1, 2, port, *LONG, "--workdir=run", patch=patch)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert f"could not report to process 0 at 127.0.0.1:{port}" in error


def test_busy_port_is_refused(start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(0, 2, port, *LONG, "--workdir=run")
        _, error = process.communicate(timeout=120)
    assert process.returncode == 1, error
    assert f"--coordinator_address=127.0.0.1:{port}: process 0 cannot listen there" in error


def test_resume_on_other_processes_gives_the_same_bits(
    start, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """2 processes of 2 devices, stopped by a signal; then 1x1, 1x8 and 2x1; against 1x4."""
    config = TrainConfig(data_dir=str(data_dir), reduction="tree", steps_per_cycle=14, report=False)

    def train_alone(workdir: str, num_steps: int, num_devices: int) -> None:
        changed = {"num_steps": num_steps, "num_devices": num_devices}
        train(dataclasses.replace(config, **changed), tmp_path / workdir)

    def start_pair(num_steps: int, num_cpu_devices: int) -> list:
        flags = ("--workdir=run", "--reduction=tree", "--steps_per_cycle=14", "--noreport")
        counts = (f"--num_steps={num_steps}", f"--num_cpu_devices={num_cpu_devices}")
        port = free_port()
        return [start(i, 2, port, *flags, *counts) for i in range(2)]

    pair = start_pair(num_steps=1000, num_cpu_devices=2)
    metrics = tmp_path / "run/metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(metrics.read_text()) > 0)
    pair[1].send_signal(signal.SIGTERM)
    for process in pair:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 75, error
    step = inspect(tmp_path / "run")["step"]
    train_alone("run", step + 5, num_devices=1)
    train_alone("run", step + 15, num_devices=8)
    last = step + 20
    for process in start_pair(last, num_cpu_devices=1):
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    train_alone("whole", last, num_devices=4)
    broken, whole = (inspect(tmp_path / workdir) for workdir in ("run", "whole"))
    assert broken["digests"] == whole["digests"]
    assert (broken["num_processes"], broken["num_devices"]) == (2, 2)
    lines = [
        [json.loads(x) for x in (tmp_path / w / "metrics.jsonl").read_text().splitlines()]
        for w in ("run", "whole")
    ]
    trained = [[x for x in run if x["split"] == "train"] for run in lines]
    assert trained[0] == trained[1]
    assert [x["step"] for x in trained[0]] == list(range(last))


SLURM = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_NODELIST": "node[07-09]",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Set the variables of a launcher, and no others."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORDINATOR")):
            monkeypatch.delenv(name)

    def set_variables(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


def test_alone_without_flags_or_launcher(environment) -> None:
    assert find_cluster() is None
    assert find_cluster(num_processes=1) is None
    assert find_cluster("127.0.0.1:1234", 1, 0) is None


def test_slurm_tells_all(environment) -> None:
    environment(SLURM)
    assert find_cluster() == Cluster("node07:61444", 3, 2)
    assert not find_cluster().local
    environment({"SLURM_STEP_NUM_NODES": "1"})
    assert find_cluster() == Cluster("127.0.0.1:61444", 3, 2)
    assert find_cluster().local


def test_one_task_of_slurm_is_alone(environment) -> None:
    environment(SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
    assert find_cluster() is None


def test_open_mpi_tells_all(environment) -> None:
    environment(
        {
            "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.7,10.1.0.7:3333",
            "OMPI_COMM_WORLD_SIZE": "4",
            "OMPI_COMM_WORLD_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        }
    )
    assert find_cluster() == Cluster("10.0.0.7:61441", 4, 1)
    environment({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"})
    assert find_cluster() == Cluster("127.0.0.1:61441", 4, 1)


def test_flags_win_over_the_launcher(environment) -> None:
    environment(SLURM)
    assert find_cluster("10.0.0.1:99", 2, 1) == Cluster("10.0.0.1:99", 2, 1)
    environment({"JAX_COORDINATOR_PORT": "4242"})
    assert find_cluster() == Cluster("node07:4242", 3, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("", 2, 0), "all three are needed"),
        (("", None, 1), "all three are needed"),
        (("127.0.0.1:1", None, None), "all three are needed"),
        (("127.0.0.1:1", 2, 2), "0 <= process_id < num_processes"),
        (("127.0.0.1", 2, 0), "host:port"),
        (("127.0.0.1:port", 2, 0), "host:port"),
        (("127.0.0.1:70000", 2, 0), "host:port"),
    ],
)
def test_incomplete_flags_are_refused(environment, given: tuple, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_cluster(*given)


def roll_call(hellos: list[tuple[int, int, dict]], count: int = 3) -> list[object]:
    """Call the roll with processes in threads; return how it ended for each, process 0 first."""
    port = free_port()
    ends: list[object] = [None] * (len(hellos) + 1)

    def take_part(slot: int, call: Callable, cluster: Cluster, settings: dict) -> None:
        try:
            ends[slot] = call(cluster, settings)
        except (UsageError, RunError) as error:
            ends[slot] = error

    def thread(slot: int, call: Callable, index: int, number: int, settings: dict):
        cluster = Cluster(f"127.0.0.1:{port}", number, index)
        return threading.Thread(target=take_part, args=(slot, call, cluster, settings))

    threads = [thread(0, rollcall._call_roll, 0, count, {"lr_max": 0.1})]
    for slot, hello in enumerate(hellos, start=1):
        threads.append(thread(slot, rollcall._report, *hello))
    for each in threads:
        each.start()
    for each in threads:
        each.join(20)
        assert not each.is_alive()
    for end in ends:
        for connection in end if isinstance(end, list) else []:
            connection.close()
    return ends


def test_roll_call_orders_the_processes() -> None:
    same = {"lr_max": 0.1}
    first, *others = roll_call([(2, 3, same), (1, 3, same)])
    assert [connection.name.split(" on ")[0] for connection in first] == ["process 1", "process 2"]
    assert all(len(other) == 1 for other in others)


@pytest.mark.parametrize(
    ("hellos", "message"),
    [
        ([(1, 3, {"lr_max": 0.2})], "--lr_max=0.2, process 0 with --lr_max=0.1"),
        ([(1, 4, {"lr_max": 0.1})], "--num_processes=4, process 0 with 3"),
        ([(1, 3, {"lr_max": 0.1}), (1, 3, {"lr_max": 0.1})], "two processes have --process_id=1"),
    ],
)
def test_processes_that_disagree_are_refused(hellos: list, message: str) -> None:
    for end in roll_call(hellos):
        assert isinstance(end, UsageError)
        assert message in str(end)


def test_error_that_nobody_foresaw_ends_both(start) -> None:
    port = free_port()
    patch = "from trainer import loop; loop.describe = None"
    quick = "import trainer.processes.link as p; p._VERDICT_SECONDS = 0.5"
    first = start(0, 2, port, *LONG, "--workdir=run", patch=f"{patch}; {quick}")
    second = start(1, 2, port, *LONG, "--workdir=run")
    errors = [process.communicate(timeout=120)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (2, 2), errors
    assert "Traceback" in errors[0]
    assert "error: process 0 on " in errors[1]
    assert "TypeError: 'NoneType' object is not callable" in errors[1]
    assert "Traceback" not in errors[1]

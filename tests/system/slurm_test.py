"""launch/slurm.sbatch on a real Slurm: one node, made for these tests and ended after them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import QUICK, ROOT, free_port, trainer_environment
from trainer.schedules.cyclical import create_triangular_schedule

DAEMONS = {
    name: shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    for name in ("munged", "slurmctld", "slurmd")
}
MISSING = [name for name, path in DAEMONS.items() if path is None]

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"not installed: {', '.join(MISSING)} (Debian: apt-get install slurm-wlm munge)",
    ),
    pytest.mark.skipif(
        hasattr(os, "geteuid") and os.geteuid() != 0, reason="the daemons of Slurm need root"
    ),
]

# linuxproc and task/none: no cgroups, so that it runs in a container. cred_expire is also how long
# a job that was requeued waits; Slurm then looks for it every sched_interval.
CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1
ReturnToService=2
KillWait=30
NodeName=localhost CPUs=2 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A running Slurm; the environment in which its commands find it."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(folder=folder, ports=[free_port(), free_port()])
    )
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    environment = trainer_environment() | {"SLURM_CONF": str(folder / "slurm.conf")}
    munge = [
        *(DAEMONS["munged"], "--foreground", "--force"),
        *(f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"),
        *(f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log"),
        f"--seed-file={folder}/munged.seed",
    ]
    daemons = []

    def start(*command: str) -> None:
        with (folder / "daemons.log").open("a") as log:
            daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def ready() -> bool:
        found = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True)
        return found.stdout.strip() == b"idle"

    try:
        start(*munge)
        wait_for((folder / "munge.socket").exists, folder)
        start(DAEMONS["slurmctld"], "-D")
        start(DAEMONS["slurmd"], "-D", "-N", "localhost")
        wait_for(ready, folder)
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(timeout=30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def wait_for(condition: Callable[[], object], folder: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        logs = [path.read_text() for path in sorted(folder.glob("*.log"))]
        assert time.monotonic() < deadline, "\n".join(logs)
        time.sleep(0.05)


class Job:
    """A job of launch/slurm.sbatch with two tasks."""

    def __init__(
        self, slurm: dict[str, str], folder: Path, data_dir: Path, *flags: str, srun: str = ""
    ) -> None:
        """Submit it, with options of srun before its flags."""
        self.folder = folder
        self._environment = slurm | {"PYTHON": sys.executable}
        self.id = self.run(
            *("sbatch", "--parsable", "--ntasks=2", str(ROOT / "launch" / "slurm.sbatch")),
            *(*srun.split(), *QUICK, "--workdir=run"),
            *(f"--data_dir={data_dir}", *flags),
        ).strip()

    def run(self, *command: str) -> str:
        """Run a command of Slurm and return what it prints."""
        done = subprocess.run(
            command, env=self._environment, cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def state(self) -> str:
        """Such as RUNNING."""
        return self.run("squeue", "--jobs", self.id, "--states=all", "-h", "-o", "%T").strip()

    def output(self) -> str:
        """What the job has printed."""
        path = self.folder / f"slurm-{self.id}.out"
        return path.read_text() if path.exists() else ""

    def steps(self) -> list[dict]:
        """The training lines of metrics.jsonl."""
        path = self.folder / "run" / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [line for line in map(json.loads, lines) if line["split"] == "train"]

    def wait_for_step(self, step: int) -> None:
        """Wait until it has trained so many steps."""
        wait_for(lambda: len(self.steps()) > step or self._fail_if_ended(), self.folder)

    def wait_for_state(self, state: str) -> None:
        """Wait until it has come to its end."""
        wait_for(lambda: self.state() == state, self.folder)

    def _fail_if_ended(self) -> bool:
        """Raise if the job has ended; False."""
        assert self.state() in ("PENDING", "CONFIGURING", "RUNNING"), self.output()
        return False


@pytest.fixture
def job(slurm: dict[str, str], tmp_path: Path, data_dir: Path):
    """Submit a job with the given flags."""
    return lambda *flags, **options: Job(slurm, tmp_path, data_dir, *flags, **options)


@pytest.mark.slow
def test_two_tasks_find_each_other(job) -> None:
    run = job("--num_steps=40")
    wait_for(lambda: run.state() not in ("PENDING", "RUNNING", "COMPLETING"), run.folder)
    assert run.state() == "COMPLETED", run.output()
    assert [line["step"] for line in run.steps()] == list(range(40))
    assert "of 2 processes" in run.output()
    assert "the tasks left with status 0" in run.output()


NUM_STEPS = 300


@pytest.mark.parametrize(
    "command",
    [
        ("scancel", "--signal=USR1"),
        pytest.param(("scontrol", "requeue"), marks=pytest.mark.slow),
    ],
)
def test_resumes_after(job, command: tuple[str, ...]) -> None:
    """Requeued by Slurm, as a preemption does it; and by the script, as ahead of the time limit."""
    flags = ("--checkpoint_every_steps=100000", "--eval_every_steps=1000")
    run = job(f"--num_steps={NUM_STEPS}", *flags, srun="--label --")
    run.wait_for_step(30)
    run.run(*command, run.id)
    wait_for(lambda: "started again 1 times" in run.output(), run.folder)
    wait_for(lambda: run.state() not in ("PENDING", "RUNNING", "COMPLETING"), run.folder)
    output = run.output()
    assert run.state() == "COMPLETED", output
    assert "started again 2 times" not in output
    assert ("back into the queue" in output) == (command[0] == "scancel")
    stopped = int(output.split(" at step ")[1].split()[0])
    assert 30 <= stopped < NUM_STEPS
    assert f"resuming at step {stopped}:" in output
    assert "of 2 processes" in output
    assert "\n0: " in output  # What srun's option asks for.
    lines = run.steps()
    assert [line["step"] for line in lines] == list(range(NUM_STEPS))
    rates = create_triangular_schedule(3e-3, 0.03, 7)(np.arange(NUM_STEPS))
    np.testing.assert_array_equal([np.float32(line["learning_rate"]) for line in lines], rates)


@pytest.mark.slow
def test_scancel_saves_a_checkpoint_and_ends_the_job(job) -> None:
    run = job("--num_steps=100000", "--checkpoint_every_steps=100000")
    run.wait_for_step(30)
    run.run("scancel", run.id)
    run.wait_for_state("CANCELLED")
    wait_for(lambda: "the tasks left with status" in run.output(), run.folder)
    assert "checkpoint saved" in run.output()
    assert "back into the queue" not in run.output()
    time.sleep(1)
    assert run.state() == "CANCELLED"

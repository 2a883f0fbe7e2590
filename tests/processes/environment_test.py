"""A run that is given nothing about processes trains alone, whatever the environment suggests."""

import sys
import time
import types
from collections.abc import Callable

import pytest

from trainer.errors import UsageError
from trainer.processes import launchers
from trainer.processes.cluster import Cluster, find_cluster

SLURM = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_NODELIST": "node[07-09]",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.7:3333",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
BATCH_SCRIPT = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    def set_variables(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.fixture
def kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of Kubernetes, in a container that may not ask anything."""
    module = types.ModuleType("kubernetes")
    module.__spec__ = types.SimpleNamespace(loader=None)  # type: ignore[assignment]

    def refuse() -> None:
        raise RuntimeError("Service token file does not exist.")

    module.config = types.SimpleNamespace(load_incluster_config=refuse)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kubernetes", module)


@pytest.mark.parametrize(
    "variables",
    [
        SLURM | {"SLURM_PTY_PORT": "40001"},  # srun --pty bash
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},  # salloc with interactive steps
        BATCH_SCRIPT,  # python in a batch script, without srun
        SLURM | {"SLURM_NTASKS": "1"},
        {"OMPI_MCA_orte_hnp_uri": OPEN_MPI["OMPI_MCA_orte_hnp_uri"]},
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {"JOB_COMPLETION_INDEX": "3"},
        {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"},
        {"MEGASCALE_COORDINATOR_ADDRESS": "a:8080", "MEGASCALE_NUM_SLICES": "2"},
        {"JAX_COORDINATOR_ADDRESS": "10.0.0.9:1234"},
    ],
    ids=lambda variables: next(reversed(variables)),
)
@pytest.mark.usefixtures("kubernetes")
def test_alone_where_nothing_is_given(environment, variables: dict[str, str]) -> None:
    environment(variables)
    assert find_cluster() is None


def test_pods_of_one_job_do_not_train_alone_by_mistake(environment) -> None:
    environment({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"})
    with pytest.raises(UsageError, match="JOB_COMPLETION_INDEX=1: this is a pod of an Indexed Job"):
        find_cluster()
    assert find_cluster(num_processes=1) is None
    assert find_cluster("trainer-workers-0-0.trainer:8476", 2, 1) == Cluster(
        "trainer-workers-0-0.trainer:8476", 2, 1
    )


@pytest.mark.parametrize("variables", [SLURM, OPEN_MPI, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}])
@pytest.mark.usefixtures("kubernetes")
def test_one_process_is_alone_whatever_a_launcher_says(environment, variables: dict) -> None:
    environment(variables | {"SLURM_PROCID": "none"})
    assert find_cluster(num_processes=1) is None


@pytest.mark.parametrize(
    ("variables", "given", "source"),
    [
        (SLURM | {"SLURM_PROCID": "x"}, {}, "SLURM_NTASKS=3"),
        ({k: v for k, v in OPEN_MPI.items() if "RANK" not in k}, {}, "OMPI_COMM_WORLD_SIZE=4"),
        (
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
            {"num_processes": 2},
            "KUBERNETES_SERVICE_HOST=10.0.0.1",
        ),
    ],
)
@pytest.mark.usefixtures("kubernetes")
def test_what_makes_no_sense_is_named(
    environment, variables: dict[str, str], given: dict, source: str
) -> None:
    environment(variables)
    with pytest.raises(UsageError) as error:
        find_cluster(**given)
    assert source in str(error.value)
    assert "use --num_processes=1 to train in this process alone" in str(error.value)


def test_the_source_is_named_where_it_is_believed(environment) -> None:
    environment(SLURM)
    assert "SLURM_NTASKS=3 says so; --num_processes=1 trains" in find_cluster().hint
    assert find_cluster("node07:5555", 3, 2).hint == ""


def test_each_task_of_a_host_takes_one_gpu_and_no_other_process(environment) -> None:
    environment(SLURM)
    assert find_cluster().local_id == 0
    # Two processes that a task has started itself share its GPUs by other means.
    assert find_cluster("127.0.0.1:5555", 2, 1).local_id is None


def test_the_run_token_comes_from_the_flag_or_the_environment(environment) -> None:
    environment({"TRAINER_RUN_TOKEN": "secret"})
    assert find_cluster("127.0.0.1:5555", 2, 1).run_token == "secret"
    found = find_cluster("127.0.0.1:5555", 2, 1, run_token="other")
    assert found.run_token == "other"
    assert "other" not in repr(found)
    assert found == Cluster("127.0.0.1:5555", 2, 1)


def test_looking_up_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TimeoutError):
        launchers._within(0.05, lambda: time.sleep(5))

"""What flags and launchers say about the processes of a run."""

import os
from collections.abc import Callable

import pytest

from trainer.errors import UsageError
from trainer.processes.cluster import Cluster, find_cluster

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

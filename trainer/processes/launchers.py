"""What launchers and schedulers tell the processes that they start, and when that is believed.

Their variables are inherited: a shell in a job, a script that a task starts, a container all see
them, and most of those train alone. A launcher is believed if it says that it started this very
process as one of several.
"""

import contextlib
import dataclasses
import importlib.util
import os
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from trainer.errors import UsageError

# Seconds for what is looked up in a network: a TPU pod's first host, a cluster's interface.
_LOOK_UP_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Told:
    """What a launcher said.

    Attributes:
      address: "host:port" of process 0, or "" if it does not say.
      num_processes: or None.
      process_id: or None.
      one_host: whether all processes are on this host.
      local_id: which of the processes of its host this is, so that each takes one GPU, or None.
      source: the variable that was believed, and its value.
    """

    address: str = ""
    num_processes: int | None = None
    process_id: int | None = None
    one_host: bool = False
    local_id: int | None = None
    source: str = ""


def ask(partly_given: bool) -> Told:
    """Return what the launcher of this process says of it; nothing if there is none.

    Args:
      partly_given: whether the user said that there are several processes. Kubernetes is asked only
        then: its pods need not train together.

    Raises:
      UsageError: a launcher is there, and what it says makes no sense.
    """
    for look in (_slurm, _open_mpi, _tpu, *([_kubernetes] if partly_given else [])):
        told = look(os.environ)
        if told is not None:
            return told
    return Told()


def ask_variables() -> Told:
    """Return what Slurm or Open MPI say, for a run that does not need to be told."""
    with contextlib.suppress(UsageError):
        return _slurm(os.environ) or _open_mpi(os.environ) or Told()
    return Told()


def _slurm(variables: Mapping[str, str]) -> Told | None:
    """Ask Slurm, unless this is an interactive shell or a script: only srun starts tasks."""
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
    if any(name not in variables for name in needed) or "SLURM_PTY_PORT" in variables:
        return None
    # An interactive step is one task, and inherits the job's SLURM_NTASKS.
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in variables else "SLURM_NTASKS"
    if variables[name] == "1":
        return None
    return _ask_jax("SlurmCluster", name, variables, variables.get("SLURM_STEP_NUM_NODES") == "1")


def _open_mpi(variables: Mapping[str, str]) -> Told | None:
    """Ask Open MPI."""
    size = variables.get("OMPI_COMM_WORLD_SIZE", "1")
    if size == "1" or "OMPI_MCA_orte_hnp_uri" not in variables:
        return None
    one_host = size == variables.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    return _ask_jax("OmpiCluster", "OMPI_COMM_WORLD_SIZE", variables, one_host)


def _tpu(variables: Mapping[str, str]) -> Told | None:
    """Ask the TPU VM that this is, if it is one."""
    from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm

    if not running_in_cloud_tpu_vm:
        return None
    # On Google Kubernetes Engine variables tell, on a VM its metadata server.
    names = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    name = next((name for name in names if name in variables), "")
    if name and "," not in variables[name] and "MEGASCALE_NUM_SLICES" not in variables:
        return None
    if not name and "TPU_SKIP_MDS_QUERY" in variables:
        return None
    return _ask_jax("GkeTpuCluster" if name else "GceTpuCluster", name, variables)


def _kubernetes(variables: Mapping[str, str]) -> Told | None:
    """Ask the cluster's interface, which takes the package kubernetes."""
    name = "KUBERNETES_SERVICE_HOST"
    if name not in variables or importlib.util.find_spec("kubernetes") is None:
        return None
    return _ask_jax("K8sCluster", name, variables)


def _ask_jax(
    launcher: str, name: str, variables: Mapping[str, str], one_host: bool = False
) -> Told | None:
    """Return what jax.distributed.initialize would find, and nothing that does not fit."""
    # jax has no public way to ask before it connects, and connecting for a single process would
    # hide all GPUs but one from it.
    from jax._src.clusters import ClusterEnv

    (cluster,) = [kind for kind in ClusterEnv._cluster_types if kind.__name__ == launcher]
    source = f"{name}={variables[name]}" if name else "the TPU's metadata server"

    def look_up() -> Told | None:
        if not cluster.is_env_present():
            return None
        count = cluster.get_process_count()
        if count < 2:
            return None
        port = variables.get("JAX_COORDINATOR_PORT")
        address = cluster.get_coordinator_address(int(_LOOK_UP_SECONDS), port)
        local = cluster.get_local_process_id()
        return Told(address, count, cluster.get_process_id(), one_host, local, source)

    try:
        return _within(_LOOK_UP_SECONDS, look_up)
    except Exception as error:  # Of a launcher's variables, or of whatever answers there.
        detail = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(
            f"{source} says that this process is one of several, but not which: {detail}; use "
            "--num_processes=1 to train in this process alone, or give --coordinator_address, "
            "--num_processes and --process_id"
        ) from error


def _within(seconds: float, look_up: Callable[[], Any]) -> Any:
    """Return what a function returns; raise a TimeoutError if it takes too long."""
    answers: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()

    def run() -> None:
        try:
            answers.put((look_up(), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=run, name="launcher", daemon=True).start()
    with contextlib.suppress(queue.Empty):
        value, error = answers.get(timeout=seconds)
        if error is not None:
            raise error
        return value
    raise TimeoutError(f"no answer within {seconds:.0f} s")

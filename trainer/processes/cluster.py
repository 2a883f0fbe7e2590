"""Which processes train together: by flags, or as the launcher tells."""

import dataclasses
import ipaddress
import logging
import os

from trainer.errors import UsageError
from trainer.processes.launchers import ask, ask_variables

logger = logging.getLogger(__name__)

_HOW_TO = (
    "host:port of process 0, the number of processes, and 0 for the first; Slurm, Open MPI and TPU "
    "pods set them by themselves"
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several processes that train together.

    Attributes:
      coordinator_address: "host:port" of process 0.
      num_processes: at least 2.
      process_id: of this process, 0 <= process_id < num_processes.
      local_id: as the launcher counts the processes of a host, each of which takes one GPU; None if
        it does not, and each process takes all devices that it sees.
      source: what said so, if it was no flag, such as "SLURM_NTASKS=4".
      run_token: a secret of the run, or "".
    """

    coordinator_address: str
    num_processes: int
    process_id: int
    local_id: int | None = dataclasses.field(default=None, compare=False)
    source: str = dataclasses.field(default="", compare=False)
    run_token: str = dataclasses.field(default="", compare=False, repr=False)

    @property
    def host(self) -> str:
        """The host of process 0."""
        return self.coordinator_address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port of process 0."""
        return int(self.coordinator_address.rpartition(":")[2])

    @property
    def local(self) -> bool:
        """Whether the address can be reached from this host only."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def hint(self) -> str:
        """How to overrule what said that there are several processes; "" if the user did."""
        if not self.source:
            return ""
        return f" ({self.source} says so; --num_processes=1 trains in this process alone)"


def find_cluster(
    coordinator_address: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    run_token: str = "",
) -> Cluster | None:
    """Return the processes that this one trains with, or None if it trains alone.

    What is not given is asked of the environment that started the process: JAX_COORDINATOR_ADDRESS,
    Slurm, Open MPI, TPU pods, and Kubernetes if something was given. A run that is given nothing,
    and that no launcher has started as one of several, trains alone, and so does one that is told
    num_processes=1, whatever the environment says.

    Args:
      coordinator_address: "host:port" of process 0, or "".
      num_processes: or None.
      process_id: or None.
      run_token: a secret that all processes must know; "": that of TRAINER_RUN_TOKEN, if any.

    Raises:
      UsageError: what is given is not enough, or not consistent; or nothing is given in a pod that
        Kubernetes started as one of several.
    """
    if num_processes == 1:
        return None
    variable = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    address, count, index = coordinator_address or variable, num_processes, process_id
    given = bool(coordinator_address) or count is not None or index is not None
    complete = bool(address) and count is not None and index is not None
    told = ask_variables() if complete else ask(partly_given=given)
    if told.num_processes is None and not given:
        if variable:
            logger.warning(
                "JAX_COORDINATOR_ADDRESS=%s is ignored: nothing says how many processes there are "
                "(--num_processes, --process_id)",
                variable,
            )
        _refuse_pod_of_several()
        return None
    # Not with `or`: 0 is a process.
    count = told.num_processes if count is None else count
    index = told.process_id if index is None else index
    # What all processes of one host share, nobody else has to reach.
    asked = told.address if not told.one_host else f"127.0.0.1:{told.address.rpartition(':')[2]}"
    address = address or asked
    if count == 1:
        return None
    _check(address, count, index)
    assert count is not None
    assert index is not None
    source = told.source if num_processes is None else ""
    token = run_token or os.environ.get("TRAINER_RUN_TOKEN", "")
    # Under the user's own numbers, the launcher's of this host may be those of something else.
    local_id = told.local_id if told.num_processes == count else None
    return Cluster(address, count, index, local_id, source, token)


def _refuse_pod_of_several() -> None:
    """Raise a UsageError in a pod of an Indexed Job: nothing says whether its pods train as one."""
    index = os.environ.get("JOB_COMPLETION_INDEX")
    if index is not None and "KUBERNETES_SERVICE_HOST" in os.environ:
        raise UsageError(
            f"JOB_COMPLETION_INDEX={index}: this is a pod of an Indexed Job of Kubernetes, and "
            "nothing says whether its pods train as one run; use --num_processes=1 if each trains "
            "alone, or --coordinator_address, --num_processes and --process_id as in "
            "launch/jobset.yaml"
        )


def _check(address: str, count: int | None, index: int | None) -> None:
    """Raise a UsageError unless all is known and consistent."""
    flags = f"--coordinator_address={address} --num_processes={count} --process_id={index}"
    if not address or count is None or index is None:
        raise UsageError(f"{flags}: all three are needed here; use {_HOW_TO}")
    if not 0 <= index < count:
        raise UsageError(f"{flags}; use 0 <= process_id < num_processes")
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 2**16:
        raise UsageError(f"--coordinator_address={address}; use host:port, with a port 1 to 65535")

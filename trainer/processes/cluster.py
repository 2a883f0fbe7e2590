"""Which processes train together: by flags, or as the launcher tells."""

import dataclasses
import ipaddress
import os

from trainer.errors import UsageError

# Seconds that a TPU pod gets to know the name of its first host.
_DETECTION_SECONDS = 120


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several processes that train together.

    Attributes:
      coordinator_address: "host:port" of process 0.
      num_processes: at least 2.
      process_id: of this process, 0 <= process_id < num_processes.
    """

    coordinator_address: str
    num_processes: int
    process_id: int

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


def find_cluster(
    coordinator_address: str = "", num_processes: int | None = None, process_id: int | None = None
) -> Cluster | None:
    """Return the processes that this one trains with, or None if it trains alone.

    What is not given is asked of the environment that started the process, as
    jax.distributed.initialize does it: Slurm, Open MPI, TPU pods.

    Args:
      coordinator_address: "host:port" of process 0, or "".
      num_processes: or None.
      process_id: or None.

    Raises:
      UsageError: what is given is not enough, or not consistent.
    """
    given = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    address, count, index = given, num_processes, process_id
    if not address or count is None or index is None:
        found = _detect(given, num_processes, process_id)
        address, count, index = found[0] or "", found[1], found[2]
    flags = f"--coordinator_address={address} --num_processes={count} --process_id={index}"
    if count == 1 or not (given or num_processes or process_id is not None or address):
        return None
    if not address or count is None or index is None:
        raise UsageError(
            f"{flags}: all three are needed here; valid: host:port of process 0, the number of "
            "processes, and 0 for the first; Slurm, Open MPI and TPU pods set them by themselves"
        )
    if not 0 <= index < count:
        raise UsageError(f"{flags}; valid: 0 <= process_id < num_processes")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(f"--coordinator_address={address}; valid: host:port, port 1 to 65535")
    if not given and _on_one_host():
        # Nobody else has to reach it.
        address = f"127.0.0.1:{port}"
    return Cluster(address, count, index)


def _detect(
    address: str, count: int | None, index: int | None
) -> tuple[str | None, int | None, int | None]:
    """Return what jax.distributed.initialize would find."""
    # jax has no public way to ask before it connects, and connecting for a single process would
    # hide all GPUs but one from it.
    from jax._src.clusters import ClusterEnv

    found = ClusterEnv.auto_detect_unset_distributed_params(
        address or None, count, index, None, None, _DETECTION_SECONDS
    )
    return found[0], found[1], found[2]


def _on_one_host() -> bool:
    """Return whether the launcher says that all processes are on this host."""
    size = os.environ.get("OMPI_COMM_WORLD_SIZE")
    on_slurm = os.environ.get("SLURM_STEP_NUM_NODES") == "1"
    return on_slurm or (size is not None and size == os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE"))

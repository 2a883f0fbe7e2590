"""What jax is told before it touches any device: platform, virtual devices, threads, memory."""

import contextlib
import ctypes
import os

import jax

from trainer.devices.settings import refuse_unusable

# As many as the tree of 8 gradient shards has leaves; more were never measured.
_MOST_CPU_DEVICES = 8

_DETERMINISTIC = "xla_gpu_deterministic_ops"


def configure(
    platform: str,
    num_cpu_devices: int,
    batch_size: int,
    num_processes: int = 1,
    deterministic: bool = True,
) -> None:
    """Choose the platform and make the virtual CPU devices; before jax touches any device.

    Args:
      platform: "auto", "cpu", "gpu" or "tpu".
      num_cpu_devices: virtual CPU devices to make, or 0 to choose by the cores.
      batch_size: global batch size; a number that is chosen divides it.
      num_processes: that train together; they share the cores as if all were on this host.
      deterministic: whether GPUs may use only operations with the same bits in every run.

    Raises:
      UsageError: a setting of jax is on with which nothing can be trained.
    """
    refuse_unusable()
    num_cpu_devices = num_cpu_devices or _choose_num_cpu_devices(batch_size, num_processes)
    # XLA:CPU runs all virtual devices on one thread pool as large as the machine. A collective
    # whose devices do not all find a thread waits for ever; 2 threads a device cured it in every
    # run tried, among several processes 4. More cost time: 4 instead of 2 a tenth of a step. The
    # variable is read once, when the backend starts.
    threads = (2 if num_processes == 1 else 4) * num_cpu_devices
    os.environ.setdefault("PJRT_NPROC", str(max(threads, os.cpu_count() or 1)))
    jax.config.update("jax_num_cpu_devices", num_cpu_devices)
    _keep_freed_memory()
    if deterministic:
        require_deterministic_gpus()
    if platform == "cpu":
        # Otherwise jax would also start, and reserve memory on, an accelerator that is not used.
        jax.config.update("jax_platforms", "cpu")


def require_deterministic_gpus() -> None:
    """Let XLA:GPU use only operations with the same bits in every run; what the user says wins.

    It is set for programs of GPUs alone. Autotuning is off then: it chooses kernels by their time,
    and so other ones, with other bits, after a restart.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _DETERMINISTIC not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_DETERMINISTIC}=true".strip()


def _keep_freed_memory() -> None:
    """Let the C library keep memory that is freed; where it is not glibc, do nothing.

    XLA:CPU takes and frees the temporary memory of a step as one block. By default glibc gives a
    block of more than 32 MB back to the system, which hands it out again as new pages of zeros: a
    third of the time of a step of 64 MB. One arena, because the others of glibc hold 64 MB at most.
    """
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # malloc.h
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_arena_max, 1)


def _choose_num_cpu_devices(batch_size: int, num_processes: int) -> int:
    """Return the largest power of two that half the cores can hold and that divides the batch."""
    num_devices = 1
    # What this process may use, where the system tells (not on macOS): Slurm gives a part.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Two cores each: measured on two kinds of CPU, one device with the tree was as fast as two or
    # faster (docs/devices.md).
    limit = min(max((cores or 1) // 2, 1), _MOST_CPU_DEVICES)
    while (
        num_processes * num_devices * 2 <= limit
        and batch_size % (num_processes * num_devices * 2) == 0
    ):
        num_devices *= 2
    return num_devices

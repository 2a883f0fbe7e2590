"""The devices of a run: virtual CPU devices, compiled programs kept, the mesh, arrays on it."""

import contextlib
import ctypes
import hashlib
import logging
import os
import pathlib
import platform as host

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trainer.errors import UsageError

DATA_AXIS = "data"

# As many as the tree of 8 gradient shards has leaves; more were never measured.
_MOST_CPU_DEVICES = 8
# Seconds: what compiles faster than this is not worth a file.
_SHORTEST_COMPILATION = 0.05

_DETERMINISTIC = "xla_gpu_deterministic_ops"
_OPTIMIZATION = "xla_backend_optimization_level"

# Settings of jax, for debugging, that no run survives: values they begin with, and the reason.
_UNUSABLE = {
    "jax_disable_jit": ("True", "the trainer compiles its steps"),
    "jax_no_tracing": ("True", "the trainer traces its steps"),
    "jax_transfer_guard": ("disallow", "the trainer puts examples and numbers on the devices"),
}

logger = logging.getLogger(__name__)


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
    _refuse_settings()
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


def _refuse_settings() -> None:
    """Refuse settings with which a run would end in a traceback of jax.

    Raises:
      UsageError: naming the variable that sets it.
    """
    for name, (value, reason) in _UNUSABLE.items():
        found = str(jax.config.values.get(name))
        if found.startswith(value):
            raise UsageError(f"{name.upper()}={found} is set, and {reason}; unset it")


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


def create_mesh(platform: str, num_devices: int) -> Mesh:
    """Return the mesh of all devices of the run, with the one axis "data".

    Args:
      platform: "auto", "cpu", "gpu" or "tpu".
      num_devices: use the first n devices, or 0 for all.

    Raises:
      UsageError: another platform than asked, fewer devices than asked, or devices that leave
        a process without any.
    """
    try:
        found = jax.default_backend()
    # jax only asserts that something of what JAX_PLATFORMS names is there.
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["it finds none"])[0]
        asked = os.environ.get("JAX_PLATFORMS")
        cause = f"JAX_PLATFORMS={asked}" if asked else f"--platform={platform}"
        raise UsageError(
            f"{cause}: jax cannot start its devices ({reason}); use another platform, or install "
            "what it needs"
        ) from error
    if platform not in ("auto", found):
        raise UsageError(
            f"--platform={platform}: jax finds only {found} here; use --platform={found} or "
            f"auto, or install the extra for {platform} (README, Devices)"
        )
    devices = jax.devices()
    if num_devices > len(devices):
        raise UsageError(
            f"--num_devices={num_devices}: there are {len(devices)} ({found}); use 1 to "
            f"{len(devices)}, or 0 for all"
            + ("; --num_cpu_devices=N makes more" if found == "cpu" else "")
        )
    if jax.process_count() > 1 and num_devices not in (0, len(devices)):
        raise UsageError(
            f"--num_devices={num_devices} of the {len(devices)} that {jax.process_count()} "
            "processes have; use 0 for all, or fewer processes"
        )
    devices = devices[: num_devices or len(devices)]
    return Mesh(np.array(devices), (DATA_AXIS,))


def platform_of(mesh: Mesh) -> str:
    """Return "cpu", "gpu" or "tpu"; its devices need not be here."""
    return str(mesh.devices.flat[0].platform)


def are_there(num_devices: int) -> bool:
    """Return whether the first n devices, or with 0 all, can be used here."""
    return num_devices in (0, jax.device_count()) or (
        num_devices < jax.device_count() and jax.process_count() == 1
    )


def check_divisible(batch_size: int, mesh: Mesh) -> None:
    """Check that the batch can be cut evenly; the batch size is never changed silently.

    Raises:
      UsageError: it cannot; the message names sizes that fit.
    """
    rest = batch_size % mesh.size
    if rest:
        fitting = [size for size in (batch_size - rest, batch_size - rest + mesh.size) if size]
        raise UsageError(
            f"--batch_size={batch_size} cannot be cut into equal parts for {mesh.size} devices; "
            f"use a multiple of {mesh.size}, such as {' or '.join(map(str, fitting))}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def sharded(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding of an array whose given axis is cut into one part a device."""
    return NamedSharding(mesh, P(*[None] * axis, DATA_AXIS))


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Put an array, of which every process has the whole, on the devices.

    jax.device_put would do the same, and let the processes compare all of it over the network.
    """
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def compile_quickly(lowered: jax.stages.Lowered, mesh: Mesh) -> jax.stages.Compiled:
    """Compile a program that runs rarely, once or once an epoch; on a CPU in half of the time.

    Level 1 of LLVM's optimization leaves out passes for speed. The first state has the same bits
    (a test compares them); not so at level 0, which does not fuse a product with a sum.

    Args:
      lowered: the program.
      mesh: the devices that it is for.
    """
    cpu = platform_of(mesh) == "cpu"
    return lowered.compile(compiler_options={_OPTIMIZATION: "1"} if cpu else None)


def describe(mesh: Mesh) -> str:
    """Return the devices in words, such as "4 devices (cpu) of 2 processes"."""
    device = mesh.devices.flat[0]
    kind = "" if device.device_kind == device.platform else f" {device.device_kind}"
    count = jax.process_count()
    owners = f" of {count} processes" if count > 1 else ""
    return f"{mesh.size} device{'s' * (mesh.size > 1)} ({device.platform}{kind}){owners}"


def enable_compilation_cache() -> None:
    """Let jax keep and find compiled programs; before anything is compiled.

    A folder that the user chose (JAX_COMPILATION_CACHE_DIR) stays. Where no folder can be written,
    nothing is kept.
    """
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    folder = cache_dir()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST_COMPILATION)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def cache_dir() -> pathlib.Path:
    """Return the folder of compiled programs, one for each kind of CPU.

    jax's keys do not tell one kind of CPU from another, and a home may be shared by hosts of
    several kinds: a program for the wrong one would crash.
    """
    # Without HOME and without an entry in the list of users, "~" stays: nothing can be kept then.
    home = os.path.expanduser("~")
    home = os.devnull if home == "~" else home
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    return pathlib.Path(root) / "cyclic-trainer" / cpu_kind()


def cpu_kind() -> str:
    """Return a name for CPUs that can do the same as this one, as far as the system tells."""
    return f"{host.machine()}-{hashlib.sha256(_cpu_features().encode()).hexdigest()[:8]}"


def _cpu_features() -> str:
    """Return what this CPU can do, as far as the system tells."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return line
    return host.processor()

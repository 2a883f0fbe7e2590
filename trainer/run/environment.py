"""What decides on the last bits of a run beside its configuration: libraries, devices, settings."""

import functools
import hashlib
import logging
import os
from importlib.metadata import version
from pathlib import Path

import jax

from trainer import devices, processes
from trainer.checkpoints import Restored
from trainer.errors import UsageError

logger = logging.getLogger(__name__)

_PACKAGES = ("cyclic-trainer", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
# Other versions of the others may compile a step to other bits.
_PACKAGES_OF_NO_BITS = ("cyclic-trainer", "orbax-checkpoint")
# Read by the compilers, and by the libraries that multiply and add on GPUs.
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "NCCL_ALGO", "NCCL_PROTO")
# Flags of XLA that change no program.
_HARMLESS = ("--xla_force_host_platform_device_count", "--xla_dump")
_SETTINGS = (
    "jax_default_matmul_precision",
    "jax_disable_most_optimizations",
    "jax_exec_time_optimization_effort",
    "jax_optimization_level",
)


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of what a checkpoint depends on; looked up once, it reads files."""
    return {package: version(package) for package in _PACKAGES}


def environment() -> dict[str, str]:
    """Return what may change the last bits of a step here, beside the versions of libraries.

    Returns:
      Name to value, as text: "device", its kind; "compiler", of the platform, such as the version
      of CUDA; and variables of the environment and settings of jax by their names.
    """
    device, settings = jax.local_devices()[0], jax.config.values
    kind = devices.cpu_kind() if device.platform == "cpu" else device.device_kind
    return {
        "device": f"{device.platform} {kind}",
        "compiler": " ".join(device.client.platform_version.split()),
        **{name: _flags(os.environ.get(name, ""), device.platform) for name in _VARIABLES},
        **{name: str(settings[name]) for name in _SETTINGS if name in settings},
    }


def check_environment(restored: Restored | None) -> None:
    """Say what may make the last bits of a run others from here on; waits for all processes.

    Args:
      restored: the checkpoint that the run resumes from, or None.

    Raises:
      UsageError: processes that train together have other versions of trainer or libraries.
    """
    here, *others = processes.gather(environment())
    _check_processes()
    if not processes.is_first():
        return
    if restored:
        # Checkpoints of older versions have no environment.
        before = restored.meta["versions"] | restored.meta.get("environment", {})
        changed = _differences(before, versions() | here, "now")
        if changed:
            logger.warning(
                "checkpoint %d was made with %s: the last bits may differ from here on",
                *(restored.step, changed),
            )
    for number, other in enumerate(others, 1):
        differing = _differences(here, other, f"in process {number}")
        if differing:
            logger.warning(
                "process 0 has %s: the last bits of their replicas may differ, and the check "
                "before each checkpoint would then end the run",
                differing,
            )


def _check_processes() -> None:
    """Refuse processes whose trainer, or whose libraries, are others: their gradients would mix.

    Raises:
      UsageError: naming the process, and what is another.
    """
    if not processes.several():
        return
    own = versions() | {"the code of the trainer": _code_digest()[:8]}
    first, *others = processes.gather(own)
    for number, other in enumerate(others, 1):
        differing = _differences(first, other, f"in process {number}", of_bits=False)
        if differing:
            raise UsageError(
                f"the processes run different programs: {differing}; install the same versions "
                "everywhere"
            )


@functools.cache
def _code_digest() -> str:
    """Return the SHA-256 of the trainer's own modules, in hex."""
    folder, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _differences(
    before: dict[str, str], now: dict[str, str], whose: str, of_bits: bool = True
) -> str:
    """Return, in words, what both have and differs; of packages only what may change bits."""
    return ", ".join(
        f"{name} {before[name] or 'unset'}, {whose} {value or 'unset'}"
        for name, value in now.items()
        if name in before
        and before[name] != value
        and not (of_bits and name in _PACKAGES_OF_NO_BITS)
    )


def _flags(text: str, platform: str) -> str:
    """Return flags without those that change no program here, in one order."""
    others = tuple(f"--xla_{name}_" for name in ("cpu", "gpu", "tpu") if name != platform)
    return " ".join(
        sorted(flag for flag in text.split() if not flag.startswith(_HARMLESS + others))
    )

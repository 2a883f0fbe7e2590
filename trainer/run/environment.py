"""What decides on the last bits of a run beside its configuration: libraries, devices, settings."""

import functools
import logging
import os
from importlib.metadata import version

import jax

from trainer import devices, processes
from trainer.checkpoints import Restored

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
    """
    here, *others = processes.gather(environment())
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
        differing = _differences(here, other, f"process {number}")
        if differing:
            logger.warning(
                "process 0 has %s: the last bits of their replicas may differ, and the check "
                "before each checkpoint would then end the run",
                differing,
            )


def _differences(before: dict[str, str], now: dict[str, str], whose: str) -> str:
    """Return, in words, what both have, differs, and may change bits."""
    return ", ".join(
        f"{name} {before[name] or 'unset'}, {whose} {value or 'unset'}"
        for name, value in now.items()
        if name in before and before[name] != value and name not in _PACKAGES_OF_NO_BITS
    )


def _flags(text: str, platform: str) -> str:
    """Return flags without those that change no program here, in one order."""
    others = tuple(f"--xla_{name}_" for name in ("cpu", "gpu", "tpu") if name != platform)
    return " ".join(
        sorted(flag for flag in text.split() if not flag.startswith(_HARMLESS + others))
    )

"""The mesh of a run, and how arrays lie on it."""

import os

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trainer.errors import UsageError

DATA_AXIS = "data"


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


def describe(mesh: Mesh) -> str:
    """Return the devices in words, such as "4 devices (cpu) of 2 processes"."""
    device = mesh.devices.flat[0]
    kind = "" if device.device_kind == device.platform else f" {device.device_kind}"
    count = jax.process_count()
    owners = f" of {count} processes" if count > 1 else ""
    return f"{mesh.size} device{'s' * (mesh.size > 1)} ({device.platform}{kind}){owners}"

"""The mesh has the devices that were asked for, or the message says which there are."""

import ctypes
import os
import platform
import resource

import jax
import pytest

from trainer import devices
from trainer.errors import UsageError


@pytest.mark.parametrize("num_devices", [1, 3, 8])
def test_the_first_devices_are_taken(num_devices: int) -> None:
    mesh = devices.create_mesh("cpu", num_devices)
    assert list(mesh.devices.flat) == jax.devices()[:num_devices]
    assert mesh.axis_names == ("data",)


def test_zero_means_all() -> None:
    assert devices.create_mesh("auto", 0).size == 8


def test_too_many_devices_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--num_devices=9: there are 8 .*1 to 8.*num_cpu_devices"):
        devices.create_mesh("cpu", 9)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_another_platform_is_refused(platform: str) -> None:
    with pytest.raises(UsageError, match=f"--platform={platform}: jax finds only cpu"):
        devices.create_mesh(platform, 0)


@pytest.mark.parametrize(
    ("batch_size", "num_devices", "fitting"),
    [(100, 8, "96 or 104"), (128, 3, "126 or 129"), (5, 8, "8")],
)
def test_a_batch_that_cannot_be_cut_is_refused(
    batch_size: int, num_devices: int, fitting: str
) -> None:
    with pytest.raises(UsageError, match=f"--batch_size={batch_size} .* such as {fitting}$"):
        devices.check_divisible(batch_size, devices.create_mesh("cpu", num_devices))


def test_a_batch_that_can_be_cut_is_taken() -> None:
    devices.check_divisible(120, devices.create_mesh("cpu", 3))


def test_describe() -> None:
    assert devices.describe(devices.create_mesh("cpu", 1)) == "1 device (cpu)"
    assert devices.describe(devices.create_mesh("cpu", 8)) == "8 devices (cpu)"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "--xla_gpu_deterministic_ops=true"),
        ("--xla_a=1", "--xla_a=1 --xla_gpu_deterministic_ops=true"),
        ("--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
    ],
)
def test_gpus_are_deterministic(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if before is not None:
        monkeypatch.setenv("XLA_FLAGS", before)
    devices.require_deterministic_gpus()
    assert os.environ["XLA_FLAGS"] == after


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_not_given_back() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    faults = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = ctypes.c_void_p(libc.malloc(2**27))
        libc.memset(block, 1, ctypes.c_size_t(2**27))  # 32,768 pages, were they all new.
        libc.free(block)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert min(faults[1:]) < 100, faults

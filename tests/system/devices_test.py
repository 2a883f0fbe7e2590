"""What a fresh process makes of the cores of its machine."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.system


def configured(platform: str, num_cpu_devices: int, batch_size: int, **environment: str) -> dict:
    """What a fresh process sees after configure()."""
    program = (
        "import json, os, jax\n"
        "from trainer import devices\n"
        f"devices.configure({platform!r}, {num_cpu_devices}, {batch_size})\n"
        "print(json.dumps({'devices': jax.device_count(), 'threads': os.environ.get('PJRT_NPROC'),"
        " 'platform': jax.default_backend()}))"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("PJRT_NPROC", "XLA_FLAGS")}
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, capture_output=True, check=True, env=clean | environment)
    return json.loads(out.stdout)


def test_virtual_devices_get_threads_enough() -> None:
    found = configured("cpu", 8, 128)
    assert found["devices"] == 8
    assert int(found["threads"]) >= 16
    assert configured("cpu", 8, 128, PJRT_NPROC="64")["threads"] == "64"


@pytest.mark.parametrize(("batch_size", "power"), [(128, 8), (12, 4), (5, 1)])
def test_the_number_chosen_fits_cores_and_batch(batch_size: int, power: int) -> None:
    found = configured("auto", 0, batch_size)
    cores = len(os.sched_getaffinity(0))
    assert found["devices"] == min(power, 2 ** (min(max(cores // 2, 1), 8).bit_length() - 1))

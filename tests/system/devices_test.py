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


@pytest.mark.parametrize(
    ("model", "all_threads"),
    [
        ("cnn", (2, 3, 8)),
        ("small_cnn", (2, 3, 8)),
        *(
            pytest.param(name, (2, 3, 4, 8, 16, 32), marks=pytest.mark.slow)
            for name in ("cnn", "small_cnn", "mlp")
        ),
    ],
)
def test_bits_do_not_depend_on_the_threads(model: str, all_threads: tuple[int, ...]) -> None:
    """The gradients of shards of 8, 16 and 64 examples, by a process for each number of threads."""
    program = (
        "import hashlib, jax, jax.numpy as jnp, numpy as np\n"
        "from trainer.step.networks import create_network\n"
        f"network = create_network({model!r}, (28, 28, 1), 10)\n"
        "params, statistics = network.init(jax.random.key(0))\n"
        "key = jax.random.key(1)\n"
        "@jax.jit\n"
        "@jax.grad\n"
        "def grads(params, images):\n"
        "    logits, _ = network.apply_in_training(params, statistics, images, key)\n"
        "    return jax.nn.logsumexp(logits, -1).sum()\n"
        "digest = hashlib.sha256()\n"
        "for size in (8, 16, 64):\n"
        "    images = jax.random.normal(key, (size, 28, 28, 1))\n"
        "    for leaf in jax.tree.leaves(grads(params, images)):\n"
        "        digest.update(np.asarray(leaf).tobytes())\n"
        "print(digest.hexdigest())"
    )
    found = {}
    for threads in all_threads:
        environment = os.environ | {"PJRT_NPROC": str(threads), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", program]
        out = subprocess.run(command, capture_output=True, check=True, text=True, env=environment)
        found[threads] = out.stdout
    assert len(set(found.values())) == 1, found

"""Every program of a run, compiled by XLA:TPU and XLA:GPU; no such device is needed."""

import importlib.util
import json
import subprocess
from typing import Any

import pytest

from tests.helpers import run_trainer

pytestmark = pytest.mark.accelerator

TPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="XLA:TPU is not installed: pip install -e '.[tpu]'",
)
GPU = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="XLA:GPU is not installed: pip install -e '.[cuda]'",
)
TARGETS = [
    pytest.param("v5e:2x4", marks=TPU),
    pytest.param("v6e:2x4", marks=[TPU, pytest.mark.slow]),
    pytest.param("tpu7x:2x2x1", marks=[TPU, pytest.mark.slow]),
    pytest.param("h100:8", marks=[GPU, pytest.mark.slow]),
    pytest.param("h100:2x8", marks=GPU),
]
LEAVES_OF_MLP = 784 * 128 + 128 + 128 * 10 + 10


def preflight(*flags: str, **options: Any) -> tuple[list[dict[str, Any]], Any]:
    found: subprocess.CompletedProcess[str] = run_trainer("preflight", *flags, **options)
    return [json.loads(line) for line in found.stdout.splitlines()], found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("reduction", "optimizer", "dtype"),
    [
        ("allreduce", "sgd", "bfloat16"),
        pytest.param("allreduce", "adamw", "float32", marks=pytest.mark.slow),
        ("tree", "adamw", "float32"),
        pytest.param("tree", "sgd", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_the_programs_of_a_run(
    target: str, reduction: str, optimizer: str, dtype: str, data_dir: Any
) -> None:
    reports, found = preflight(
        f"--target={target}",
        "--model=mlp",
        f"--reduction={reduction}",
        "--gradient_shards=16",
        f"--optimizer={optimizer}",
        f"--compute_dtype={dtype}",
        f"--data_dir={data_dir}",
    )
    assert found.returncode == 0, found.stderr
    (report,) = reports
    assert (report["ok"], report["errors"]) == (True, {})
    step = report["step"]
    # The state takes the place of the one before: parameters, and one or two moments of each.
    moments = {"sgd": 1, "adamw": 2}[optimizer]
    assert step["donated"] >= 4 * LEAVES_OF_MLP * (1 + moments)
    assert step["host_transfers"] == 0
    kinds = {each["kind"]: each for each in step["collectives"]}
    if reduction == "allreduce":
        assert set(kinds) == {"all-reduce"}
        assert kinds["all-reduce"]["bytes"] >= 4 * LEAVES_OF_MLP
        assert kinds["all-reduce"]["count"] <= 2  # XLA:TPU may cut it in two.
        if not target.startswith(("v", "tpu")):
            # Of the steps of a call; otherwise the host would read its condition at every step.
            assert step["loops"] == [report["steps_per_call"]]
    else:
        # Rows go by all-to-all and come back by all-gather: nothing is added on the way. XLA:TPU
        # makes an all-reduce of a small all-gather, in which all devices but one add zeros.
        assert "reduce-scatter" not in kinds
        assert "all-gather" in kinds
        if "all-reduce" in kinds:
            assert target.startswith(("v", "tpu"))
            assert kinds["all-reduce"]["bytes"] < 2**16


@GPU
def test_the_cnn_on_gpus(data_dir: Any) -> None:
    """One all-reduce of all gradients and both metrics."""
    reports, found = preflight(
        "--target=h100:8", "--batch_size=1024", "--compute_dtype=bfloat16", f"--data_dir={data_dir}"
    )
    assert found.returncode == 0, found.stderr
    assert reports[0]["step"]["collectives"] == [
        {"kind": "all-reduce", "count": 1, "bytes": 4 * (824_458 + 2)}
    ]


@TPU
def test_an_arrangement_that_there_is_not() -> None:
    reports, found = preflight("--target=v5e:3x5")
    assert (found.returncode, reports) == (1, [])
    assert "error: --target=v5e:3x5: the compiler knows no such arrangement" in found.stderr
    assert "use such as v5e:2x4" in found.stderr

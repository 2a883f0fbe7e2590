"""What decides on the last bits besides the configuration is recorded, and said when it changes."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from tests.helpers import smallest_run
from trainer import devices
from trainer.checkpoints import read_newest
from trainer.commands.inspection import inspect
from trainer.config import TrainConfig
from trainer.run import environment, loop
from trainer.run.loop import train

DROPOUT = """
from flax import nnx


class Network(nnx.Module):
    def __init__(self, *, image_shape, num_classes, dtype, rngs):
        height, width, channels = image_shape
        self.dense = nnx.Linear(height * width * channels, num_classes, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs):
        return self.dense(self.dropout(inputs.reshape(inputs.shape[0], -1)))
"""

DIFFER = "the last bits may differ from here on"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    return smallest_run(tmp_path_factory.mktemp("smallest"), steps_per_cycle=4, num_steps=5)


@pytest.fixture(scope="module")
def begun(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run of five steps."""
    workdir = tmp_path_factory.mktemp("begun") / "run"
    train(config, workdir)
    return workdir


@pytest.fixture
def resume(config: TrainConfig, begun: Path, caplog: pytest.LogCaptureFixture):
    """Plan a resume of that run; what it says."""

    def said() -> str:
        caplog.clear()
        loop.plan(dataclasses.replace(config, num_steps=6), begun)
        return caplog.text

    return said


def test_nothing_is_said_where_nothing_changed(resume) -> None:
    assert DIFFER not in resume()


def test_other_versions_are_said(resume, monkeypatch: pytest.MonkeyPatch) -> None:
    real = environment.versions()
    other = real | {"jax": "9.9", "orbax-checkpoint": "9.9", "cyclic-trainer": "9.9"}
    monkeypatch.setattr(environment, "versions", lambda: other)
    said = resume()
    assert f"checkpoint 5 was made with jax {real['jax']}, now 9.9: {DIFFER}" in said
    assert "orbax" not in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("XLA_FLAGS", "--xla_cpu_enable_fast_math=true"),
        ("LIBTPU_INIT_ARGS", "--tpu_flag=true"),
        ("NVIDIA_TF32_OVERRIDE", "0"),
        ("NCCL_ALGO", "Ring"),
    ],
)
def test_another_environment_is_said(
    resume, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    before = environment.environment()[name] or "unset"
    monkeypatch.setenv(name, value)
    assert f"checkpoint 5 was made with {name} {before}, now {value}: {DIFFER}" in resume()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_default_matmul_precision", "bfloat16"),
        ("jax_disable_most_optimizations", True),
        ("jax_optimization_level", "O1"),
    ],
)
def test_other_settings_of_jax_are_said(resume, name: str, value: object) -> None:
    before = jax.config.values[name]
    jax.config.update(name, value)
    try:
        assert f"made with {name} {before}, now {value}: {DIFFER}" in resume()
    finally:
        jax.config.update(name, before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_threefry_partitionable", False),
    ],
)
def test_settings_that_are_fixed_change_no_bit(
    config: TrainConfig, tmp_path: Path, shared_programs: dict, name: str, value: object
) -> None:
    """Shifts and dropout are drawn, AdamW divides by integers, and labels are smoothed."""
    (tmp_path / "own.py").write_text(DROPOUT)
    drawing = dataclasses.replace(
        config,
        model=f"{tmp_path}/own.py:Network",
        augment="shift",
        optimizer="adamw",
        label_smoothing=0.1,
        num_devices=2,
    )
    train(drawing, tmp_path / "before")
    shared_programs.clear()
    before = jax.config.values[name]
    jax.config.update(name, value)
    try:
        train(drawing, tmp_path / "run")
        assert str(jax.config.values[name]) in (str(value), f"NumpyDtypePromotion.{value}")
    finally:
        jax.config.update(name, before)
    digests = [inspect(tmp_path / workdir)["digests"] for workdir in ("before", "run")]
    assert digests[0] == digests[1]


def test_nothing_is_said_of_a_complete_run(
    config: TrainConfig,
    begun: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(devices, "cpu_kind", lambda: "riscv64-00000000")
    loop.plan(config, begun)
    assert DIFFER not in caplog.text


def test_another_kind_of_cpu_is_said(resume, monkeypatch: pytest.MonkeyPatch) -> None:
    here = devices.cpu_kind()
    monkeypatch.setattr(devices, "cpu_kind", lambda: "riscv64-00000000")
    assert f"made with device cpu {here}, now cpu riscv64-00000000: {DIFFER}" in resume()


def test_flags_that_change_no_program_are_no_change(
    resume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "XLA_FLAGS",
        "--xla_dump_to=x --xla_force_host_platform_device_count=4 --xla_gpu_deterministic_ops=true",
    )
    assert DIFFER not in resume()
    monkeypatch.setenv("XLA_FLAGS", "--b=1 --a=2")
    first = environment.environment()
    monkeypatch.setenv("XLA_FLAGS", " --a=2  --b=1")
    assert environment.environment() == first


def test_checkpoints_of_before_have_no_environment(
    begun: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    restored = read_newest(begun)
    monkeypatch.setenv("XLA_FLAGS", "--a=2")
    environment.check_environment(restored)
    assert DIFFER in caplog.text
    caplog.clear()
    del restored.meta["environment"]
    environment.check_environment(restored)
    assert DIFFER not in caplog.text


def test_processes_that_differ_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All of it is JSON, as processes send it."""

    def gather(value: dict[str, str]) -> list[dict[str, str]]:
        return [value, value, json.loads(json.dumps(value)) | {"device": "cpu arm64-1"}]

    monkeypatch.setattr("trainer.processes.gather", gather)
    environment.check_environment(None)
    here = environment.environment()["device"]
    assert f"process 0 has device {here}, in process 2 cpu arm64-1: the last bits" in caplog.text
    assert "process 1" not in caplog.text

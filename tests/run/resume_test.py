"""A run resumes on what is true of the checkpoint that is taken, or is refused."""

import dataclasses
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.helpers import read_metrics, smallest_run
from trainer import devices
from trainer.checkpoints import read_newest
from trainer.commands import inspection
from trainer.config import TrainConfig
from trainer.errors import RunError, UsageError
from trainer.run import loop
from trainer.run.config_changes import offered_fields
from trainer.run.loop import train
from trainer.schedules import create_triangular_schedule
from trainer.step.batches import epoch_batches
from trainer.step.randomness import root_key


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Fifteen steps, four to an epoch."""
    return smallest_run(
        tmp_path_factory.mktemp("smallest"),
        steps_per_cycle=7,
        num_steps=15,
        checkpoint_every_steps=5,
        keep_checkpoints=10,
    )


def damage(workdir: Path, *steps: int) -> None:
    """Cut the states of some checkpoints short."""
    for step in steps:
        (workdir / "checkpoints" / str(step) / "state" / "manifest.ocdbt").write_bytes(b"")


def contents(workdir: Path) -> dict[str, bytes]:
    files = [path for path in workdir.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


def test_a_fallback_past_a_change_is_refused_without_the_change(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The change was allowed at step 15; the checkpoint that is left was made before it."""
    workdir = tmp_path / "run"
    train(config, workdir)
    changed = dataclasses.replace(config, lr_max=0.1, num_steps=20)
    train(changed, workdir, ["lr_max"])
    damage(workdir, 15, 20)
    before = contents(workdir)
    with pytest.raises(UsageError, match=r"run at step 10 .*\n(.*\n)* +lr_max +0.03 +0.1\n"):
        train(changed, workdir)
    assert contents(workdir) == before
    # Without the change it resumes at the rate that was due; with it, from here on.
    assert "taking checkpoint 10; 10 steps are lost" in caplog.text
    train(dataclasses.replace(config, num_steps=12), workdir)
    train(changed, workdir, ["lr_max"])
    rates = [np.float32(line["learning_rate"]) for line in read_metrics(workdir, "train")]
    first, second = (create_triangular_schedule(3e-3, high, 7) for high in (0.03, 0.1))
    np.testing.assert_array_equal(rates[:12], first(np.arange(12)))
    np.testing.assert_array_equal(rates[12:], second(np.arange(12, 20)))
    history = inspection.inspect(workdir)["config_history"]
    assert history == [{"step": 12, "changes": {"lr_max": [0.03, 0.1]}}]


def test_the_plan_names_the_checkpoint_that_is_taken(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(config, tmp_path / "run")
    damage(tmp_path / "run", 15)
    with caplog.at_level(logging.INFO, "trainer"):
        job = loop.plan(dataclasses.replace(config, num_steps=20), tmp_path / "run")
        train(dataclasses.replace(config, num_steps=20), tmp_path / "run")
    assert job.first_step == 10
    assert "resuming at step 10" in caplog.text
    assert "at step 15" not in caplog.text


def changed_value(config: TrainConfig, field: str) -> dict:
    """Another value of a field, and what must change with it."""
    special = {
        "momentum_min": {"momentum_min": 0.5, "momentum_max": 0.8},
        "momentum_max": {"momentum_min": 0.5, "momentum_max": 0.8},
        "lr_schedule": {"lr_schedule": "triangular2"},
        "lr_min": {"lr_min": 0.005},
        "lr_gamma": {"lr_gamma": 0.9},
        "reduction": {"reduction": "allreduce"},
        "compute_dtype": {"compute_dtype": "bfloat16"},
        "weight_decay": {"weight_decay": 0.01},
        "gradient_shards": {"gradient_shards": 4},
        "accumulation_steps": {"accumulation_steps": 2},
        "augment": {"augment": "shift"},
        "average_cycles": {"average_cycles": 2},
        "ema_decay": {"ema_decay": 0.9},
    }
    if field in special:
        return special[field]
    before = getattr(config, field)
    if isinstance(before, bool):
        return {field: not before}
    return {field: before * 2 if isinstance(before, int) and before else before + 0.01 or 1}


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def ten_steps(
    request: pytest.FixtureRequest,
    config: TrainConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[TrainConfig, Path]:
    """A run of ten steps, its configuration and its workdir; tests copy it."""
    config = dataclasses.replace(config, optimizer=request.param, lr_max=0.01, num_steps=10)
    workdir = tmp_path_factory.mktemp("ten")
    train(config, workdir)
    return config, workdir


@pytest.mark.parametrize(
    "field",
    [
        pytest.param(field, marks=() if field == "weight_decay" else pytest.mark.system)
        for field in offered_fields()
    ],
)
def test_every_field_that_is_offered_works(
    ten_steps: tuple[TrainConfig, Path], tmp_path: Path, field: str
) -> None:
    """At the newest checkpoint, and again at a fallback past the change."""
    config, base = ten_steps
    workdir = shutil.copytree(base, tmp_path / "run")
    values = changed_value(config, field)
    values = {name: 7 if name == "seed" else value for name, value in values.items()}
    changed = dataclasses.replace(config, **values, num_steps=15)
    with pytest.raises(UsageError, match=rf"\n +{field} "):
        train(changed, workdir)
    train(changed, workdir, list(values))
    stored = read_newest(workdir).meta
    assert set(stored["config_history"][-1]["changes"]) >= {field}
    damage(workdir, 15)
    with pytest.raises(UsageError, match=rf"holds a run at step 10 (.*\n)* +{field} "):
        train(changed, workdir)
    assert train(changed, workdir, list(values)).step == 15
    steps = [line["step"] for line in read_metrics(workdir, "train")]
    assert steps == list(range(15))
    assert train(dataclasses.replace(changed, num_steps=16), workdir).complete


def test_what_is_not_given_the_run_says(config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, seed=5, lr_max=0.01, num_steps=10)
    train(config, tmp_path / "run")
    bare = TrainConfig(num_steps=15)
    result = train(bare, tmp_path / "run", given={"num_steps"})
    assert (result.step, result.complete) == (15, True)
    found = inspection.inspect(tmp_path / "run")["config"]
    assert (found["seed"], found["lr_max"], found["steps_per_cycle"]) == (5, 0.01, 7)
    with pytest.raises(UsageError, match=r"\n +lr_max +0.01 +0.02\n"):
        train(TrainConfig(lr_max=0.02), tmp_path / "run", given={"lr_max"})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"num_epochs": 3}, 3 * 4),
        ({"num_cycles": 3}, 3 * 7),
        ({"num_steps": 11}, 11),
        ({"seed": 0}, 10),
    ],
)
def test_the_length_that_is_given_counts(
    config: TrainConfig, tmp_path: Path, given: dict, expected: int
) -> None:
    train(dataclasses.replace(config, num_steps=10), tmp_path / "run")
    job = loop.plan(TrainConfig(**given), tmp_path / "run", given=set(given))
    assert job.plan.num_steps == expected


def test_a_run_without_a_checkpoint_says_what_was_not_given(
    config: TrainConfig, tmp_path: Path
) -> None:
    train(dataclasses.replace(config, num_steps=5), tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.rename(tmp_path / path.name)
    job = loop.plan(TrainConfig(), tmp_path / "run", given=())
    assert (job.first_step, job.config.batch_size, job.plan.num_steps) == (0, 16, 5)
    (tmp_path / "run" / "config.json").write_text("{")
    assert loop.plan(config, tmp_path / "run", given=()).plan.num_steps == 15
    (tmp_path / "run" / "config.json").write_text('{"batch_size": "many"}')
    with pytest.raises(UsageError, match=r"config\.json was edited.*batch_size='many' is not val"):
        loop.plan(config, tmp_path / "run", given=())


def test_leaves_that_do_not_fit_are_named(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(dataclasses.replace(config, num_steps=5), tmp_path / "run")
    real = loop.find_newest

    def without_a_bias(workdir: Path):
        search = real(workdir)
        del search.newest.leaves["params/dense2/bias"]
        return search

    monkeypatch.setattr("trainer.run.loop.find_newest", without_a_bias)
    with pytest.raises(RunError, match=r"checkpoint 5 does not fit .*dense2/bias is missing"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_the_key_of_a_run_is_jaxs_own(seed: int) -> None:
    expected = jax.random.key(np.uint32(seed), impl="threefry2x32")
    assert jax.random.key_data(root_key(seed)).tolist() == jax.random.key_data(expected).tolist()


@pytest.mark.parametrize(
    "setting",
    [
        ("jax_threefry_partitionable", False),
        ("jax_random_seed_offset", 3),
        ("jax_default_prng_impl", "rbg"),
    ],
)
def test_no_setting_changes_the_order_of_the_data(setting: tuple[str, object]) -> None:
    name, value = setting

    def order() -> np.ndarray:
        with devices.fixed_settings():
            return np.asarray(jax.jit(lambda: epoch_batches(3, 1, 1000, 10))())

    expected, before = order(), getattr(jax.config, name)
    try:
        jax.config.update(name, value)
        np.testing.assert_array_equal(order(), expected)
    finally:
        jax.config.update(name, before)

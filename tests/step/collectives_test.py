"""What the devices say to each other: every collective of every program of a run is known."""

import collections
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from jax._src import compiler

from tests.helpers import also
from trainer.config import TrainConfig
from trainer.run.loop import train

COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)(?:-start)?\("
)


@pytest.fixture
def compiled(shared_programs: dict, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, int]]:
    """The collectives of each program that was compiled for several devices, by its name."""
    shared_programs.clear()
    found: dict[str, dict[str, int]] = {}
    real = compiler.compile_or_get_cached

    def compile_or_get_cached(*arguments: Any, **options: Any) -> Any:
        executable = real(*arguments, **options)
        (module,) = executable.hlo_modules()
        counts = collections.Counter(COLLECTIVE.findall(module.to_string()))
        if counts:
            found[module.name] = dict(counts)
        return executable

    monkeypatch.setattr(compiler, "compile_or_get_cached", compile_or_get_cached)
    return found


TREE = {"jit_gradient": {"all-to-all": 2, "all-gather": 2}}
TESTS = {"jit_eval_step": {"all-gather": 3}, "jit_hashes": {"all-gather": 1}}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"reduction": "tree"}, TREE),
        ({"reduction": "allreduce"}, {"jit_train_step": {"all-reduce": 1}}),
        also(
            {"reduction": "allreduce", "steps_per_call": 4},
            {"jit_train_steps": {"all-reduce": 1}},
        ),
        also(
            {"reduction": "tree", "data_placement": "sharded"},
            # Rows go to the devices that take them; each is known to one device only.
            TREE
            | {"jit_exchange": {"all-gather": 1, "reduce-scatter": 1}}
            | {"jit_eval_step": {"all-gather": 4, "reduce-scatter": 1}},
        ),
        also({"reduction": "tree", "data_placement": "streamed"}, TREE),
    ],
    ids=["tree", "allreduce", "several steps a call", "sharded", "streamed"],
)
def test_the_collectives_of_a_run(
    compiled: dict, config: TrainConfig, tmp_path: Path, changed: dict, expected: dict
) -> None:
    """Nothing else in a run makes the devices wait for each other."""
    train(dataclasses.replace(config, num_devices=4, num_steps=2, **changed), tmp_path)
    assert compiled == TESTS | expected

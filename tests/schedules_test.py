"""The schedule has the meaning of its formula, to the last bit, wherever it runs."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from trainer import devices
from trainer.schedules import (
    create_constant_schedule,
    create_schedule,
    create_triangular_schedule,
    position_at,
)

GRID = list(
    itertools.product(
        [(3e-3, 3e-2), (0.0, 1.0), (1e-7, 0.1), (0.05, 0.05)], [2, 3, 4, 5, 7, 116, 117, 1000]
    )
)
LAST_STEP = 2**31 - 1


def reference(lr_min: float, lr_max: float, steps_per_cycle: int, step: int) -> float:
    """The rate by walking up and down in float64; shares no code with the table."""
    top = math.ceil(steps_per_cycle / 2)
    while step >= steps_per_cycle:
        step -= steps_per_cycle * max(1, step // steps_per_cycle)
    if step < top:
        return lr_min + step / top * (lr_max - lr_min)
    return lr_max - (step - top) / top * (lr_max - lr_min)


def telling_steps(steps_per_cycle: int) -> list[int]:
    """Every step of three cycles, and of one around each of some very late steps."""
    late = [10**6, 2**24, 10**9, LAST_STEP - 2 * steps_per_cycle]
    return [*range(3 * steps_per_cycle + 1)] + [
        start + i for start in late for i in range(2 * steps_per_cycle + 1)
    ]


@pytest.mark.parametrize(("rates", "steps_per_cycle"), GRID)
def test_bits_are_those_of_the_float64_formula(
    rates: tuple[float, float], steps_per_cycle: int
) -> None:
    schedule = create_triangular_schedule(*rates, steps_per_cycle)
    steps = telling_steps(steps_per_cycle)
    expected = np.array([reference(*rates, steps_per_cycle, s) for s in steps]).astype(np.float32)
    counts = jnp.array(steps, jnp.int32)
    some = slice(None, None, 1 + len(steps) // 50)
    np.testing.assert_array_equal([schedule(step) for step in steps[some]], expected[some])
    np.testing.assert_array_equal(schedule(counts), expected)
    np.testing.assert_array_equal(jax.jit(schedule)(counts), expected)
    np.testing.assert_array_equal(jax.vmap(schedule)(counts), expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(schedule))(counts), expected)


@pytest.mark.parametrize("steps_per_cycle", [2, 3, 117])
def test_bits_are_the_same_on_every_device(steps_per_cycle: int) -> None:
    mesh = devices.create_mesh("cpu", 8)
    schedule = create_triangular_schedule(3e-3, 3e-2, steps_per_cycle)

    def each(step: jax.Array) -> jax.Array:
        return schedule(step)[None]

    everywhere = jax.jit(
        jax.shard_map(each, mesh=mesh, in_specs=P(), out_specs=P("data"), check_vma=False)
    )
    for step in [*range(2 * steps_per_cycle), LAST_STEP]:
        expected = np.float32(reference(3e-3, 3e-2, steps_per_cycle, step))
        np.testing.assert_array_equal(everywhere(jnp.int32(step)), np.full(8, expected))


@pytest.mark.parametrize("steps_per_cycle", [2, 3, 10, 11, 117])
def test_valley_peak_valley_are_exact(steps_per_cycle: int) -> None:
    schedule = create_triangular_schedule(1e-3, 6e-3, steps_per_cycle)
    rates = np.asarray(schedule(jnp.arange(4 * steps_per_cycle)))
    top = (steps_per_cycle + 1) // 2
    np.testing.assert_array_equal(rates[::steps_per_cycle], np.float32(1e-3))
    np.testing.assert_array_equal(rates[top::steps_per_cycle], np.float32(6e-3))
    assert np.all(np.diff(rates[: top + 1]) > 0)
    assert np.all(np.diff(rates[top : steps_per_cycle + 1]) < 0)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32, np.int16])
def test_takes_every_integer_type(dtype: type) -> None:
    schedule = create_triangular_schedule(1e-3, 6e-3, 117)
    assert schedule(dtype(1000)) == schedule(1000)
    rate = schedule(jnp.asarray(1000, jnp.int32))
    assert rate.dtype == jnp.float32
    assert not rate.weak_type


def test_a_python_int_may_be_larger_than_int32() -> None:
    schedule = create_triangular_schedule(1e-3, 6e-3, 117)
    assert schedule(117 * 2**40 + 5) == schedule(5)


def test_a_float_is_no_step() -> None:
    with pytest.raises(TypeError):
        create_triangular_schedule(1e-3, 6e-3, 117)(3.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.01, 0.1, 1), "steps_per_cycle=1 "),
        ((0.01, 0.1, 0), "steps_per_cycle=0 "),
        ((0.01, 0.1, 2.5), "steps_per_cycle=2.5 "),
        ((0.1, 0.01, 10), "lr_min=0.1 and lr_max=0.01"),
        ((-0.1, 0.01, 10), "lr_min=-0.1"),
        ((math.nan, 0.01, 10), "lr_min=nan"),
        ((0.01, math.inf, 10), "lr_max=inf"),
        (("0.01", 0.1, 10), "lr_min='0.01'"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_triangular_schedule(*arguments)


def test_constant() -> None:
    schedule = create_constant_schedule(0.1)
    np.testing.assert_array_equal(jax.jit(schedule)(jnp.arange(5)), np.full(5, np.float32(0.1)))
    with pytest.raises(ValueError, match="finite"):
        create_constant_schedule(math.nan)


def test_schedules_have_names() -> None:
    assert create_schedule("triangular", 0.0, 1.0, 4)(1) == np.float32(0.5)
    assert create_schedule("constant", 0.0, 1.0, 4)(1) == 1


@pytest.mark.parametrize("steps_per_cycle", [2, 5, 117])
def test_position_rises_where_the_rate_does(steps_per_cycle: int) -> None:
    schedule = create_triangular_schedule(1e-3, 6e-3, steps_per_cycle)
    for step in range(3 * steps_per_cycle):
        position = position_at(step, steps_per_epoch=468, steps_per_cycle=steps_per_cycle)
        assert position.rising == bool(schedule(step + 1) > schedule(step))
        assert position.cycle * steps_per_cycle + position.cycle_step == step


def test_position_in_words() -> None:
    words = str(position_at(1234, steps_per_epoch=468, steps_per_cycle=117))
    assert words == "step 1234: epoch 3, cycle 11, step 64 of 117 of the cycle, falling"

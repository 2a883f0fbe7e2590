"""The schedules have the meaning of their formulas, to the last bit, wherever they run."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests import torch_table
from tests.helpers import also, schedule_named
from trainer import devices
from trainer.config import TrainConfig
from trainer.schedules.cyclical import (
    create_constant_schedule,
    create_exp_range_boundaries_schedule,
    create_exp_range_schedule,
    create_momentum_schedule,
    create_triangular2_schedule,
    create_triangular_schedule,
)
from trainer.schedules.plan import Position, create_plan
from trainer.schedules.tables import rise_and_fall

GRID = [
    ((3e-3, 3e-2), 117),
    ((3e-3, 3e-2), 116),
    ((3e-3, 3e-2), 2),
    ((0.0, 1.0), 3),
    ((0.0, 1.0), 1000),
    ((1e-7, 0.1), 7),
    ((1e-7, 0.1), 4),
    ((0.05, 0.05), 5),
]
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
    assert schedule_named("triangular", 0.0, 1.0, 4, 0.5, 0.5)(5) == np.float32(0.5)
    assert schedule_named("triangular2", 0.0, 1.0, 4, 0.5, 0.5)(5) == np.float32(0.25)
    assert schedule_named("exp_range", 1.0, 2.0, 4, 0.5, 0.5)(1) == np.float32(1.25)
    assert schedule_named("exp_range_boundaries", 1.0, 2.0, 4, 0.5, 0.5)(1) == np.float32(0.75)
    assert schedule_named("constant", 0.0, 1.0, 4, 0.5, 0.5)(1) == 1
    assert schedule_named("triangular", 0.0, 1.0, 4, 0.5, 0.25)(1) == 1


def position_at(step: int, steps_per_cycle: int, up: float = 0.5) -> Position:
    config = TrainConfig(steps_per_cycle=steps_per_cycle, cycle_up_fraction=up)
    return create_plan(config, 60000).position(step)


@pytest.mark.parametrize("steps_per_cycle", [2, 5, 117])
def test_position_rises_where_the_rate_does(steps_per_cycle: int) -> None:
    schedule = create_triangular_schedule(1e-3, 6e-3, steps_per_cycle)
    for step in range(3 * steps_per_cycle):
        position = position_at(step, steps_per_cycle)
        assert position.rising == bool(schedule(step + 1) > schedule(step))
        assert position.cycle * steps_per_cycle + position.cycle_step == step


def test_position_in_words() -> None:
    words = str(position_at(1234, 117))
    assert words == "step 1234: epoch 3, cycle 11, step 64 of 117 of the cycle, falling"


# Below: all of the family, against exact fractions, float64 and PyTorch.

SMALLEST = np.finfo(np.float32).smallest_normal
FAMILY = [
    ("triangular", 1.0),
    ("triangular2", 1.0),
    ("exp_range", 0.99994),
    ("exp_range", 0.9),
    ("exp_range", 1.0),
    ("exp_range_boundaries", 0.99994),
    ("exp_range_boundaries", 1 - 1e-9),
]
# 1 unit in the last place, or 8 where a power of gamma is made of two.
UNITS = {"triangular": 0, "triangular2": 1, "exp_range": 8, "exp_range_boundaries": 8}


def exact(
    name: str, low: float, high: float, steps_per_cycle: int, gamma: float, up: float, step: int
) -> Fraction:
    """The rate in exact arithmetic, from the words of the paper; shares no code with the tables."""
    low, high, gamma = Fraction(low), Fraction(high), Fraction(gamma)
    cycle, cycle_step = divmod(step, steps_per_cycle)
    top = math.floor(Fraction(up) * steps_per_cycle + Fraction(1, 2))
    top = 1 if top == 0 else steps_per_cycle - 1 if top == steps_per_cycle else top
    down = top if up == 0.5 else steps_per_cycle - top
    height = Fraction(cycle_step, top) if cycle_step < top else 1 - Fraction(cycle_step - top, down)
    if name == "triangular":
        return low + height * (high - low)
    if name == "triangular2":
        return low + height * (high - low) / 2**cycle
    if name == "exp_range":
        return low + height * (high - low) * gamma**step
    return (low + height * (high - low)) * gamma**step


def in_float64(
    name: str, low: float, high: float, steps_per_cycle: int, gamma: float, steps: np.ndarray
) -> np.ndarray:
    """The rates of equal half cycles in float64, for steps too many or too late for fractions."""
    cycle, cycle_step = steps // steps_per_cycle, steps % steps_per_cycle
    top = (steps_per_cycle + 1) // 2
    height = np.where(cycle_step < top, cycle_step / top, 1 - (cycle_step - top) / top)
    if name == "triangular2":
        return low + height * (high - low) * 0.5 ** cycle.astype(np.float64)
    decay = gamma ** steps.astype(np.float64)
    if name == "exp_range_boundaries":
        return (low + height * (high - low)) * decay
    return low + height * (high - low) * (decay if name == "exp_range" else 1)


def units_apart(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How many float32 numbers lie between; what is below the normal ones counts as 0."""
    expected = np.asarray(expected, np.float64)
    rounded = np.where(expected < SMALLEST, 0, expected).astype(np.float32)
    return np.abs(np.asarray(found).view(np.int32).astype(np.int64) - rounded.view(np.int32))


@pytest.mark.parametrize("up", [0.5, 0.0, 0.3])
@pytest.mark.parametrize("steps_per_cycle", [2, 117])
@pytest.mark.parametrize(("name", "gamma"), FAMILY)
def test_family_is_its_formula_in_fractions(
    name: str, gamma: float, steps_per_cycle: int, up: float
) -> None:
    steps = np.unique(np.linspace(0, min(4 * steps_per_cycle, 200), 40).astype(int))
    arguments = (name, 3e-3, 3e-2, steps_per_cycle, gamma, up)
    found = schedule_named(*arguments)(jnp.asarray(steps))
    expected = [float(exact(*arguments, int(step))) for step in steps]
    assert units_apart(found, expected).max() <= max(1, UNITS[name])


@pytest.mark.parametrize(
    ("name", "gamma", "rates", "steps_per_cycle"),
    [
        *[also(name, gamma, (3e-3, 3e-2), 117) for name, gamma in FAMILY[:-2]],
        *[(name, gamma, (3e-3, 3e-2), 117) for name, gamma in FAMILY[-2:]],
        also("triangular2", 1.0, (0, 3), 2),
        also("exp_range", 0.99994, (1e-7, 0.1), 4001),
        also("exp_range_boundaries", 0.99994, (0, 3), 2),
    ],
)
def test_family_up_to_a_million_steps(
    name: str, gamma: float, rates: tuple[float, float], steps_per_cycle: int
) -> None:
    """Against float64; and the same bits eagerly, in jit, and where jit may fuse the rate."""
    steps = np.arange(10**6, dtype=np.int32)
    schedule = schedule_named(name, *rates, steps_per_cycle, gamma, 0.5)
    found = np.asarray(schedule(steps))
    expected = in_float64(name, *rates, steps_per_cycle, gamma, steps)
    # A height below 2**-126 of its first value is 0, somewhat earlier than in the formula.
    tiny = (expected > 0) & (expected < 1.01 * SMALLEST * max(1, rates[1]))
    assert units_apart(found, expected)[~tiny].max() <= UNITS[name] + (name == "triangular")
    assert np.all(found[tiny] <= 1.02 * expected[tiny])
    assert_same_bits(jax.jit(schedule)(steps), found)

    def fused(count: jax.Array) -> tuple[jax.Array, jax.Array]:
        rate = schedule(count)
        return rate, (1 - rate * 0.3) + (rate + count)

    assert_same_bits(jax.jit(fused)(steps)[0], found)


def assert_same_bits(one: jax.Array, other: np.ndarray) -> None:
    assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize(("name", "gamma"), FAMILY)
def test_family_has_the_same_bits_one_by_one(name: str, gamma: float) -> None:
    steps = [0, 59, 118, 1000, 14741, 2**24 + 1, LAST_STEP - 1, LAST_STEP]
    counts = jnp.array(steps, jnp.int32)
    for create, low, high in ((schedule_named, 3e-3, 3e-2), (create_momentum_schedule, 0.8, 0.9)):
        schedule = create(name, low, high, 3, gamma, 0.5)
        expected = schedule(counts)
        assert expected.dtype == jnp.float32
        assert_same_bits(jnp.stack([schedule(step) for step in steps]), expected)
        jitted = jax.jit(schedule)
        assert_same_bits(jnp.stack([jitted(step) for step in steps]), expected)
        constants = jax.jit(lambda f=schedule: [f(step) for step in steps])()
        assert_same_bits(jnp.stack(constants), expected)
        assert_same_bits(jax.vmap(schedule)(counts), expected)
        assert_same_bits(jax.jit(jax.vmap(schedule))(counts), expected)
        assert_same_bits(schedule(np.array(steps, np.uint32)), expected)
        assert_same_bits(schedule(np.array(steps, np.int64)), expected)


@pytest.mark.parametrize(("name", "gamma"), [*FAMILY, ("exp_range", 1e-300), ("exp_range", 0.5)])
def test_family_ends_in_plain_numbers(name: str, gamma: float) -> None:
    """Around the steps where powers vanish, and at the last step that int32 holds."""
    steps = np.unique(np.r_[0:3000, 2**20 : 2**20 + 100, LAST_STEP - 300 : LAST_STEP])
    for steps_per_cycle in (2, 3, 117, 2**20):
        for low in (0.0, 1e-3):
            schedule = schedule_named(name, low, 0.1, steps_per_cycle, gamma, 0.5)
            rates = np.asarray(schedule(np.append(steps, LAST_STEP)))
            assert np.isfinite(rates).all()
            assert ((rates == 0) | (rates >= SMALLEST)).all()
            if name != "exp_range_boundaries":
                assert (rates >= np.float32(low)).all()
            assert (rates <= np.float32(0.1)).all()
    if name == "triangular2":
        schedule = schedule_named(name, 1e-3, 0.1, 4, 1.0, 0.5)
        np.testing.assert_array_equal(schedule(np.arange(4 * 127, 4 * 140)), np.float32(1e-3))


@pytest.mark.parametrize("steps_per_cycle", [3, 116])
@pytest.mark.parametrize("rates", [(0.007, 0.0123), (1e-7, 0.1)])
def test_first_cycles_and_valleys(rates: tuple[float, float], steps_per_cycle: int) -> None:
    steps = np.arange(steps_per_cycle)
    first = create_triangular_schedule(*rates, steps_per_cycle)(steps)
    assert_same_bits(create_triangular2_schedule(*rates, steps_per_cycle)(steps), first)
    assert_same_bits(create_exp_range_schedule(*rates, steps_per_cycle, 1.0)(steps), first)
    boundaries = create_exp_range_boundaries_schedule(*rates, steps_per_cycle, 1.0)
    assert_same_bits(boundaries(steps), first)
    starts = steps_per_cycle * np.arange(200)
    for name, gamma in (("triangular2", 1.0), ("exp_range", 0.999)):
        valleys = schedule_named(name, *rates, steps_per_cycle, gamma, 0.5)(starts)
        np.testing.assert_array_equal(valleys, np.float32(rates[0]))


def test_triangular2_halves_exactly() -> None:
    schedule = create_triangular2_schedule(0.0, 0.1, 10)
    heights = np.asarray(schedule(10 * np.arange(100) + 5))
    np.testing.assert_array_equal(heights, np.ldexp(np.float32(0.1), -np.arange(100)))


@pytest.mark.parametrize(
    ("steps_per_cycle", "up", "expected"),
    [
        (117, 0.5, (59, 59)),
        (116, 0.5, (58, 58)),
        (10, 0.3, (3, 7)),
        (10, 0.25, (3, 7)),
        (100, 0.07, (7, 93)),
        (100, 0.29, (29, 71)),
        (10, 0.0, (1, 9)),
        (10, 0.999, (9, 1)),
        (2, 0.9, (1, 1)),
        (3, 0.5, (2, 2)),
    ],
)
def test_where_the_top_is(steps_per_cycle: int, up: float, expected: tuple[int, int]) -> None:
    assert rise_and_fall(steps_per_cycle, up) == expected
    rates = np.asarray(create_triangular_schedule(0.0, 1.0, steps_per_cycle, up)(np.arange(1000)))
    top = expected[0]
    np.testing.assert_array_equal(np.nonzero(rates == 1)[0], np.arange(top, 1000, steps_per_cycle))
    for step in range(3 * steps_per_cycle):
        rising = position_at(step, steps_per_cycle, up).rising
        assert rising == (rates[step + 1] > rates[step])


@pytest.mark.parametrize("mode", torch_table.MODES)
def test_against_pytorch(mode: str) -> None:
    """Learning rate and momentum; in float64 PyTorch itself is off by up to 2e-12."""
    table = np.load(torch_table.PATH)
    steps, rest = torch_table.STEPS, (torch_table.STEPS_PER_CYCLE, torch_table.GAMMA, 0.5)
    assert len(steps) == 541
    rates = schedule_named(mode, torch_table.LR_MIN, torch_table.LR_MAX, *rest)(steps)
    np.testing.assert_allclose(rates, table[f"lr_{mode}"], rtol=2e-7)
    ends = torch_table.MOMENTUM_MIN, torch_table.MOMENTUM_MAX
    momenta = create_momentum_schedule(mode, *ends, *rest)(steps)
    np.testing.assert_allclose(momenta, table[f"momentum_{mode}"], rtol=2e-7)


@pytest.mark.parametrize(("name", "gamma"), FAMILY)
@pytest.mark.parametrize("up", [0.5, 0.3])
def test_momentum_goes_against_the_rate(name: str, gamma: float, up: float) -> None:
    """Its way down is the height of the rate; of the boundaries' form, that of exp_range."""
    momentum = create_momentum_schedule(name, 0.85, 0.95, 20, gamma, up)
    height = "exp_range" if name == "exp_range_boundaries" else name
    ways = [float(exact(height, 0.0, 1.0, 20, gamma, up, step)) for step in range(100)]
    expected = 0.95 - (0.95 - 0.85) * np.array(ways)
    np.testing.assert_allclose(momentum(np.arange(100)), expected, rtol=2e-7)
    assert momentum(0) == np.float32(0.95)
    if name == "triangular":
        assert momentum(10 if up == 0.5 else 6) == np.float32(0.85)


@pytest.mark.parametrize(
    ("create", "arguments", "message"),
    [
        (create_triangular_schedule, (0.01, 0.1, 10, 1.0), "cycle_up_fraction=1.0 "),
        (create_triangular_schedule, (0.01, 0.1, 10, -0.1), "cycle_up_fraction=-0.1 "),
        (create_triangular_schedule, (0.01, 0.1, 10, math.nan), "cycle_up_fraction=nan "),
        (create_triangular_schedule, (0.01, 1e39, 10), "lr_max=1e[+]39 "),
        (create_triangular2_schedule, (0.01, 0.1, 1), "steps_per_cycle=1 "),
        (create_triangular2_schedule, (0.1, 0.01, 10), "lr_min=0.1 and lr_max=0.01"),
        (create_exp_range_schedule, (0.01, 0.1, 10, 0.0), "lr_gamma=0.0 "),
        (create_exp_range_schedule, (0.01, 0.1, 10, 1.1), "lr_gamma=1.1 "),
        (create_exp_range_schedule, (0.01, 0.1, 10, "0.9"), "lr_gamma='0.9' "),
        (create_exp_range_boundaries_schedule, (0.01, 0.1, 10, math.nan), "lr_gamma=nan "),
        (create_exp_range_boundaries_schedule, (-0.01, 0.1, 10, 0.9), "lr_min=-0.01 "),
        (create_momentum_schedule, ("triangular", 0.9, 0.8, 10, 1, 0.5), "momentum_min=0.9 "),
        (create_momentum_schedule, ("triangular", 0.9, 1.0, 10, 1, 0.5), "momentum_max=1.0 "),
        (create_momentum_schedule, ("exp_range", 0.8, 0.9, 10, 2, 0.5), "lr_gamma=2 "),
        (create_momentum_schedule, ("triangular", 0.8, 0.9, 0, 1, 0.5), "steps_per_cycle=0 "),
    ],
)
def test_bad_arguments_of_the_family_are_named(create, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(*arguments)

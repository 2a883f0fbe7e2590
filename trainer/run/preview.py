"""What the cycles of a run will look like: where it ends, the paper's advice, a drawing."""

import numpy as np
import optax

from trainer.config import CONSTANT, TrainConfig
from trainer.config.options import MOST_STEPS
from trainer.schedules import Plan

_BLOCKS = "▁▂▃▄▅▆▇█"


def mid_cycle_warning(config: TrainConfig, plan: Plan) -> str | None:
    """Return that a run ends in mid-cycle and which lengths near it do not, or None if all is well.

    Args:
      config: of the run.
      plan: its durations in steps.
    """
    cycles, rest = divmod(plan.num_steps, plan.steps_per_cycle)
    if config.lr_schedule == CONSTANT or rest == 0:
        return None
    whole = " or ".join(
        f"--num_steps={number * plan.steps_per_cycle} ({count(number, 'cycle')})"
        for number in (cycles, cycles + 1)
        if number > 0 and number * plan.steps_per_cycle <= MOST_STEPS
    )
    return (
        f"the run ends in mid-cycle, after {rest} of the {plan.steps_per_cycle} steps of cycle "
        f"{cycles + 1}; at the end of a cycle: {whole}"
    )


def advice(config: TrainConfig, plan: Plan) -> str | None:
    """Return what the paper advises, and what the run does, or None if it does as advised.

    Args:
      config: of the run.
      plan: its durations in steps.

    Reference:
      Smith, 2017, section 3.2: a stepsize of 2 to 10 epochs, and 3 cycles or more.
    """
    half_cycle = plan.steps_per_cycle / 2 / plan.steps_per_epoch
    num_cycles = plan.num_steps / plan.steps_per_cycle
    if config.lr_schedule == CONSTANT or (num_cycles >= 3 and 2 <= half_cycle <= 10):
        return None
    return (
        "Smith (2017, section 3.2) trains for 3 cycles or more, half a cycle being 2 to 10 epochs; "
        f"here {num_cycles:.3g} and {half_cycle:.3g}"
    )


def draw(schedule: optax.Schedule, config: TrainConfig, plan: Plan, width: int) -> str:
    """Return the learning rate of a whole run as one line of blocks, and what they stand for.

    A column is a step, or an equal part of a cycle; if that would need more than `width` columns,
    a column is some cycles, and shows their highest rate.

    Args:
      schedule: step -> learning rate.
      config: of the run.
      plan: its durations in steps.
      width: columns of the terminal, >= 1.
    """
    steps, column = _columns(config, plan, width)
    # From one cycle to the next no rate of the family rises: the first holds the highest rate of
    # the run, and the last so many steps the lowest.
    window = np.arange(min(plan.steps_per_cycle, plan.num_steps))
    first = np.asarray(schedule(window))
    last = np.asarray(schedule(plan.num_steps - 1 - window))
    low, high = last.min(), first.max()
    rates = np.asarray(schedule(steps))
    heights = (rates - low) / (high - low) if high > low else np.ones(len(rates))
    line = "".join(_BLOCKS[round(float(height) * (len(_BLOCKS) - 1))] for height in heights)
    return (
        f"{line}\n{_BLOCKS[0]} {low:.6g}  {_BLOCKS[-1]} {high:.6g}  first {first[0]:.6g}  "
        f"last {last[0]:.6g}  a column is {column}"
    )


def _columns(config: TrainConfig, plan: Plan, width: int) -> tuple[np.ndarray, str]:
    """Return the step that each column shows, int[<= width], and what a column is, in words."""
    num_steps, cycle = plan.num_steps, plan.steps_per_cycle
    if num_steps <= width:
        return np.arange(num_steps), "a step"
    if config.lr_schedule == CONSTANT:
        cycle = num_steps
    # As many to each cycle as fit: the same picture cycle after cycle, no beat between the two.
    per_cycle = min(width * cycle // num_steps, cycle)
    if per_cycle >= 2:
        columns = np.arange(-(-num_steps * per_cycle // cycle))
        return columns * cycle // per_cycle, f"{cycle / per_cycle:.3g} steps"
    cycles = -(-num_steps // cycle)
    cycles_a_column = -(-cycles // width)
    peaks = np.arange(0, cycles, cycles_a_column) * cycle + plan.top
    return np.minimum(peaks, num_steps - 1), f"{count(cycles_a_column, 'cycle')}, the highest rate"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 step" or "20 steps"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"

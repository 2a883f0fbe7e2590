"""Milliseconds a step of the CNN by reduction and number of devices, in one run.

    python -m tests.benchmarks.reduction_speed [--batch_size=128] [--rounds=5]

All forms take turns of 20 steps in one process, so that the machine's mood hits all of them.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time

import jax

from trainer import devices

_TURN = 20
_COUNTS = (1, 2, 4, 8)
_REDUCTIONS = ("tree", "allreduce")


def main() -> None:
    """Run the turns and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each form")
    parser.add_argument("--data_dir", default="", help="folder of the prepared data sets")
    arguments = parser.parse_args()
    devices.configure("cpu", max(_COUNTS), arguments.batch_size)
    seconds = measure(arguments.batch_size, arguments.rounds, arguments.data_dir)
    print(f"ms a step, batch {arguments.batch_size}, median of {arguments.rounds} turns of {_TURN}")
    print("reduction   " + "".join(f"{count:>6} dev" for count in _COUNTS))
    for reduction in _REDUCTIONS:
        medians = [statistics.median(seconds[reduction, count]) for count in _COUNTS]
        print(f"{reduction:12}" + "".join(f"{1000 * each / _TURN:10.1f}" for each in medians))


def measure(batch_size: int, rounds: int, data_dir: str) -> dict[tuple[str, int], list[float]]:
    """Return the seconds of each turn of each form."""
    from trainer.config import TrainConfig
    from trainer.job import prepare
    from trainer.startup import start

    config = TrainConfig(batch_size=batch_size, data_dir=data_dir)
    forms = {}
    with tempfile.TemporaryDirectory() as workdir:
        for reduction in _REDUCTIONS:
            for count in _COUNTS:
                given = dataclasses.replace(config, reduction=reduction, num_devices=count)
                programs, data, state = start(prepare(given, workdir), None)
                forms[reduction, count] = [
                    programs,
                    data,
                    state,
                    programs.epoch_batches(state.step),
                ]
    seconds: dict[tuple[str, int], list[float]] = {form: [] for form in forms}
    for turn in range(rounds + 1):
        for form, values in forms.items():
            programs, data, state, batches = values
            begin = time.perf_counter()
            for _ in range(_TURN):
                state, _ = programs.train_steps(state, data.train, batches, 1)
            jax.block_until_ready(state)
            values[2] = state
            if turn:  # The first one warms up.
                seconds[form].append(time.perf_counter() - begin)
    return seconds


if __name__ == "__main__":
    main()

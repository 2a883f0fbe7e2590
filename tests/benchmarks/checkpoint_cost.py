"""What checkpoints cost: a run of the CNN with one every 100 steps, against one with none.

    python -m tests.benchmarks.checkpoint_cost [--rounds=15]

Both sides run in one process with the same compiled programs, in turns of 100 steps, so that the
machine's mood hits both. A turn with a checkpoint begins with comparing the replicas, hashing and
copying the state; the writing goes on beside its steps, and it ends when all is on disk.
"""

import argparse
import platform
import statistics
import tempfile
import time

import jax

from trainer import devices

_TURN = 100


def main() -> None:
    """Run the turns and print the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns of each side")
    parser.add_argument("--data_dir", default="", help="folder of the prepared data sets")
    arguments = parser.parse_args()
    devices.configure("auto", 0, 128)
    plain, saving = measure(arguments.rounds, arguments.data_dir)
    ratio = statistics.median(saving) / statistics.median(plain)
    for name, seconds in (("without", plain), ("with one", saving)):
        print(
            f"{name:10} {1000 * statistics.median(seconds) / _TURN:7.2f} ms a step "
            f"({1000 * min(seconds) / _TURN:.2f} to {1000 * max(seconds) / _TURN:.2f})"
        )
    print(
        f"a checkpoint every {_TURN} steps costs {100 * (ratio - 1):.1f} % "
        f"({arguments.rounds} turns of each, {platform.machine()}, jax {jax.__version__}, "
        f"{devices.describe(devices.create_mesh('auto', 0))})"
    )


def measure(rounds: int, data_dir: str) -> tuple[list[float], list[float]]:
    """Return the seconds of each turn, without and with a checkpoint."""
    from trainer.checkpoints import Checkpointer
    from trainer.config import TrainConfig
    from trainer.job import prepare
    from trainer.records import Records
    from trainer.resume import checkpoint_meta
    from trainer.startup import start

    seconds: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as workdir:
        job = prepare(TrainConfig(data_dir=data_dir), workdir)
        programs, data, state = start(job, None)
        batches = programs.epoch_batches(state.step)
        with (
            Checkpointer(workdir, keep=2) as checkpointer,
            Records(job.workdir, job.config, job.plan, 0) as records,
        ):
            step = 0
            for turn in range(2 * rounds + 2):
                begin = time.perf_counter()
                if turn % 2:
                    programs.check_replicas(state)
                    meta = checkpoint_meta(job, data.inputs, step, records.last_learning_rate)
                    checkpointer.save(state, step, meta)
                for _ in range(_TURN):
                    state, metrics = programs.train_steps(state, data.train, batches, 1)
                    records.train(step, 1, metrics)
                    checkpointer.poll()
                    step += 1
                records.flush()
                checkpointer.wait()
                if turn >= 2:  # The first of each side warms up.
                    seconds[turn % 2].append(time.perf_counter() - begin)
    return seconds


if __name__ == "__main__":
    main()

"""What a run shows while it runs: a progress bar on a terminal, log lines elsewhere."""

import logging
import sys
import time
from typing import Any

import tqdm

from trainer.config import TrainConfig
from trainer.schedules import Plan

logger = logging.getLogger(__name__)


class Progress:
    """A bar on a terminal, plain lines elsewhere; rates count the steps of this process only."""

    def __init__(self, config: TrainConfig, plan: Plan, first_step: int):
        """Start the clock at `first_step`."""
        self._first_step = first_step
        self._num_steps = plan.num_steps
        self._batch_size = config.batch_size
        self._log_every_steps = config.log_every_steps
        self._start = time.monotonic()
        self._done, self._seconds = first_step, 0.0
        self._bar = tqdm.tqdm(
            total=plan.num_steps,
            initial=first_step,
            unit="step",
            smoothing=0,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def tick(self, done: int) -> None:
        """Note that the devices have finished `done` steps by now."""
        self._done, self._seconds = done, time.monotonic() - self._start

    def train(self, record: dict[str, Any]) -> None:
        """Show one step."""
        done = record["step"] + 1
        if self._bar.disable:
            if done % self._log_every_steps == 0 or done == self._num_steps:
                logger.info("%s", self._line(record))
        else:
            self._bar.set_postfix_str(_values(record), refresh=False)
            self._bar.update()

    def test(self, record: dict[str, Any]) -> None:
        """Show one evaluation."""
        logger.info("step %d  %s", record["step"], test_values(record))

    def images_per_second(self) -> float:
        """Return the rate over the steps of this process, tests and checkpoints included."""
        steps = self._done - self._first_step
        return steps * self._batch_size / self._seconds if self._seconds else 0.0

    def summary(self) -> str:
        """Return what this process did, in words."""
        return (
            f"{self._done - self._first_step} steps in {self._seconds:.1f} s "
            f"({self.images_per_second():.0f} images/s, tests and checkpoints included)"
        )

    def close(self) -> None:
        """Leave the terminal as it is."""
        self._bar.close()

    def _line(self, record: dict[str, Any]) -> str:
        """Return the log line of one step."""
        line = f"step {record['step'] + 1}/{self._num_steps}  epoch {record['epoch'] + 1}  "
        line += _values(record)
        rate = self.images_per_second()
        left = (self._num_steps - self._done) * self._batch_size / rate
        return f"{line}  {rate:.0f} images/s  {tqdm.tqdm.format_interval(left)} left"


def _values(record: dict[str, Any]) -> str:
    """Return the metrics of a step in words."""
    return (
        f"loss {record['loss']:.4f}  accuracy {record['accuracy']:.3f}  "
        f"learning rate {record['learning_rate']:.5f}"
    )


def test_values(record: dict[str, Any]) -> str:
    """Return the metrics of an evaluation in words."""
    return (
        f"test loss {record['loss']:.4f}  test accuracy {100 * record['accuracy']:.2f} % "
        f"of {record['examples']} examples"
    )

"""What a run writes, and who writes it: process 0; the others take part in nothing here."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from typing import Any, Protocol

import jax

from trainer import processes
from trainer.checkpoints import Checkpointer, Keeping, set_aside_if_damaged, stored_steps
from trainer.config import flagfile_of_run
from trainer.records import figures
from trainer.records.clock import CHECKPOINTS, EVALUATION, PICTURE, START_UP, STEPS, Clock
from trainer.records.hints import guessing_accuracy, hint_at_chance
from trainer.records.history import note_resume
from trainer.records.metrics import Records
from trainer.records.profiling import Profiler
from trainer.run.data import Data
from trainer.run.job import Job
from trainer.run.resume import checkpoint_meta
from trainer.step import Metrics, TrainState
from trainer.workdir.files import CONFIG_FILE, CONFIG_FLAGFILE, replace_file
from trainer.workdir.lock import Lock

logger = logging.getLogger(__name__)


class Outputs(Protocol):
    """What the loop tells of.

    Nothing waits for a step that was just dispatched but evaluations, whose time is counted, and
    saves.
    """

    @property
    def last_test(self) -> dict[str, Any] | None:
        """The last test record that was written down, or None."""

    def begin(self, step: int, state: TrainState) -> None:
        """Steps are about to be taken, the first of which reads state.step = `step`."""

    def trained(self, step: int, count: int, metrics: Metrics) -> None:
        """`count` updates were dispatched, the first of which reads state.step = `step`."""

    def testing(self, state: TrainState) -> None:
        """An evaluation of this state is about to be dispatched."""

    def tested(self, step: int, sums: Metrics) -> None:
        """It was dispatched, after `step` updates."""

    def save(self, state: TrainState, step: int, only_if_best: bool) -> None:
        """Store records and state after `step` updates; the checkpoint in the background.

        With `only_if_best` the state is stored only if it has just been tested as the best.
        """

    def wait(self) -> None:
        """Return when all of it is stored."""

    def finish(self) -> None:
        """The run is complete: say what it did, and draw it."""


class Writer:
    """The outputs of process 0: records, checkpoints, trace, picture."""

    def __init__(
        self,
        job: Job,
        data: Data,
        lock: Lock,
        records: Records,
        checkpointer: Checkpointer,
        profiler: Profiler,
        clock: Clock,
        best: dict[str, Any] | None,
    ):
        """Write through these, which the caller opens and closes."""
        self._clock = clock
        self._job, self._data, self._lock = job, data, lock
        self._records, self._checkpointer, self._profiler = records, checkpointer, profiler
        self._best = best

    @property
    def last_test(self) -> dict[str, Any] | None:
        """The last test record that was written down, or None."""
        return self._records.last_test

    def begin(self, step: int, state: TrainState) -> None:
        """Begin or end the trace if it is time to."""
        self._profiler(step, state)

    def trained(self, step: int, count: int, metrics: Metrics) -> None:
        """Take the metrics, and surface the failure of a save that has ended."""
        self._records.train(step, count, metrics)
        self._checkpointer.poll()

    def testing(self, state: TrainState) -> None:
        """Wait for the steps before, so that what follows is the time of the evaluation."""
        jax.block_until_ready(state.step)
        self._clock.enter(EVALUATION)

    def tested(self, step: int, sums: Metrics) -> None:
        """Take the sums."""
        self._records.test(step, jax.block_until_ready(sums))
        self._clock.enter(STEPS)

    def save(self, state: TrainState, step: int, only_if_best: bool) -> None:
        """Store records and state."""
        self._lock.confirm()
        # First the records, then the checkpoint: what it includes, they include.
        self._records.flush()
        if not self._note_best(step) and only_if_best:
            return
        self._clock.enter(CHECKPOINTS)
        rate = self._records.last_learning_rate
        meta = checkpoint_meta(self._job, self._data.inputs, step, rate)
        meta |= {"test": self.last_test, "best": self._best}
        self._checkpointer.save(state, step, meta, self._best["step"] if self._best else None)
        self._clock.enter(STEPS)

    def _note_best(self, step: int) -> bool:
        """Return whether the test after `step` updates is the best so far, and remember it."""
        test = self.last_test
        if not self._job.config.keep_best or test is None or test["step"] != step:
            return False
        if self._best and test["accuracy"] <= self._best["accuracy"]:
            return False
        self._best = {"step": step, "accuracy": test["accuracy"]}
        return True

    def wait(self) -> None:
        """Return when the last checkpoint is on disk."""
        self._clock.enter(CHECKPOINTS)
        self._checkpointer.wait()
        self._clock.enter(START_UP)

    def finish(self) -> None:
        """Say what the run did, and draw it; it is whole and stored, whatever becomes of that."""
        self.wait()
        logger.info("%s", self._records.summary())
        guessing = guessing_accuracy(self._data.test_counts)
        hint = self.last_test and hint_at_chance(self.last_test, guessing, self._job.config)
        if hint:
            logger.warning("%s", hint)
        if self._job.config.report:
            self._clock.enter(PICTURE)
            try:
                figures.draw_report(self._job.workdir)
            except Exception as error:  # Whatever fails in a library for pictures.
                logger.warning("no picture of the run: %s: %s", type(error).__name__, error)


class Silent:
    """The outputs of all other processes: none."""

    last_test: dict[str, Any] | None = None

    def begin(self, step: int, state: TrainState) -> None:
        """Trace nothing: one trace is enough."""

    def trained(self, step: int, count: int, metrics: Metrics) -> None:
        """Leave it to process 0."""

    def testing(self, state: TrainState) -> None:
        """Leave it to process 0."""

    def tested(self, step: int, sums: Metrics) -> None:
        """Leave it to process 0."""

    def save(self, state: TrainState, step: int, only_if_best: bool) -> None:
        """Leave it to process 0, which has the whole state."""

    def wait(self) -> None:
        """Have nothing to wait for."""

    def finish(self) -> None:
        """Have nothing to say."""


@contextlib.contextmanager
def open_outputs(job: Job, data: Data, lock: Lock | None, clock: Clock) -> Iterator[Outputs]:
    """Open what this process writes.

    Args:
      job: the run.
      data: its data.
      lock: of the workdir, in process 0; None elsewhere.
      clock: of this start of the run.
    """
    if lock is None:
        yield Silent()
        return
    config, first_step = job.config, job.first_step
    best = _best_so_far(job)  # Before Orbax looks what is there.
    keeping = Keeping(config.keep_checkpoints, config.keep_cycle_ends, job.plan.steps_per_cycle)
    with (
        Checkpointer(job.workdir, keeping) as checkpointer,
        Records(job.workdir, config, job.plan, first_step, clock) as records,
        Profiler(records.folder, first_step, config.profile) as profiler,
    ):
        clock.enter(STEPS)
        yield Writer(job, data, lock, records, checkpointer, profiler, clock, best)


def _best_so_far(job: Job) -> dict[str, Any] | None:
    """Return step and accuracy of the best checkpoint that the run has, if it keeps one."""
    best = job.restored.meta.get("best") if job.restored and job.config.keep_best else None
    if not best:
        return None
    step = best["step"]
    if step not in stored_steps(job.workdir):
        problem = f"checkpoint {step}, the best so far, is gone"
    elif step != job.first_step and set_aside_if_damaged(job.workdir, step):
        problem = f"checkpoint {step}, the best so far, was damaged"
    else:
        return best
    logger.warning("%s; the best of the tests from here on is kept", problem)
    return None


def note_start(job: Job) -> None:
    """Write down the resolved configuration, twice, and that the run resumes, if it does.

    Raises:
      RunError: a file could not be written.
    """
    if processes.is_first():
        text = json.dumps(dataclasses.asdict(job.config), indent=2) + "\n"
        replace_file(job.workdir / CONFIG_FILE, text.encode())
        changes = [
            f"at step {entry['step']}, {name} from {before} to {after}"
            for entry in job.config_history
            for name, (before, after) in entry["changes"].items()
        ]
        text = flagfile_of_run(job.config, changes)
        replace_file(job.workdir / CONFIG_FLAGFILE, text.encode())
        note_resume(job.workdir, job.first_step, job.config_history)

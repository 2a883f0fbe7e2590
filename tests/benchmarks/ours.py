"""Our side: the parts of `trainer.run.loop.train`, in turns."""

import contextlib
import io
import tempfile
import time
from typing import Any

import jax
from etils import epath

from trainer import devices
from trainer.config import TrainConfig


class Training:
    """A run that never ends."""

    def __init__(self, **hyperparameters: Any):
        """Prepare the run and compile its programs, as the command does.

        Args:
          **hyperparameters: fields of TrainConfig.
        """
        config = TrainConfig(**hyperparameters)
        devices.enable_compilation_cache()
        devices.configure(config.platform, config.num_cpu_devices, config.batch_size)
        from trainer.checkpoints.keeping import Keeping
        from trainer.checkpoints.store import Checkpointer
        from trainer.records.clock import Clock
        from trainer.records.metrics import Records
        from trainer.run.job import prepare
        from trainer.run.programs import start

        self._workdir = tempfile.TemporaryDirectory()
        self._job = prepare(config, epath.Path(self._workdir.name))
        self._programs, self._data, self._state = start(self._job, Clock())
        self._records = Records(self._job.workdir, self._job.config, self._job.plan, 0, Clock())
        self._checkpointer = Checkpointer(self._job.workdir, Keeping(2))
        self._done = 0
        self._rows = self._data.train.at(0, self._state.step)

    def describe(self) -> str:
        """Return devices and reduction in words."""
        config = self._job.config
        text = f"{devices.describe(self._job.mesh)}, {config.reduction}"
        return text if config.steps_per_call == 1 else f"{text}, {config.steps_per_call} a call"

    def turn(
        self, count: int, records: bool = True, checks: bool = False, audit: bool = False
    ) -> float:
        """Return the seconds of some steps of the loop, without tests and checkpoints.

        Args:
          count: steps.
          records: write metrics.jsonl and look for losses that are not finite, as the loop does.
          checks: compare the replicas after every step.
          audit: audit the gradient after the last step, as the loop does every so many.
        """
        jax.block_until_ready(self._state)
        begin = time.perf_counter()
        last = self._done + count
        while self._done < last:
            self._call(1 if checks else last - self._done, records)
            if checks:
                self._programs.check_replicas(self._state)
        if audit:
            self._programs.audit(self._state, *self._rows)
        jax.block_until_ready(self._state)
        return time.perf_counter() - begin

    def bare_turn(self, count: int) -> float:
        """Return the seconds of some calls of the compiled step, and nothing else."""
        state, (examples, batches) = self._state, self._rows
        most = self._job.config.steps_per_call
        jax.block_until_ready(state)
        begin = time.perf_counter()
        for done in range(0, count, most):
            steps = min(most, count - done)
            state, _ = self._programs.train_steps(state, examples, batches, steps)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - begin
        self._state = state
        return seconds

    def saving_turn(self, count: int) -> dict[str, float]:
        """Return the seconds of some steps that begin with a checkpoint, until all is on disk.

        Returns:
          "seconds", and of them "stall": how long the loop stood still before the first step,
          to compare the replicas, to hash and copy the state and to hand it to the writer.
        """
        from trainer.run.resume import checkpoint_meta

        jax.block_until_ready(self._state)
        self._records.flush()
        begin = time.perf_counter()
        self._programs.check_replicas(self._state)
        inputs, learning_rate = self._data.inputs, self._records.last_learning_rate
        meta = checkpoint_meta(self._job, inputs, self._done, learning_rate)
        self._checkpointer.save(self._state, self._done, meta)
        stall = time.perf_counter() - begin
        last = self._done + count
        while self._done < last:
            self._call(last - self._done, True)
            self._checkpointer.poll()
        jax.block_until_ready(self._state)
        self._checkpointer.wait()
        return {"seconds": time.perf_counter() - begin, "stall": stall}

    def restore(self) -> float:
        """Return the seconds from a folder of checkpoints to a verified state on the devices."""
        from trainer.checkpoints import read_newest
        from trainer.run.resume import resumed_state

        begin = time.perf_counter()
        jax.block_until_ready(resumed_state(self._job, read_newest(self._job.workdir)))
        return time.perf_counter() - begin

    def digests(self) -> float:
        """Return the seconds to copy the state to the host and hash every leaf."""
        from trainer.checkpoints.digests import leaf_digests

        # The host keeps a copy of an array that it has read: a step makes new arrays.
        self.bare_turn(1)
        begin = time.perf_counter()
        leaf_digests(jax.device_get(self._state))
        return time.perf_counter() - begin

    def check_replicas(self) -> float:
        """Return the seconds to compare the devices' copies of the state."""
        jax.block_until_ready(self._state)
        begin = time.perf_counter()
        self._programs.check_replicas(self._state)
        return time.perf_counter() - begin

    def _call(self, most: int, records: bool) -> None:
        """Take the steps of one call of the devices, at most so many."""
        steps_per_epoch = self._job.plan.steps_per_epoch
        if self._done:
            self._rows = self._data.train.at(self._done, self._state.step)
        left_in_epoch = steps_per_epoch - self._done % steps_per_epoch
        count = min(most, left_in_epoch, self._job.config.steps_per_call)
        examples, batches = self._rows
        self._state, metrics = self._programs.train_steps(self._state, examples, batches, count)
        if records:
            self._records.train(self._done, count, metrics)
        self._done += count


class Command:
    """The whole command in this process, for its memory."""

    def __init__(self, **hyperparameters: Any):
        """Keep the fields of TrainConfig that the command will be given."""
        self._flags = [f"--{name}={value}" for name, value in hyperparameters.items()]

    def train_and_test(self, count: int) -> None:
        """Run the command for some steps; it ends with a test and a checkpoint."""
        from trainer import cli

        with tempfile.TemporaryDirectory() as workdir:
            flags = [*self._flags, f"--num_steps={count}", f"--workdir={workdir}"]
            with contextlib.redirect_stderr(io.StringIO()) as said:
                status = cli.run(["trainer", "train", *flags])
            assert status == 0, said.getvalue()

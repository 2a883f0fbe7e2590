"""One checkpoint, written or read and verified; the only user of Orbax."""

import contextlib
import dataclasses
import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from trainer.checkpoints.digests import json_digest, leaf_digests
from trainer.checkpoints.keeping import Keeping
from trainer.errors import RunError
from trainer.step.state import TrainState, leaf_name
from trainer.workdir.storage import absolute, is_outage, is_remote, reason, remedy

# Of what is stored. 1 had networks of flax.linen, whose parameters had other names.
_FORMAT = 2


def checkpoints_dir(workdir: epath.PathLike) -> epath.Path:
    """Return where the checkpoints of a workdir lie, one folder a step."""
    return absolute(workdir) / "checkpoints"


class Checkpointer:
    """Saves states in the background, from one process.

    The state is replicated, so one process has all of it. Orbax's own way, in which every process
    writes a part, makes all of them wait for minutes when one of them cannot write.

    A checkpoint holds the state, and beside it a JSON object: the caller's `meta`, a digest of
    every leaf ("digests": name to hex) and one of the whole state ("digest").
    """

    def __init__(self, workdir: epath.PathLike, keeping: Keeping):
        """Open the checkpoints of a workdir for writing.

        Args:
          workdir: of the run.
          keeping: which checkpoints stay when another one is saved.
        """
        _silence()
        self._policy = _Policy(keeping)
        self._directory = checkpoints_dir(workdir)
        self._saving = False
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            create=False,  # Orbax can make the folder with all processes only.
            multiprocessing_options=_this_process(),
        )
        with self._surfacing():
            self._directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(
        self, state: TrainState, step: int, meta: dict[str, Any], best: int | None = None
    ) -> None:
        """Store the state under `step` in the background.

        The call returns when the state has been copied off the devices, so the caller may donate
        it. A failure surfaces at `poll`, `wait` or the next save.

        Args:
          state: whose leaves `restore` will return.
          step: larger than every stored one.
          meta: what JSON can hold.
          best: the step of the checkpoint that stays as the best one, or None.

        Raises:
          RunError: the state is not finite, or this or the previous save failed.
        """
        host_state = jax.device_get(state)
        _check_finite(host_state, step)
        digests = leaf_digests(host_state)
        content = meta | {
            "format": _FORMAT,
            "digests": digests,
            "digest": json_digest(digests),
        }
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(host_state),
            meta=ocp.args.JsonSave({"content": content, "sha256": json_digest(content)}),
        )
        self._policy.best = best
        with self._surfacing():
            saved = self._manager.save(step, args=args)
            self._saving = True
        if not saved:
            raise RunError(f"step {step} was not saved: {self._directory} holds it or a later one")

    def poll(self) -> None:
        """Surface the failure of a save that has ended; waits for nothing.

        Raises:
          RunError: the save failed.
        """
        if self._saving and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Return when the last save is on disk.

        Raises:
          RunError: it failed.
        """
        with self._surfacing():
            self._manager.wait_until_finished()
        self._saving = False

    def __enter__(self) -> "Checkpointer":
        """Return the checkpointer itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Finish a save that runs, and let go of the folder."""
        if exception == (None, None, None):
            with self._surfacing():
                self._manager.close()
        else:
            # What failed first is what the user should read.
            with contextlib.suppress(Exception):
                self._manager.close()

    @contextlib.contextmanager
    def _surfacing(self) -> Iterator[None]:
        """Turn whatever Orbax raises, bare Exception among it, into a RunError."""
        try:
            yield
        except Exception as error:
            raise RunError(
                f"a checkpoint could not be written to {self._directory}: {_reason(error)}; "
                f"{remedy(self._directory)} and run the same command: older checkpoints are intact"
            ) from error


class _Policy:
    """Tells Orbax which checkpoints stay."""

    def __init__(self, keeping: Keeping):
        """Ask `keeping`."""
        self._keeping = keeping
        self.best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
        """Return the answer for each checkpoint, oldest first."""
        return self._keeping.kept([checkpoint.step for checkpoint in checkpoints], self.best)


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read and agrees with its digests.

    Attributes:
      step: updates made.
      leaves: of the state as it was saved, bit for bit: leaf name, such as "params/conv1/kernel",
        to array on the host.
      meta: as it was given to `save`, with "digests" and "digest".
    """

    step: int
    leaves: dict[str, np.ndarray]
    meta: dict[str, Any]


class DamagedError(Exception):
    """A checkpoint is not what was saved; the message says what differs."""


def restore(path: epath.Path, step: int) -> Restored:
    """Return the checkpoint in a folder, if every bit of it is as it was saved.

    Args:
      path: of the folder.
      step: the one that its name says.

    Raises:
      DamagedError: something is not as it was saved.
      RunError: its bucket does not answer, or another version has made it.
    """
    meta = _read_meta(path)
    if meta["step"] != step:
        raise DamagedError(f"it is that of step {meta['step']}")
    state = _read(path, ocp.args.Composite(state=ocp.args.StandardRestore())).state
    leaves = {
        leaf_name(leaf_path): np.asarray(leaf)
        for leaf_path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }
    digests = leaf_digests(leaves)
    for name in sorted(meta["digests"].keys() | digests.keys()):
        if name not in digests:
            raise DamagedError(f"{name} is missing")
        if digests[name] != meta["digests"].get(name):
            raise DamagedError(f"{name} differs from its digest")
    return Restored(step, leaves, meta)


def _read_meta(path: epath.Path) -> dict[str, Any]:
    """Return the JSON object of the checkpoint in a folder.

    Raises:
      DamagedError: it cannot be read or does not agree with its digest.
      RunError: its bucket does not answer, or another version has made it.
    """
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    meta = _read(path, args).meta
    try:
        content, digest = meta["content"], meta["sha256"]
    except (KeyError, TypeError) as error:
        raise DamagedError("meta has other keys") from error
    if json_digest(content) != digest:
        raise DamagedError("meta differs from its digest")
    if content.get("format", 1) != _FORMAT:
        version = content.get("versions", {}).get("cyclic-trainer", "another version")
        raise RunError(
            f"{path} was made by cyclic-trainer {version}, whose checkpoints have another form; "
            "finish the run with that version, or start in another --workdir"
        )
    return content


def _read(path: epath.Path, args: ocp.args.Composite) -> Any:
    """Read items of a checkpoint with Orbax, which raises anything when files are damaged."""
    _silence()
    items = list(args.keys())
    for item in items:
        if not (path / item).is_dir():
            raise DamagedError(f"{item} is missing")
    try:
        alone = _this_process()
        handler = ocp.CompositeCheckpointHandler(
            *items, composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
        )
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
            return reader.restore(path, args=args)
    except Exception as error:
        if is_remote(path) and is_outage(error):
            raise RunError(
                f"{path} could not be read: {_reason(error)}; {remedy(path)} and run the same "
                "command: nothing was changed"
            ) from error
        raise DamagedError(f"{' and '.join(items)}: {_reason(error)}") from error


def _this_process() -> ocp.options.MultiprocessingOptions:
    """Return options with which Orbax waits for no other process."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})


def _silence() -> None:
    """Keep what Orbax's background tasks print after a failure off the user's terminal.

    They continue, and report to an event loop that is closed by then, at any later time.
    """
    if not isinstance(sys.unraisablehook, _OrbaxFilter):
        sys.unraisablehook = _OrbaxFilter(sys.unraisablehook)


class _OrbaxFilter:
    """A hook for exceptions that nobody can catch; it drops those of Orbax's abandoned tasks."""

    def __init__(self, hook: Callable[[Any], object]):
        """Pass everything else on to `hook`."""
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        """Print the exception, or drop it."""
        code = getattr(unraisable.object, "cr_code", None)
        abandoned = code is not None and "orbax" in code.co_filename
        if not abandoned and "Event loop is closed" not in str(unraisable.exc_value):
            self._hook(unraisable)


def _check_finite(state: TrainState, step: int) -> None:
    """Refuse to save numbers that no run can continue from."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        if not np.isfinite(leaf).all():
            raise RunError(
                f"{leaf_name(path)} is not finite after {step} steps and was not saved; older "
                "checkpoints are intact; try a lower --lr_max in a new --workdir"
            )


def _reason(error: Exception) -> str:
    """Return what the system said, or the first line of an error's message, cut to a line."""
    text = str(error)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(number) in text:
            return os.strerror(number)
    return reason(error)

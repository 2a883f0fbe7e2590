"""Checkpoints of a run, the only user of Orbax: save, restore, read what is stored beside them."""

from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from trainer.errors import RunError
from trainer.state import TrainState

_DIRECTORY = "checkpoints"


class Checkpoints:
    """The checkpoints in `workdir/checkpoints`, one folder a step.

    A checkpoint holds the state, and beside it `meta`, a JSON object: the configuration and what
    else is needed to use the state without the run that made it.

    Attributes:
      directory: where they lie.
    """

    def __init__(self, workdir: epath.PathLike, keep: int | None = None):
        """Open the checkpoints of a workdir; the folder is made by the first save.

        Args:
          workdir: of the run.
          keep: newest checkpoints to keep, or None to read only.
        """
        self.directory = epath.Path(workdir).absolute() / _DIRECTORY
        policies = ocp.checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.LatestN(keep) if keep else None,
            cleanup_tmp_directories=keep is not None,
            create=keep is not None,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest_step(self) -> int | None:
        """Return the newest step that is stored, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, meta: dict[str, Any]) -> None:
        """Store the state under `step` in the background.

        The call returns when the state has been copied off the devices, so the caller may donate
        it. A failure surfaces at the next save, or at `wait`.

        Raises:
          RunError: this or the previous save failed.
        """
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        try:
            saved = self._manager.save(step, args=args)
        except Exception as error:  # Orbax raises many kinds, bare Exception among them.
            raise self._save_error(step, error) from error
        if not saved:
            raise RunError(f"step {step} was not saved: {self.directory} holds it or a later one")

    def wait(self) -> None:
        """Return when the last save is on disk.

        Raises:
          RunError: it failed.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._save_error(None, error) from error

    def restore(self, step: int, abstract_state: TrainState) -> TrainState:
        """Return the stored state, laid out as the abstract state says, bit for bit.

        Args:
          step: one that is stored.
          abstract_state: shapes, dtypes and shardings; any number of devices.
        """
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
        return self._manager.restore(step, args=args).state

    def read_meta(self, step: int) -> dict[str, Any]:
        """Return the JSON object stored beside the state."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args).meta

    def __enter__(self) -> "Checkpoints":
        """Return the checkpoints themselves."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Let go of the folder; a save that runs is finished first."""
        self._manager.close()

    def _save_error(self, step: int | None, error: Exception) -> RunError:
        """Return the error that a user sees when a save failed."""
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        what = (
            "a checkpoint" if step is None else f"the checkpoint at step {step} or the one before"
        )
        return RunError(
            f"{what} could not be written to {self.directory}: {first_line}; "
            "free space or mend the disk and run the same command: older checkpoints are intact"
        )

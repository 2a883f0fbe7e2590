"""The files of a workdir by name, written whole or not at all."""

from etils import epath

from trainer.errors import RunError
from trainer.workdir.storage import write_whole

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
# Where the run was resumed, and what was changed then; see records.history.
RESUMES_FILE = "resumes.json"


def replace_file(path: epath.Path, data: bytes) -> None:
    """Write a file in a folder that need not exist; see `storage.write_whole`.

    Args:
      path: its folder is made if missing.
      data: what it will hold.

    Raises:
      RunError: it could not be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise RunError(f"{path} could not be written: {error.strerror}") from error

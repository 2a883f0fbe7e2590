"""The files of a workdir by name, written whole or not at all."""

import json
from typing import Any

from etils import epath

from trainer.workdir.storage import surfacing, write_whole

CONFIG_FILE = "config.json"
CONFIG_FLAGFILE = "config.cfg"
METRICS_FILE = "metrics.jsonl"
# Where the run was resumed, and what was changed then; see records.history.
RESUMES_FILE = "resumes.json"
# How long it has trained; see records.timing.
TIMING_FILE = "timing.json"

# What is raised over JSON that was cut short or edited, and over what is made of it.
NOT_AS_WRITTEN = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OSError,
    OverflowError,
    RecursionError,
)


def replace_file(path: epath.Path, data: bytes) -> None:
    """Write a file in a folder that need not exist; see `storage.write_whole`.

    Args:
      path: its folder is made if missing.
      data: what it will hold.

    Raises:
      RunError: it could not be written.
    """
    with surfacing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)


def read_config(workdir: epath.Path) -> dict[str, Any] | None:
    """Return the configuration that a run has written into its workdir, None where there is none.

    It is read before a checkpoint is, and only says what the user need not say again.
    """
    path = workdir / CONFIG_FILE
    try:
        found = json.loads(path.read_text()) if path.exists() else None
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None

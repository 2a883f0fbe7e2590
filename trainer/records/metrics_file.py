"""metrics.jsonl: one line for every record, each step once, whatever happened to the run before."""

import json
import logging
import os
import zlib
from typing import Any

from etils import epath

from trainer.errors import RunError
from trainer.records import lines
from trainer.workdir.storage import write_whole

logger = logging.getLogger(__name__)


class MetricsFile:
    """Appends records to metrics.jsonl.

    Attributes:
      path: of the file.
    """

    def __init__(self, path: epath.Path):
        """Open the file, which need not exist; see `rewind`."""
        self.path = path
        self._file = path.open("ab")
        self._opened = os.fstat(self._file.fileno())

    def write(self, records: list[dict[str, Any]]) -> None:
        """Append records, so that a reader finds them."""
        finite = [lines.finite_or_none(record) for record in records]
        texts = [json.dumps(record, allow_nan=False) + "\n" for record in finite]
        self._file.write("".join(texts).encode())
        self._file.flush()

    def flush(self) -> None:
        """Put everything on disk.

        Raises:
          RunError: the file was deleted or replaced meanwhile.
        """
        os.fsync(self._file.fileno())
        self.confirm()

    def confirm(self) -> None:
        """Make sure that the file is still the one that is being written.

        Raises:
          RunError: the file was deleted or replaced meanwhile.
        """
        try:
            intact = os.path.samestat(os.stat(self.path), self._opened)
        except FileNotFoundError:
            intact = False
        if not intact:
            raise RunError(
                f"{self.path} was deleted or replaced while the run was writing to it; "
                "nothing has been saved since the last checkpoint"
            )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def rewind(path: epath.Path, first_step: int) -> dict[tuple[int, bool], bytes]:
    """Cut metrics.jsonl back to the step at which a run starts or resumes; say what is missing.

    The lines of updates that will be made again are dropped. What somebody else has put into the
    file is kept in a copy of it.

    Args:
      path: of metrics.jsonl, which need not exist.
      first_step: the step that the first update will read.

    Returns:
      The lines that stay, see `Lines.kept`.
    """
    text = path.read_bytes() if path.exists() else b""
    found = lines.read_lines(text)
    # A test record of step n was made after n updates: the checkpoint at n includes it.
    kept = {place: line for place, line in found.kept.items() if place < (first_step, True)}
    if found.foreign or not found.in_order:
        _keep_copy(path, text, found)
    new = b"".join(line + b"\n" for line in kept.values())
    if new != text:
        write_whole(path, new)
    missing = lines.missing_steps((step for step, is_train in kept if is_train), first_step)
    if missing:
        logger.warning(
            "%s has no record of steps %s: it was edited, or is not the file that this run wrote; "
            "the run resumes without these records",
            path.name,
            lines.describe_ranges(missing),
        )
    return kept


def _keep_copy(path: epath.Path, text: bytes, found: lines.Lines) -> None:
    """Keep a file that somebody edited as it is, under another name, and say so."""
    # Named after what it holds: no copy takes the place of another.
    copy = path.with_name(f"{path.name}.edited-{zlib.crc32(text):08x}")
    write_whole(copy, text)
    if not found.foreign:
        what = "its lines are in another order than the run wrote them"
    elif len(found.foreign) == 1:
        what = f"line {found.foreign[0]} is not a record, or repeats one"
    else:
        what = f"lines {lines.describe_numbers(found.foreign)} are not records, or repeat some"
    logger.warning("%s: %s; the file as it was is kept in %s", path.name, what, copy.name)

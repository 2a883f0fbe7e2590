"""The scalars of metrics.jsonl for TensorBoard; this module alone knows event files."""

import json
import os
import struct
import time
from typing import Any

from etils import epath
from google.protobuf.message import DecodeError

# TensorBoard itself shows 1000 points of a curve. Longer runs write every second step, every
# third and so on, so that what a resumed run writes again is soon written.
_MOST_POINTS = 10_000

# What a record has beside its scalars.
_NO_SCALARS = ("split", "step", "epoch", "examples")

_RATE = "images_per_second"


class TensorBoard:
    """Writes records as scalars, one event each: train/loss, test/accuracy and so on.

    A resumed run writes a new event file from metrics.jsonl, which has every step once, and empties
    the old one; times and rates, which are not in metrics.jsonl, come from there.
    """

    def __init__(self, folder: epath.Path, metrics: epath.Path, num_steps: int):
        """Open the event file and write what the run has done so far.

        Args:
          folder: for the event file; made if missing.
          metrics: metrics.jsonl, cut back to where the run goes on.
          num_steps: length of the run.
        """
        # Imported where it is used: --notensorboard needs none of it.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._every_steps = -(-num_steps // _MOST_POINTS)
        folder.mkdir(parents=True, exist_ok=True)
        old = sorted(folder.glob("events.out.tfevents.*"))
        known = _read(old)
        self._writer = EventsWriter(os.fspath(folder / "events"))
        # A TensorBoard that is looking on forgets what it read in the old file, from step 0 on.
        self._writer.write_event(Event(session_log=SessionLog(status=SessionLog.START)))
        wall_time = time.time()
        with metrics.open() as lines:
            for record in map(json.loads, lines):
                # What a crash kept from the old file happened soon after the step before it.
                at = known.get((record["split"], record["step"]), (wall_time, None))
                self.write(record, at[1], wall_time := at[0])
        self.flush()
        for path in old:
            if os.fspath(path) == self._writer._file_name:
                continue
            # Emptied now and deleted at the next start: a TensorBoard that is looking on stays for
            # ever at a file that is gone.
            if path.stat().length:
                path.write_bytes(b"")
            else:
                path.unlink()

    def write(
        self, record: dict[str, Any], rate: float | None, wall_time: float | None = None
    ) -> None:
        """Write one record.

        Args:
          record: a line of metrics.jsonl.
          rate: images per second by then, if known.
          wall_time: seconds since 1970, None for now.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        split, step = record["split"], record["step"]
        if split == "train" and step % self._every_steps:
            return
        scalars = {name: value for name, value in record.items() if name not in _NO_SCALARS}
        if rate is not None and split == "train":
            scalars[_RATE] = rate
        values = [
            Summary.Value(tag=f"{split}/{name}", simple_value=value)
            for name, value in scalars.items()
        ]
        wall_time = time.time() if wall_time is None else wall_time
        self._writer.write_event(
            Event(wall_time=wall_time, step=step, summary=Summary(value=values))
        )

    def flush(self) -> None:
        """Put all on disk."""
        self._writer.flush()

    def close(self) -> None:
        """Put all on disk and close the file."""
        self._writer.close()


def _read(paths: list[epath.Path]) -> dict[tuple[str, int], tuple[float, float | None]]:
    """Return time and rate of every event in event files, by split and step.

    A record of such a file: length uint64, checksum 4 bytes, content, checksum 4 bytes.
    """
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in paths:
        content, start = path.read_bytes(), 12
        while start <= len(content):
            stop = start + struct.unpack_from("<Q", content, start - 12)[0]
            try:
                event = Event.FromString(content[start:stop])
            except DecodeError:  # A crash cut it off.
                break
            scalars = {value.tag: value.simple_value for value in event.summary.value}
            for split in {tag.partition("/")[0] for tag in scalars}:
                found[split, event.step] = event.wall_time, scalars.get(f"{split}/{_RATE}")
            start = stop + 16
    return found

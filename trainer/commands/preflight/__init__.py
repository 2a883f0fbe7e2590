"""The programs of a run, compiled for accelerators that are not here, and what they need there."""

"""The commands: what each is for, an example, and the flags that it has."""

import dataclasses

from trainer.config import TrainConfig

# By name; each is a flag.
FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}


def _group(*groups: str) -> tuple[str, ...]:
    """Return the fields of some groups."""
    return tuple(name for name, field in FIELDS.items() if field.metadata["group"] in groups)


# What a run in one process can be told.
_ALONE = tuple(name for name in FIELDS if name not in _group("Processes"))


# Which of a run's parameters to use.
_SELECTION = ("checkpoint", "params")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
      purpose: one line.
      example: of its arguments, as a user would type them.
      flags: names of those that it has.
      takes: what follows its name and is no flag, as --help calls it; "" for nothing.
    """

    purpose: str
    example: str
    flags: tuple[str, ...]
    takes: str = ""


COMMANDS = {
    "train": Command(
        "train, or resume, or say that the run is complete",
        "train --flagfile=configs/fast.cfg --workdir=runs/fast",
        ("workdir", "dry_run", "allow_config_change", "run_token", *FIELDS),
    ),
    "evaluate": Command(
        "a checkpoint on the test split, as one JSON object",
        "evaluate --workdir=runs/fast",
        (
            "workdir",
            *_SELECTION,
            "ensemble",
            "data_dir",
            "data_placement",
            "platform",
            "num_devices",
            "num_cpu_devices",
            "compilation_cache",
        ),
    ),
    "inspect": Command(
        "the newest checkpoint's place in the run, its configuration and digests",
        "inspect --workdir=runs/fast --json",
        ("workdir", "json"),
    ),
    "report": Command(
        "draw report.png again from the records; the run may still be training",
        "report --workdir=runs/fast",
        ("workdir",),
    ),
    "find_lr": Command(
        "suggest learning rates from a range test, with a flagfile to train with",
        "find_lr --batch_size=64 --standardize",
        (
            "workdir",
            "find_lr_min",
            "find_lr_max",
            "find_lr_steps",
            "find_lr_ramp",
            *_ALONE,
        ),
    ),
    "verify_resume": Command(
        "prove on this machine that stopping and resuming changes nothing, bit for bit",
        "verify_resume --model=mlp --devices=1,2,4,8 --reduction=tree",
        ("devices", *_ALONE),
    ),
    "compare": Command(
        "several runs side by side: a table, or JSON, and one picture",
        "compare runs/a runs/b --output=runs/compare.png",
        ("output", "json"),
        takes="RUN",
    ),
    "preflight": Command(
        "compile the run for accelerators that are not here, and say what it needs there",
        "preflight --target=v5e:2x4,h100:8 --batch_size=1024",
        ("target", *_ALONE),
    ),
    "predict": Command(
        "the digit in each image file, one JSON object a line",
        "predict digit.png --workdir=runs/fast",
        ("workdir", *_SELECTION, "ensemble", "platform", "compilation_cache"),
        takes="FILE",
    ),
    "export": Command(
        "write a checkpoint's network as one file for jax alone",
        "export --workdir=runs/fast --output=digits.jaxexport",
        ("workdir", *_SELECTION, "output"),
    ),
}

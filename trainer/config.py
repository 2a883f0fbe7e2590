"""Every hyperparameter of a run: its default, its unit, its valid range, and the steps it means."""

import dataclasses
import math
from typing import Any

from trainer.errors import UsageError


def _option(
    default: Any,
    group: str,
    help: str,
    *,
    minimum: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    trajectory: bool = True,
) -> Any:
    """Declare a field: `minimum <= value < below`; `trajectory` says that it changes the result."""
    return dataclasses.field(
        default=default,
        metadata={
            "group": group,
            "help": help,
            "minimum": minimum,
            "below": below,
            "choices": choices,
            "trajectory": trajectory,
        },
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The hyperparameters of a run. Every field is a flag of the same name.

    Raises:
      UsageError: a value is outside its range; the message names flag, value and range.
    """

    dataset: str = _option(
        "mnist", "Data", "mnist, fashion_mnist, kmnist, or a data set that tfds.builder knows"
    )
    data_dir: str = _option(
        "",
        "Data",
        "folder of the prepared data sets; empty: the default of TensorFlow Datasets",
        trajectory=False,
    )
    standardize: bool = _option(
        False, "Data", "inputs are (x/255 - mean)/std of the training images instead of x/255"
    )
    batch_size: int = _option(
        128, "Data", "examples in a step, over all devices together", minimum=1
    )

    model: str = _option(
        "cnn", "Model", "network: cnn (32-64-256-10) or mlp", choices=("cnn", "mlp")
    )
    compute_dtype: str = _option(
        "float32",
        "Model",
        "dtype inside the network; parameters stay float32",
        choices=("float32", "bfloat16"),
    )
    seed: int = _option(0, "Model", "of the first parameters and of the data order", minimum=0)

    num_epochs: int = _option(10, "Length", "epochs to train in all", minimum=1, trajectory=False)
    num_steps: int | None = _option(
        None, "Length", "steps to train in all; overrides num_epochs", minimum=1, trajectory=False
    )

    lr_schedule: str = _option(
        "triangular",
        "Learning rate",
        "triangular: between lr_min and lr_max and back in every cycle; constant: lr_max",
        choices=("triangular", "constant"),
    )
    lr_min: float = _option(
        3e-3, "Learning rate", "lowest rate, at the start of a cycle", minimum=0
    )
    lr_max: float = _option(3e-2, "Learning rate", "highest rate, in mid-cycle", minimum=0)
    cycles_per_epoch: int = _option(
        4,
        "Learning rate",
        "steps_per_cycle = steps_per_epoch // cycles_per_epoch",
        minimum=1,
        trajectory=False,  # The steps_per_cycle that it becomes is what counts.
    )
    steps_per_cycle: int | None = _option(
        None,
        "Learning rate",
        "steps of a whole cycle, rise and fall; overrides cycles_per_epoch",
        minimum=2,
    )

    optimizer: str = _option("sgd", "Optimizer", "sgd or adamw", choices=("sgd", "adamw"))
    momentum: float = _option(
        0.9, "Optimizer", "decay of the momentum (b1 of adamw)", minimum=0, below=1
    )
    nesterov: bool = _option(False, "Optimizer", "Nesterov's form of the momentum")
    weight_decay: float = _option(
        0.0, "Optimizer", "weight decay, in the gradient (sgd) or decoupled (adamw)", minimum=0
    )

    checkpoint_every_steps: int = _option(
        500, "Records", "steps between checkpoints", minimum=1, trajectory=False
    )
    keep_checkpoints: int = _option(
        3, "Records", "newest checkpoints to keep", minimum=1, trajectory=False
    )
    eval_every_steps: int | None = _option(
        None,
        "Records",
        "steps between tests on the test split; unset: an epoch (the end is always tested)",
        minimum=1,
        trajectory=False,
    )
    check_replicas_every_steps: int | None = _option(
        None,
        "Records",
        "steps between comparisons of the devices' states; unset: only before every checkpoint",
        minimum=1,
        trajectory=False,
    )
    log_every_steps: int = _option(
        100,
        "Records",
        "steps between log lines where there is no terminal",
        minimum=1,
        trajectory=False,
    )

    profile: bool = _option(
        False,
        "Records",
        "trace 20 steps, after 20 others, into workdir/profile for Perfetto or TensorBoard",
        trajectory=False,
    )

    platform: str = _option(
        "auto",
        "Devices",
        "cpu, gpu or tpu: refuse to run elsewhere; auto: the best that jax finds",
        choices=("auto", "cpu", "gpu", "tpu"),
        trajectory=False,
    )
    num_devices: int = _option(
        0, "Devices", "use the first n devices; 0: all", minimum=0, trajectory=False
    )
    num_cpu_devices: int = _option(
        0,
        "Devices",
        "virtual devices to make of the cores of a CPU; 0: choose",
        minimum=0,
        trajectory=False,
    )
    reduction: str = _option(
        "auto",
        "Devices",
        "how the devices' gradients are added. tree: the same bits on any number of devices; "
        "allreduce: the platform's sum; auto: what the run in the workdir uses, or for a new one "
        "tree on CPU where it applies, else allreduce",
        choices=("auto", "tree", "allreduce"),
    )
    gradient_shards: int = _option(
        8,
        "Devices",
        "with tree: equal parts of a batch whose gradients are added, a power of two that the "
        "number of devices divides and that divides batch_size",
        minimum=1,
    )

    compilation_cache: bool = _option(
        True,
        "Devices",
        "keep compiled programs in the user's cache folder, so that the next run starts faster",
        trajectory=False,
    )
    coordinator_address: str = _option(
        "",
        "Processes",
        "host:port of process 0; needed only where neither Slurm, Open MPI nor a TPU pod tells",
        trajectory=False,
    )
    num_processes: int | None = _option(
        None, "Processes", "processes that train together", minimum=1, trajectory=False
    )
    process_id: int | None = _option(
        None, "Processes", "number of this process, from 0", minimum=0, trajectory=False
    )

    def __post_init__(self) -> None:
        """Check every field on its own, then those that belong together."""
        for field in dataclasses.fields(self):
            _check_range(field, getattr(self, field.name))
        if self.lr_min > self.lr_max:
            raise UsageError(
                f"--lr_min={self.lr_min} is above --lr_max={self.lr_max}; "
                "valid: 0 <= lr_min <= lr_max"
            )
        if self.gradient_shards.bit_count() != 1:
            raise UsageError(
                f"--gradient_shards={self.gradient_shards} makes no binary tree; valid: a power "
                "of two"
            )

    @classmethod
    def trajectory_fields(cls) -> list[str]:
        """Return the names of the fields that change the parameters that a run arrives at."""
        return [field.name for field in dataclasses.fields(cls) if field.metadata["trajectory"]]

    def plan(self, num_examples: int) -> "Plan":
        """Return every duration of the run in steps.

        Args:
          num_examples: size of the training split.

        Raises:
          UsageError: a batch is larger than the split, or a cycle shorter than two steps.
        """
        if self.batch_size > num_examples:
            raise UsageError(
                f"--batch_size={self.batch_size} is more than the {num_examples} training examples "
                f"of --dataset={self.dataset}; valid: 1 to {num_examples}"
            )
        steps_per_epoch = num_examples // self.batch_size
        steps_per_cycle = self.steps_per_cycle or steps_per_epoch // self.cycles_per_epoch
        if steps_per_cycle < 2:
            raise UsageError(
                f"--cycles_per_epoch={self.cycles_per_epoch} leaves {steps_per_cycle} steps for a "
                f"cycle (an epoch has {steps_per_epoch} steps) and a cycle needs 2; valid: "
                f"--cycles_per_epoch up to {steps_per_epoch // 2}, or --steps_per_cycle=2 and more"
            )
        return Plan(
            steps_per_epoch=steps_per_epoch,
            steps_per_cycle=steps_per_cycle,
            num_steps=self.num_steps or self.num_epochs * steps_per_epoch,
            eval_every_steps=self.eval_every_steps or steps_per_epoch,
        )

    def resolve(self, plan: "Plan", reduction: str) -> "TrainConfig":
        """Return the same run with nothing left to choose; resolving it again is no change.

        Args:
          plan: its durations in steps.
          reduction: "tree" or "allreduce", see `reductions.choose_reduction`.
        """
        return dataclasses.replace(
            self,
            num_steps=plan.num_steps,
            steps_per_cycle=plan.steps_per_cycle,
            eval_every_steps=plan.eval_every_steps,
            reduction=reduction,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The durations of a run in steps; beyond this point nothing else counts time."""

    steps_per_epoch: int
    steps_per_cycle: int
    num_steps: int
    eval_every_steps: int


def _check_range(field: dataclasses.Field, value: Any) -> None:
    """Raise a UsageError if the value is outside the range that the field declares."""
    if value is None:
        return
    minimum, below, choices = (field.metadata[key] for key in ("minimum", "below", "choices"))
    valid = ""
    if choices is not None and value not in choices:
        valid = " or ".join(choices)
    elif minimum is not None and not (minimum <= value and (below is None or value < below)):
        valid = f"{minimum} and more" if below is None else f"{minimum} <= {field.name} < {below}"
    elif isinstance(value, float) and not math.isfinite(value):
        valid = "a finite number"
    if valid:
        raise UsageError(f"--{field.name}={value} is not valid; valid: {valid}")

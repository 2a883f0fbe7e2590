"""Every hyperparameter of a run: its default, its unit, its valid range, and the steps it means."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from trainer.errors import RunError, UsageError


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
        "mnist",
        "Data",
        "mnist, fashion_mnist, kmnist, a folder of pictures (train/CLASS/*.png and "
        "test/CLASS/*.png, or CLASS/*.png), an .npz file (x_train, y_train, x_test, y_test), or a "
        "data set that TFDS has prepared as array_record",
    )
    data_dir: str = _option(
        "",
        "Data",
        "folder of the prepared data sets; empty: the default of TensorFlow Datasets",
        trajectory=False,
    )
    train_split: str = _option(
        "",
        "Data",
        "the examples to train on, in the notation of TFDS, such as train[:90%]; empty: train",
    )
    test_split: str = _option(
        "",
        "Data",
        "the examples to test on, such as train[90%:]; empty: test, or validation if there is no "
        "test",
    )
    image_size: str = _option(
        "", "Data", "HEIGHTxWIDTH in pixels, to which all images are resized; empty: as they are"
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
    num_cycles: int | None = _option(
        None,
        "Length",
        "whole cycles of the learning rate to train in all; overrides num_epochs, and goes not "
        "together with num_steps",
        minimum=1,
        trajectory=False,
    )

    lr_schedule: str = _option(
        "triangular",
        "Learning rate",
        "triangular: between lr_min and lr_max and back in every cycle; triangular2: the same, its "
        "height halved after every cycle; exp_range: its height declines by lr_gamma every step; "
        "exp_range_boundaries: lr_min and lr_max both decline by lr_gamma every step, as the paper "
        "words it; constant: lr_max",
        choices=("triangular", "triangular2", "exp_range", "exp_range_boundaries", "constant"),
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
    cycle_up_fraction: float = _option(
        0.5,
        "Learning rate",
        "part of a cycle in which the rate rises, rounded to steps, at least one",
        minimum=0,
        below=1,
    )
    lr_gamma: float = _option(
        0.99994,  # The paper's, for CIFAR-10.
        "Learning rate",
        "factor of every step in exp_range and exp_range_boundaries, 0 < lr_gamma <= 1",
        minimum=0,
    )

    optimizer: str = _option("sgd", "Optimizer", "sgd or adamw", choices=("sgd", "adamw"))
    momentum: float = _option(
        0.9, "Optimizer", "decay of the momentum (b1 of adamw)", minimum=0, below=1
    )
    momentum_min: float | None = _option(
        None,
        "Optimizer",
        "momentum where the learning rate is highest: with momentum_max it takes the place of "
        "momentum, and falls as the rate rises",
        minimum=0,
        below=1,
    )
    momentum_max: float | None = _option(
        None, "Optimizer", "momentum where the learning rate is lowest", minimum=0, below=1
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
    tensorboard: bool = _option(True, "Records", "write scalars for TensorBoard", trajectory=False)
    report: bool = _option(
        True, "Records", "draw report.png in the workdir when the run ends", trajectory=False
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

    steps_per_call: int = _option(
        0,
        "Devices",
        "steps that the devices take without the host, at most; 0: 1 on a CPU (its loops make "
        "convolutions many times slower) and with tree, else 32",
        minimum=0,
        trajectory=False,
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
        if not 0 < self.lr_gamma <= 1:
            raise UsageError(f"--lr_gamma={self.lr_gamma} is not valid; valid: 0 < lr_gamma <= 1")
        self._check_momentum_range()
        if self.num_steps is not None and self.num_cycles is not None:
            raise UsageError(
                f"--num_steps={self.num_steps} and --num_cycles={self.num_cycles} both say how "
                "long to train; valid: one of them"
            )
        if self.gradient_shards.bit_count() != 1:
            raise UsageError(
                f"--gradient_shards={self.gradient_shards} makes no binary tree; valid: a power "
                "of two"
            )

    def _check_momentum_range(self) -> None:
        """Check the two ends between which the momentum goes, if it does."""
        low, high = self.momentum_min, self.momentum_max
        if low is None and high is None:
            return
        if low is None or high is None:
            given = f"--momentum_min={low}" if high is None else f"--momentum_max={high}"
            raise UsageError(
                f"{given} is one end only; valid: both --momentum_min and --momentum_max, or "
                "neither for a --momentum that stays"
            )
        if low > high:
            raise UsageError(
                f"--momentum_min={low} is above --momentum_max={high}; "
                "valid: 0 <= momentum_min <= momentum_max < 1"
            )
        if self.lr_schedule == "constant":
            raise UsageError(
                f"--momentum_min={low} and --momentum_max={high} go against the learning rate, "
                "and --lr_schedule=constant stays; valid: a cyclical --lr_schedule, or --momentum"
            )

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> "TrainConfig":
        """Return the configuration that this version or an older one has stored.

        A field that the older version did not have takes its default, which is what that version
        did.

        Raises:
          RunError: a newer version has stored it, with fields that this one does not know.
        """
        unknown = sorted(stored.keys() - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise RunError(
                f"the run was made by another version of the trainer, which knows {unknown[0]}="
                f"{stored[unknown[0]]}; go on with that version, or start in another --workdir"
            )
        return cls(**stored)

    @property
    def cycles_momentum(self) -> bool:
        """Whether the momentum goes against the learning rate instead of staying."""
        return self.momentum_min is not None

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
            num_steps=self.asked_steps(steps_per_cycle) or self.num_epochs * steps_per_epoch,
            eval_every_steps=self.eval_every_steps or steps_per_epoch,
        )

    def asked_steps(self, steps_per_cycle: int) -> int | None:
        """Return the length that num_steps or num_cycles ask for, or None if neither does."""
        return self.num_cycles * steps_per_cycle if self.num_cycles else self.num_steps

    def resolve(self, plan: "Plan", reduction: str, steps_per_call: int) -> "TrainConfig":
        """Return the same run with nothing left to choose; resolving it again is no change.

        Args:
          plan: its durations in steps.
          reduction: "tree" or "allreduce", see `reductions.choose_reduction`.
          steps_per_call: 1 and more, see `steps.choose_steps_per_call`.
        """
        return dataclasses.replace(
            self,
            num_steps=plan.num_steps,
            num_cycles=None,
            steps_per_cycle=plan.steps_per_cycle,
            eval_every_steps=plan.eval_every_steps,
            reduction=reduction,
            steps_per_call=steps_per_call,
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

"""The hyperparameters of a run."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from trainer.config.checks import check_field, check_together
from trainer.config.options import (
    COUNT,
    COUNT_OR_NONE,
    CPU_DEVICES,
    FRACTION,
    GAMMA,
    LEARNING_RATE,
    LR_SCHEDULES,
    NOT_NEGATIVE,
    SEED,
    STEPS_PER_CYCLE,
    TRIANGULAR,
    option,
)
from trainer.config.own import absolute
from trainer.errors import RunError

# Each says how long to train; on the command line the one given last counts.
LENGTH_FIELDS = ("num_epochs", "num_steps", "num_cycles")
# Which processes train, and where they find each other: each start of a run may say it anew.
OF_A_START = ("coordinator_address", "num_processes", "process_id")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The hyperparameters of a run. Every field is a flag of the same name.

    Raises:
      UsageError: a value is outside its range; the message names flag, value and range.
    """

    dataset: str = option(
        "mnist",
        "Data",
        "mnist, fashion_mnist, kmnist, a folder of pictures (train/CLASS/*.png and "
        "test/CLASS/*.png, or CLASS/*.png), an .npz file (x_train, y_train, x_test, y_test), or a "
        "data set that TFDS has prepared as array_record",
    )
    data_dir: str = option(
        "",
        "Data",
        "folder of the prepared data sets; empty: the default of TensorFlow Datasets",
        trajectory=False,
    )
    data_placement: str = option(
        "auto",
        "Data",
        "where the examples lie. replicated: all of them on every device; sharded: a part on each "
        "device; streamed: on disk, and read some steps ahead; auto: the first of these that fits. "
        "The batches are the same",
        valid=("auto", "replicated", "sharded", "streamed"),
        trajectory=False,
    )
    train_split: str = option(
        "",
        "Data",
        "the examples to train on, in the notation of TFDS, such as train[:90%]; empty: train",
    )
    test_split: str = option(
        "",
        "Data",
        "the examples to test on, such as train[90%:]; empty: test, or validation if there is no "
        "test",
    )
    image_size: str = option(
        "", "Data", "HEIGHTxWIDTH in pixels, to which all images are resized; empty: as they are"
    )
    standardize: bool = option(
        False, "Data", "inputs are (x/255 - mean)/std of the training images instead of x/255"
    )
    augment: str = option(
        "",
        "Data",
        "random changes of the training images, made on the devices. shift: by up to 2 pixels in "
        "each direction, filled with zeros; or your own, as package.module:augment or "
        "path/file.py:augment; empty: none",
        valid=("", "shift"),
        own="augment",
    )
    batch_size: int = option(
        128, "Data", "examples in a step, over all devices together", valid=COUNT
    )

    model: str = option(
        "cnn",
        "Model",
        "network: cnn (32-64-256-10), small_cnn (32-32-256-10, a quarter of the arithmetic), mlp, "
        "or your own, as package.module:Network or path/file.py:Network",
        valid=("cnn", "small_cnn", "mlp"),
        own="Network",
    )
    compute_dtype: str = option(
        "float32",
        "Model",
        "dtype inside the network; parameters stay float32",
        valid=("float32", "bfloat16"),
    )
    seed: int = option(0, "Model", "of the first parameters and of the data order", valid=SEED)

    num_epochs: int = option(10, "Length", "epochs to train in all", valid=COUNT, trajectory=False)
    num_steps: int | None = option(
        None, "Length", "steps to train in all; overrides num_epochs", valid=COUNT, trajectory=False
    )
    num_cycles: int | None = option(
        None,
        "Length",
        "whole cycles of the learning rate to train in all; overrides num_epochs, and cannot be "
        "combined with num_steps",
        valid=COUNT,
        trajectory=False,
    )

    lr_schedule: str = option(
        TRIANGULAR,
        "Learning rate",
        "triangular: between lr_min and lr_max and back in every cycle; triangular2: the same, its "
        "height halved after every cycle; exp_range: its height declines by lr_gamma every step; "
        "exp_range_boundaries: lr_min and lr_max both decline by lr_gamma every step, as the paper "
        "words it; constant: lr_max",
        valid=LR_SCHEDULES,
    )
    lr_min: float = option(
        3e-3, "Learning rate", "lowest rate, at the start of a cycle", valid=LEARNING_RATE
    )
    lr_max: float = option(3e-2, "Learning rate", "highest rate, in mid-cycle", valid=LEARNING_RATE)
    cycles_per_epoch: int = option(
        4,
        "Learning rate",
        "steps_per_cycle = steps_per_epoch // cycles_per_epoch",
        valid=COUNT,
        trajectory=False,  # The steps_per_cycle that it becomes is what counts.
    )
    steps_per_cycle: int | None = option(
        None,
        "Learning rate",
        "steps of a whole cycle, rise and fall; overrides cycles_per_epoch",
        valid=STEPS_PER_CYCLE,
    )
    cycle_up_fraction: float = option(
        0.5,
        "Learning rate",
        "part of a cycle in which the rate rises, rounded to steps, at least one",
        valid=FRACTION,
    )
    lr_gamma: float = option(
        0.99994,  # The paper's, for CIFAR-10.
        "Learning rate",
        "factor of every step in exp_range and exp_range_boundaries, 0 < lr_gamma <= 1",
        valid=GAMMA,
    )

    optimizer: str = option(
        "sgd",
        "Optimizer",
        "sgd, adamw, or your own, as package.module:create or path/file.py:create, which returns "
        "an optax transformation without a learning rate",
        valid=("sgd", "adamw"),
        own="create",
    )
    momentum: float = option(
        0.9, "Optimizer", "decay of the momentum (b1 of adamw)", valid=FRACTION
    )
    momentum_min: float | None = option(
        None,
        "Optimizer",
        "momentum where the learning rate is highest: with momentum_max it takes the place of "
        "momentum, and falls as the rate rises",
        valid=FRACTION,
    )
    momentum_max: float | None = option(
        None, "Optimizer", "momentum where the learning rate is lowest", valid=FRACTION
    )
    nesterov: bool = option(False, "Optimizer", "Nesterov's form of the momentum")
    weight_decay: float = option(
        0.0,
        "Optimizer",
        "decay of the weights: in the gradient (sgd), decoupled (adamw)",
        valid=NOT_NEGATIVE,
    )
    label_smoothing: float = option(
        0.0,
        "Optimizer",
        "part of every training label that is spread evenly over all classes; losses of tests are "
        "of the labels as they are",
        valid=FRACTION,
    )

    average_cycles: int = option(
        0,
        "Averages",
        "average the parameters at the ends of cycles, from this end on (1: the first); 0: do not",
        valid=COUNT_OR_NONE,
    )
    ema_decay: float = option(
        0.0,
        "Averages",
        "decay d of an exponential moving average of the parameters, d * ema + (1 - d) * params "
        "after every step; 0: none",
        valid=FRACTION,
    )

    checkpoint_every_steps: int = option(
        500, "Records", "steps between checkpoints", valid=COUNT, trajectory=False
    )
    keep_checkpoints: int = option(
        3, "Records", "newest checkpoints to keep", valid=COUNT, trajectory=False
    )
    keep_cycle_ends: int = option(
        0,
        "Records",
        "checkpoints at the last ends of cycles to keep as well, for evaluate --ensemble",
        valid=COUNT_OR_NONE,
        trajectory=False,
    )
    keep_best: bool = option(
        False,
        "Records",
        "save at every test that is the best so far, and keep that checkpoint as well",
        trajectory=False,
    )
    eval_every_steps: int | None = option(
        None,
        "Records",
        "steps between tests on the test split; unset: an epoch (the end is always tested)",
        valid=COUNT,
        trajectory=False,
    )
    check_replicas_every_steps: int | None = option(
        None,
        "Records",
        "steps between comparisons of the devices' states; unset: only before every checkpoint",
        valid=COUNT,
        trajectory=False,
    )
    audit_every_steps: int | None = option(
        None,
        "Records",
        "steps between audits, in which each device also computes the gradient of its "
        "neighbour's part of a batch, and the bits are compared; unset: none",
        valid=COUNT,
        trajectory=False,
    )
    log_every_steps: int = option(
        100,
        "Records",
        "steps between log lines where there is no terminal",
        valid=COUNT,
        trajectory=False,
    )
    tensorboard: bool = option(True, "Records", "write scalars for TensorBoard", trajectory=False)
    report: bool = option(
        True, "Records", "draw report.png in the workdir when the run ends", trajectory=False
    )
    profile: bool = option(
        False,
        "Records",
        "trace 20 steps, after 20 others, into workdir/profile for Perfetto or TensorBoard",
        trajectory=False,
    )

    platform: str = option(
        "auto",
        "Devices",
        "cpu, gpu or tpu: refuse to run elsewhere; auto: the best that jax finds",
        valid=("auto", "cpu", "gpu", "tpu"),
        trajectory=False,
    )
    num_devices: int = option(
        0, "Devices", "use the first n devices; 0: all", valid=COUNT_OR_NONE, trajectory=False
    )
    num_cpu_devices: int = option(
        0,
        "Devices",
        "virtual devices to make of the cores of a CPU; 0: choose",
        valid=CPU_DEVICES,
        trajectory=False,
    )
    reduction: str = option(
        "auto",
        "Devices",
        "how the devices' gradients are added. tree: the same bits on any number of devices; "
        "allreduce: the platform's sum; auto: what the run in the workdir uses, or for a new one "
        "tree on CPU where it applies, else allreduce",
        valid=("auto", "tree", "allreduce"),
    )
    gradient_shards: int = option(
        0,
        "Devices",
        "with tree: equal parts of a batch whose gradients are added, a power of two that the "
        "number of devices divides and that divides batch_size; 0: choose, at least 8, of at most "
        "about 16 examples each",
        valid=COUNT_OR_NONE,
    )
    accumulation_steps: int = option(
        1,
        "Devices",
        "pieces of a device's part of a batch whose gradients are computed one after the other, "
        "in less memory; with tree each piece is of whole gradient shards, and the bits are those "
        "of 1",
        valid=COUNT,
    )

    deterministic: bool = option(
        True,
        "Devices",
        "on GPUs, use only operations that give the same bits in every run, and choose none by "
        "timing them",
    )
    steps_per_call: int = option(
        0,
        "Devices",
        "steps that the devices take without the host, at most; 0: 1 on a CPU (its loops make "
        "convolutions many times slower) and with tree, else up to 32, so that tests and "
        "checkpoints fall at the ends of calls",
        valid=COUNT_OR_NONE,
        trajectory=False,
    )
    compilation_cache: bool = option(
        True,
        "Devices",
        "keep compiled programs in the user's cache folder, so that the next run starts faster",
        trajectory=False,
    )
    hang_seconds: int = option(
        300,
        "Processes",
        "seconds without progress after which the run ends, and says where it hangs; 0: never",
        valid=COUNT_OR_NONE,
        trajectory=False,
    )
    coordinator_address: str = option(
        "",
        "Processes",
        "host:port of process 0; needed only where neither Slurm, Open MPI nor a TPU pod tells",
        trajectory=False,
    )
    num_processes: int | None = option(
        None, "Processes", "processes that train together", valid=COUNT, trajectory=False
    )
    process_id: int | None = option(
        None, "Processes", "number of this process, from 0", valid=COUNT_OR_NONE, trajectory=False
    )

    def __post_init__(self) -> None:
        """Check every field on its own, then those that belong together."""
        for field in dataclasses.fields(self):
            check_field(field, getattr(self, field.name))
            if field.metadata["own"]:
                object.__setattr__(self, field.name, absolute(getattr(self, field.name)))
        check_together(self)

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
                f"{stored[unknown[0]]}; continue with that version, or start in another --workdir"
            )
        return cls(**stored)

    def completed_from(self, stored: "TrainConfig", given: Collection[str]) -> "TrainConfig":
        """Return this configuration with every field that was not given as the run has it.

        Which processes train, and where this one finds the others, belongs to a start and not to
        a run: these fields stay.

        Args:
          stored: the configuration of the run, resolved.
          given: names of the fields that the user gave.
        """
        kept = {*given, *OF_A_START}
        if kept & set(LENGTH_FIELDS):
            kept |= set(LENGTH_FIELDS)
        if "cycles_per_epoch" in kept:
            # Otherwise the steps that it once became would override it.
            kept.add("steps_per_cycle")
        names = [field.name for field in dataclasses.fields(self)]
        owner = {name: self if name in kept else stored for name in names}
        return TrainConfig(**{name: getattr(owner[name], name) for name in names})

    @property
    def data_selection(self) -> dict[str, str]:
        """Which examples, and in which size: the keyword arguments of `datasets.open_dataset`."""
        names = ("train_split", "test_split", "image_size")
        return {name: getattr(self, name) for name in names}

    @property
    def cycles_momentum(self) -> bool:
        """Whether the momentum moves against the learning rate instead of staying."""
        return self.momentum_min is not None

    @classmethod
    def trajectory_fields(cls) -> list[str]:
        """Return the names of the fields that change the parameters that a run arrives at."""
        return [field.name for field in dataclasses.fields(cls) if field.metadata["trajectory"]]

    def asked_steps(self, steps_per_cycle: int) -> int | None:
        """Return the length that num_steps or num_cycles ask for, or None if neither does."""
        return self.num_cycles * steps_per_cycle if self.num_cycles else self.num_steps

"""A run, checked and decided in every detail before anything is computed or written."""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Collection
from typing import Any

import optax
from etils import epath
from jax.sharding import Mesh

from trainer import devices, processes
from trainer.checkpoints import Restored
from trainer.config import TrainConfig
from trainer.config.own import is_own
from trainer.datasets import DatasetSource, open_dataset
from trainer.errors import UsageError
from trainer.paths import expand
from trainer.run.config_changes import check_config_change
from trainer.run.environment import check_environment
from trainer.run.memory import Memory, measure_memory
from trainer.run.placement import choose_placement
from trainer.run.resolving import resolve
from trainer.run.resume import (
    check_data,
    check_next_rate,
    check_processes_have_the_same_data,
    check_sources,
    trained_on_own_files,
)
from trainer.schedules import Plan, create_momentum, create_plan, create_schedule
from trainer.step import (
    Augmentation,
    Averaging,
    Network,
    TrainState,
    abstract_train_state,
    create_augmentation,
    create_network,
    create_optimizer,
    create_own_optimizer,
    digests_of_sources,
    train_state_init,
)
from trainer.workdir.files import CONFIG_FILE, read_config

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run will do.

    Attributes:
      config: resolved, as it is stored.
      plan: its durations in steps.
      workdir: where the run's files lie.
      mesh: its devices.
      source: its data set, not read yet.
      placement: where its examples will lie: "replicated", "sharded" or "streamed".
      placement_reason: why there, in words.
      network: the network.
      augmentation: of the training images, or None.
      tx: the optimizer, without a learning rate.
      schedule: step -> learning rate.
      momentum_schedule: step -> momentum, or None if the momentum stays.
      restored: the checkpoint that it resumes from, verified, or None.
      sources: SHA-256 of the source files of what is the user's own, by field of the configuration.
      config_history: what was changed at earlier resumes and at this one: a list of
        {"step": int, "changes": {field: [before, after]}}.
    """

    config: TrainConfig
    plan: Plan
    workdir: epath.Path
    mesh: Mesh
    source: DatasetSource
    placement: str
    placement_reason: str
    network: Network
    augmentation: Augmentation | None
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    momentum_schedule: optax.Schedule | None
    restored: Restored | None
    sources: dict[str, str]
    config_history: list[dict[str, Any]]

    @property
    def first_step(self) -> int:
        """The step that the next update reads: 0, or that of the checkpoint."""
        return self.restored.step if self.restored else 0

    @property
    def averaging(self) -> Averaging:
        """Which averages of the parameters the run keeps."""
        config = self.config
        return Averaging(config.average_cycles, self.plan.steps_per_cycle, config.ema_decay)

    @functools.cached_property
    def init(self) -> Callable[[], TrainState]:
        """The pure function that makes the state before the first update."""
        return train_state_init(self.network, self.tx, self.config.seed, self.averaging)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and sharding of the state."""
        return abstract_train_state(self.init, devices.replicated(self.mesh))


def prepare(
    config: TrainConfig,
    workdir: epath.Path,
    restored: Restored | None = None,
    *,
    allow_config_change: Collection[str] = (),
    given: Collection[str] | None = None,
    mesh: Mesh | None = None,
    memory: Memory | None = None,
) -> Job:
    """Find devices and data, and check that all fits together, and to the checkpoint if any.

    Args:
      config: the hyperparameters.
      workdir: of the run; nothing is written to it.
      restored: the newest good checkpoint in it, or None.
      allow_config_change: fields that may differ from those of the checkpoint.
      given: fields that the user gave; what is not given, the run in the workdir says. None: all.
      mesh: devices that are elsewhere; None: those that the configuration asks for.
      memory: that is free there; None: what is free here.

    Raises:
      UsageError: something does not fit; the message says what would.
      RunError: another version of the trainer made the checkpoint.
    """
    stored = TrainConfig.from_stored(restored.meta["config"]) if restored else None
    if given is not None:
        config = _complete(config, workdir, stored, given)
    mesh = mesh or devices.create_mesh(config.platform, config.num_devices)
    devices.check_divisible(config.batch_size, mesh)
    with processes.first_process_first():
        source = open_dataset(config.dataset, config.data_dir, **config.data_selection)
    check_processes_have_the_same_data(config.dataset, source.description)
    config = _with_absolute_paths(config, source)
    if restored and stored:
        if source.path and trained_on_own_files(restored):
            # They may have moved since: not where they are counts, but what they hold.
            stored = dataclasses.replace(stored, dataset=config.dataset)
        if stored.dataset == config.dataset:
            check_data(restored, config.dataset, source.description, "resume from it")
    plan = create_plan(config, source.num_train)
    placement, reason = choose_placement(
        config.data_placement, source, mesh, config.batch_size, memory or measure_memory(mesh)
    )
    config = resolve(config, plan, mesh, stored, placement)
    history: list[dict[str, Any]] = []
    if restored and stored:
        step, history = restored.step, restored.meta["config_history"]
        changes = check_config_change(stored, config, step, allow_config_change, workdir)
        if changes:
            history = [*history, {"step": step, "changes": changes}]
        check_next_rate(restored, create_schedule(stored))
    # Of a complete run nothing follows.
    resumes = restored is not None and restored.step < plan.num_steps
    check_environment(restored if resumes else None)
    network = create_network(
        config.model, source.image_shape, source.num_classes, config.compute_dtype
    )
    augmentation = create_augmentation(config.augment, source.image_shape)
    tx = _create_optimizer(config, network)
    sources = _agreed_sources(config)
    if restored and stored:
        # What has another name by now was changed on purpose.
        kept = {field for field in sources if getattr(stored, field) == getattr(config, field)}
        check_sources(restored, {field: sources[field] for field in kept})
    return Job(
        config=config,
        plan=plan,
        workdir=workdir,
        mesh=mesh,
        source=source,
        placement=placement,
        placement_reason=reason,
        network=network,
        augmentation=augmentation,
        tx=tx,
        schedule=create_schedule(config),
        momentum_schedule=create_momentum(config),
        restored=restored,
        sources=sources,
        config_history=history,
    )


def _create_optimizer(config: TrainConfig, network: Network) -> optax.GradientTransformation:
    """Return the optimizer, a built-in one or the user's own."""
    if is_own(config.optimizer):
        return create_own_optimizer(config.optimizer, network)
    momentum = None if config.cycles_momentum else config.momentum
    return create_optimizer(config.optimizer, momentum, config.nesterov, config.weight_decay)


def _agreed_sources(config: TrainConfig) -> dict[str, str]:
    """Return the digests of the user's own sources, which all processes must have alike."""
    sources = digests_of_sources(config)
    for number, others in enumerate(processes.gather(sources)):
        for field in sources:
            if others[field] != sources[field]:
                raise UsageError(
                    f"--{field}={getattr(config, field)}: process {number} has a file of other "
                    f"contents (SHA-256 {others[field][:8]}..., here {sources[field][:8]}...); "
                    "give all processes the same file"
                )
    return sources


def _complete(
    config: TrainConfig,
    workdir: epath.Path,
    stored: TrainConfig | None,
    given: Collection[str],
) -> TrainConfig:
    """Return the configuration with what was not given as the run in the workdir has it."""
    if stored is None:
        # A run that has not saved a checkpoint yet.
        found = processes.share(read_config(workdir) if processes.is_first() else None)
        try:
            stored = TrainConfig.from_stored(found) if found else None
        except UsageError as error:
            raise UsageError(
                f"{workdir / CONFIG_FILE} was edited, and is no configuration of a run ({error}); "
                "delete it, or use another --workdir"
            ) from error
    given = processes.share(sorted(given))
    if stored is None:
        return config
    config = config.completed_from(stored, given)
    if "num_devices" not in given and not devices.are_there(config.num_devices):
        # A run may resume on fewer devices, and on other processes, than it had.
        config = dataclasses.replace(config, num_devices=0)
    return config


def _with_absolute_paths(config: TrainConfig, source: DatasetSource) -> TrainConfig:
    """Return the same configuration for any current folder: the run may be resumed from another."""
    data_dir = config.data_dir
    if data_dir and "://" not in data_dir:
        data_dir = os.path.abspath(expand("data_dir", data_dir))
    return dataclasses.replace(config, data_dir=data_dir, dataset=source.path or config.dataset)

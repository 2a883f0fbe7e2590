"""What each command does with its arguments; the exit status of what it found."""

import dataclasses
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trainer.cli.arguments import Arguments
from trainer.config import TrainConfig
from trainer.errors import RunError, UsageError

if TYPE_CHECKING:
    from trainer.run.job import Job
    from trainer.run.selection import Selection

# The libraries behind the commands take seconds to import: each command imports what it uses, so
# that --help and a mistyped flag answer at once.

DONE = 0

# Before anything that takes long is imported: that is time of a run, too.
_BEGAN = time.time()


def _train(arguments: Arguments) -> int:
    """Train, or resume, or say that the run is complete."""
    from trainer import processes
    from trainer.processes import signals
    from trainer.processes.cluster import find_cluster

    config = arguments.config
    cluster = find_cluster(
        config.coordinator_address,
        config.num_processes,
        config.process_id,
        arguments.options["run_token"],
    )
    _configure_devices(_config_of_run(arguments), cluster.num_processes if cluster else 1)
    from trainer.run import loop

    allowed = arguments.options["allow_config_change"]
    with processes.joined(cluster, _settings(arguments)):
        if not processes.is_first():
            logging.getLogger("trainer").setLevel(logging.WARNING)
        if arguments.options["dry_run"]:
            planned = loop.plan(config, arguments.workdir, allowed, arguments.given)
            if processes.is_first():
                _show_plan(planned)
        else:
            with signals.run_decides():
                loop.train(config, arguments.workdir, allowed, arguments.given, _BEGAN)
    return DONE


def _show_plan(job: "Job") -> None:
    """Print a run as it is planned, and draw it."""
    from trainer.records import figures
    from trainer.run.describe import describe, describe_schedule_in_full

    print(describe(job), file=sys.stderr)
    width = shutil.get_terminal_size().columns
    print(describe_schedule_in_full(job, width), file=sys.stderr)
    picture = figures.draw_schedule(job.schedule, job.config, job.plan, job.workdir)
    print(f"the learning rate as planned: {picture}", file=sys.stderr)


# What processes that train together may be given differently.
_OWN = ("data_dir", "coordinator_address", "num_processes", "process_id")


def _settings(arguments: Arguments) -> dict[str, Any]:
    """Return what processes that train together must be given alike."""
    settings = {name: arguments.options[name] for name in ("dry_run", "allow_config_change")}
    fields = dataclasses.asdict(arguments.config)
    alike = {name: value for name, value in fields.items() if name not in _OWN}
    return {"workdir": arguments.workdir} | settings | alike


def _evaluate(arguments: Arguments) -> int:
    """Print loss and accuracy of a checkpoint on the test split, as JSON."""
    _configure_devices(_config_of_run(arguments))
    from trainer.commands import inspection

    selection = _selection(arguments)
    _print_json(inspection.evaluate(arguments.workdir, arguments.config, selection))
    return DONE


def _inspect(arguments: Arguments) -> int:
    """Print the newest checkpoint's place in the run, for a person or as JSON."""
    from trainer.commands import inspection

    found = inspection.inspect(arguments.workdir)
    if sys.stdout.isatty() and not arguments.options["json"]:
        print(inspection.summary(found))
    else:
        _print_json(found)
    return DONE


def _report(arguments: Arguments) -> int:
    """Draw report.png again from the records; the run may still be training."""
    from trainer.records import figures

    print(figures.draw_report(arguments.workdir), file=sys.stderr)
    return DONE


def _compare(arguments: Arguments) -> int:
    """Show what runs have come to side by side, for a person or as JSON, and draw them."""
    from trainer.commands.compare.command import compare
    from trainer.commands.compare.table import table

    found = compare(arguments.files, arguments.options["output"])
    if sys.stdout.isatty() and not arguments.options["json"]:
        print(table(found))
    else:
        _print_json(found)
    print(found["picture"], file=sys.stderr)
    return DONE


def _find_lr(arguments: Arguments) -> int:
    """Suggest --lr_min, --lr_max and --steps_per_cycle from a learning-rate range test."""
    _configure_devices(arguments.config)
    from trainer.commands import find_lr

    options = arguments.options
    suggestion = find_lr.find_lr(
        arguments.config,
        arguments.workdir,
        options["find_lr_min"],
        options["find_lr_max"],
        options["find_lr_steps"],
        options["find_lr_ramp"],
    )
    _print_json(suggestion)
    return DONE


def _verify_resume(arguments: Arguments) -> int:
    """Prove on this machine that stopping and resuming changes nothing, bit for bit."""
    config, asked = arguments.config, arguments.options["devices"]
    try:
        counts = [int(count) for count in asked] or [config.num_devices]
    except ValueError as error:
        raise UsageError(
            f"--devices={','.join(asked)} is not valid; use numbers of devices, such as 1,2,4,8"
        ) from error
    num_cpu_devices = config.num_cpu_devices or (max(counts) if asked else 0)
    _configure_devices(dataclasses.replace(config, num_cpu_devices=num_cpu_devices))
    from trainer.commands import verify_resume

    comparisons = verify_resume.verify_resume(config, counts)
    print(verify_resume.report(comparisons), file=sys.stderr)
    return DONE if verify_resume.kept(comparisons) else RunError.exit_status


def _preflight(arguments: Arguments) -> int:
    """Compile the run for accelerators that are not here; one JSON object for each target."""
    # jax cannot read back from its cache what was compiled for devices that are not here.
    config = dataclasses.replace(arguments.config, compilation_cache=False)
    _configure_devices(dataclasses.replace(config, platform="cpu", num_cpu_devices=1))
    from trainer.commands.preflight import command

    reports = []
    for report in command.preflight(arguments.config, arguments.options["target"]):
        _print_json(report)
        reports.append(report)
    print(command.table(reports), file=sys.stderr)
    failed = [report for report in reports if not report["ok"]]
    if failed:
        raise RunError(command.describe_failure(failed[0]))
    return DONE


def _predict(arguments: Arguments) -> int:
    """Print the digit in each image file, as one JSON object a line."""
    if not arguments.files:
        raise UsageError("predict: no files given; use python -m trainer predict IMG...")
    _configure_devices(dataclasses.replace(arguments.config, num_cpu_devices=1))
    from trainer.commands.predict import inference

    status = DONE
    platform = arguments.config.platform
    predictor = inference.Predictor(arguments.workdir, platform, _selection(arguments))
    for answer in predictor.predict(arguments.files):
        if "error" in answer:
            status = UsageError.exit_status
            print(f"error: {answer['file']}: {answer['error']}", file=sys.stderr)
        else:
            _print_json(answer)
    return status


def _export(arguments: Arguments) -> int:
    """Write a checkpoint's network as one file that runs with jax alone."""
    _configure_devices(dataclasses.replace(arguments.config, platform="cpu", num_cpu_devices=1))
    from trainer.commands import export

    output = arguments.options["output"]
    _print_json(export.export(arguments.workdir, output, _selection(arguments)))
    return DONE


ACTIONS: dict[str, Callable[[Arguments], int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "inspect": _inspect,
    "report": _report,
    "compare": _compare,
    "find_lr": _find_lr,
    "verify_resume": _verify_resume,
    "preflight": _preflight,
    "predict": _predict,
    "export": _export,
}


def _config_of_run(arguments: Arguments) -> TrainConfig:
    """Return the configuration as far as it must be known before jax starts.

    What is not given is read from config.json, without jax and unverified; the devices are made
    from it, and everything else is decided on a checkpoint later.
    """
    from trainer.workdir.files import read_config
    from trainer.workdir.storage import open_workdir

    found = read_config(open_workdir(arguments.workdir))
    try:
        stored = TrainConfig.from_stored(found) if found else None
    except (UsageError, RunError):
        return arguments.config
    config = arguments.config
    return config.completed_from(stored, arguments.given) if stored else config


def _selection(arguments: Arguments) -> "Selection":
    """Return which parameters of the run are asked for."""
    from trainer.run.selection import Selection

    options = arguments.options
    return Selection(options["checkpoint"], options["params"], options["ensemble"])


def _configure_devices(config: TrainConfig, num_processes: int = 1) -> None:
    """Set up jax before anything touches a device."""
    from trainer import devices

    devices.fix_settings()
    if config.compilation_cache:
        devices.enable_compilation_cache()
    devices.configure(
        config.platform,
        config.num_cpu_devices,
        config.batch_size,
        num_processes,
        config.deterministic,
    )


def _print_json(value: dict[str, Any]) -> None:
    """Print one object on standard output, at once; numbers that are not finite become null."""
    from trainer.records.lines import finite_or_none

    print(json.dumps(finite_or_none(value), allow_nan=False), flush=True)

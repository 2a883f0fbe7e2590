"""Compile every program of a run for each target, and say what a step needs there."""

import dataclasses
import logging
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from trainer import devices
from trainer.commands.preflight.compiled import Collective, Compiled, read_compiled
from trainer.commands.preflight.targets import Target, parse_targets
from trainer.commands.preflight.topologies import create_target_mesh
from trainer.config import TrainConfig
from trainer.run.job import Job, prepare
from trainer.run.memory import Memory
from trainer.run.placement import AUTO
from trainer.run.programs import lower_programs, lower_steps
from trainer.run.store import abstract_training
from trainer.step.reductions import ALL_REDUCE

logger = logging.getLogger(__name__)

# The programs that a step consists of, whichever of them a run has.
_STEP = (
    "exchange",
    *("train_step", "train_steps", "gradient"),
    *("shard_gradient", "select", "add_up"),
    "update",
)


def preflight(config: TrainConfig, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Compile every program of a run for accelerators that are not here.

    All targets are checked before the first is compiled.

    Args:
      config: of the run; its platform and number of devices are not used.
      names: of the targets, see `targets.parse_targets`.

    Yields:
      For each target what `_report` says; "ok" is whether all compiles and fits.

    Raises:
      UsageError: a target is not valid or its compiler not installed, or the run does not fit its
        devices.
    """
    targets = parse_targets(list(names))
    with tempfile.TemporaryDirectory() as empty:
        jobs = []
        for target in targets:
            mesh = create_target_mesh(target)
            devices.check_divisible(config.batch_size, mesh)
            memory = _memory(target, config, mesh)
            jobs.append(prepare(config, epath.Path(empty), mesh=mesh, memory=memory))
        for target, job in zip(targets, jobs, strict=True):
            yield _check(target, job)


def _memory(target: Target, config: TrainConfig, mesh: Mesh) -> Memory:
    """Return the memory by which to choose where the examples lie; none if that is given.

    What is asked for and does not fit is reported like all else that does not.
    """
    if config.data_placement != AUTO:
        return Memory(None, None)
    return Memory(round(target.chip.memory / _devices_per_chip(target, mesh)), None)


def _check(target: Target, job: Job) -> dict[str, Any]:
    """Compile the programs of a run for a target, and report."""
    logger.info("compiling for %s: %s", target.name, devices.describe(job.mesh))
    programs, errors, seconds = {}, {}, {}
    for name, lowered in lower_programs(job).items():
        started = time.monotonic()
        try:
            programs[name] = read_compiled(lowered.compile())
        except jax.errors.JaxRuntimeError as error:
            errors[name] = str(error).strip().splitlines()[0]
        seconds[name] = round(time.monotonic() - started, 1)
    return _report(target, job, programs, errors, seconds)


def _report(
    target: Target,
    job: Job,
    programs: dict[str, Compiled],
    errors: dict[str, str],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Return what is known of a run on a target, as JSON can hold it."""
    hosts = len({device.process_index for device in job.mesh.devices.flat})
    report: dict[str, Any] = {
        "target": target.name,
        "devices": job.mesh.size,
        "hosts": hosts,
        "batch_size": job.config.batch_size,
        "compute_dtype": job.config.compute_dtype,
        "reduction": job.config.reduction,
        "data_placement": job.placement,
        "steps_per_call": job.config.steps_per_call,
        "compile_seconds": seconds,
        "errors": errors,
    }
    memory = target.chip.memory / _devices_per_chip(target, job.mesh)
    if not errors:
        needed = _needed(programs)
        report |= {
            "bytes_needed": needed,
            "bytes_there": round(memory),
            "programs": {name: dataclasses.asdict(found) for name, found in programs.items()},
            "step": _describe_step(target, job, programs),
        }
    report["ok"] = not errors and report["bytes_needed"] <= memory
    return report


def _devices_per_chip(target: Target, mesh: Mesh) -> float:
    """Return how many devices jax makes of a chip: the cores of some TPUs are devices."""
    return mesh.size / math.prod(target.shape)


def _needed(programs: dict[str, Compiled]) -> int:
    """Return the bytes that a device needs at most: what lies there, and the largest program."""
    # The state, the epoch's batches and both splits lie on the device all the time. Each of the
    # programs of a step is given a part of them, and the parameters count more than once.
    always = [*(name for name in _STEP if name in programs), "evaluate"]
    resident = sum(programs[name].arguments for name in always)
    code = sum(each.code for each in programs.values())
    working = max(each.temporaries + each.outputs - each.donated for each in programs.values())
    return resident + code + working


def _describe_step(target: Target, job: Job, programs: dict[str, Compiled]) -> dict[str, Any]:
    """Return what one step computes and moves, and how long it takes at the very least."""
    parts = [programs[name] for name in _STEP if name in programs]
    if "shard_gradient" in programs:
        shards = job.config.gradient_shards // job.mesh.size
        parts += [programs["shard_gradient"]] * (shards - 1)
    # XLA counts all images of a device as read where a step gathers a few rows of them.
    images = abstract_training(job.source, job.placement, job.mesh, job.config.batch_size).images
    split = math.prod(images.sharding.shard_shape(images.shape))
    flops = sum(p.flops for p in parts)
    accessed = sum(p.accessed for p in parts) - split
    if not flops:
        # XLA:GPU does not say. What is kept for a while is written and read once at least.
        flops = _flops_on_cpu(job)
        accessed = sum(p.arguments + p.outputs + 2 * p.temporaries for p in parts) - split
    collectives = [each for part in parts for each in part.collectives]
    per_chip = _devices_per_chip(target, job.mesh)
    chip = target.chip
    times = {
        "compute": flops * per_chip / chip.flops[job.config.compute_dtype],
        "memory": accessed * per_chip / chip.bandwidth,
        "interconnect": sum(
            _seconds(each, job.mesh.size, chip.interconnect) for each in collectives
        ),
    }
    at_least = max(times["compute"], times["memory"]) + times["interconnect"]
    return {
        "flops": flops,
        "bytes_accessed": accessed,
        "collectives": [dataclasses.asdict(each) for each in collectives],
        "loops": [count for part in parts for count in part.loops],
        "host_transfers": sum(part.host_transfers for part in parts),
        "donated": sum(part.donated for part in parts),
        "seconds_at_least": at_least,
        "seconds": times,
        "bound_by": max(times, key=lambda name: times[name]),
        "peaks_from": chip.source,
    }


def _flops_on_cpu(job: Job) -> float:
    """Return the floating-point operations of a step of one device, as XLA:CPU counts them."""
    config = dataclasses.replace(
        job.config,
        batch_size=job.config.batch_size // job.mesh.size,
        reduction=ALL_REDUCE,
        accumulation_steps=1,
        steps_per_call=1,
    )
    here = dataclasses.replace(job, config=config, mesh=devices.create_mesh("cpu", 1))
    return read_compiled(lower_steps(here).compile()).flops


def _seconds(collective: Collective, num_devices: int, interconnect: float) -> float:
    """Return the least time of exchanges: a ring that uses both directions of every link."""
    rounds = 2 if collective.kind == "all-reduce" else 1
    share = (num_devices - 1) / num_devices
    return rounds * share * collective.bytes / interconnect


def table(reports: Sequence[dict[str, Any]]) -> str:
    """Return the reports as a table for a terminal of 80 columns."""
    head = (
        "target",
        "fits",
        "MB needed",
        "MB there",
        "MFLOP",
        "exchanges",
        "us a step",
        "bound by",
    )
    rows = [head]
    for report in reports:
        if report["errors"]:
            name, reason = next(iter(report["errors"].items()))
            rows.append((report["target"], f"no: {name}: {reason}", *[""] * 6))
            continue
        step = report["step"]
        count = sum(each["count"] for each in step["collectives"])
        rows.append(
            (
                report["target"],
                "yes" if report["ok"] else "NO",
                f"{report['bytes_needed'] / 1e6:,.0f}",
                f"{report['bytes_there'] / 1e6:,.0f}",
                f"{step['flops'] / 1e6:,.0f}",
                str(count),
                f"{step['seconds_at_least'] * 1e6:,.1f}",
                step["bound_by"],
            )
        )
    widths = [max(len(row[i]) for row in rows if row[2] or i == 0) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def describe_failure(report: dict[str, Any]) -> str:
    """Return what is wrong with a run on a target that it does not compile for, or fit on."""
    for name, reason in report["errors"].items():
        return f"{report['target']}: {name} does not compile: {reason}"
    needed, there = report["bytes_needed"] / 1e6, report["bytes_there"] / 1e6
    return (
        f"{report['target']}: with {report['data_placement']} examples a device needs "
        f"{needed:,.0f} MB and has {there:,.0f} MB; use a smaller --batch_size, more devices, or "
        "another --data_placement"
    )

"""The cases: what is compared, and how."""

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.benchmarks.results import Result, Table
from tests.benchmarks.workers import ROOT, SkippedError, Worker

_TARGET = 0.99


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command line chose.

    Attributes:
      platform: "cpu" or "gpu".
      num_gpus: of this machine.
      data_dir: of the prepared data sets, as for the trainer.
      arrays: folder of MNIST as .npy files, for the peers.
      rounds: turns of each side.
      turn_seconds: about how long a turn takes, where it is a number of steps.
      batch_sizes: of the cases that compare several.
      max_epochs: of the peers in `accuracy`.
      first_seed: of `accuracy` and `seeds`, which take the next one in every round.
    """

    platform: str
    num_gpus: int
    data_dir: str
    arrays: str
    rounds: int
    turn_seconds: float
    batch_sizes: tuple[int, ...]
    max_epochs: int
    first_seed: int

    def seeds(self) -> range:
        """Return the seeds of the rounds."""
        return range(self.first_seed, self.first_seed + self.rounds)

    def env(self) -> dict[str, str]:
        """Return the environment of workers: several of them share the GPUs."""
        return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if self.platform == "gpu" else {}


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a comparison: its name, its class as "module:class" and that one's arguments."""

    name: str
    target: str
    options: dict[str, Any]

    def start(self, settings: Settings, **env: str) -> Worker:
        """Start its process."""
        return Worker(self.target, self.options, settings.env() | env)


def _ours(settings: Settings, name: str = "ours", **hyperparameters: Any) -> Side:
    """Return our side; one GPU unless told otherwise, as the peers use one."""
    options = {"data_dir": settings.data_dir, "platform": settings.platform}
    if settings.platform == "gpu":
        options["num_devices"] = 1
    return Side(name, "ours:Training", options | hyperparameters)


def _peers(settings: Settings, batch_size: int) -> list[Side]:
    """Return the other sides, with our network, optimizer, batch and precision."""
    common = {"arrays": settings.arrays, "batch_size": batch_size}
    torch = common | {"platform": settings.platform}
    sides = [
        Side("flax example", "flax_example:Training", common),
        Side("torch", "torch_peers:Training", torch),
        Side("torch channels-last", "torch_peers:Training", torch | {"channels_last": True}),
        Side("torch.compile", "torch_peers:Training", torch | {"compiled": True}),
    ]
    if settings.platform == "gpu":
        graph = torch | {"cuda_graph": True}
        sides.append(Side("torch CUDA graph", "torch_peers:Training", graph))
    return sides


def images(settings: Settings) -> Iterator[Table]:
    """Images a second of the training loop: ours, the Flax example's, PyTorch's."""
    for batch_size in settings.batch_sizes:
        sides = [_ours(settings, batch_size=batch_size), *_peers(settings, batch_size)]
        if settings.num_gpus > 1:
            everything = {"batch_size": batch_size, "num_devices": 0}
            sides.insert(1, _ours(settings, f"ours, {settings.num_gpus} GPUs", **everything))
        if settings.platform == "cpu":
            one = {"batch_size": batch_size, "num_cpu_devices": 1}
            sides.insert(1, _ours(settings, "ours, 1 device", **one))
        yield _rates(f"batch {batch_size}", sides, settings, batch_size)


def reduction(settings: Settings) -> Iterator[Table]:
    """Images a second by number of devices and reduction, at the same global batch."""
    limit = settings.num_gpus if settings.platform == "gpu" else 8
    counts = [count for count in (1, 2, 4, 8) if count <= limit]
    base = 2 if 2 in counts else 1
    counts.sort(key=lambda count: count != base)
    for batch_size in settings.batch_sizes:
        for form in ("tree", "allreduce"):
            sides = []
            for count in counts:
                made = {"num_cpu_devices": count} if settings.platform == "cpu" else {}
                given = {"batch_size": batch_size, "reduction": form, "num_devices": count}
                name = f"{count} device{'s' * (count > 1)}"
                sides.append(_ours(settings, name, **given, **made))
            yield _rates(f"batch {batch_size}, {form}", sides, settings, batch_size)


def default(settings: Settings) -> Iterator[Table]:
    """Images a second of what the trainer chooses on a CPU, against what could be chosen."""
    if settings.platform != "cpu":
        return
    for batch_size in settings.batch_sizes:
        sides = [_ours(settings, "the default", batch_size=batch_size)]
        for count in (1, 2):
            for form in ("tree", "allreduce"):
                given = {"reduction": form, "num_cpu_devices": count, "batch_size": batch_size}
                sides.append(_ours(settings, f"{count} device{'s' * (count > 1)}, {form}", **given))
        yield _rates(f"batch {batch_size}", sides, settings, batch_size)


def placement(settings: Settings) -> Iterator[Table]:
    """Images a second by where the examples lie: streamed, and shared by several devices."""
    limit = settings.num_gpus if settings.platform == "gpu" else 8
    for batch_size in settings.batch_sizes:
        for count in sorted({1, limit}):
            made = {"num_cpu_devices": count} if settings.platform == "cpu" else {}
            sides = [
                _ours(settings, each, data_placement=each, batch_size=batch_size, **made)
                for each in ("replicated", "sharded", "streamed")
                if not (each == "sharded" and count == 1)
            ]
            title = f"batch {batch_size}, {count} device{'s' * (count > 1)}"
            yield _rates(title, sides, settings, batch_size)


def _rates(title: str, sides: list[Side], settings: Settings, batch_size: int) -> Table:
    """Return the images a second of some sides, which take turns."""
    table = Table(title, "images/s", more_is_better=True)
    with contextlib.ExitStack() as stack:
        turns: dict[str, Callable[[], float]] = {}
        for side in sides:
            worker = stack.enter_context(side.start(settings))
            with _skipping(table, side):
                count = _steps_a_turn(worker, settings.turn_seconds)
                table.results.append(Result(side.name, [], worker.call("describe")))
                turns[side.name] = lambda worker=worker, count=count: (
                    count * batch_size / worker.call("turn", count=count)
                )
        _take_turns(table, turns, settings.rounds)
    return table


def _steps_a_turn(worker: Worker, seconds: float) -> int:
    """Warm a side up and return how many of its steps take about so long."""
    worker.call("turn", count=10)
    return max(1, round(seconds * 10 / worker.call("turn", count=10)))


def _take_turns(table: Table, turns: dict[str, Callable[[], float]], rounds: int) -> None:
    """Fill the table: in every round each side has a turn, forwards and backwards by turns."""
    for number in range(rounds):
        results = [result for result in table.results if result.side in turns]
        for result in results[:: -1 if number % 2 else 1]:
            result.values.append(turns[result.side]())


@contextlib.contextmanager
def _skipping(table: Table, side: Side) -> Iterator[None]:
    """Note a side that cannot run here, and continue without it."""
    try:
        yield
    except SkippedError as reason:
        table.skipped[side.name] = str(reason)


def accuracy(settings: Settings) -> Iterator[Table]:
    """Seconds from the command to 99 % of the test split, each with its own published settings."""
    tables = [
        Table("from the command to 99 %, start and compilation included", "s", False),
        Table("of these, after the first step (training and tests)", "s", False),
    ]
    flax = {"arrays": settings.arrays, "batch_size": 128}
    torch = {"arrays": settings.arrays, "batch_size": 64, "platform": settings.platform}
    peers = [
        Side("flax example", "flax_example:Training", flax),
        Side("torch example", "torch_peers:Example", torch),
    ]
    for table in tables:
        table.results = [Result("ours (configs/fast.cfg)", [])]
        table.results += [Result(side.name, []) for side in peers]
    notes: dict[str, list[str]] = {result.side: [] for result in tables[0].results}
    for seed in settings.seeds():
        outcomes = {"ours (configs/fast.cfg)": _our_way_to_target(settings, seed)}
        for side in peers:
            with _skipping(tables[0], side):
                outcomes[side.name] = _way_to_target(side, settings, seed)
        for name, (total, training, accuracies) in outcomes.items():
            for table, seconds in zip(tables, (total, training), strict=True):
                next(each for each in table.results if each.side == name).values.append(seconds)
            reached = "" if accuracies[-1] >= _TARGET else ": NOT REACHED"
            notes[name].append(", ".join(f"{100 * each:.2f}" for each in accuracies) + reached)
    for table in tables:
        table.results = [result for result in table.results if result.values]
        table.skipped = tables[0].skipped
    for result in tables[0].results:
        result.note = "% after each epoch: " + "; ".join(notes[result.side])
    yield from tables


def _way_to_target(side: Side, settings: Settings, seed: int) -> tuple[float, float, list[float]]:
    """Return all seconds, those of training and tests, and the accuracy after every epoch."""
    side = dataclasses.replace(side, options=side.options | {"seed": seed})
    with _empty_caches() as caches, side.start(settings, **caches) as worker:
        worker.call("turn", count=1)
        begin, accuracies = time.monotonic(), []
        while not accuracies or (
            accuracies[-1] < _TARGET and len(accuracies) < settings.max_epochs
        ):
            accuracies.append(worker.call("epoch_and_test")["accuracy"])
        end = time.monotonic()
    return end - worker.started, end - begin, accuracies


def _our_way_to_target(settings: Settings, seed: int) -> tuple[float, float, list[float]]:
    """Return the same of `python -m trainer --flagfile=configs/fast.cfg`."""
    with _empty_caches() as caches:
        run = _Command(settings, caches, "--flagfile=configs/fast.cfg", f"--seed={seed}")
    return run.seconds, run.seconds - run.first_step, [run.accuracy]


def seeds(settings: Settings) -> Iterator[Table]:
    """Seconds and accuracy of configs/fast.cfg, seed by seed."""
    training = Table("seconds after the first step", "s", more_is_better=False)
    found = [_our_way_to_target(settings, seed) for seed in settings.seeds()]
    percent = [100 * accuracies[-1] for _, _, accuracies in found]
    note = (
        f"% by seed from {settings.first_seed} on: {', '.join(f'{each:.2f}' for each in percent)}; "
    )
    note += f"mean {statistics.mean(percent):.3f}"
    if len(percent) > 1:
        note += f", standard error {statistics.stdev(percent) / len(percent) ** 0.5:.3f}"
    training.results.append(Result("ours (configs/fast.cfg)", [each[1] for each in found], note))
    yield training


class _Command:
    """One run of `python -m trainer`, with nothing compiled in advance unless env says where.

    Attributes:
      seconds: from start to end of the process.
      first_step: seconds from the start of the process to its first step.
      accuracy: of the last test, a fraction.
    """

    def __init__(self, settings: Settings, env: dict[str, str], *flags: str):
        """Run it."""
        with tempfile.TemporaryDirectory() as workdir:
            command = [sys.executable, "-m", "trainer", *flags, f"--workdir={workdir}/run"]
            command += [f"--data_dir={settings.data_dir}", f"--platform={settings.platform}"]
            begin = time.monotonic()
            with subprocess.Popen(
                command, cwd=ROOT, env=os.environ | env, stderr=subprocess.PIPE, text=True
            ) as process:
                assert process.stderr
                said = []
                for line in process.stderr:
                    said.append(line)
                    if line.startswith("first step after"):
                        self.first_step = time.monotonic() - begin
            self.seconds = time.monotonic() - begin
            if process.returncode:
                raise RuntimeError(f"{' '.join(command)}:\n{''.join(said)}")
            metrics = (pathlib.Path(workdir) / "run" / "metrics.jsonl").read_text().splitlines()
        tests = [line for line in map(json.loads, metrics) if line["split"] == "test"]
        self.accuracy: float = tests[-1]["accuracy"]


def bits(settings: Settings) -> Iterator[Table]:
    """Cold starts, every other one killed halfway and resumed cold: all must end in one digest."""
    table = Table("of 200 steps, each compiled anew", "s", more_is_better=False)
    digests: dict[str, list[str]] = {"never stopped": [], "kill -9 and resumed": []}
    seconds: dict[str, list[float]] = {name: [] for name in digests}
    for number in range(settings.rounds):
        name = list(digests)[number % 2]
        begin = time.monotonic()
        digests[name].append(_digest_after_200_steps(settings, killed=bool(number % 2)))
        seconds[name].append(time.monotonic() - begin)
    for name, found in digests.items():
        if found:
            note = f"digests: {', '.join(sorted({digest[:12] for digest in found}))}"
            table.results.append(Result(name, seconds[name], note))
    yield table
    if len({digest for found in digests.values() for digest in found}) > 1:
        raise RuntimeError(f"the starts ended in different states: {digests}")


def _digest_after_200_steps(settings: Settings, killed: bool) -> str:
    """Return the digest of a run's last state; if it is to be killed, it is at about step 100."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        command = [sys.executable, "-m", "trainer", f"--workdir={workdir}", "--num_steps=200"]
        command += [f"--data_dir={settings.data_dir}", f"--platform={settings.platform}"]
        command += ["--steps_per_cycle=100", "--checkpoint_every_steps=50", "--noreport"]
        checkpoint = workdir / "checkpoints" / "100" / "commit_success.txt"
        for kill in (True, False) if killed else (False,):
            with (
                _empty_caches() as caches,
                subprocess.Popen(command, cwd=ROOT, env=os.environ | caches) as process,
            ):
                while kill and not checkpoint.exists() and process.poll() is None:
                    time.sleep(0.01)
                if kill:
                    process.kill()
            if not kill and process.returncode:
                raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
        command = [sys.executable, "-m", "trainer", "inspect", f"--workdir={workdir}", "--json"]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        return json.loads(found.stdout)["digest"]


@contextlib.contextmanager
def _empty_caches() -> Iterator[dict[str, str]]:
    """Yield an environment in which jax and torch find nothing compiled in advance."""
    with tempfile.TemporaryDirectory() as folder:
        yield {
            "XDG_CACHE_HOME": folder,
            "JAX_COMPILATION_CACHE_DIR": "",
            "TORCHINDUCTOR_CACHE_DIR": folder,
        }


def start(settings: Settings) -> Iterator[Table]:
    """Seconds from the command to the first step: cold, and warm from compiled programs on disk."""
    cold = Table("cold, nothing compiled in advance", "s", more_is_better=False)
    warm = Table("warm, after a run of the same kind", "s", more_is_better=False)
    ours = Side("ours", "", {})
    sides = [ours, *_peers(settings, 128)]
    for number in range(settings.rounds):
        for side in sides:
            with _empty_caches() as caches:
                for table in (cold, warm):
                    with _skipping(table, side):
                        seconds = _seconds_to_first_step(side, settings, caches)
                        if number == 0:
                            table.results.append(Result(side.name, []))
                        next(r for r in table.results if r.side == side.name).values.append(seconds)
    yield from (cold, warm)


def _seconds_to_first_step(side: Side, settings: Settings, caches: dict[str, str]) -> float:
    """Return the seconds from starting the process of a side to its first step."""
    if side.name == "ours":
        return _Command(settings, caches, "--num_steps=1").first_step
    with side.start(settings, **caches) as worker:
        worker.call("turn", count=1)
        return time.monotonic() - worker.started


def checkpoints(settings: Settings) -> Iterator[Table]:
    """What a checkpoint costs: every 100 steps against none, the stall, the restore."""
    steps = 100
    with _ours(settings).start(settings) as worker:
        table = Table(
            f"{steps} steps of batch 128, without and with a checkpoint",
            "ms a step",
            more_is_better=False,
            results=[Result("without", []), Result("with one", [])],
        )
        stalls, restores = [], []

        def without() -> float:
            return 1000 * worker.call("turn", count=steps) / steps

        def with_one() -> float:
            turn = worker.call("saving_turn", count=steps)
            stalls.append(1000 * turn["stall"])
            restores.append(1000 * worker.call("restore"))
            return 1000 * turn["seconds"] / steps

        for turn in (without, with_one):
            turn()
        stalls.clear()
        restores.clear()
        _take_turns(table, {"without": without, "with one": with_one}, settings.rounds)
        without_ms, with_ms = (statistics.median(result.values) for result in table.results)
        table.results[1].note = f"{100 * (with_ms / without_ms - 1):+.1f} %"
    yield table
    yield Table(
        "stall: replicas compared, hashed, copied, handed to the writer",
        "ms",
        False,
        [Result("stall", stalls)],
    )
    yield Table(
        "restore: read, verified, on the devices", "ms", False, [Result("restore", restores)]
    )


def guards(settings: Settings) -> Iterator[Table]:
    """What digests and guards cost: records with the check of every loss, replicas, digests."""
    with _ours(settings).start(settings) as worker:
        count = _steps_a_turn(worker, settings.turn_seconds)
        kinds = {
            "all off": {"records": False},
            "every loss checked, written": {},
            "replicas compared every step": {"checks": True},
        }
        table = Table(
            "steps of batch 128, guards off and on",
            "ms a step",
            more_is_better=False,
            results=[Result(name, []) for name in kinds],
        )
        turns = {
            name: lambda kind=kind: 1000 * worker.call("turn", count=count, **kind) / count
            for name, kind in kinds.items()
        }
        _take_turns(table, turns, settings.rounds)
        yield table
        step = statistics.median(table.results[0].values)
        for name, method in (("replicas", "check_replicas"), ("digests", "digests")):
            found = Result(name, [1000 * worker.call(method) for _ in range(3 * settings.rounds)])
            share = statistics.median(found.values) / (500 * step)
            found.note = f"{100 * share:.3f} % of 500 steps"
            yield Table("one guard, once a checkpoint", "ms", False, [found])
    yield from _audits(settings)


def _audits(settings: Settings) -> Iterator[Table]:
    """What an audit every 100 steps costs; one device has no neighbour that could audit it."""
    if settings.platform == "gpu" and settings.num_gpus < 2:
        return
    steps, made = 100, {"num_devices": 2, "audit_every_steps": 100}
    if settings.platform == "cpu":
        made["num_cpu_devices"] = 2
    with _ours(settings, **made).start(settings) as worker:
        title = f"{steps} steps of batch 128 on 2 devices, without and with an audit"
        table = Table(title, "ms a step", more_is_better=False)
        table.results = [Result("without", []), Result("with one", [])]
        turns = {
            name: lambda audit=audit: 1000 * worker.call("turn", count=steps, audit=audit) / steps
            for name, audit in (("without", False), ("with one", True))
        }
        for turn in turns.values():
            turn()
        _take_turns(table, turns, settings.rounds)
        lead = table.lead(table.results[1])
        table.results[1].note = f"{100 * (lead - 1):+.1f} %" if lead else ""
    yield table


def memory(settings: Settings) -> Iterator[Table]:
    """Largest resident set of a process that trains some steps of batch 128 and tests."""
    ours = Side(
        "ours (the command)",
        "ours:Command",
        {"data_dir": settings.data_dir, "platform": settings.platform},
    )
    table = Table("200 steps and a test; ours saves a checkpoint too", "MB", more_is_better=False)
    sides = [ours, *_peers(settings, 128)]
    for number in range(settings.rounds):
        for side in sides:
            with _skipping(table, side), side.start(settings) as worker:
                worker.call("train_and_test", count=200)
                if number == 0:
                    table.results.append(Result(side.name, []))
                found = next(result for result in table.results if result.side == side.name)
                found.values.append(worker.call("peak_memory"))
    yield table


def host(settings: Settings) -> Iterator[Table]:
    """Time of the loop outside the compiled step: an epoch against as many bare calls of it."""
    batch_size, count = 128, 60000 // 128
    ours = _ours(settings, batch_size=batch_size)
    flax = _peers(settings, batch_size)[0]
    for side in (ours, flax):
        with side.start(settings) as worker:
            worker.call("turn", count=10)
            worker.call("bare_turn", count=10)
            names = ("bare compiled steps", "the loop")
            table = Table(
                f"{side.name}: an epoch of {count} steps",
                "s",
                more_is_better=False,
                results=[Result(name, []) for name in names],
            )
            turns = {
                names[0]: lambda worker=worker: worker.call("bare_turn", count=count),
                names[1]: lambda worker=worker: worker.call("turn", count=count),
            }
            _take_turns(table, turns, settings.rounds)
            lead = table.lead(table.results[1])
            table.results[1].note = f"{100 * (1 - 1 / lead):+.1f} % of it outside" if lead else ""
        yield table


@dataclasses.dataclass(frozen=True)
class Case:
    """A case with its usual numbers: rounds, and batch sizes if it compares several."""

    run: Callable[[Settings], Iterator[Table]]
    rounds: int
    batch_sizes: tuple[int, ...] = ()


CASES = {
    "images": Case(images, 7, (64, 128, 512)),
    "accuracy": Case(accuracy, 1),
    "bits": Case(bits, 4),
    "seeds": Case(seeds, 3),
    "start": Case(start, 3),
    "default": Case(default, 7, (32, 64, 128, 512)),
    "reduction": Case(reduction, 7, (64, 128)),
    "placement": Case(placement, 7, (128,)),
    "checkpoints": Case(checkpoints, 10),
    "guards": Case(guards, 7),
    "memory": Case(memory, 1),
    "host": Case(host, 2),
}

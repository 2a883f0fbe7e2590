"""Benchmarks, against peers and of the trainer's own parts; nothing here is collected by pytest.

    python -m tests.benchmarks [CASE ...] [--rounds=N] [--json=FILE] [...]

Without a case: the table of docs/benchmarks.md, `images` and `start`, in under ten minutes. `all`
is every case, and `gpu` the set for a machine with one or more GPUs, in under ten minutes. The
peers in PyTorch need the extra: pip install -e '.[bench]'. Every side runs in a process of its
own; sides take turns, so that the machine's mood hits all.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import time
import traceback

import numpy as np

from tests.benchmarks.cases import CASES, Case, Settings
from tests.benchmarks.results import Table, describe_run, gpus

_TABLE = {
    "images": dataclasses.replace(CASES["images"], rounds=5),
    "start": dataclasses.replace(CASES["start"], rounds=2),
}
_GPU_SET = {
    "images": dataclasses.replace(CASES["images"], rounds=5, batch_sizes=(128, 4096)),
    "bits": dataclasses.replace(CASES["bits"], rounds=10),
    "seeds": dataclasses.replace(CASES["seeds"], rounds=10),
    "accuracy": CASES["accuracy"],
    "start": dataclasses.replace(CASES["start"], rounds=1),
    "reduction": dataclasses.replace(CASES["reduction"], rounds=5, batch_sizes=(4096,)),
    "checkpoints": dataclasses.replace(CASES["checkpoints"], rounds=5),
    "guards": dataclasses.replace(CASES["guards"], rounds=3),
    "host": dataclasses.replace(CASES["host"], rounds=1),
}
_SETS: dict[str, dict[str, Case]] = {"all": CASES, "gpu": _GPU_SET}


def main() -> int:
    """Run the cases, print their tables, write the JSON."""
    arguments = _parse()
    found_gpus = gpus()
    platform = arguments.platform or ("gpu" if found_gpus else "cpu")
    chosen: dict[str, Case] = {} if arguments.cases else _TABLE
    for name in arguments.cases:
        chosen |= _SETS.get(name) or {name: CASES[name]}
    report = describe_run()
    print("\n".join(f"{name:13}{value}" for name, value in report.items()), flush=True)
    report |= {"arguments": sys.argv[1:], "platform": platform, "cases": {}, "failed": []}
    with tempfile.TemporaryDirectory() as arrays:
        _save_arrays(arguments.data_dir, pathlib.Path(arrays))
        for name, case in chosen.items():
            settings = Settings(
                platform=platform,
                num_gpus=len(found_gpus) if platform == "gpu" else 0,
                data_dir=arguments.data_dir,
                arrays=arrays,
                rounds=arguments.rounds or case.rounds,
                turn_seconds=arguments.turn_seconds,
                batch_sizes=arguments.batch_sizes or case.batch_sizes,
                max_epochs=arguments.max_epochs,
                first_seed=arguments.first_seed,
            )
            report["cases"][name] = _run(name, case, settings, report["failed"])
            if arguments.json:
                arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if report["failed"]:
        print(f"failed: {', '.join(report['failed'])}", file=sys.stderr)
    return bool(report["failed"])


def _run(name: str, case: Case, settings: Settings, failed: list[str]) -> dict:
    """Run one case and print it; one that fails does not stop the others."""
    before, begin, tables = os.getloadavg()[0], time.monotonic(), list[Table]()
    print(f"\n{name}: {(case.run.__doc__ or '').strip()}")
    print(f"{settings.rounds} rounds; load average before: {before:.1f}", flush=True)
    try:
        for table in case.run(settings):
            tables.append(table)
            print(table, flush=True)
    except Exception:
        traceback.print_exc()
        failed.append(name)
    seconds = time.monotonic() - begin
    print(f"({seconds:.0f} s)", flush=True)
    return {
        "settings": {"rounds": settings.rounds, "turn_seconds": settings.turn_seconds},
        "load_average_before": before,
        "seconds": seconds,
        "tables": [table.to_json() for table in tables],
    }


def _save_arrays(data_dir: str, folder: pathlib.Path) -> None:
    """Write MNIST as .npy files: the peers need not import what reads the prepared data."""
    from trainer.datasets import load

    dataset = load("mnist", data_dir)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.save(folder / name, getattr(dataset, name))


def _parse() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=(__doc__ or "").splitlines()[0],
        epilog="cases: "
        + "; ".join(f"{name}: {case.run.__doc__}" for name, case in CASES.items())
        + "; all: every case; gpu: all that makes sense on GPUs, in under ten minutes",
    )
    parser.add_argument("cases", nargs="*", choices=[[], *CASES, *_SETS], metavar="CASE")
    parser.add_argument("--rounds", type=int, help="turns of each side (default: by case)")
    parser.add_argument(
        "--turn_seconds", type=float, default=1.0, help="about how long a turn takes"
    )
    parser.add_argument(
        "--batch_sizes",
        type=lambda text: tuple(map(int, text.split(","))),
        help="for images and reduction, separated by commas (default: by case)",
    )
    parser.add_argument("--max_epochs", type=int, default=14, help="of the peers in accuracy")
    parser.add_argument("--first_seed", type=int, default=0, help="of accuracy and seeds")
    parser.add_argument("--platform", choices=["cpu", "gpu"], help="default: gpu if there is one")
    parser.add_argument("--data_dir", default="", help="folder of the prepared data sets")
    parser.add_argument("--json", type=pathlib.Path, help="file for all values, and the machine")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

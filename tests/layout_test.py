"""Imports go in one direction: a module imports only what stands above it in this list."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "trainer"

LAYERS = [
    {"errors"},
    {
        "config",
        "tables",
        "models",
        "optimizers",
        "batches",
        "compilation_cache",
        "devices",
        "digests",
        "ink",
        "range_test",
        "storage",
    },
    {"files", "lease", "processes", "profiling", "signals", "schedules", "positions"},
    {
        "config_changes",
        "lock",
        "preview",
        "datasets",
        "figures",
        "state",
        "reductions",
        "images",
        "progress",
        "tensorboard",
    },
    {"steps", "checkpoints", "replicas"},
    {"evaluation", "records", "recovery"},
    {"job"},
    {"claim", "programs", "inspection", "resume"},
    {"startup"},
    {"loop", "inference"},
    {"verification", "export", "find_lr"},
    {"cli"},
    {"__main__"},
]


def layer(module: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if module in names)


def imported(path: Path) -> set[str]:
    """The modules of trainer that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("trainer.")}
        outside = {name.split(".")[0] for name in names}
        assert not outside & {"launch", "configs", "tests", "tensorflow", "torch"}, path
    return found


MODULES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_upwards(path: Path) -> None:
    module = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imported(path) - {module}:
        assert layer(name) < layer(module), f"imports {name}"


def test_every_module_has_its_place() -> None:
    names = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in MODULES}
    assert names == set().union(*LAYERS)


def imports_of(library: str) -> set[str]:
    return {
        path.relative_to(ROOT).parts[0].removesuffix(".py")
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
        )
        if name == library or name.startswith(library + ".")
    }


def test_each_library_has_one_user() -> None:
    assert imports_of("orbax") == {"checkpoints"}
    assert imports_of("absl") == {"cli"}
    assert imports_of("tensorflow_datasets") == {"datasets"}
    assert imports_of("PIL") == {"images", "ink"}
    assert imports_of("tensorboardX") == {"tensorboard"}
    assert imports_of("matplotlib") == {"figures"}
    assert imports_of("google.cloud") == {"storage"}
    assert imports_of("google.api_core") == {"storage", "lease"}


def test_only_steps_and_reductions_talk_between_devices() -> None:
    for path in MODULES:
        if path.name not in ("steps.py", "reductions.py"):
            text = path.read_text()
            for collective in ("psum", "pmean", "ppermute", "all_to_all", "all_gather"):
                assert collective not in text, path

"""The architecture is the folders of trainer/: who may import whom, who alone uses a library."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "trainer"

# A room imports only from rooms of the lines below its own, and from itself.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"commands"},
    {"run"},
    {"checkpoints", "records"},
    {"workdir"},
    {"processes", "step", "schedules"},
    {"devices", "datasets", "config"},
    {"paths"},
    {"errors"},
]

MODULES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside functions, by its full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_downwards(path: Path) -> None:
    for name in imported(path):
        top, *rest = name.split(".")
        assert top not in ("launch", "configs", "tests", "tensorflow", "torch"), name
        if top == "trainer" and rest[0] != room(path):
            assert floor(rest[0]) > floor(room(path)), f"imports {name}"


def test_every_room_has_its_floor_and_a_line_that_says_what_lives_there() -> None:
    assert {room(path) for path in MODULES} == set().union(*FLOORS)
    for path in ROOT.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_the_architecture_is_one_look() -> None:
    rooms = [path for path in ROOT.iterdir() if path.name not in ("__pycache__", "py.typed")]
    assert len(rooms) <= 16


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("absl", {"cli"}),
        ("orbax", {"checkpoints"}),
        ("tensorflow_datasets", {"datasets"}),
        ("PIL", {"commands", "datasets"}),
        ("tensorboardX", {"records"}),
        ("matplotlib", {"records"}),
        ("google", {"workdir"}),
    ],
)
def test_each_library_has_one_user(library: str, rooms: set[str]) -> None:
    users = {room(path) for path in MODULES for name in imported(path) if name.startswith(library)}
    assert users == rooms


TESTS = Path(__file__).parent
# What a process is started with.
STARTS = ("subprocess", "multiprocessing", "pty", "tests.helpers.start_trainer")


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*_test.py")), ids=lambda path: path.name)
def test_tests_that_start_processes_are_of_the_system_tier(path: Path) -> None:
    tier = path.parent.name
    if tier in ("system", "accelerator"):
        assert f"pytestmark = pytest.mark.{tier}" in path.read_text() or (
            f"pytestmark = [\n    pytest.mark.{tier},\n" in path.read_text()
        )
    else:
        assert not [name for name in imported(path) if name.startswith(STARTS)]

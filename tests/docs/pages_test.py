"""README and pages: links resolve, and flags, commands and files that they name exist."""

import contextlib
import io
import pathlib
import re

import pytest

from trainer import cli

_ROOT = pathlib.Path(__file__).parents[2]
_PAGES = [
    *(_ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((_ROOT / "docs").glob("*.md")),
]
_NAMES = [str(page.relative_to(_ROOT)) for page in _PAGES]

# Flags of programs that are not ours, by program.
_FOREIGN_FLAGS = {
    "sbatch": "nodes ntasks ntasks-per-node gpus-per-node gpus-per-task cpus-per-task",
    "mpirun": "bind-to",
    "mkdocs": "strict",
    "tensorboard": "logdir",
    "ruff": "check",
}

each_page = pytest.mark.parametrize("page", _PAGES, ids=_NAMES)


def _text(page: pathlib.Path) -> str:
    return page.read_text(encoding="utf-8")


def _without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def _anchors(page: pathlib.Path) -> set[str]:
    """Return the anchors of a page, as GitHub and mkdocs make them of headings."""
    text = re.sub(r"^```.*?^```", "", _text(page), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"\s", "-", heading) for heading in plain} | {
        re.sub(r"[\s-]+", "-", heading) for heading in plain
    }


def test_readme_is_short():
    assert len(_text(_ROOT / "README.md").splitlines()) <= 150


@each_page
def test_links_resolve(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", _without_code(_text(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)

    assert not broken


@pytest.fixture(scope="module")
def help_text() -> str:
    """What `--help` says, of the trainer and of every command in the README's table."""
    table = _text(_ROOT / "README.md").split("\n## Commands\n")[1].split("\n## ")[0]
    commands = re.findall(r"^\| `([a-z_]+)", table.split("|---|")[1], re.M)
    assert "find_lr" in commands
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for command in ([], *([name] for name in commands)):
            assert cli.run(["trainer", *command, "--help"]) == 0, command
    return printed.getvalue()


@pytest.fixture(scope="module")
def trainer_flags(help_text: str) -> set[str]:
    """The trainer's own flags."""
    names = set(re.findall(r"--(?:\[no\])?(\w+)", help_text)) | {"help", "flagfile", "version"}
    return names | {f"no{name}" for name in names}


@pytest.fixture(scope="module")
def known_flags(trainer_flags: set[str]) -> set[str]:
    """The flags of all programs that pages start."""
    scripts = [
        *(_ROOT / "launch").glob("*.*"),
        *(_ROOT / "tests" / "benchmarks").glob("*.py"),
        _ROOT / "tests" / "docs" / "run_tutorial.py",
    ]
    ours = {name for script in scripts for name in re.findall(r"--([a-z][\w-]*)", _text(script))}
    return trainer_flags | ours | set(" ".join(_FOREIGN_FLAGS.values()).split())


def _flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--([a-z][\w-]*)", text))


@each_page
def test_flags_exist(page, known_flags):
    assert not _flags(_text(page)) - known_flags


@each_page
def test_flags_of_trainer_commands_are_the_trainers(page, trainer_flags):
    commands = re.findall(r"python -m trainer\b[^`\n|]*", _text(page))

    assert not _flags("\n".join(commands)) - trainer_flags


@each_page
def test_commands_exist(page, help_text):
    named = set(re.findall(r"python -m trainer ([a-z]\w*)", _text(page)))

    assert not {name for name in named if not re.search(rf"^\s*{name}\b", help_text, re.M)}


@each_page
def test_files_exist(page):
    pattern = r"(?<![\w/.~-])((?:trainer|tests|configs|launch|docs|\.ci|\.github)/[\w/.-]*\w)"
    missing = [name for name in re.findall(pattern, _text(page)) if not (_ROOT / name).exists()]

    assert not missing

"""Whatever happens to the files of a checkpoint: its exact bits, or the one before it."""

import collections
import logging
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.helpers import assert_same_bits
from trainer import devices
from trainer.checkpoints.keeping import Keeping
from trainer.checkpoints.recovery import (
    clear_the_way,
    find_newest,
    read_newest,
    read_step,
    stored_steps,
)
from trainer.checkpoints.store import Checkpointer
from trainer.errors import RunError, UsageError
from trainer.step.networks import create_network
from trainer.step.optimizers import create_optimizer
from trainer.step.state import compile_first_state, leaf_name, train_state_init

INIT = train_state_init(
    create_network("mlp", (28, 28, 1), 10), create_optimizer("sgd", 0.9, False, 0.0), 0
)
STEPS = (1, 2, 3)


def replicated():
    return devices.replicated(devices.create_mesh("cpu", 2))


@pytest.fixture(scope="module")
def states() -> dict[int, dict[str, np.ndarray]]:
    """Three states by leaf name, whose numbers tell the step."""
    first = jax.tree_util.tree_flatten_with_path(compile_first_state(INIT, replicated())())[0]
    return {
        step: {leaf_name(path): np.asarray(leaf + step) for path, leaf in first} for step in STEPS
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, states: dict) -> Path:
    """A workdir with three good checkpoints; tests copy it."""
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpointer(workdir, Keeping(10)) as checkpointer:
        for step, state in states.items():
            checkpointer.save(state, step, {"step": step, "note": "n"})
    return workdir


@pytest.fixture
def workdir(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "run")


def restore(workdir: Path, set_aside: bool = True):
    search = find_newest(workdir)
    if set_aside:
        clear_the_way(workdir, search)
    return search.newest


def truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def damage_every_file(saved: Path, tmp_path: Path, states: dict, flips: int) -> dict:
    """Damage each file of the newest checkpoint in each way; return what was restored how often."""
    rng = random.Random(0)
    counts: dict[tuple[str, str], collections.Counter] = {}
    newest = saved / "checkpoints" / "3"
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    for file in files:
        for damage in (truncate, delete, *[flip] * flips):
            if damage is not delete and (newest / file).stat().st_size == 0:
                continue
            workdir = tmp_path / "damaged"
            shutil.rmtree(workdir, ignore_errors=True)
            shutil.copytree(saved, workdir)
            damage(workdir / "checkpoints" / "3" / file, rng)
            found = restore(workdir)
            assert found is not None
            assert_same_bits(found.leaves, states[found.step])
            aside = workdir / "checkpoints" / "damaged" / "3"
            assert aside.exists() == (found.step == 2), f"{damage.__name__} {file}"
            outcome = "exact" if found.step == 3 else "older"
            counts.setdefault((kind_of(file), damage.__name__), collections.Counter())[outcome] += 1
    return counts


def kind_of(file: Path) -> str:
    """The name of a file without its random part."""
    return "/".join("*" if len(part) > 30 else part for part in file.parts)


@pytest.mark.parametrize(
    "flips", [1, pytest.param(10, marks=pytest.mark.slow)], ids=lambda flips: f"{flips} flips"
)
def test_every_file_damaged_in_every_way(
    saved: Path, tmp_path: Path, states: dict, flips: int, capfd: pytest.CaptureFixture
) -> None:
    counts = damage_every_file(saved, tmp_path, states, flips)
    assert "Traceback" not in capfd.readouterr().err
    total = sum(counts.values(), collections.Counter())
    assert total["older"] > 0
    assert total["exact"] > 0
    with capfd.disabled():
        print(f"\n{'file':50} {'damage':10} {'exact bits':>10} {'older one':>10}")
        for (file, damage), count in counts.items():
            print(f"{file:50} {damage:10} {count['exact']:>10} {count['older']:>10}")
        print(f"{'all':61} {total['exact']:>10} {total['older']:>10}   wrong: 0")


def test_a_flipped_bit_of_the_data_names_its_leaf(
    workdir: Path, states: dict, caplog: pytest.LogCaptureFixture
) -> None:
    data = workdir / "checkpoints" / "3" / "state" / "ocdbt.process_0" / "d"
    path = max(data.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "trainer"):
        found = restore(workdir)
    assert found.step == 2
    assert_same_bits(found.leaves, states[2])
    assert "/dense" in caplog.text
    assert "differs from its digest" in caplog.text
    assert "taking checkpoint 2; 1 steps are lost" in caplog.text
    assert (workdir / "checkpoints" / "damaged" / "3").is_dir()


def test_reading_alone_moves_nothing(workdir: Path) -> None:
    shutil.rmtree(workdir / "checkpoints" / "3" / "state")
    before = sorted(workdir.rglob("*"))
    assert restore(workdir, set_aside=False).step == 2
    assert sorted(workdir.rglob("*")) == before


def test_after_a_fallback_the_step_can_be_saved_again(workdir: Path, states: dict) -> None:
    (workdir / "checkpoints" / "3" / "state" / "manifest.ocdbt").unlink()
    assert restore(workdir).step == 2
    with Checkpointer(workdir, Keeping(10)) as checkpointer:
        checkpointer.save(states[3], 3, {"step": 3})
    assert_same_bits(restore(workdir).leaves, states[3])


def test_foreign_and_unfinished_things_are_set_aside(workdir: Path, states: dict) -> None:
    checkpoints = workdir / "checkpoints"
    (checkpoints / "99").mkdir()
    (checkpoints / "98").write_text("a file")
    (checkpoints / "4.orbax-checkpoint-tmp").mkdir()
    (checkpoints / "notes").mkdir()
    assert restore(workdir).step == 3
    assert {path.name for path in checkpoints.iterdir()} == {"1", "2", "3", "damaged", "notes"}
    aside = {path.name for path in (checkpoints / "damaged").iterdir()}
    assert aside == {"99", "98", "4.orbax-checkpoint-tmp"}
    (checkpoints / "99").mkdir()
    assert restore(workdir).step == 3
    assert (checkpoints / "damaged" / "99.1").is_dir()


def test_a_checkpoint_under_another_name_is_refused(
    workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (workdir / "checkpoints" / "3").rename(workdir / "checkpoints" / "30")
    assert restore(workdir).step == 2
    assert "it is that of step 3" in caplog.text


def test_none_is_good(workdir: Path) -> None:
    for step in STEPS:
        (workdir / "checkpoints" / str(step) / "state" / "manifest.ocdbt").write_bytes(b"")
    before = sorted(workdir.rglob("*"))
    with pytest.raises(RunError, match=r"no checkpoint in .* can be used:\n.*3.*\n.*2.*\n.*1"):
        restore(workdir)
    assert sorted(workdir.rglob("*")) == before


def test_no_meta_is_good(workdir: Path) -> None:
    for step in STEPS:
        (workdir / "checkpoints" / str(step) / "meta" / "metadata").write_bytes(b"{")
    with pytest.raises(RunError, match="no checkpoint"):
        read_newest(workdir)


def test_a_checkpoint_is_read_by_its_step(workdir: Path, states: dict) -> None:
    assert_same_bits(read_step(workdir, 2).leaves, states[2])
    with pytest.raises(UsageError, match=r"no checkpoint 7 in .*; there are: 1, 2, 3"):
        read_step(workdir, 7)
    (workdir / "checkpoints" / "2" / "state" / "manifest.ocdbt").unlink()
    with pytest.raises(RunError, match="checkpoint 2 is damaged"):
        read_step(workdir, 2)


def test_nothing_stored(tmp_path: Path) -> None:
    assert stored_steps(tmp_path) == []
    assert find_newest(tmp_path).newest is None
    with pytest.raises(UsageError, match="there is no checkpoint in"):
        read_newest(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(RunError, match="is a file where a folder of checkpoints should be"):
        stored_steps(tmp_path)

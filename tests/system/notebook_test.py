"""The page about notebooks in a real kernel: cell after cell, and interrupted as by a user."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT, checkpoint_steps, read_metrics

pytestmark = pytest.mark.system

nbformat = pytest.importorskip("nbformat", reason="nbclient, of the extra [test]")
nbclient = pytest.importorskip("nbclient", reason="nbclient, of the extra [test]")
pytest.importorskip("ipykernel", reason="ipykernel, of the extra [test]")

CELLS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/notebook.md").read_text(), re.DOTALL)


@pytest.fixture
def environment(data_dir: Path, tmp_path: Path) -> dict[str, str]:
    """Of the kernel: this checkout, MNIST prepared, one device, settings in a folder of its own."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return kept | {
        "PYTHONPATH": path,
        "TFDS_DATA_DIR": str(data_dir),
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }


def text_of(cell: Any) -> str:
    """What a cell has printed."""
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.filterwarnings("ignore")  # Of the libraries between here and the kernel.
def test_the_page_runs_cell_by_cell(tmp_path: Path, environment: dict[str, str]) -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    resources = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=300, resources=resources)
    client.execute(env=environment)
    train, plot, compare, use = notebook.cells
    accuracies = re.findall(r"lr_max (0.03|0.3): test accuracy (\d\d\.\d\d) %", text_of(train))
    assert [rate for rate, _ in accuracies] == ["0.03", "0.3"]
    assert all(float(accuracy) > 80 for _, accuracy in accuracies)
    assert "first step after" in text_of(train)
    assert "image/png" in plot.outputs[-1].data
    assert "image/png" in compare.outputs[-1].data
    assert re.search(r"^lr_0.03 0\.\d+ \d+ images/s\nlr_0.3 0\.", text_of(compare), re.MULTILINE)
    assert re.search(r"step 468 of 468\na blank image looks like a \d\n$", text_of(use))


LONG = """
import trainer
config = trainer.TrainConfig(model="mlp", num_epochs=50, report=False, tensorboard=False)
result = trainer.train(config, "run")
print(result.step, result.complete)
"""


@pytest.fixture
def client(tmp_path: Path, environment: dict[str, str]) -> Iterator[Any]:
    """A kernel that runs as long as the test."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(cwd=str(tmp_path), env=environment)
    client.manager = manager
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def status(client: Any, message: str) -> str:
    """How the execution of a cell has ended; answers to earlier requests are passed over."""
    while True:
        reply = client.get_shell_msg(timeout=120)
        if reply["parent_header"]["msg_id"] == message:
            return reply["content"]["status"]


@pytest.mark.filterwarnings("ignore")
def test_interrupt_kernel_stops_with_a_checkpoint(client: Any, tmp_path: Path) -> None:
    """`train` says that it is not complete, and the same kernel goes on from there."""
    message = client.execute(LONG)
    deadline = time.monotonic() + 120
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    client.manager.interrupt_kernel()
    assert status(client, message) == "ok"
    stopped = max(checkpoint_steps(tmp_path / "run"))
    assert stopped < 23400
    message = client.execute(f"assert (result.step, result.complete) == ({stopped}, False)")
    assert status(client, message) == "ok"
    message = client.execute(LONG.replace("num_epochs=50", f"num_steps={stopped + 5}"))
    assert status(client, message) == "ok"
    steps = [record["step"] for record in read_metrics(tmp_path / "run", "train")]
    assert steps == list(range(stopped + 5))

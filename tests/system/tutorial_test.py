"""The tutorial's code runs as it stands in the page, and does what the page says."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from trainer.schedules import create_triangular_schedule

pytestmark = pytest.mark.system

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page(data_dir: pathlib.Path) -> tuple[list[str], dict[str, Any]]:
    """What a reader sees who pastes the blocks one after the other: lines, and the results."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.docs.run_tutorial"],
        capture_output=True,
        text=True,
        timeout=1500,
        cwd=_ROOT,
        # One device, as in a fresh notebook.
        env=os.environ | {"TFDS_DATA_DIR": str(data_dir), "MPLBACKEND": "Agg"},
    )
    assert done.returncode == 0, done.stderr
    *lines, results = done.stdout.splitlines()
    return lines, json.loads(results)


def test_unchanged_program_trains(page):
    _, results = page
    losses = results["constant_losses"]

    assert results["constant_names"] == ["accuracy", "loss"]
    assert len(losses) == 150
    assert np.mean(losses[-50:]) < 0.5 * np.mean(losses[:50])


def test_changed_program_trains(page):
    _, results = page
    first, second = results["losses"]

    assert np.mean(first[-50:]) < 0.5 * np.mean(first[:50])
    assert np.mean(second) < np.mean(first)


def test_applied_rates_touch_both_bounds(page):
    _, results = page
    rates = np.float32(results["rates"]).ravel()

    assert (rates.min(), rates.max()) == (np.float32(3e-3), np.float32(3e-2))
    assert np.flatnonzero(rates == rates.min()).tolist() == list(range(0, 2 * 468, 117))
    assert np.flatnonzero(rates == rates.max()).tolist() == list(range(59, 2 * 468, 117))


def test_applied_rates_are_those_of_the_trainer(page):
    _, results = page
    rates = np.float32(results["rates"]).ravel()
    expected = create_triangular_schedule(3e-3, 3e-2, 117)(np.arange(2 * 468))

    np.testing.assert_allclose(rates, expected, rtol=2e-6)


def test_the_page_test_catches_an_if_on_the_step(page):
    lines, results = page

    assert results["caught"] == "TracerBoolConversionError"
    assert "TracerBoolConversionError" in lines


def test_range_test_passes_through_the_best_rates(page):
    _, results = page
    accuracies = results["range_accuracies"]

    assert results["range_rates"][0] == pytest.approx(1e-5)
    assert max(accuracies) > 0.8
    # It starts at chance level, and ends where the rate is too high.
    assert max(accuracies[0], accuracies[-1]) < 0.6

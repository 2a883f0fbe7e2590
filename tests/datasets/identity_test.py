"""Which data a run was made of, and in which words a difference is told."""

import hashlib

import numpy as np
import pytest

from trainer import datasets
from trainer.datasets import identity_difference
from trainer.errors import UsageError

STORED = {
    "name": "pets",
    "version": "1.0.0",
    "train_examples": 60000,
    "test_examples": 10000,
    "image_shape": [28, 28, 1],
    "classes": ["cat", "dog"],
    "train_sha256": "aa",
    "test_sha256": "bb",
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"version": "1.1.0"}, "version 1.0.0, now 1.1.0"),
        ({"version": None}, "version 1.0.0, now unknown"),
        ({"name": "dogs"}, "data set pets, now dogs"),
        (
            {"train_examples": 60010, "train_sha256": "cc"},
            "60000 training examples, now 60010",
        ),
        ({"test_examples": 1, "test_sha256": "cc"}, "10000 test examples, now 1"),
        (
            {"image_shape": [32, 32, 3], "train_sha256": "cc", "test_sha256": "cc"},
            "images of 28x28x1, now 32x32x3",
        ),
        ({"classes": ["cat", "fox"]}, "class 1 is called 'dog', now 'fox'"),
        ({"classes": ["cat", "dog", "fox"]}, "2 classes, now 3"),
        ({"classes": 3}, "2 classes, now 3"),
        ({"classes": 2}, None),
        ({"train_sha256": "cc"}, "other pixels or labels in the train split"),
        (
            {"version": "1.1.0", "test_sha256": "cc"},
            "version 1.0.0, now 1.1.0; other pixels or labels in the test split",
        ),
    ],
)
def test_a_difference_in_words(changes, words):
    assert identity_difference(STORED, STORED | changes) == words


def test_an_older_version_stored_nothing_and_a_description_less():
    assert identity_difference(None, STORED) is None
    description = {key: STORED[key] for key in STORED if "sha256" not in key}
    assert identity_difference(STORED, description) is None
    assert identity_difference(description, STORED) is None
    assert identity_difference(STORED, description | {"train_examples": 5}) is not None


def test_the_identity_of_mnist(data_dir, mnist):
    source = datasets.open_dataset("mnist", str(data_dir))
    assert source.description == {
        "name": "mnist",
        "version": "1.0.0",
        "train_examples": 60000,
        "test_examples": 10000,
        "image_shape": [28, 28, 1],
        "classes": 10,
    }
    for split in ("train", "test"):
        images, labels = getattr(mnist, f"{split}_images"), getattr(mnist, f"{split}_labels")
        digest = hashlib.sha256(images.tobytes() + labels.astype("<i4").tobytes())
        assert mnist.identity[f"{split}_sha256"] == digest.hexdigest()
    # What it is today it is on every machine, and for ever.
    assert mnist.identity["train_sha256"].startswith("6a364e333ea1f8ab")
    assert mnist.identity["test_sha256"].startswith("45a60edfded3b2bb")


def dataset(**changes) -> datasets.Dataset:
    """Two images of two pixels."""
    images = np.array([[[[1]], [[2]]], [[[3]], [[4]]]], np.uint8)
    labels = np.array([0, 1], np.int32)
    arrays = {"train_images": images, "train_labels": labels}
    arrays |= {"test_images": images, "test_labels": labels} | changes
    return datasets.Dataset(name="two", num_classes=2, **arrays)


@pytest.mark.parametrize("part", ["train_images", "train_labels", "test_images", "test_labels"])
def test_one_changed_value_and_another_order_are_other_data(part):
    before = dataset()
    changed = getattr(before, part).copy()
    changed[0] += 1
    for array in (changed, getattr(before, part)[::-1]):
        words = identity_difference(before.identity, dataset(**{part: array}).identity)
        assert words == f"other pixels or labels in the {part.split('_')[0]} split"


def test_standardizing_constant_images_is_refused():
    constant = dataset(train_images=np.full((2, 2, 1, 1), 7, np.uint8))
    with pytest.raises(UsageError, match=r"--standardize divides by .*=two have the value 7"):
        constant.input_moments(standardize=True)
    assert constant.input_moments(standardize=False) == (0.0, 1.0)
    usual = dataset()
    assert usual.input_moments(standardize=True) == (usual.pixel_mean, usual.pixel_std)

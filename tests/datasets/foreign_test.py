"""Data sets that other people's TFDS code prepared: what is read, refused, and said of damage."""

import dataclasses
import io
import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

from trainer import datasets
from trainer.datasets import identity_difference
from trainer.errors import RunError, UsageError


class Foreign(tfds.core.GeneratorBasedBuilder):
    """A small data set whose features and splits a test chooses."""

    VERSION = tfds.core.Version("1.0.0")
    features: dict
    splits: dict

    def _info(self):
        features = tfds.features.FeaturesDict(self.features)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {name: iter(enumerate(examples)) for name, examples in self.splits.items()}

    def _generate_examples(self):
        raise NotImplementedError


CLASSES = tfds.features.ClassLabel(num_classes=300)
GRAY = tfds.features.Tensor(shape=(5, 4), dtype=np.uint8)
RGB = tfds.features.Image(shape=(None, None, 3), encoding_format="png")


def gray_examples(count):
    """Different images [5, 4] and labels up to 299, which take two bytes in a record."""
    pixels = np.arange(20, dtype=np.uint8).reshape(5, 4)
    return [{"image": pixels + i, "label": 299 - i} for i in range(count)]


def png(value, size=(6, 7)):
    """The bytes of a PNG file."""
    file = io.BytesIO()
    Image.new("RGB", size, (value, 1, 2)).save(file, "png")
    return file.getvalue()


def prepare_foreign(tmp_path, monkeypatch, features, splits):
    """Writes a data set named `foreign` and returns its root folder."""
    monkeypatch.setattr(Foreign, "features", features, raising=False)
    monkeypatch.setattr(Foreign, "splits", splits, raising=False)
    Foreign(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    return str(tmp_path)


def forget_the_code(root):
    """Renames the data set to `stranger`, of which nothing is known but its files."""
    (root / "foreign").rename(root / "stranger")
    for folder in (root / "stranger").iterdir():
        info = folder / "dataset_info.json"
        info.write_text(json.dumps({**json.loads(info.read_text()), "name": "stranger"}))
        for path in folder.glob("foreign-*"):
            path.rename(path.with_name(path.name.replace("foreign", "stranger")))


@pytest.mark.parametrize("test_split", ["test", "validation"])
def test_foreign_tensor_images(tmp_path, monkeypatch, test_split):
    splits = {"train": gray_examples(8), test_split: gray_examples(3)}
    root = prepare_foreign(tmp_path, monkeypatch, {"image": GRAY, "label": CLASSES}, splits)
    source = datasets.open_dataset("foreign", root)
    assert (source.image_shape, source.num_test, source.num_classes) == ((5, 4, 1), 3, 300)
    data = source.read()
    assert data.train_images.shape == (8, 5, 4, 1)
    assert data.train_images.dtype == np.uint8
    np.testing.assert_array_equal(data.train_images[7, :, :, 0], splits["train"][7]["image"])
    assert data.train_labels.tolist() == list(range(299, 291, -1))


def test_foreign_data_set_without_its_code(tmp_path, monkeypatch):
    splits = {"train": gray_examples(8), "test": gray_examples(3)}
    root = prepare_foreign(tmp_path, monkeypatch, {"image": GRAY, "label": CLASSES}, splits)
    forget_the_code(tmp_path)
    assert datasets.load("stranger", root).train_labels[0] == 299


def test_foreign_png_images_are_decoded(tmp_path, monkeypatch):
    splits = {
        "train": [{"image": png(value), "label": value} for value in (9, 8)],
        "test": [{"image": png(7), "label": 7}],
    }
    root = prepare_foreign(tmp_path, monkeypatch, {"image": RGB, "label": CLASSES}, splits)
    source = datasets.open_dataset("foreign", root)
    assert source.image_shape == (7, 6, 3)
    data = source.read()
    assert data.train_images.shape == (2, 7, 6, 3)
    assert data.train_images[:, 3, 3].tolist() == [[9, 1, 2], [8, 1, 2]]


@pytest.mark.parametrize(
    ("features", "splits", "problem"),
    [
        (
            {"image": GRAY, "label": CLASSES},
            {"train": gray_examples(2)},
            r"has the splits train \(2\), and neither 'test' nor 'validation'",
        ),
        (
            {"image": GRAY},
            {split: [{"image": np.zeros((5, 4), np.uint8)}] for split in ("train", "test")},
            "has the features image; needed are 'image' and 'label'",
        ),
        (
            {"image": GRAY, "label": np.int64},
            {"train": gray_examples(2), "test": gray_examples(2)},
            "'label' is no ClassLabel",
        ),
        (
            {"image": tfds.features.Tensor(shape=(5, 4), dtype=np.float32), "label": CLASSES},
            {
                split: [{"image": np.zeros((5, 4), np.float32), "label": 0}]
                for split in ("train", "test")
            },
            "'image' is Tensor.*float32.*needed is uint8",
        ),
        (
            {"image": RGB, "label": CLASSES},
            {
                "train": [{"image": png(1), "label": 0}, {"image": png(1, (9, 9)), "label": 0}],
                "test": [{"image": png(1), "label": 0}],
            },
            "different shapes",
        ),
        (
            {"image": RGB, "label": CLASSES},
            {
                "train": [{"image": png(1), "label": 0}],
                "test": [{"image": png(1, (9, 9)), "label": 0}],
            },
            "split 'test' have shape",
        ),
    ],
)
def test_unusable_foreign_data_sets(tmp_path, monkeypatch, features, splits, problem):
    root = prepare_foreign(tmp_path, monkeypatch, features, splits)
    with pytest.raises(UsageError, match=f"--dataset=foreign.*{problem}"):
        datasets.load("foreign", root)


def test_labels_must_be_classes(tmp_path, monkeypatch):
    splits = {"train": gray_examples(8), "test": gray_examples(3)}
    root = prepare_foreign(tmp_path, monkeypatch, {"image": GRAY, "label": CLASSES}, splits)
    source = dataclasses.replace(datasets.open_dataset("foreign", root), num_classes=299)
    with pytest.raises(UsageError, match="labels from 292 to 299, and its classes are 0 to 298"):
        source.read()


def test_foreign_not_prepared_or_not_random_access(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"--dataset=cifar10 .*not prepared"):
        datasets.open_dataset("cifar10", str(tmp_path))
    splits = {"train": gray_examples(8), "test": gray_examples(3)}
    root = prepare_foreign(tmp_path, monkeypatch, {"image": GRAY, "label": CLASSES}, splits)
    info = tmp_path / "foreign" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    for path in info.parent.glob("*.array_record-*"):
        path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
    with pytest.raises(UsageError, match="prepared as tfrecord, which cannot be read"):
        datasets.open_dataset("foreign", root)


@pytest.mark.parametrize("name", ["fashion_mnits", "no_such_data_set", "../x", "", "a b"])
def test_unknown_names_are_usage_errors_of_one_line(tmp_path, name, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # Beside which there is nothing named x.
    with pytest.raises(UsageError) as error:
        datasets.open_dataset(name, str(tmp_path))
    message = str(error.value)
    assert f"--dataset={name}" in message
    assert "mnist, fashion_mnist, kmnist" in message
    assert "\n" not in message
    assert len(message.replace(str(tmp_path), "")) < 400


# Versions


def test_the_version_is_part_of_the_description(tmp_path, monkeypatch):
    splits = {"train": gray_examples(8), "test": gray_examples(3)}
    root = prepare_foreign(tmp_path, monkeypatch, {"image": GRAY, "label": CLASSES}, splits)
    stored = datasets.load("foreign", root).identity
    monkeypatch.setattr(Foreign, "VERSION", tfds.core.Version("1.1.0"))
    splits["train"] = [gray_examples(9)[8], *splits["train"]]
    prepare_foreign(tmp_path, monkeypatch, {"image": GRAY, "label": CLASSES}, splits)
    source = datasets.open_dataset("foreign", root)
    words = "version 1.0.0, now 1.1.0; 8 training examples, now 9"
    assert identity_difference(stored, source.description) == words
    assert identity_difference(stored, source.read().identity) == words
    # The older one lies there still, and may be asked for.
    older = datasets.open_dataset("foreign:1.0.0", root)
    assert identity_difference(stored, older.read().identity) is None
    with pytest.raises(UsageError, match=r"--dataset=foreign:2.0.0: "):
        datasets.open_dataset("foreign:2.0.0", root)


def test_without_its_code_the_highest_version_is_opened(tmp_path, monkeypatch):
    for version in ("1.0.0", "1.10.0", "1.9.0"):
        monkeypatch.setattr(Foreign, "VERSION", tfds.core.Version(version))
        splits = {"train": gray_examples(8), "test": gray_examples(3)}
        prepare_foreign(tmp_path, monkeypatch, {"image": GRAY, "label": CLASSES}, splits)
    forget_the_code(tmp_path)
    assert datasets.open_dataset("stranger", str(tmp_path)).version == "1.10.0"
    assert datasets.open_dataset("stranger:1.9.0", str(tmp_path)).version == "1.9.0"
    assert datasets.open_dataset("stranger:1.9.0", str(tmp_path)).name == "stranger"


# Splits and sizes


def test_slices_of_splits(tmp_path, monkeypatch, caplog):
    splits = {"train": gray_examples(8)}
    root = prepare_foreign(tmp_path, monkeypatch, {"image": GRAY, "label": CLASSES}, splits)
    whole = np.stack([example["image"] for example in splits["train"]])[..., None]
    selection = {"train_split": "train[:2]+train[4:]", "test_split": "train[25%:50%]"}
    with pytest.raises(UsageError, match="seem to be sorted by class"):
        datasets.load("foreign", root, **selection)
    source = datasets.open_dataset("foreign", root, **selection)
    assert (source.num_train, source.num_test) == (6, 2)
    assert not caplog.records
    images, labels = source.rows("train", range(6))
    np.testing.assert_array_equal(images, whole[[0, 1, 4, 5, 6, 7]])
    assert labels.tolist() == [299, 298, 295, 294, 293, 292]
    np.testing.assert_array_equal(source.rows("test", [1, 0])[0], whole[[3, 2]])
    with pytest.raises(IndexError, match="examples 0 to 2 of 2"):
        source.rows("test", [0, 2])
    both = {"train_split": "train", "test_split": "train[6:]"}
    assert datasets.load("foreign", root, **both).test_labels.tolist() == [293, 292]
    assert "have 2 examples in common" in caplog.text


@pytest.mark.parametrize(
    ("selection", "problem"),
    [
        ({"train_split": "trian"}, r"--train_split=trian is no split of --dataset=foreign, which "),
        ({"test_split": "train[:"}, r"--test_split=train\[: is no split"),
        ({"test_split": "train[:x%]"}, "is no split of"),
        ({"train_split": "train[8:]"}, r"--train_split=train\[8:\] selects no examples of"),
        ({"train_split": "train[::2]"}, "is no split of"),
        ({"test_split": "train[200%:]"}, "is no split|selects no"),
    ],
)
def test_splits_that_are_none(tmp_path, monkeypatch, selection, problem):
    splits = {"train": gray_examples(8), "test": gray_examples(3)}
    root = prepare_foreign(tmp_path, monkeypatch, {"image": GRAY, "label": CLASSES}, splits)
    with pytest.raises(UsageError, match=problem) as error:
        datasets.open_dataset("foreign", root, **selection)
    assert "train (8), test (3)" in str(error.value)
    assert "\n" not in str(error.value)


def test_images_of_several_sizes_are_resized(tmp_path, monkeypatch):
    splits = {
        "train": [{"image": png(9), "label": 0}, {"image": png(8, (9, 9)), "label": 1}],
        "test": [{"image": png(7, (3, 2)), "label": 1}],
    }
    root = prepare_foreign(tmp_path, monkeypatch, {"image": RGB, "label": CLASSES}, splits)
    source = datasets.open_dataset("foreign", root, image_size="4x5")
    assert source.image_shape == tuple(source.description["image_shape"]) == (4, 5, 3)
    data = source.read()
    assert data.train_images[:, 2, 2].tolist() == [[9, 1, 2], [8, 1, 2]]
    assert data.test_images.shape == (1, 4, 5, 3)


# Damage


@pytest.fixture
def shard(tmp_path, monkeypatch) -> pathlib.Path:
    """The file of the training split of a data set named `foreign` below tmp_path."""
    splits = {"train": gray_examples(40), "test": gray_examples(3)}
    prepare_foreign(tmp_path, monkeypatch, {"image": GRAY, "label": CLASSES}, splits)
    return tmp_path / "foreign" / "1.0.0" / "foreign-train.array_record-00000-of-00001"


def cut_in_half(path: pathlib.Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def drop_one_record(path: pathlib.Path) -> None:
    records = array_record_module.ArrayRecordReader(str(path)).read_all()
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records[:-1]:
        writer.write(record)
    writer.close()


def spoil_one_record(path: pathlib.Path) -> None:
    # The pixels of the image 5.
    content = path.read_bytes()
    pixels = bytes(range(5, 25))
    assert content.count(pixels) == 1
    path.write_bytes(content.replace(pixels, bytes(20)))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_in_half, "is damaged: no whole array_record file (65536 bytes)"),
        (lambda path: path.write_bytes(b""), "is damaged: no whole array_record file (0 bytes)"),
        (drop_one_record, "is damaged: 39 records, not 40"),
        (spoil_one_record, "is damaged: Corrupted Riegeli/records file: chunk data hash mismatch"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read: Is a directory"),
    ],
)
def test_a_damaged_file_of_other_people_is_named(tmp_path, shard, damage, words):
    damage(shard)
    with pytest.raises(RunError) as error:
        datasets.load("foreign", str(tmp_path))
    message = str(error.value)
    assert message.startswith(f"--dataset=foreign: {shard} {words}")
    # The trainer did not make it.
    assert "delete" not in message
    assert message.endswith(
        "restore the file from a copy, or prepare the data set again as it was made"
    )
    assert "\n" not in message
    # As array_record says it to its authors.
    assert [
        words for words in ("bound method", "; at byte", "Postscript") if words in message
    ] == []


def test_a_file_that_may_not_be_read(tmp_path, shard, monkeypatch):
    shard.chmod(0)
    for path in (*tmp_path.parents, tmp_path):
        if path.stat().st_uid == os.geteuid() and path != pathlib.Path("/"):
            path.chmod(path.stat().st_mode | 0o55)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(RunError) as error:
            datasets.load("foreign", str(tmp_path))
    finally:
        if root:
            os.seteuid(0)
    assert str(error.value) == f"--dataset=foreign: {shard} cannot be read: Permission denied"


def test_damage_is_seen_before_the_shape_is_known(tmp_path, monkeypatch):
    splits = {
        "train": [{"image": png(9), "label": 0}],
        "test": [{"image": png(7), "label": 1}],
    }
    root = prepare_foreign(tmp_path, monkeypatch, {"image": RGB, "label": CLASSES}, splits)
    [shard] = (tmp_path / "foreign" / "1.0.0").glob("*train.array_record*")
    shard.unlink()
    with pytest.raises(RunError, match=rf"--dataset=foreign: {shard} is missing"):
        datasets.open_dataset("foreign", root)


def test_no_flipped_bit_is_ever_read(tmp_path, shard):
    """In a record and what surrounds it, one at a time."""
    source = datasets.open_dataset("foreign", str(tmp_path))
    whole, content = source.read(), shard.read_bytes()
    begin = content.index(bytes(range(5, 25))) - 120
    seen, every = 0, range(40)
    for position in range(begin, begin + 240, 2):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        shard.write_bytes(damaged)
        try:
            images, labels = dataclasses.replace(source).rows("train", every)
        except RunError:
            seen += 1
        else:
            np.testing.assert_array_equal(images, whole.train_images)
            np.testing.assert_array_equal(labels, whole.train_labels)
    assert seen > 50


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", "\0"])
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_damaged_description_of_other_people(tmp_path, shard, name, content):
    forget_the_code(tmp_path)
    path = tmp_path / "stranger" / "1.0.0" / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises((UsageError, RunError)) as error:
        datasets.load("stranger", str(tmp_path))
    message = str(error.value)
    assert message.startswith("--dataset=stranger")
    assert "delete" not in message
    assert "\n" not in message

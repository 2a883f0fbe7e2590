"""trainer.datasets: real archives and real files."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import logging
import os
import pathlib
import shutil
import struct
import tempfile
import threading
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from trainer import datasets
from trainer.datasets import decode, idx, sources
from trainer.datasets.mnist_idx import MnistIdx
from trainer.errors import RunError, UsageError

ARCHIVES = pathlib.Path(datasets.__file__).parent / "archives"
MNIST = pathlib.Path("mnist_idx", "mnist", "1.0.0")


@pytest.fixture
def data_dir_copy(data_dir, tmp_path):
    """A copy of the prepared folder, for tests that damage it."""
    return pathlib.Path(shutil.copytree(data_dir, tmp_path / "copy"))


def archive_bytes(name, offset):
    """The data bytes of a bundled archive, read without the code under test."""
    with gzip.open(ARCHIVES / name) as file:
        return np.frombuffer(file.read()[offset:], np.uint8)


# What is loaded


@pytest.mark.parametrize(
    ("split", "prefix", "count"), [("train", "train", 60000), ("test", "t10k", 10000)]
)
def test_arrays_equal_the_archives(mnist, split, prefix, count):
    images = getattr(mnist, f"{split}_images")
    labels = getattr(mnist, f"{split}_labels")
    assert images.dtype == np.uint8
    assert images.shape == (count, 28, 28, 1)
    assert labels.dtype == np.int32
    assert labels.shape == (count,)
    np.testing.assert_array_equal(
        images.reshape(-1), archive_bytes(f"{prefix}-images-idx3-ubyte.gz", 16)
    )
    np.testing.assert_array_equal(labels, archive_bytes(f"{prefix}-labels-idx1-ubyte.gz", 8))


def test_label_histogram(mnist):
    # The published counts of the training split.
    published = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.train_labels).tolist() == published
    assert mnist.num_classes == 10


def test_pixel_statistics(mnist):
    scaled = mnist.train_images.astype(np.float64) / 255
    assert mnist.pixel_mean == pytest.approx(scaled.mean(), rel=1e-12)
    assert mnist.pixel_std == pytest.approx(scaled.std(), rel=1e-12)
    assert round(mnist.pixel_mean, 4) == 0.1307
    assert round(mnist.pixel_std, 4) == 0.3081


def test_pixel_statistics_of_extreme_pixels():
    images = np.full((1500, 28, 28, 1), 255, np.uint8)
    labels = np.zeros(1500, np.int32)
    white = datasets.Dataset("white", images, labels, images, labels, 1)
    assert (white.pixel_mean, white.pixel_std) == (1.0, 0.0)
    images[::2] = 0
    half = datasets.Dataset("half", images, labels, images, labels, 1)
    assert (half.pixel_mean, half.pixel_std) == (0.5, 0.5)


def test_source_describes_what_is_read(data_dir, mnist):
    source = datasets.open_dataset("mnist", str(data_dir))
    assert source.name == mnist.name == "mnist"
    assert (source.num_train, source.num_test) == (len(mnist.train_images), len(mnist.test_images))
    assert source.image_shape == mnist.train_images.shape[1:]
    assert source.num_classes == 10
    assert pathlib.Path(source.data_dir) == data_dir / MNIST


def test_other_people_can_read_it_with_tfds(data_dir, mnist):
    builder = tfds.builder_from_directory(data_dir / MNIST)
    example = builder.as_data_source("test")[123]
    np.testing.assert_array_equal(example["image"], mnist.test_images[123])
    assert example["label"] == mnist.test_labels[123]


def test_what_version_0_1_has_prepared_is_read(data_dir, mnist, tmp_path):
    """It stored another digest; the examples are the same, and so is what a run knows of them."""
    older = tmp_path / MNIST
    older.mkdir(parents=True)
    for path in (data_dir / MNIST).iterdir():
        (older / path.name).symlink_to(path)
    (older / "metadata.json").unlink()
    (older / "metadata.json").write_text('{"train_crc32": "df6dde61", "test_crc32": "190e897b"}')
    assert datasets.load("mnist", str(tmp_path)).identity == mnist.identity


def test_both_ways_of_decoding_agree(data_dir):
    builder = MnistIdx(config="mnist", data_dir=data_dir)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    some = builder.as_data_source("test", deserialize_method=raw).__getitems__(range(300))
    features = builder.info.features
    together = decode._decode_together(some, features)
    assert together is not None
    for one, other in zip(together, decode._decode_one_by_one(some, features), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    # A record of another layout must end the shortcut, not be cut at the wrong place.
    other_order = bytearray(some[7])
    other_order[other_order.index(b"label")] ^= 1
    assert decode._decode_together([*some, bytes(other_order)], features) is None
    # One with another length, here by an unknown field, is cut at its own places.
    longer = [some[0] + b"\x12\0", *some]
    for one, other in zip(
        decode._decode_together(longer, features),
        decode._decode_one_by_one(longer, features),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


# Preparing


class Bundled:
    """A folder in memory, which every user may read."""

    def __init__(self, files):
        self._files = files

    def __truediv__(self, name):
        return types.SimpleNamespace(read_bytes=lambda: self._files[name])


@pytest.fixture
def small_archives(monkeypatch):
    """Four small archives in place of the real ones, 30 and 20 images: name -> bytes."""
    rng = np.random.default_rng(0)
    files = {}
    for prefix, count in (("train", 30), ("t10k", 20)):
        pixels = rng.integers(0, 256, count * 784, dtype=np.uint8).tobytes()
        labels = (np.arange(count, dtype=np.uint8) % 10).tobytes()
        header = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28)
        files[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(header + pixels)
        header = struct.pack(">4BI", 0, 0, 8, 1, count)
        files[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(header + labels)
    archives = [
        sources.Archive(name, f"http://host/{name}", len(data), hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    ]
    monkeypatch.setattr(sources, "registered_archives", lambda config: archives)
    monkeypatch.setattr(sources, "BUNDLED", Bundled(files))
    return files


def test_prepares_once_and_says_so(tmp_path, caplog, capfd, small_archives):
    with caplog.at_level(logging.INFO, logger="trainer.datasets.prepare"):
        datasets.open_dataset("mnist", str(tmp_path))
    said = [record.message for record in caplog.records if record.name.startswith("trainer")]
    assert len(said) == 1
    assert "preparing mnist in" in said[0]
    assert str(tmp_path) in said[0]
    output = capfd.readouterr()
    assert output.out == ""
    assert "%|" not in output.err
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / MNIST).iterdir()}
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="trainer.datasets.prepare"):
        datasets.open_dataset("mnist", str(tmp_path))
    assert not [record for record in caplog.records if record.name.startswith("trainer")]
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / MNIST).iterdir()}


def test_leftovers_of_a_killed_process_do_no_harm(tmp_path, small_archives):
    leftover = tmp_path / MNIST.parent / "incomplete.ABCDEF_1.0.0"
    leftover.mkdir(parents=True)
    (leftover / "mnist_idx-train.array_record-00000-of-00001").write_bytes(b"half")
    assert datasets.open_dataset("mnist", str(tmp_path)).num_train == 30


def _readable(path):
    """Whether the effective user may read a file; os.access would ask for the real one."""
    try:
        with open(path):
            return True
    except PermissionError:
        return False


@pytest.fixture
def unwritable_dir():
    """A folder this process may not write to. For root, who may everywhere, by becoming nobody."""
    base = pathlib.Path(tempfile.mkdtemp(dir="/tmp"))
    base.chmod(0o755)
    (base / "tmp").mkdir()
    (base / "tmp").chmod(0o777)
    (base / "data").mkdir(mode=0o555)
    uid = os.geteuid()
    if uid == 0:
        os.seteuid(65534)
        # The builder reads these again; nobody may not in an environment below a private folder.
        if not all(_readable(path) for path in (tfds.__file__, datasets.__file__)):
            os.seteuid(0)
            shutil.rmtree(base)
            pytest.skip("run as root, and user nobody may not read the installed packages")
    yield base / "data"
    if uid == 0:
        os.seteuid(0)
    shutil.rmtree(base)


def test_unwritable_data_dir_falls_back_to_a_private_folder(
    small_archives, unwritable_dir, monkeypatch, caplog
):
    temporary = unwritable_dir.parent / "tmp"
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    source = datasets.open_dataset("mnist", str(unwritable_dir))
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert str(unwritable_dir) in warning.message
    scratch = temporary / f"cyclic-trainer-{os.geteuid()}"
    assert str(scratch) in warning.message
    assert pathlib.Path(source.data_dir) == scratch / MNIST
    assert scratch.stat().st_mode & 0o777 == 0o700
    written = (scratch / MNIST).stat().st_mtime_ns
    again = datasets.open_dataset("mnist", str(unwritable_dir))
    assert again.data_dir == source.data_dir
    assert (scratch / MNIST).stat().st_mtime_ns == written


def test_a_temporary_folder_of_somebody_else_is_not_used(
    small_archives, unwritable_dir, monkeypatch
):
    temporary = unwritable_dir.parent / "tmp"
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    trap = temporary / f"cyclic-trainer-{os.geteuid()}"
    (temporary / "elsewhere").mkdir()
    trap.symlink_to(temporary / "elsewhere")
    source = datasets.open_dataset("mnist", str(unwritable_dir))
    assert not list((temporary / "elsewhere").iterdir())
    assert str(trap) + "/" not in source.data_dir


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_data_dir_that_is_a_file_is_a_usage_error(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--data_dir=.*file"):
        datasets.open_dataset("mnist", str(tmp_path / "file" / below))


# Damage


def flip(path, position):
    """Flips one bit."""
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def truncate(path, size):
    """Cuts the file."""
    os.truncate(path, size)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("damage", "position"), [(flip, 1_234_567), (truncate, 1_234_567)])
def test_damaged_prepared_data_are_refused(data_dir_copy, split, damage, position):
    damage(data_dir_copy / MNIST / f"mnist_idx-{split}.array_record-00000-of-00001", position)
    source = datasets.open_dataset("mnist", str(data_dir_copy))
    with pytest.raises(RunError, match=r"delete the folder .* and run") as error:
        source.read()
    assert str(data_dir_copy / MNIST) in str(error.value)


def test_changed_content_of_intact_records_is_refused(data_dir_copy):
    # One pixel of the last test image, in a file whose own hashes are all right.
    path = data_dir_copy / MNIST / "mnist_idx-test.array_record-00000-of-00001"
    reader = array_record_module.ArrayRecordReader(str(path))
    examples = [bytearray(record) for record in reader.read_all()]
    examples[-1][400] ^= 1
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for example in examples:
        writer.write(bytes(example))
    writer.close()
    with pytest.raises(RunError, match=r"damaged .SHA-256 of the content is"):
        datasets.load("mnist", str(data_dir_copy))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.json", "{"),
        ("dataset_info.json", '{"name": '),
        ("dataset_info.json", None),
    ],
)
def test_damaged_description_is_refused(data_dir_copy, name, content):
    path = data_dir_copy / MNIST / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(RunError, match=r"delete the folder .* and run") as error:
        datasets.load("mnist", str(data_dir_copy))
    assert str(data_dir_copy / MNIST) in str(error.value)


def test_damaged_bundled_archive_is_refused(tmp_path, monkeypatch):
    bundled = pathlib.Path(shutil.copytree(ARCHIVES, tmp_path / "archives"))
    name = "t10k-labels-idx1-ubyte.gz"
    flip(bundled / name, 2000)
    monkeypatch.setattr(sources, "BUNDLED", bundled)
    with pytest.raises(RunError) as error:
        datasets.open_dataset("mnist", str(tmp_path / "data"))
    message = str(error.value)
    assert name in message
    assert hashlib.sha256((ARCHIVES / name).read_bytes()).hexdigest() in message
    assert hashlib.sha256((bundled / name).read_bytes()).hexdigest() in message
    assert not (tmp_path / "data" / MNIST).exists()


def test_missing_bundled_archive_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BUNDLED", tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"nowhere.*idx.-ubyte.gz: cannot be read"):
        datasets.open_dataset("mnist", str(tmp_path / "data"))


def test_bundled_archives_are_the_registered_ones():
    for archive in sources.registered_archives("mnist"):
        data = (ARCHIVES / archive.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (archive.size, archive.sha256)


# Fashion-MNIST and KMNIST


@pytest.fixture
def no_network(monkeypatch):
    """Makes downloads fail at once, on machines with a network too."""

    def unreachable(url):
        raise OSError("no network in tests")

    monkeypatch.setattr(sources, "_assert_reachable", unreachable)


@pytest.mark.parametrize("folder", ["", "fashion_mnist"])
def test_archives_from_the_manual_directory(tmp_path, small_archives, no_network, folder):
    manual = tmp_path / "downloads" / "manual" / folder
    manual.mkdir(parents=True)
    for name, data in small_archives.items():
        (manual / name).write_bytes(data)
    data = datasets.load("fashion_mnist", str(tmp_path))
    pixels = gzip.decompress(small_archives["t10k-images-idx3-ubyte.gz"])[16:]
    assert data.test_images.tobytes() == pixels
    assert data.train_labels.tolist() == [i % 10 for i in range(30)]
    builder = MnistIdx(config="fashion_mnist", data_dir=tmp_path)
    assert builder.info.features["label"].names[9] == "Ankle boot"


def test_wrong_archive_in_the_manual_directory_is_refused(tmp_path, small_archives, no_network):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    for name, data in small_archives.items():
        (manual / name).write_bytes(data)
    flip(manual / "train-images-idx3-ubyte.gz", 5000)
    with pytest.raises(RunError, match="wrong checksum") as error:
        datasets.load("fashion_mnist", str(tmp_path))
    assert str(manual / "train-images-idx3-ubyte.gz") in str(error.value)


def test_archives_are_downloaded(tmp_path, small_archives, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    for name, data in small_archives.items():
        (served / name).write_bytes(data)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        archives = [
            dataclasses.replace(
                archive, url=f"http://127.0.0.1:{server.server_port}/{archive.name}"
            )
            for archive in sources.registered_archives("fashion_mnist")
        ]
        monkeypatch.setattr(sources, "registered_archives", lambda config: archives)
        data = datasets.load("fashion_mnist", str(tmp_path / "data"))
        server.shutdown()
    assert data.test_labels.tolist() == [i % 10 for i in range(20)]


@pytest.mark.parametrize("config", ["fashion_mnist", "kmnist"])
@pytest.mark.parametrize("present", [[], ["train-labels-idx1-ubyte.gz"]])
def test_missing_archives_are_listed(tmp_path, no_network, config, present):
    manual = tmp_path / "downloads" / "manual" / config
    manual.mkdir(parents=True)
    for name in present:
        (manual / name).write_bytes(b"")
    with pytest.raises(UsageError) as error:
        datasets.open_dataset(config, str(tmp_path))
    message = str(error.value)
    assert f"--dataset={config}" in message
    assert str(manual) in message
    lines = message.splitlines()[1:]
    assert len(lines) == 4
    archives = sources.registered_archives(config)
    for line, archive in zip(lines, archives, strict=True):
        for fact in (archive.name, str(archive.size), archive.sha256[:16], archive.url):
            assert fact in line
        assert line.endswith("(missing)") == (archive.name not in present)


# The file format


def idx_file(data=b"\x01\x02\x03", header=(0, 0, 8, 1, 3)):
    """A small IDX file."""
    return struct.pack(">4BI", *header) + data


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "truncated IDX header, 0 of 8 bytes"),
        (idx_file()[:6], "truncated IDX header, 6 of 8 bytes"),
        (idx_file()[:-1], "truncated, 2 data bytes"),
        (idx_file() + b"\0", "trailing bytes, 4 data bytes"),
        (idx_file(header=(0, 1, 8, 1, 3)), "magic number 0x00010801, expected 0x00000801"),
        (idx_file(header=(0, 0, 13, 1, 3)), "magic number 0x00000d01"),
        (idx_file(header=(0, 0, 8, 3, 3)), "magic number 0x00000803"),
    ],
)
def test_malformed_idx_is_refused(data, problem):
    with pytest.raises(ValueError, match=f"some file: .*{problem}"):
        idx.parse_idx(data, "some file", ndim=1)
    assert idx.parse_idx(idx_file(), "some file", ndim=1).tolist() == [1, 2, 3]


def test_counts_must_match_and_gzip_must_be_whole():
    images = gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 2, 1, 1) + b"\x01\x02")
    with pytest.raises(ValueError, match="2 images but 3 labels"):
        idx.parse_split(images, gzip.compress(idx_file()), "train")
    with pytest.raises(ValueError, match="train images: damaged gzip data"):
        idx.parse_split(images[:-9], gzip.compress(idx_file()), "train")


@pytest.mark.parametrize("split", ["train", "test[600:900]+train[30:90]+train[:5]", "train[-7:]"])
def test_records_in_a_row_are_those_that_are_read_one_by_one(data_dir, split):
    """In a row they come straight from the files, else by the look-up of TFDS."""
    builder = datasets.open_dataset("mnist", str(data_dir)).builder
    reader = decode.SplitReader(builder, split)
    count = min(len(reader), 1000)
    for start in (0, 2, count - 5):
        row = list(range(start, count))
        images, labels = reader.read(row)
        others = reader.read(row[::-1])
        np.testing.assert_array_equal(images, others[0][::-1])
        np.testing.assert_array_equal(labels, others[1][::-1])

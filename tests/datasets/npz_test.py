"""An .npz file as Keras stores MNIST: what is read, what is refused, and in which words."""

import hashlib
import io
import pathlib
import zipfile

import numpy as np
import pytest

from trainer import datasets
from trainer.errors import UsageError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 5, 4), np.uint8)
LABELS = np.arange(20) % 3
ARRAYS = {
    "x_train": IMAGES[:12],
    "y_train": LABELS[:12],
    "x_test": IMAGES[12:],
    "y_test": LABELS[12:],
}
SLICES = {"train_split": "train[:75%]", "test_split": "train[75%:]"}


def save(tmp_path: pathlib.Path, **changes) -> str:
    """Store the arrays, some of them changed or (None) left out; return the name of the file."""
    arrays = {name: array for name, array in (ARRAYS | changes).items() if array is not None}
    np.savez(tmp_path / "own.npz", **arrays)
    return str(tmp_path / "own.npz")


def refused(path: str, **selection: str) -> str:
    """The one line that a file is refused with."""
    with pytest.raises(UsageError) as error:
        datasets.load(path, str(pathlib.Path(path).parent / "data"), **selection)
    message = str(error.value)
    assert message.startswith(f"--dataset={path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"x_train": IMAGES[:12, ..., None], "x_test": IMAGES[12:, ..., None]},
        {"y_train": LABELS[:12].astype(np.uint8), "y_test": LABELS[12:, None].astype(np.int16)},
        {"x_train": np.asfortranarray(IMAGES[:12]), "somebody": np.array(["else"])},
    ],
)
def test_the_arrays_are_the_examples_in_their_order(tmp_path, changes):
    path = save(tmp_path, **changes)
    data = datasets.load(path, str(tmp_path / "data"))
    np.testing.assert_array_equal(data.train_images[..., 0], IMAGES[:12])
    np.testing.assert_array_equal(data.test_images[..., 0], IMAGES[12:])
    np.testing.assert_array_equal(data.train_labels, LABELS[:12])
    np.testing.assert_array_equal(data.test_labels, LABELS[12:])
    assert data.train_images.dtype == np.uint8
    digest = hashlib.sha256(IMAGES[:12].tobytes() + LABELS[:12].astype("<i4").tobytes())
    assert data.identity == {
        "name": "own.npz",
        "version": None,
        "train_examples": 12,
        "test_examples": 8,
        "image_shape": [5, 4, 1],
        "classes": 3,
        "train_sha256": digest.hexdigest(),
        "test_sha256": data.identity["test_sha256"],
    }


def test_coloured_images_keep_their_channels(tmp_path):
    images = RNG.integers(0, 256, (20, 6, 5, 3), np.uint8)
    np.savez_compressed(
        tmp_path / "a.npz", x_train=images, y_train=LABELS, x_test=images, y_test=LABELS
    )
    data = datasets.load(str(tmp_path / "a.npz"), str(tmp_path / "data"))
    np.testing.assert_array_equal(data.train_images, images)
    data = datasets.load(str(tmp_path / "a.npz"), str(tmp_path / "data"), image_size="12x10")
    assert data.test_images.shape == (20, 12, 10, 3)


def test_without_a_test_split_slices_make_one(tmp_path):
    path = save(tmp_path, x_test=None, y_test=None)
    assert "has the splits train (12), and neither 'test'" in refused_at_all(path)
    data = datasets.load(path, str(tmp_path / "data"), **SLICES)
    np.testing.assert_array_equal(data.train_images[..., 0], IMAGES[:9])
    np.testing.assert_array_equal(data.test_labels, LABELS[9:12])


def refused_at_all(path: str, **selection: str) -> str:
    with pytest.raises(UsageError) as error:
        datasets.load(path, str(pathlib.Path(path).parent / "data"), **selection)
    return str(error.value)


def test_slices_of_examples_that_are_sorted_by_class(tmp_path):
    path = save(tmp_path, y_train=np.sort(LABELS[:12]), x_test=None, y_test=None)
    message = refused_at_all(path, train_split="train[:8]", test_split="train[8:]")
    assert "4 of the 4 examples of --test_split=train[8:] are of classes" in message
    assert "seem to be sorted by class; shuffle them" in message


def test_a_rare_class_that_a_slice_misses_is_only_told(tmp_path, caplog):
    labels = np.append(np.arange(99) % 2, 2)
    images = RNG.integers(0, 256, (100, 5, 4), np.uint8)
    path = save(tmp_path, x_train=images, y_train=labels, x_test=None, y_test=None)
    selection = {"train_split": "train[:80%]", "test_split": "train[80%:]"}
    assert len(datasets.load(path, str(tmp_path / "data"), **selection).test_labels) == 20
    assert "1 of the 20 examples of --test_split=train[80%:]" in caplog.text


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"x_train": None, "y_train": None, "images": IMAGES, "labels": LABELS},
            "the array x_train is missing (there are: x_test, y_test, images, labels); the names "
            "must be x_train, y_train, x_test and y_test",
        ),
        ({"y_test": None}, "the array y_test is missing"),
        ({"x_train": IMAGES[:12] / 255}, "store np.rint(255 * x_train).astype('uint8')"),
        ({"x_train": IMAGES[:12] * 1.0}, "store np.rint(x_train).astype('uint8')"),
        ({"x_test": IMAGES[12:].astype(np.int64)}, "x_test is int64, and pixels must be uint8"),
        ({"x_train": IMAGES[:12] > 9}, "x_train is bool, and pixels must be uint8"),
        ({"x_train": IMAGES[:12].reshape(12, 20)}, "x_train has the shape (12, 20); use [N, H, W]"),
        ({"x_train": np.zeros((0, 5, 4), np.uint8)}, "x_train has the shape (0, 5, 4)"),
        (
            {"x_train": np.zeros((12, 3, 9, 8), np.uint8)},
            "channels first; store x_train.transpose(0, 2, 3, 1)",
        ),
        ({"y_train": np.eye(3)[LABELS[:12]].astype(int)}, "store y_train.argmax(axis=1)"),
        ({"y_train": LABELS[:12] * 1.0}, "y_train is float64; labels must be integers"),
        ({"y_train": np.array(["cat", "dog"] * 6)}, "y_train is <U3; labels must be integers"),
        ({"y_train": LABELS[:11]}, "12 images in x_train, but 11 labels in y_train"),
        ({"y_train": np.array(3)}, "y_train has the shape (); use [N]"),
        ({"y_train": LABELS[:12] - 1}, "y_train has the label -1; labels begin at 0"),
        ({"y_train": np.zeros(12, int)}, "all labels in y_train are 0, and two classes"),
        ({"y_test": LABELS[12:] + 1}, "class 3 is in y_test, but not in y_train"),
        ({"x_test": np.zeros((8, 5, 4, 3), np.uint8)}, "images of 1 channels in x_train, but of 3"),
        ({"x_test": np.zeros((8, 9, 9), np.uint8)}, "different sizes (height x width): 5x4 (12"),
        ({"x_train": np.array([{"a": 1}] * 12)}, "x_train holds Python objects"),
        (
            {"y_train": np.where(LABELS[:12] == 2, 10**9, LABELS[:12])},
            "y_train has the label 1000000000, which would make more classes than there are "
            "examples; number the classes from 0 (here up to 999)",
        ),
        ({"y_train": LABELS[:12].astype(np.uint64) + 2**63}, "the label 9223372036854775810,"),
    ],
)
def test_other_arrays_are_refused(tmp_path, changes, problem):
    assert problem in refused(save(tmp_path, **changes))
    assert not list(tmp_path.glob("data/*/*/*"))


def test_damaged_and_foreign_files(tmp_path):
    path = pathlib.Path(save(tmp_path))
    whole = path.read_bytes()
    for damaged in (
        whole[:-200],
        whole[: len(whole) // 2],
        b"",
        b"no zip at all",
        whole.replace(IMAGES[3].tobytes(), IMAGES[4].tobytes(), 1),
    ):
        path.write_bytes(damaged)
        assert f"{path} is damaged: " in refused(str(path))
    with path.open("wb") as file:
        np.save(file, IMAGES)
    assert "this is a single array; np.savez stores several" in refused(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "pictures")
    assert "the array x_train is missing (there are: readme.txt)" in refused(str(path))
    path.unlink()
    with pytest.raises(UsageError, match=f"there is no {path}; use a folder of pictures"):
        datasets.load(str(path))


def with_flag(content: bytes, offset: int, value: int) -> bytes:
    """A zip file with a byte of every header changed, that lies so far from a header's middle."""
    changed = bytearray(content)
    for magic, start in ((b"PK\x03\x04", offset), (b"PK\x01\x02", offset + 2)):
        place = -1
        while (place := content.find(magic, place + 1)) >= 0:
            changed[place + start] = value
    return bytes(changed)


def zipped(content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file whose x_train.npy has this content."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name in ARRAYS:
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def stored(shape: str) -> bytes:
    """An array of bytes that claims to have a shape."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"abc"


def damaged_lzma() -> bytes:
    content = bytearray(zipped(RNG.bytes(4000), zipfile.ZIP_LZMA))
    content[60] ^= 255
    return bytes(content)


def whole(tmp_path: pathlib.Path) -> bytes:
    return pathlib.Path(save(tmp_path)).read_bytes()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda folder: with_flag(whole(folder), 6, 1), "x_train cannot be read: it is encrypted"),
        (lambda folder: with_flag(whole(folder), 8, 99), "compression method is not supported"),
        (lambda _: damaged_lzma(), "is damaged: "),
        (lambda _: zipped(stored("(100000000000000,)")), "is damaged, or larger than the memory"),
        (lambda _: zipped(b"text"), "x_train is no array of NumPy; store it with np.savez"),
        (lambda _: b"text", "is damaged: it does not begin as an .npz file does"),
    ],
)
def test_strange_archives_are_one_message(tmp_path, make, problem):
    (tmp_path / "strange.npz").write_bytes(make(tmp_path))
    assert problem in refused(str(tmp_path / "strange.npz"))


@pytest.mark.parametrize("label", [3, 999])
def test_a_class_without_examples_is_fine(tmp_path, label):
    labels = np.where(LABELS[:12] == 2, label, LABELS[:12])
    data = datasets.load(
        save(tmp_path, y_train=labels, y_test=LABELS[12:] % 2), str(tmp_path / "data")
    )
    assert data.train_labels.max() == label


def test_a_pickle_is_never_loaded(tmp_path):
    # Loading it would run a program.
    (tmp_path / "evil.npz").write_bytes(b"cposix\nsystem\n(S'touch hacked'\ntR.")
    message = refused(str(tmp_path / "evil.npz"))
    assert "is damaged" in message
    assert not pathlib.Path("hacked").exists()

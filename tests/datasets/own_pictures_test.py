"""Pictures of the user's own, in a folder: what is read, what is refused, and in which words."""

import io
import os
import pathlib
import shutil
import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image

from trainer import datasets
from trainer.datasets import decode, pictures
from trainer.errors import RunError, UsageError


def save(path: pathlib.Path, pixels: np.ndarray | Image.Image, **options) -> None:
    """Save a picture, and make the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


def grey(value: int, size=(5, 4)) -> np.ndarray:
    """A grey picture unlike all others."""
    return (np.arange(np.prod(size)).reshape(size) + 7 * value).astype(np.uint8)


def colour(value: int, size=(5, 4)) -> np.ndarray:
    return np.stack([grey(value, size), grey(value + 1, size), grey(value + 2, size)], axis=-1)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two classes, six pictures of each for training and two for testing."""
    for label, name in enumerate(("cat", "dog")):
        for split, count in (("train", 6), ("test", 2)):
            for i in range(count):
                save(tmp_path / "pets" / split / name / f"{i}.png", grey(10 * label + i))
    return tmp_path / "pets"


def load(folder: pathlib.Path, **selection: str) -> datasets.Dataset:
    return datasets.load(str(folder), str(folder.parent / "data"), **selection)


def refused(folder: pathlib.Path, **selection: str) -> str:
    """The one line that a folder is refused with; nothing is left behind."""
    with pytest.raises(UsageError) as error:
        load(folder, **selection)
    message = str(error.value)
    assert message.startswith(f"--dataset={folder}")
    assert "\n" not in message
    assert not [path for path in folder.parent.glob("data/*/*") if "incomplete" in path.name]
    assert not list(folder.parent.glob("data/*/*/*"))
    return message


# What is read


def test_every_picture_comes_with_its_class(folder):
    data = load(folder)
    assert data.class_names == ("cat", "dog")
    for images, labels, split in (
        (data.train_images, data.train_labels, "train"),
        (data.test_images, data.test_labels, "test"),
    ):
        read = {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}
        files = {
            (np.asarray(Image.open(path)).tobytes(), ("cat", "dog").index(path.parent.name))
            for path in folder.glob(f"{split}/*/*.png")
        }
        assert read == files
        assert len(images) == len(files)
    assert data.train_images.shape == (12, 5, 4, 1)


def test_the_order_depends_on_nothing_but_names(folder):
    labels = load(folder).train_labels.tolist()
    assert labels not in (sorted(labels), sorted(labels, reverse=True))
    other = folder.parent / "elsewhere" / "pets"
    # Written in another order, into another folder.
    for path in sorted(folder.rglob("*.png"), reverse=True):
        save(other / path.relative_to(folder), np.asarray(Image.open(path)))
    assert load(other).identity == load(folder).identity


def test_it_is_prepared_once_and_again_after_a_change(folder):
    # Uncompressed: other pixels leave the size as it is.
    changed = folder / "train" / "cat" / "0.png"
    save(changed, grey(0), format="bmp")
    source = datasets.open_dataset(str(folder), str(folder.parent / "data"))
    first = source.read()
    again = datasets.open_dataset(str(folder), str(folder.parent / "data"))
    assert again.data_dir == source.data_dir
    before = changed.stat()
    # The same size and time, as a careful copy leaves them: only other pixels.
    pixels = np.asarray(Image.open(changed)).copy()
    pixels[0, 0] ^= 1
    save(changed, pixels, format="bmp")
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = changed.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    other = datasets.open_dataset(str(folder), str(folder.parent / "data"))
    assert other.data_dir != source.data_dir
    difference = datasets.identity_difference(first.identity, other.read().identity)
    assert difference == "other pixels or labels in the train split"
    assert source.read().identity == first.identity


def test_what_is_no_picture_of_a_class_but_lies_around_is_left_out(folder):
    for name in (".DS_Store", "train/.DS_Store", "train/cat/.DS_Store", "train/cat/Thumbs.db"):
        (folder / name).write_bytes(b"\0\0\0\1Bud1")
    (folder / "README.txt").write_text("pets")
    (folder / "train" / "labels.csv").write_text("0.png,cat")
    (folder / "train" / ".cache").mkdir()
    assert len(load(folder).train_images) == 12


def test_links_are_followed(folder):
    other = folder.parent / "linked"
    other.mkdir()
    (other / "train").symlink_to(folder / "train")
    for name in ("cat", "dog"):
        (other / "test" / name).mkdir(parents=True)
        (other / "test" / name / "a.png").symlink_to(folder / "test" / name / "0.png")
    data = load(other)
    np.testing.assert_array_equal(data.train_images, load(folder).train_images)
    assert len(data.test_images) == 2


def test_names_of_all_scripts(folder):
    name = "Café 猫"
    for split, form in (("train", "NFC"), ("test", "NFD")):
        # The same name as two systems write it.
        (folder / split / "cat").rename(folder / split / unicodedata.normalize(form, name))
    data = load(folder)
    assert data.class_names == (name, "dog")
    assert data.identity["classes"] == [name, "dog"]
    assert sorted(data.test_labels.tolist()) == [0, 0, 1, 1]


def test_one_folder_of_classes_is_cut_by_slices(folder):
    selection = {"train_split": "train[:75%]", "test_split": "train[75%:]"}
    data = load(folder / "train", **selection)
    assert (len(data.train_images), len(data.test_images)) == (9, 3)
    everything = {image.tobytes() for image in (*data.train_images, *data.test_images)}
    assert len(everything) == 12
    # And below a folder train/, without one to test on.
    shutil.rmtree(folder / "test")
    assert load(folder, **selection).identity["train_sha256"] == data.identity["train_sha256"]


def test_a_bare_name_is_a_folder_here_unless_tfds_has_it(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert datasets.open_dataset("pets", "data").num_train == 12
    assert datasets.open_dataset("./pets/", "data").name == "pets"
    # A folder of something else is no data set, such as the pictures in the data_dir itself.
    assert datasets.open_dataset("pets", ".").num_train == 12
    (folder.parent / "data" / "pets" / "1.0.0").mkdir(parents=True)
    assert datasets.open_dataset("pets", "data").num_train == 12
    (folder.parent / "data" / "pets" / "1.0.0" / "dataset_info.json").write_text("{}")
    with pytest.raises(UsageError, match="pets not found"):
        datasets.open_dataset("pets", "data")
    assert datasets.open_dataset("./pets", "data").num_train == 12


@pytest.mark.parametrize("fill", [0, 130])
def test_labels_of_one_and_two_bytes(tmp_path, fill):
    for label in range(fill + 2):
        save(tmp_path / "many" / "train" / f"{label:03}" / "a.png", grey(label))
        save(tmp_path / "many" / "test" / f"{label:03}" / "b.png", grey(label))
    data = load(tmp_path / "many")
    assert sorted(data.train_labels.tolist()) == list(range(fill + 2))
    for image, label in zip(data.train_images, data.train_labels, strict=True):
        np.testing.assert_array_equal(image[..., 0], grey(int(label)))


def test_own_records_are_cut_without_a_parse_of_each(folder, monkeypatch):
    monkeypatch.delattr(decode, "_decode_one_by_one")
    assert len(load(folder).train_images) == 12


# Kinds of pictures


def palette(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE)


@pytest.mark.parametrize(
    ("picture", "name", "options", "expected"),
    [
        (Image.fromarray(grey(3)), "a.png", {}, grey(3)[..., None]),
        (Image.fromarray(grey(3)), "a.bmp", {}, grey(3)[..., None]),
        (Image.fromarray(grey(3)), "a.tif", {}, grey(3)[..., None]),
        (Image.fromarray(grey(3)), "a.pgm", {}, grey(3)[..., None]),
        (Image.fromarray(colour(3)), "a.png", {}, colour(3)),
        (Image.fromarray(colour(3)), "a.webp", {"lossless": True}, colour(3)),
        (Image.fromarray(grey(3) > 30), "a.png", {}, 255 * (grey(3) > 30)[..., None]),
        (palette(colour(3)), "a.png", {}, np.asarray(palette(colour(3)).convert("RGB"))),
        (Image.fromarray(grey(3)).convert("P"), "a.png", {}, grey(3)[..., None]),
        (Image.fromarray(colour(3)).convert("RGBA"), "a.png", {}, colour(3)),
        # A row of 16 bytes, and what the reader of TIFF is told beside the mode.
        (Image.fromarray(grey(3, (5, 16))), "a.bmp", {}, grey(3, (5, 16))[..., None]),
        (Image.fromarray(colour(3)), "a.tif", {"compression": "tiff_lzw"}, colour(3)),
        (Image.fromarray(colour(3)), "a.ppm", {}, colour(3)),
        (Image.fromarray(grey(3) > 30), "a.pbm", {}, 255 * (grey(3) > 30)[..., None]),
        (Image.fromarray(grey(3)).convert("LA"), "a.png", {}, grey(3)[..., None]),
    ],
)
def test_kinds_of_pictures_that_are_read_exactly(tmp_path, picture, name, options, expected):
    save(tmp_path / name, picture, **options)
    pixels = pictures.read_pixels(tmp_path / name)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)


def test_a_camera_says_which_side_is_up(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned to the right.
    save(tmp_path / "a.png", grey(3), exif=exif)
    np.testing.assert_array_equal(
        pictures.read_pixels(tmp_path / "a.png")[..., 0], np.rot90(grey(3), -1)
    )


def transparent() -> Image.Image:
    image = Image.fromarray(colour(3)).convert("RGBA")
    image.putpixel((1, 1), (0, 0, 0, 254))
    return image


def animation() -> bytes:
    file = io.BytesIO()
    frames = [Image.fromarray(grey(i)) for i in range(3)]
    frames[0].save(file, "gif", save_all=True, append_images=frames[1:])
    return file.getvalue()


def png(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "png", **options)
    return file.getvalue()


WHOLE = png(Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40), np.uint8)))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (WHOLE[:-600], "damaged: image file is truncated"),
        (WHOLE[:200] + bytes([WHOLE[200] ^ 1]) + WHOLE[201:], "damaged"),
        (WHOLE[:20], "damaged|no picture"),
        (b"", "no picture in a format that is known"),
        (b"0.png,cat\n", "no picture in a format that is known"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n", "no picture in a format"),
        (png(transparent()), "transparent pixels; save it without"),
        (png(palette(colour(3)), transparency=0), "transparent pixels"),
        (png(Image.fromarray(grey(3).astype(np.uint16) * 200)), "more than 8 bits"),
        (animation(), "3 pictures in one file"),
        (b"P6 5 4 65535\n" + bytes(120), "more than 8 bits a channel; save it with 8"),
        (b"P5 5 4 65535\n" + bytes(40), "more than 8 bits a channel; save it with 8"),
        (b"P3 1 1 1023\n1023 0 512\n", "more than 8 bits a channel; save it with 8"),
        (b"P5 5 4 100\n" + bytes(20), "its largest value is 100; save it with 8 bits"),
    ],
)
def test_pictures_that_cannot_be_used_are_named(folder, content, problem):
    (folder / "train" / "dog" / "9.png").write_bytes(content)
    message = refused(folder)
    assert "1 of 17 pictures cannot be used: train/dog/9.png: " in message
    assert any(part in message for part in problem.split("|")), message


def test_a_picture_that_would_fill_the_memory(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    save(folder / "train" / "dog" / "9.png", grey(0, (6, 6)))
    filters = list(warnings.filters)
    assert "1 of 17 pictures cannot be used: train/dog/9.png: more than 30 pix" in refused(folder)
    assert warnings.filters == filters


def test_cmyk_is_refused(tmp_path):
    save(tmp_path / "a.jpg", Image.fromarray(colour(3)).convert("CMYK"))
    with pytest.raises(pictures.PictureError, match="the colour mode CMYK; save it as RGB"):
        pictures.read_pixels(tmp_path / "a.jpg")


def test_all_bad_pictures_are_counted_and_the_first_ones_named(folder):
    for i in range(6):
        (folder / "train" / "cat" / f"{i}.png").write_bytes(WHOLE[:100])
    (folder / "test" / "dog" / "1.png").write_bytes(b"")
    message = refused(folder)
    assert "7 of 16 pictures cannot be used" in message
    assert message.endswith("; and 2 more")
    assert message.count(".png: ") == 5


# Colours and sizes


def test_a_grey_picture_among_coloured_ones(folder):
    for path in folder.rglob("*.png"):
        save(path, colour(3))
    save(folder / "test" / "dog" / "1.png", grey(3))
    message = refused(folder)
    assert "1 of the pictures are grey (test/dog/1.png) and 15 are in colours" in message


def test_pictures_of_several_sizes(folder):
    for i in range(3):
        save(folder / "train" / "cat" / f"{i}.png", grey(i, (6, 9)))
    message = refused(folder)
    assert "5x4 (13, such as " in message
    assert "6x9 (3, such as train/cat/" in message
    assert message.endswith("--image_size=5x4 resizes them all")
    data = load(folder, image_size="5x4")
    assert data.train_images.shape == (12, 5, 4, 1)
    # Those that had this size are as they were.
    stored = {image.tobytes() for image in data.train_images}
    assert sum(grey(i).tobytes() in stored for i in range(16)) == 9
    assert load(folder, image_size="8X8").train_images.shape == (12, 8, 8, 1)


@pytest.mark.parametrize("size", ["28", "28x", "0x5", "axb", "28x28x3", "-1x4", "28*28"])
def test_sizes_that_are_none(folder, size):
    with pytest.raises(UsageError, match=r"--image_size=.* is no size in pixels; use HEIGHTxWIDTH"):
        load(folder, image_size=size)


def test_resizing_keeps_what_is_flat_and_means(tmp_path):
    flat = np.full((10, 6, 3), (10, 20, 30), np.uint8)
    assert (pictures.resize(flat, (4, 9)) == (10, 20, 30)).all()
    blocks = np.kron(np.array([[0, 80], [160, 240]]), np.ones((8, 8))).astype(np.uint8)
    smaller = pictures.resize(blocks, (4, 4))
    assert smaller.shape == (4, 4)
    assert (smaller[0, 0], smaller[0, -1], smaller[-1, 0], smaller[-1, -1]) == (0, 80, 160, 240)
    assert abs(float(smaller.mean()) - blocks.mean()) < 1


# Forms of the folder


def test_forms_of_a_folder_that_are_refused(folder):
    (folder / "train" / "mouse").mkdir()
    assert "the class folder train/mouse/ holds no pictures" in refused(folder)
    (folder / "train" / "mouse").rmdir()

    save(folder / "test" / "mouse" / "a.png", grey(1))
    assert "class 'mouse' is in test/, but not in train/" in refused(folder)
    shutil.rmtree(folder / "test" / "mouse")

    (folder / "train" / "dog" / "more").mkdir()
    assert "train/dog/more is a folder" in refused(folder)
    (folder / "train" / "dog" / "more").rmdir()

    (folder / "train" / "dog" / "gone.png").symlink_to(folder / "nowhere.png")
    assert "train/dog/gone.png is no file that can be read" in refused(folder)
    (folder / "train" / "dog" / "gone.png").unlink()

    os.mkfifo(folder / "train" / "dog" / "pipe")
    assert "train/dog/pipe is no file that can be read" in refused(folder)
    (folder / "train" / "dog" / "pipe").unlink()

    save(folder / "train" / "a.png", grey(1))
    assert "train/a.png lies beside the class folders" in refused(folder)
    (folder / "train" / "a.png").unlink()

    (folder / "train" / "dog").rename(folder / "train" / os.fsdecode(b"d\xff"))
    assert "cannot be printed" in refused(folder)
    shutil.rmtree(folder / "train" / os.fsdecode(b"d\xff"))
    assert "the only class is 'cat', and two are needed" in refused(folder)

    (folder / "train").rename(folder / "validation")
    assert "there is a folder test/, but no folder train/" in refused(folder)


@pytest.mark.parametrize("other", ["cat ", unicodedata.normalize("NFD", "Café")])
def test_class_folders_of_one_name(folder, other):
    name = unicodedata.normalize("NFC", other).strip()
    (folder / "train" / "cat").rename(folder / "train" / name)
    (folder / "test" / "cat").rename(folder / "test" / name)
    shutil.copytree(folder / "train" / name, folder / "train" / other)
    message = refused(folder)
    assert f"{'train/' + name!r}" in message
    assert f"{'train/' + other!r}" in message
    assert "have one name, but for spaces" in message


def test_a_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(pictures.PictureError, match="no regular file; save the picture in one"):
        pictures.read_pixels(tmp_path / "a.png")


def test_pictures_that_are_not_sorted_by_class(folder):
    flat = folder.parent / "flat"
    for split in ("train", "test"):
        save(flat / split / "a.png", grey(1))
    assert "no class folders in train/" in refused(flat)
    (folder.parent / "empty").mkdir()
    assert "there are no classes" in refused(folder.parent / "empty")


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "tram"):
        for i in range(8):
            save(tmp_path / "toys" / name / f"{i}.png", grey(i))
    selection = {"train_split": "train[:50%]", "test_split": "train[50%:]"}
    assert load(tmp_path / "toys", **selection).class_names == ("train", "tram")


def test_no_test_split_says_how_to_cut_one(folder):
    with pytest.raises(UsageError) as error:
        load(folder / "train")
    assert "has the splits train (12), and neither 'test' nor 'validation'" in str(error.value)
    assert "--train_split='train[:90%]' --test_split='train[90%:]'" in str(error.value)


def test_paths_where_nothing_can_be_used(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(UsageError, match=f"there is no {folder.parent}/nets; use a folder"):
        datasets.open_dataset("./nets", "data")
    (folder.parent / "pets.zip").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"pets.zip is neither a folder of pictures nor an .npz"):
        datasets.open_dataset("pets.zip", "data")
    prepared = datasets.open_dataset("pets", "data").data_dir
    with pytest.raises(UsageError, match="was prepared by TFDS; give its name"):
        datasets.open_dataset(prepared, "data")


def test_pictures_are_prepared_on_a_local_disk(folder):
    with pytest.raises(UsageError, match=r"--data_dir=gs://bucket/data is no local folder"):
        datasets.open_dataset(str(folder), "gs://bucket/data")


# Damage of what was prepared


def test_damage_of_the_prepared_pictures_is_named(folder):
    source = datasets.open_dataset(str(folder), str(folder.parent / "data"))
    [file] = pathlib.Path(source.data_dir).glob("*train.array_record*")
    whole = file.read_bytes()
    os.truncate(file, 1000)
    with pytest.raises(RunError, match=rf"{file.name} is damaged.*delete the folder .* and run"):
        load(folder)
    # Another file whose own hashes are all right.
    [other] = pathlib.Path(source.data_dir).glob("*test.array_record*")
    file.write_bytes(whole)
    other.write_bytes(other.read_bytes())
    changed = folder.parent / "changed"
    shutil.copytree(folder, changed)
    save(changed / "train" / "cat" / "0.png", grey(99))
    replaced = datasets.open_dataset(str(changed), str(folder.parent / "data"))
    [wrong] = pathlib.Path(replaced.data_dir).glob("*train.array_record*")
    file.write_bytes(wrong.read_bytes())
    with pytest.raises(RunError, match="SHA-256 of the content is"):
        load(folder)


def test_rows_are_what_is_read_whole(folder):
    source = datasets.open_dataset(str(folder), str(folder.parent / "data"))
    data = source.read()
    order = [7, 0, 11, 7, 3]
    images, labels = source.rows("train", order)
    np.testing.assert_array_equal(images, data.train_images[order])
    np.testing.assert_array_equal(labels, data.train_labels[order])
    assert labels.dtype == np.int32
    images, labels = source.rows("test", np.array([3, 1]))
    np.testing.assert_array_equal(images, data.test_images[[3, 1]])

"""The registry of data sets, and the data sets that are read from files: CIFAR-100 and folders of images."""

import doctest
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ickd_lib import data, runtime
from ickd_lib.data.pillow import pixels_of
from ickd_lib.data.sets import base
from ickd_lib.data.sets.masks import read_mask
from ickd_lib.runtime import InputError

# -------------------------------------------------------------------------------------------- registry


@pytest.fixture
def registry(monkeypatch):
    """A copy of the registry, so that a test's data sets disappear with the test."""
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))


def test_the_data_sets_of_the_library_are_registered():
    assert data.names() == [
        "cifar100",
        "coco:PATH",
        "digits",
        "folder:PATH",
        "imagenet:PATH",
        "masks:PATH",
        "scenes",
        "voc:PATH",
    ]


@pytest.mark.usefixtures("registry")
def test_the_example_of_a_data_set_of_ones_own_works():
    (example,) = doctest.DocTestFinder(recurse=False).find(data.register, "register")
    assert len([line for line in example.docstring.splitlines() if line.lstrip().startswith(">>>")]) >= 4
    assert doctest.DocTestRunner().run(example, clear_globs=False).failed == 0
    assert "stripes" in data.names()
    splits = data.load("stripes", labels=10, augment="mixup")
    assert len(splits.train) == 10 and splits.train.name == "stripes/train" and splits.train.augment == "mixup"
    with pytest.raises(InputError, match="unknown data set 'stripe'; did you mean 'stripes'"):
        data.load("stripe")
    with pytest.raises(InputError, match="image_size=16 is not an option of stripes"):
        data.load("stripes", image_size=16)


@pytest.mark.usefixtures("registry")
def test_a_data_set_receives_the_options_of_load(tmp_path):
    received = []

    @data.register("mine")
    class Mine(data.DataSet):
        options = frozenset({"path", "root", "image_size", "download"})

        def read(self):
            received.append((str(self.path), self.root, self.image_size, self.download))
            pixels = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
            labels = torch.arange(4) % 2
            return self.splits({"train": pixels, "test": pixels}, {"train": labels, "test": labels}, classes=("a", "b"))

    splits = data.load("mine:some/where", tmp_path, image_size=2, download=True)
    assert received == [("some/where", tmp_path, 2, True)] and splits.train.name == "mine:where/train"
    assert "mine:PATH" in data.names()


@pytest.mark.usefixtures("registry")
def test_a_registered_name_is_kept_and_checked():
    with pytest.raises(
        InputError, match=r"data set 'digits' is already registered: ickd_lib\.data\.sets\.digits\.Digits"
    ):
        data.register("digits")(type("Other", (data.DataSet,), {}))
    with pytest.raises(InputError, match="unknown option of a data set 'rot'; did you mean 'root'"):
        data.register("other")(type("Other", (data.DataSet,), {"options": frozenset({"rot"})}))
    with pytest.raises(InputError, match="contains ':' or '/'"):
        data.register("a:b")(type("Other", (data.DataSet,), {}))
    assert data.register("digits")(base._REGISTRY["digits"])  # The same class may be registered again.


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        ({"train": [4, 3, 2, 2]}, {"train": [0, 1, 0, 1]}, "has no split 'test'"),
        ({"test": [2, 3, 4, 4]}, {}, "test has pixels of type torch.uint8 and shape .2, 3, 4, 4.; expected uint8"),
        ({"train": [4, 1, 2, 2]}, {}, "train has pixels of type torch.uint8 and shape .4, 1, 2, 2.; expected uint8"),
        ({"tests": [2, 3, 2, 2]}, {}, "unknown split 'tests'; did you mean 'test'"),
        ({"val": [2, 3, 2, 2]}, {}, "val has no labels; expected int64 .2."),
        ({}, {"test": [0]}, "test has labels of type torch.int64 and shape .1.; expected int64 .2."),
        ({}, {"test": [0, 2]}, "test has labels from 0 to 2; expected 0 to 1"),
        ({"train": [0, 3, 2, 2]}, {"train": []}, "train contains no image"),
    ],
)
def test_pixels_and_labels_of_a_data_set_are_checked(pixels, labels, message):
    if "no split" not in message:
        pixels = {"train": [4, 3, 2, 2], "test": [2, 3, 2, 2]} | pixels
        labels = {"train": [0, 1, 0, 1], "test": [0, 1]} | labels
    dataset = type("Own", (data.DataSet,), {"registered_name": "own"})()
    x = {split: torch.zeros(shape, dtype=torch.uint8) for split, shape in pixels.items()}
    y = {split: torch.tensor(label, dtype=torch.int64) for split, label in labels.items()}
    with pytest.raises(InputError, match=f"own.*{message}|{message}"):
        dataset.splits(x, y, classes=("a", "b"))


# -------------------------------------------------------------------------------------------- cifar-100


def write_cifar(folder, **changes):
    """A tiny file set in the published layout: four classes in two superclasses."""
    target = folder / "cifar-100-python"
    target.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, n in (("train", 40), ("test", 8)):
        fine = [i % 4 for i in range(n)]
        content = {
            b"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
            b"fine_labels": fine,
            b"coarse_labels": [f // 2 for f in fine],
            b"filenames": [b"x.png"] * n,
        }
        (target / split).write_bytes(pickle.dumps(content | changes.get(split, {}), protocol=2))
    names = {b"fine_label_names": [b"a", b"b", b"c", b"d"], b"coarse_label_names": [b"ab", b"cd"]}
    (target / "meta").write_bytes(pickle.dumps(names | changes.get("meta", {}), protocol=2))
    return target


def test_the_published_layout_is_read(tmp_path):
    target = write_cifar(tmp_path)
    splits = data.load("cifar100", tmp_path)
    with open(target / "train", "rb") as file:
        content = pickle.load(file, encoding="bytes")
    assert torch.equal(splits.train.images, torch.from_numpy(content[b"data"]).view(-1, 3, 32, 32))
    assert splits.train.labels.tolist() == content[b"fine_labels"]
    assert splits.train.superclasses == ("ab", "cd") and splits.train.superclass_of == (0, 0, 1, 1)
    assert splits.train.views == 162


def test_it_is_downloaded_only_when_absent_and_allowed(tmp_path, monkeypatch):
    import torchvision

    calls = []

    def fetch(root, download):
        calls.append((root, download))
        write_cifar(tmp_path)

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", fetch)
    with pytest.raises(InputError, match=r"allow the download \(download=True, --download\)"):
        data.load("cifar100", tmp_path)
    assert calls == []
    assert len(data.load("cifar100", tmp_path, download=True).train) == 40
    assert len(data.load("cifar100", tmp_path, download=True).train) == 40
    assert calls == [(str(tmp_path), True)]


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    import torchvision

    def fetch(root, download):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", fetch)
    with pytest.raises(InputError, match=r"could not download CIFAR-100 to .* \(no route to host\); try again"):
        data.load("cifar100", tmp_path, download=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {b"data": np.zeros((40, 3071), np.uint8)}}, r"train is damaged: expected uint8 \[N, 3072\]"),
        ({"train": {b"fine_labels": [0] * 39}}, "train is damaged"),
        ({"test": {b"fine_labels": [4] * 8}}, "test has label 4 with superclass 0, but there are 4 classes and 2"),
        ({"test": {b"coarse_labels": [1] * 8}}, "test has class 'a' in two superclasses"),
        ({"meta": {b"fine_label_names": None}}, "meta is damaged"),
    ],
)
def test_an_error_names_what_is_wrong_in_a_file(tmp_path, changes, message):
    write_cifar(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        data.load("cifar100", tmp_path)


def test_an_error_names_a_truncated_file(tmp_path):
    path = write_cifar(tmp_path) / "train"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="cifar-100-python/train is damaged"):
        data.load("cifar100", tmp_path)


def test_no_code_in_a_pickle_is_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("",))

    (write_cifar(tmp_path) / "train").write_bytes(pickle.dumps({b"data": Attack()}, protocol=2))
    with pytest.raises(InputError, match="which no CIFAR file needs"):
        data.load("cifar100", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_cifar100_itself(cifar_root):
    splits = data.load("cifar100", cifar_root, val=0.1)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (45000, 5000, 10000)
    assert torch.bincount(splits.val.labels).tolist() == [50] * 100
    assert splits.train.mean == pytest.approx((0.5071, 0.4865, 0.4409), abs=1e-4)
    assert splits.train.std == pytest.approx((0.2673, 0.2564, 0.2762), abs=1e-4)
    assert splits.train.classes[:2] == ("apple", "aquarium_fish") and len(splits.train.superclasses) == 20


# --------------------------------------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path):
    """Two classes, train and test, PNG and JPEG, 12 × 12 pixels."""
    for split, n in (("train", 6), ("test", 3)):
        for c, shade in (("cat", 40), ("dog", 200)):
            (tmp_path / split / c).mkdir(parents=True)
            for i in range(n):
                image = Image.new("RGB", (12, 12), (shade, i, 0))
                image.save(tmp_path / split / c / f"{i}.{'png' if i % 2 else 'jpg'}")
    return tmp_path


def test_a_folder_is_read(folder):
    splits = data.load(f"folder:{folder}")
    assert splits.train.classes == ("cat", "dog") and splits.train.images.shape == (12, 3, 12, 12)
    assert splits.train.labels.tolist() == [0] * 6 + [1] * 6 and len(splits.test) == 6 and len(splits.val) == 0
    assert (splits.train.images[:6, 0].float() - 40).abs().max() <= 2
    (folder / "test").rename(folder / "val")
    assert len(data.load(f"folder:{folder}").test) == 6


def test_images_need_one_size_or_an_image_size(folder):
    Image.new("RGB", (30, 20), (40, 0, 0)).save(folder / "train" / "cat" / "odd.png")
    with pytest.raises(
        InputError,
        match=r"odd.png has 30×20 pixels, but the first image has 12×12; give an image_size \(--image-size\) or",
    ):
        data.load(f"folder:{folder}")
    assert data.load(f"folder:{folder}", image_size=16).train.images.shape == (13, 3, 16, 16)


@pytest.mark.parametrize("damage", ["corrupt", "empty class", "unknown class", "no test"])
def test_an_error_names_what_is_wrong_in_a_folder(folder, damage):
    if damage == "corrupt":
        path = folder / "train" / "cat" / "1.png"
        path.write_bytes(path.read_bytes()[:40])
        message = r"cat/1.png cannot be read"
    elif damage == "empty class":
        (folder / "train" / "emu").mkdir()
        message = r"train/emu contains no image"
    elif damage == "unknown class":
        (folder / "test" / "emu").mkdir()
        message = r"test/emu is a class folder that train/ does not have"
    else:
        (folder / "test").rename(folder / "tests")
        message = r"neither test/ nor val/"
    with pytest.raises(InputError, match=message):
        data.load(f"folder:{folder}")


# ---------------------------------------------------------------------------------- modes of image files


def load_grey(folder, name, image, **options):
    """Save an image in place of every file of the folder, and return its first channel after loading."""
    for path in sorted(folder.rglob("*.*")):
        path.unlink()
        image.save(path.parent / f"{path.stem}-{name}", **options)
    pixels = data.load(f"folder:{folder}").train.images[0]
    assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[0], pixels[2])
    return pixels[0]


SIXTEEN = np.linspace(0, 65535, 144).round().astype(np.uint16).reshape(12, 12)
SCALED = torch.from_numpy((SIXTEEN / 257.0).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "values"),
    [("a.png", SIXTEEN), ("a.tif", SIXTEEN), ("b.tif", SIXTEEN.astype(">u2")), ("i.tif", SIXTEEN.astype(np.int32))],
)
def test_sixteen_bits_are_scaled_to_eight(folder, name, values):
    with pytest.warns(UserWarning, match=rf"18 with 16 bits a channel.* \(first: .*train/cat/0-{name}\)$") as caught:
        assert torch.equal(load_grey(folder, name, Image.fromarray(values)), SCALED)
    assert len(caught) == 1


def test_a_pgm_file_of_sixteen_bits_is_scaled_even_where_it_is_dark(folder):
    values = (SIXTEEN // 300).astype(">u2")
    for path in sorted(folder.rglob("*.*")):
        path.with_suffix(".pgm").write_bytes(b"P5 12 12 65535\n" + values.tobytes())
        path.unlink()
    with pytest.warns(UserWarning, match="16 bits"):
        assert data.load(f"folder:{folder}").train.images.max() == 1


def png_of_sixteen_bits(values):
    """A PNG file in colour with 16 bits a channel, which Pillow does not write, uint16 [h, w, 3]."""
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    height, width = values.shape[:2]
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = [ihdr, b"IDAT" + zlib.compress(lines), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_streamed_images_of_sixteen_bits_are_scaled_and_the_first_file_is_named(folder, crop, capsys, monkeypatch):
    monkeypatch.setattr(runtime.errors, "_noticed", set())
    for path in sorted(folder.rglob("*.*")):
        Image.fromarray(SIXTEEN).save(path.with_suffix(".png"))
        if path.suffix != ".png":
            path.unlink()
    train = data.load(f"folder:{folder}", stream=True, crop=crop, image_size=12, workers=0).train
    shown = train.shown(torch.tensor([0, 1]))[1, 2]
    assert torch.equal(shown, SCALED) if crop == "pad" else len(shown.unique()) > 100
    named = [line for line in capsys.readouterr().err.splitlines() if "16 bits a channel" in line]
    assert len(named) == 1 and "divided by 257 (first: " in named[0] and named[0].endswith(".png)")


def test_a_note_names_the_first_file_in_colour_of_sixteen_bits(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runtime.errors, "_noticed", set())
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png_of_sixteen_bits(np.stack([SIXTEEN] * 3, -1)))
        assert (pixels_of(tmp_path / name)[0].int() - SCALED.int()).abs().max() <= 1
    assert capsys.readouterr().err.endswith(f"of which Pillow reads the upper 8 (first: {tmp_path / 'a.png'})\n")


@pytest.mark.filterwarnings("error")
def test_thirty_two_bits_with_values_of_eight_are_kept(folder):
    values = np.arange(144, dtype=np.int32).reshape(12, 12)
    assert torch.equal(load_grey(folder, "a.tif", Image.fromarray(values)), torch.from_numpy(values.astype(np.uint8)))


def test_floats_from_0_to_1_are_scaled_to_eight_bits(folder):
    values = np.linspace(0, 1, 144, dtype=np.float32).reshape(12, 12)
    with pytest.warns(UserWarning, match=r"18 with floating-point values.*\(first: .*train/cat/0-a.tif\)$"):
        pixels = load_grey(folder, "a.tif", Image.fromarray(values))
    assert torch.equal(pixels, torch.from_numpy((values.astype(float) * 255).round().astype(np.uint8)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            np.linspace(0, 255, 144, dtype=np.float32),
            "0-a.tif has floating-point values from 0 to 255; expected 0 to 1",
        ),
        (np.linspace(-0.5, 1, 144, dtype=np.float32), "0-a.tif has floating-point values from -0.5 to 1; expected 0"),
        (np.full(144, np.nan, dtype=np.float32), "0-a.tif has floating-point values from nan to nan; expected 0 to 1"),
        (np.arange(144, dtype=np.int32) * 1000, "0-a.tif has values from 0 to 143000; expected .* 0 to 65535"),
        (np.arange(144, dtype=np.int32) - 1, "0-a.tif has values from -1 to 142; expected .* 0 to 65535"),
    ],
)
def test_values_out_of_range_are_an_error(folder, values, message):
    with pytest.raises(InputError, match=message):
        load_grey(folder, "a.tif", Image.fromarray(values.reshape(12, 12)))


ALPHA = np.repeat(np.array([0, 51, 255], np.uint8), 48).reshape(12, 12)  # transparent, a fifth opaque, opaque


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_composited_on_white(folder, mode):
    image = Image.new(mode, (12, 12), (100,) * (len(mode) - 1) + (0,))
    image.putalpha(Image.fromarray(ALPHA))
    with pytest.warns(UserWarning, match=r"18 with transparent pixels.*\(first: .*train/cat/0-a.png\)$"):
        pixels = load_grey(folder, "a.png", image)
    expected = torch.from_numpy((100 * (ALPHA / 255) + 255 * (1 - ALPHA / 255)).round())
    assert (pixels - expected).abs().max() <= 1  # Pillow composites in whole numbers.
    assert pixels[0, 0] == 255 and pixels[-1, -1] == 100


@pytest.mark.parametrize(
    ("mode", "transparent"), [("P", 0), ("P", bytes([0, 255])), ("L", 7), ("RGB", (7, 7, 7)), ("I;16", 7 * 257)]
)
def test_a_transparent_colour_is_white(folder, mode, transparent):
    values = np.full((12, 12), 100, np.uint8)
    values[:4] = 7
    if mode == "P":
        image = Image.fromarray((values == 100).astype(np.uint8), "P")
        image.putpalette([7, 7, 7, 100, 100, 100])
    else:
        image = Image.fromarray(values.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(values)
        image = image.convert("RGB") if mode == "RGB" else image
    with pytest.warns(UserWarning, match="18 with transparent pixels"):
        pixels = load_grey(folder, "a.png", image, transparency=transparent)
    assert torch.equal(pixels, torch.from_numpy(np.where(values == 7, 255, values)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("1", "a.png"),
        ("L", "a.png"),
        ("P", "a.png"),
        ("P", "a.gif"),
        ("LA", "a.png"),
        ("RGB", "a.bmp"),
        ("RGBA", "a.png"),
        ("CMYK", "a.tif"),
    ],
)
def test_other_modes_are_read_as_pillow_converts_them(folder, mode, name):
    values = np.arange(144, dtype=np.uint8).reshape(12, 12)
    image = Image.fromarray(values).convert("RGB").convert(mode)
    expected = np.asarray(image.convert("RGB"))[..., 0]
    assert torch.equal(load_grey(folder, name, image), torch.from_numpy(expected.copy()))


def test_one_warning_reports_all_conversions(folder):
    Image.fromarray(SIXTEEN).save(folder / "train" / "cat" / "1.png")
    Image.fromarray(SIXTEEN).save(folder / "test" / "cat" / "1.png")
    Image.new("RGBA", (12, 12), (0, 0, 0, 0)).save(folder / "train" / "dog" / "3.png")
    with pytest.warns(UserWarning) as caught:
        data.load(f"folder:{folder}")
    assert [str(warning.message) for warning in caught] == [
        f"converted images to 8-bit RGB: 2 with 16 bits a channel, divided by 257 (first: {folder}/train/cat/1.png); "
        f"1 with transparent pixels, composited on white (first: {folder}/train/dog/3.png)"
    ]


# ---------------------------------------------------------------------------------- decompression bombs


def png_header(width, height):
    """The first bytes of a black-and-white PNG file of this size, without pixels."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    idat = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (ihdr, idat, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("width", "size"), [(10_000, "10000×10000 pixels"), (20_000, "200000000 pixels")])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(folder, width, size):
    """Pillow warns above its limit and refuses above twice the limit; here both are errors."""
    path = folder / "train" / "cat" / "1.png"
    path.write_bytes(png_header(width, 10_000))
    with pytest.raises(InputError, match=rf"cat/1.png has {size}, more than Pillow's limit of 89478485") as caught:
        data.load(f"folder:{folder}", image_size=12)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_a_mask_that_is_a_decompression_bomb_is_refused(tmp_path):
    (tmp_path / "mask.png").write_bytes(png_header(10_000, 10_000))
    with pytest.raises(InputError, match=r"mask.png has 10000×10000 pixels, more than Pillow's limit"):
        read_mask(255, tmp_path / "mask.png")


def test_the_limit_on_pixels_is_pillows(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 143)
    with pytest.raises(InputError, match=r"0\.jpg has 12×12 pixels, more than Pillow's limit of 143"):
        data.load(f"folder:{folder}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert len(data.load(f"folder:{folder}").train) == 12


def test_image_files_in_hidden_folders_are_left_out(tmp_path):
    from PIL import Image

    from ickd_lib.data.pillow import image_files

    for name in ("a.png", ".b.png", ".thumbnails/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert image_files(tmp_path) == [tmp_path / "a.png"]


def test_a_number_that_is_also_the_name_of_another_class_is_refused(tmp_path):
    for split in ("train", "test"):
        for name in ("1", "2", "10"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (int(name), 0, 0)).save(tmp_path / split / name / "a.png")
    assert data.load(f"folder:{tmp_path}").train.classes == ("1", "10", "2")
    assert data.load(f"folder:{tmp_path}", classes=["2", "10"]).train.classes == ("10", "2")
    with pytest.raises(InputError, match=r"class 1 of .* is '10' by its position, and another class is"):
        data.load(f"folder:{tmp_path}", classes=[1, 2])

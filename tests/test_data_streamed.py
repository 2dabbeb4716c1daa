"""Images that are decoded when they are needed: the same batches as in memory, checks of files, the layouts."""

import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from streams import write_folder
from torchvision.transforms import RandomResizedCrop, v2

from ickd_lib import data, models, plots, runtime, tasks, training
from ickd_lib.data import Sampler, StreamedImages, crops, files, headers
from ickd_lib.data.crops import PadCrop, ResizedCrop
from ickd_lib.data.sets import streams
from ickd_lib.memory import MemoryBank, building
from ickd_lib.models import inference
from ickd_lib.runtime import InputError

METHOD = "ickd(positives=2, negatives=4)"
VARIED = ((30, 40), (52, 36), (44, 44))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The scans of a test are kept in a folder of its own, and every note is printed."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ICKD_CACHE", str(folder))
    monkeypatch.setattr(runtime.errors, "_noticed", set())
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data")


@pytest.fixture
def varied(tmp_path):
    return write_folder(tmp_path / "data", sizes=VARIED)


def same_batches(a, b, **options):
    given = {"data_seed": 1, "epoch": 2} | options
    first, second = (list(Sampler(one).batches(7, **given)) for one in (a, b))
    assert len(first) == len(second) > 0
    for x, y in zip(first, second, strict=True):
        assert torch.equal(x.images, y.images) and x.images.stride() == y.images.stride()
        for field in ("labels", "index", "view"):
            assert torch.equal(getattr(x, field), getattr(y, field))
        assert (x.soft is None) == (y.soft is None) and (x.soft is None or torch.equal(x.soft, y.soft))


@pytest.mark.parametrize("options", [{}, {"image_size": 16}, {"augment": "randaugment+mixup"}], ids=str)
@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_and_resident_images_give_the_same_batches(folder, options, workers):
    resident = data.load(f"folder:{folder}", **options)
    streamed = data.load(f"folder:{folder}", stream=True, workers=workers, **options)
    assert isinstance(streamed.train, StreamedImages) and isinstance(resident.train, data.Images)
    assert (streamed.train.mean, streamed.train.std) == (resident.train.mean, resident.train.std)
    assert streamed.train.size == resident.train.size and streamed.train.views == resident.train.views
    assert streamed.train.recorded_crop == resident.train.recorded_crop
    assert [one.fingerprint for one in streamed] == [one.fingerprint for one in resident]
    same_batches(resident.train, streamed.train)
    same_batches(resident.train, streamed.train, first=2)
    part = torch.tensor([5, 1, 20, 13, 2, 8, 7, 4])
    same_batches(resident.train.subset(part), streamed.train.subset(part))
    assert resident.train.subset(part).fingerprint == streamed.train.subset(part).fingerprint
    same_batches(resident.train.restricted([0, 2]), streamed.train.restricted([0, 2]))
    assert torch.equal(resident.test.pixels(), streamed.test.pixels())


@pytest.mark.parametrize("views", [0, 3])
def test_random_resized_crops_are_the_same_streamed_and_in_memory(varied, views):
    given = {"crop": "resized", "image_size": 24, "views": views}
    kept = data.load(f"folder:{varied}", workers=0, **given)
    streamed = data.load(f"folder:{varied}", stream=True, workers=2, **given)
    assert kept.train.fingerprint == streamed.train.fingerprint
    assert "decoded" in repr(streamed.train) and "decoded" not in repr(kept.train)
    assert streamed.train.views == (views or crops.VIEWS)
    same_batches(kept.train, streamed.train)
    assert torch.equal(kept.test.pixels(), streamed.test.pixels())


def test_a_view_is_a_function_of_row_and_number(varied):
    images = data.load(f"folder:{varied}", crop="resized", image_size=24, stream=True).train
    rows, view = torch.tensor([0, 0, 3, 3]), torch.tensor([5, 6, 5, 5])
    crop = images.cropped(rows, view)
    assert crop.shape == (4, 3, 24, 24) and crop.dtype == torch.uint8
    assert torch.equal(crop[2], crop[3]) and not torch.equal(crop[0], crop[1])
    part = images.subset(torch.tensor([3, 0]))
    assert torch.equal(part.cropped(torch.tensor([1, 0]), torch.tensor([5, 5])), crop[[0, 2]])


def test_boxes_are_distributed_like_those_of_torchvision():
    crop = ResizedCrop(24)
    boxes = [crop.box(300, 400, 7, view) for view in range(4000)]
    for box in boxes:
        assert 0 <= box.top <= box.top + box.height <= 300 and 0 <= box.left <= box.left + box.width <= 400
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image = torch.empty(3, 300, 400)
        theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    ours = np.array([(b.top, b.left, b.height, b.width) for b in boxes])
    for column in range(4):
        quantiles = [np.quantile(of[:, column], [0.1, 0.5, 0.9]) for of in (ours, theirs)]
        assert np.abs(quantiles[0] - quantiles[1]).max() < 14
    assert 0.46 < np.mean([b.mirrored for b in boxes]) < 0.54
    assert ResizedCrop(24, flip=False).box(300, 400, 7, 1).mirrored is False
    # No box of the allowed ratios has the allowed area in a very long image: the largest one in the middle is taken.
    assert crop.box(10, 4000, 0, 0)[:4] == (0, (4000 - 13) // 2, 10, 13)


def test_a_box_of_a_resized_crop_is_anywhere_in_the_image():
    """Its distances to the upper and to the left edge are independent shares of the space that the box leaves."""
    boxes = [ResizedCrop(24, scale=(0.25, 0.25), ratio=(1.0, 1.0)).box(100, 100, 7, view) for view in range(2000)]
    assert {(box.height, box.width) for box in boxes} == {(50, 50)}
    places = np.array([(box.top, box.left) for box in boxes])
    assert [places.min(0).tolist(), places.max(0).tolist()] == [[0, 0], [50, 50]]
    assert np.abs(places.mean(0) - 25).max() < 1 and abs(np.corrcoef(places.T)[0, 1]) < 0.05


def test_a_view_of_a_resized_crop_contains_the_pixels_of_its_box():
    image = torch.arange(3 * 30 * 40).reshape(3, 30, 40).remainder(251).byte()
    crop = ResizedCrop(15, scale=(0.1875, 0.1875), ratio=(1.0, 1.0), flip=False)
    for view in range(5):
        box = crop.box(30, 40, 7, view)
        expected = image[:, box.top : box.top + 15, box.left : box.left + 15]
        assert torch.equal(crop.view(image, 7, view), expected)


@pytest.mark.parametrize("height, width", [(300, 400), (401, 257), (256, 256), (100, 90)])
def test_the_evaluation_crop_is_that_of_torchvision(height, width):
    image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = v2.CenterCrop(224)(v2.Resize(256, antialias=True)(image))
    assert torch.equal(ResizedCrop(224).whole(image), expected)


def test_a_pad_crop_is_that_of_images_in_memory():
    image = torch.randint(256, (3, 12, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    crop = PadCrop((12, 16), 2, True)
    for view in (0, 17, crop.count - 1):
        expected = data.views.crop_and_flip(image[None], torch.tensor([0]), torch.tensor([view]), pad=2, flip=True)[0]
        assert torch.equal(crop.view(image, 3, view), expected)


def test_strong_views_and_partners_are_the_same(folder):
    resident, streamed = (data.load(f"folder:{folder}", stream=stream).train for stream in (False, True))
    rows, keys = torch.tensor([3, 9, 20]), {"data_seed": 1, "epoch": 2, "step": 3}
    first, second = (Sampler(images).strong_view(rows, **keys) for images in (resident, streamed))
    assert torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)
    batch = resident.batch(rows, torch.zeros(3, dtype=torch.long))
    first, second = (Sampler(images).partners(batch, **keys) for images in (resident, streamed))
    assert torch.equal(first.images, second.images) and torch.equal(first.index, second.index)


def test_a_network_predicts_the_same(folder, teacher):
    resident, streamed = (data.load(f"folder:{folder}", stream=stream).train for stream in (False, True))
    network = models.create("resnet8", **resident.spec)
    first, second = (models.predict(network, images, batch_size=5, precision="fp32") for images in (resident, streamed))
    assert torch.equal(first.logits, second.logits) and torch.equal(first.features, second.features)


def test_a_bank_in_half_precision_starts_the_workers_once(folder, monkeypatch):
    monkeypatch.setattr(building, "PART", 8)
    monkeypatch.setattr(inference, "images_of_a_pass", lambda device: 3)
    started, start = [], data.Loader._processes
    monkeypatch.setattr(data.Loader, "_processes", lambda loader: started.append(loader) or start(loader))
    resident, streamed = (
        data.load(f"folder:{folder}", val=0.25, stream=stream, workers=2).train for stream in (False, True)
    )
    teacher = models.create("resnet8", **resident.spec)
    shuffled = torch.randperm(len(streamed), generator=torch.Generator().manual_seed(0))
    banks = [MemoryBank.build(teacher, one.subset(shuffled), half=True) for one in (resident, streamed)]
    assert torch.equal(banks[0].features, banks[1].features) and torch.equal(banks[0].index, banks[1].index)
    assert len(started) == 1


def test_pictures_of_a_few_images_are_decoded(folder):
    resident, streamed = (data.load(f"folder:{folder}", stream=stream).train for stream in (False, True))
    keys = streamed.index[[4, 2]]
    shown = [tasks.create("classification").pictures(images, keys) for images in (resident, streamed)]
    assert torch.equal(*shown)
    canvas = [plots.pictures.samples(images, classes=2, each=3).axes[0].images[0] for images in (resident, streamed)]
    assert (canvas[0].get_array() == canvas[1].get_array()).all()


@pytest.mark.parametrize("options", [{}, {"stream": True}, {"crop": "resized", "image_size": 24}], ids=str)
def test_mirroring_can_be_switched_off(folder, options, notes):
    usual = data.load(f"folder:{folder}", **options).train
    assert any("half of the augmented training images are mirrored" in line and "--no-flip" in line for line in notes())
    same = data.load(f"folder:{folder}", **options, flip=True).train
    never = data.load(f"folder:{folder}", **options, flip=False).train
    assert not any("mirrored" in line for line in notes())
    view = torch.arange(min(usual.views, 64))
    rows = torch.zeros_like(view)
    assert torch.equal(usual.cropped(rows, view), same.cropped(rows, view))
    assert usual.fingerprint == same.fingerprint and usual.recorded_crop == same.recorded_crop
    assert never.recorded_crop["flip"] is False and never.recorded_crop != usual.recorded_crop
    assert torch.equal(never.shown(rows), usual.shown(rows))
    if not options.get("crop"):
        assert never.views * 2 == usual.views
    else:  # each box is the same, but none is mirrored
        pairs = list(zip(usual.cropped(rows, view), never.cropped(rows, view), strict=True))
        mirrored = [torch.equal(a, b.flip(-1)) for a, b in pairs]
        assert 16 < sum(mirrored) < 48 and mirrored == [not torch.equal(a, b) for a, b in pairs]


def test_test_images_that_are_copies_of_training_images_are_counted(tmp_path, notes):
    path = write_folder(tmp_path / "data", suffix="png")
    data.load(f"folder:{path}")
    assert not any("same pixels" in line for line in notes())
    for i in range(2):
        shutil.copy(path / f"train/class1/{i}.png", path / f"test/class1/another{i}.png")
    data.load(f"folder:{path}")
    (line,) = [line for line in notes() if "same pixels" in line]
    assert "2 of 11 images of folder:data/test have the same pixels as a training image" in line
    assert "test/class1/another0.png and train/class1/0.png" in line


def test_other_data_sets_can_be_mirrored_too_but_not_those_with_masks():
    assert data.load("digits", labels=20, flip=True).train.views == 2 * data.load("digits", labels=20).train.views
    assert data.load("digits", labels=20, flip=False).train.recorded_crop == {}, "as it is loaded without the option"
    with pytest.raises(InputError, match="flip=False is not an option of scenes, whose images have masks or objects"):
        data.load("scenes", flip=False)


# ----------------------------------------------------------------------------------------- memory and options


def test_the_available_memory_decides_and_the_choice_is_printed(varied, monkeypatch, capsys):
    for available, where, kind in ((10**9, "held in memory", streams.KeptSource), (10**4, "streamed", None)):
        monkeypatch.setattr(streams, "available_bytes", lambda device, bytes_=available: bytes_)
        train = data.load(f"folder:{varied}", crop="resized", image_size=24).train
        assert isinstance(train.source, kind or data.streamed.FileSource)
        assert f"is {where}: 33 images take " in capsys.readouterr().err
    data.load(f"folder:{varied}", crop="resized", stream=True)
    assert "is streamed, as requested" in capsys.readouterr().err


def test_a_folder_of_one_size_that_does_not_fit_is_streamed(folder, monkeypatch, capsys):
    monkeypatch.setattr(streams, "available_bytes", lambda device: 1000)
    assert isinstance(data.load(f"folder:{folder}").train, StreamedImages)
    assert "33 images of 20×20 pixels take 0.0 MB decoded, and 0.0 MB are available" in capsys.readouterr().err


def test_a_run_goes_on_when_its_images_no_longer_fit_into_memory(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MEASURED", 5)
    monkeypatch.setattr(files, "AT_ONCE", 10)
    given = {"recipe": training.Recipe(epochs=1, batch_size=8), "runs": tmp_path / "runs", "progress": False}
    splits = data.load(f"folder:{folder}", val=0.25)
    teacher = models.create("resnet8", **splits.train.spec)
    bank = MemoryBank.build(teacher, splits.train)
    first = training.distill([training.Student("resnet8", METHOD)], splits, teacher=teacher, bank=bank, **given)
    monkeypatch.setattr(streams, "available_bytes", lambda device: 1000)
    streamed = data.load(f"folder:{folder}", val=0.25)
    assert isinstance(streamed.train, StreamedImages) and bank.source["data"] == streamed.train.fingerprint
    again = training.distill([training.Student("resnet8", METHOD)], streamed, teacher=teacher, bank=bank, **given)
    assert again.keys() == first.keys() and len(list((tmp_path / "runs").iterdir())) == 1


def test_the_fingerprint_of_streamed_images_changes_with_a_pixel(folder):
    mark = data.load(f"folder:{folder}", stream=True).train.fingerprint
    path = folder / "train/class0/0.jpg"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # the file keeps its size
    path.write_bytes(content)
    assert data.load(f"folder:{folder}", stream=True).train.fingerprint != mark


def test_available_memory_is_that_of_machine_and_container(monkeypatch, tmp_path):
    from ickd_lib.runtime import memory

    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    group.mkdir()
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:   64 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "GROUP", group)
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "none")
    assert memory.available_bytes() == 65536
    (group / "memory.max").write_text("3000\n")
    (group / "memory.current").write_text("1000\n")
    assert memory.available_bytes() == 2000
    (group / "memory.max").write_text("max\n")
    meminfo.unlink()
    assert memory.available_bytes() is None


@pytest.mark.parametrize(
    ("line", "root", "files", "cache"),
    [
        ("0::/job/step", "", ("memory.max", "memory.current"), "inactive_file"),
        ("4:memory:/job/step", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"),
    ],
)
def test_the_smallest_limit_of_nested_control_groups_counts(line, root, files, cache, monkeypatch, tmp_path):
    from ickd_lib.runtime import memory

    (tmp_path / "names").write_text(f"9:name=systemd:/\n5:cpu,cpuacct:/other\n{line}\n")
    for name, path in (("MEMINFO", "none"), ("GROUP", "group"), ("GROUPS", "names")):
        monkeypatch.setattr(memory, name, tmp_path / path)
    job = tmp_path / "group" / root / "job"
    for folder, numbers in ((job / "step", (9000, 1000)), (job, (8000, 5000)), (job.parent, (9000, 2000))):
        folder.mkdir(parents=True, exist_ok=True)
        for name, number in zip(files, numbers, strict=True):
            (folder / name).write_text(f"{number}\n")
    assert memory.available_bytes() == 3000
    (job / "memory.stat").write_text(f"anon 1\n{cache} 500\n")
    assert memory.available_bytes() == 3500, "the file cache is freed when memory is needed"
    (job / files[0]).write_text("100\n")
    assert memory.available_bytes() == 0
    (tmp_path / "names").write_text("0::/../elsewhere\n")
    assert memory.available_bytes() == 7000


@pytest.mark.parametrize(
    "options, message",
    [
        ({"views": -1, "crop": "resized"}, r"views=-1: expected a whole number of 0 or more"),
        ({"views": 2}, r"views=2 is an option of crop='resized'"),
        ({"views": 2, "stream": True}, r"views=2 is an option of crop='resized'"),
        ({"crop": "centre"}, r"unknown crop 'centre'.*pad, resized"),
        ({"corrupt": "ignore"}, r"unknown corrupt 'ignore'.*stop, skip"),
        ({"workers": -1}, r"workers=-1: expected a whole number of 0 or more"),
    ],
)
def test_wrong_options_are_one_line(folder, options, message):
    with pytest.raises(InputError, match=message) as error:
        data.load(f"folder:{folder}", **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"stream": True}, {"views": 2}, {"crop": "pad"}, {"corrupt": "skip"}], ids=str)
def test_data_sets_without_files_have_none_of_the_options(options):
    with pytest.raises(InputError, match=r"is not an option of digits, only of .*folder:PATH"):
        data.load("digits", **options)


def test_images_of_several_sizes_need_an_image_size(varied):
    with pytest.raises(
        InputError, match=r"pixels, but the first image has 40×30; give an image_size \(--image-size\) or"
    ):
        data.load(f"folder:{varied}", stream=True)


# ------------------------------------------------------------------------------------------- files and scans


def test_files_are_listed_in_the_order_of_paths(folder):
    (folder / "train/class0/sub").mkdir()
    (folder / "train/class0/1.jpg").rename(folder / "train/class0/sub/1.jpg")
    shutil.copy(folder / "train/class0/2.jpg", folder / "train/class0/sub-a.JPG")
    shutil.copy(folder / "train/class0/2.jpg", folder / "train/class0/.hidden.jpg")
    (folder / "train/class0/notes.txt").write_text("none")
    found, labels = streams.class_files(folder / "train", ["class0", "class1", "class2"])
    expected = [p for c in range(3) for p in data.pillow.image_files(folder / f"train/class{c}")]
    assert [found.path(i) for i in range(len(found))] == expected
    assert labels.tolist() == [0] * 9 + [1] * 8 + [2] * 8
    assert found.bytes.tolist() == [p.stat().st_size for p in expected]


def test_a_second_scan_opens_only_files_that_changed(folder, monkeypatch, cache):
    opened = []
    read = headers.header_of
    monkeypatch.setattr(files, "header_of", lambda path: opened.append(path.name) or read(path))
    first = data.load(f"folder:{folder}", stream=True).train
    assert len(opened) == 33 and len(list(cache.glob("scan-*.npz"))) == 2
    opened.clear()
    assert data.load(f"folder:{folder}", stream=True).train.fingerprint == first.fingerprint and not opened
    shutil.copy(folder / "train/class1/2.jpg", folder / "train/class1/1.jpg")
    shutil.copy(folder / "train/class1/2.jpg", folder / "train/class1/new.jpg")
    again = data.load(f"folder:{folder}", stream=True).train
    assert sorted(opened) == ["1.jpg", "new.jpg"] and again.fingerprint != first.fingerprint
    next(iter(cache.glob("scan-*.npz"))).write_bytes(b"damaged")
    assert data.load(f"folder:{folder}", stream=True).train.fingerprint == again.fingerprint


def test_damaged_results_in_the_cache_folder_are_computed_again(folder, cache):
    first = data.load(f"folder:{folder}", stream=True).train
    expected = first.mean, first.fingerprint
    for content in ("{}", '{"mean": null, "fingerprint": 3}', "[]", "{"):
        kept = [*cache.glob("mean-*.json"), *cache.glob("pixels-*.json")]
        assert len(kept) == 2
        for path in kept:
            path.write_text(content)
        again = data.load(f"folder:{folder}", stream=True).train
        assert (again.mean, again.fingerprint) == expected


def test_a_cache_folder_that_cannot_be_written_is_a_note(folder, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ICKD_CACHE", str(tmp_path / "file"))
    assert len(data.load(f"folder:{folder}", stream=True).train) == 24
    assert "headers of the images are read again at each start" in capsys.readouterr().err


def test_the_cache_folder_is_that_of_the_user(monkeypatch):
    monkeypatch.delenv("ICKD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert files.cache_folder() == Path("/caches/ickd")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_folder() == Path.home() / ".cache/ickd"


def save(path, mode, size=(40, 30), **options):
    values = np.random.default_rng(3).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    Image.frombytes(mode, size, values.tobytes()).save(path, **options)


@pytest.mark.parametrize(
    "mode, options, jpeg",
    [("RGB", {}, True), ("L", {}, True), ("CMYK", {}, False), ("RGB", {"progressive": True}, True)],
    ids=["colour", "grey", "cmyk", "progressive"],
)
def test_headers_and_pixels_of_jpeg_files(tmp_path, mode, options, jpeg):
    path = tmp_path / "a.jpg"
    save(path, mode, **options)
    assert headers.header_of(path) == (30, 40, jpeg)
    assert torch.equal(headers.upright_pixels(path, jpeg), data.pillow.pixels_of(path))


@pytest.mark.parametrize("suffix", ["png", "bmp", "JPEG"])
def test_files_that_are_no_jpeg_are_read_by_pillow_whatever_their_name(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    save(path, "RGB", format="PNG")
    assert headers.header_of(path) == (30, 40, False)
    assert torch.equal(headers.upright_pixels(path, False), data.pillow.pixels_of(path))


def test_images_that_exif_turns_are_upright(tmp_path):
    path, exif = tmp_path / "a.jpg", Image.Exif()
    exif[0x0112] = 6
    save(path, "RGB", exif=exif)
    assert headers.header_of(path) == (40, 30, False)
    assert torch.equal(headers.upright_pixels(path, False), data.pillow.pixels_of(path))


@pytest.mark.parametrize("orientation, kind, size", [(6, 3, (40, 30)), (6, 4, (40, 30)), (9, 3, (30, 40))])
def test_an_orientation_turns_an_image_as_pillow_does(tmp_path, orientation, kind, size):
    """The orientation is a SHORT (3) or a LONG (4), which torchvision ignores; 9 does not exist."""
    path, value = tmp_path / "a.jpg", struct.pack(">H2x" if kind == 3 else ">I", orientation)
    save(path, "RGB", exif=b"Exif\0\0MM" + struct.pack(">HIHHHI", 42, 8, 1, 0x0112, kind, 1) + value + bytes(4))
    header = headers.header_of(path)
    assert header[:2] == size == data.pillow.size_of(path)
    assert headers.upright_pixels(path, header.jpeg).shape[1:] == size


def test_pillow_decodes_where_torchvision_cannot(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    save(path, "RGB")
    expected = headers.upright_pixels(path, True)
    monkeypatch.setattr(headers, "_decoder", lambda: None)
    assert torch.equal(headers.upright_pixels(path, True), expected)


def damage(path, how):
    if how == "header":
        path.write_bytes(b"no image")
    elif how == "link":
        path.unlink()
        path.symlink_to(path.with_name("missing"))
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("how", ["header", "link"])
@pytest.mark.parametrize("given", [{}, {"crop": "resized"}], ids=str)
def test_an_unreadable_file_is_named_before_training(folder, how, given, capsys):
    path = folder / "train/class1/3.jpg"
    damage(path, how)
    with pytest.raises(InputError, match=r"3\.jpg (cannot be read|does not exist).*corrupt='skip'") as error:
        data.load(f"folder:{folder}", stream=True, **given)
    assert "\n" not in str(error.value)
    damage(folder / "train/class2/0.jpg", "header")
    with pytest.raises(InputError, match=r"\(2 files of train are unreadable\)"):
        data.load(f"folder:{folder}", stream=True, **given)
    train = data.load(f"folder:{folder}", stream=True, corrupt="skip", **given).train
    assert train.index.tolist() == [i for i in range(24) if i not in (11, 16)]
    assert "train: 2 unreadable files are left out, such as" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["header", "pixels"])
def test_unreadable_files_are_left_out_of_a_resident_folder_too(folder, how, capsys):
    damage(folder / "train/class0/0.jpg", how)
    with pytest.raises(InputError, match=r"train/class0/0\.jpg cannot be read"):
        data.load(f"folder:{folder}")
    train = data.load(f"folder:{folder}", corrupt="skip").train
    assert train.index.tolist() == list(range(1, 24)) and len(train.images) == 23
    assert "train: 1 unreadable files are left out" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_fails_when_it_is_decoded_is_named_or_replaced(varied, workers, capsys):
    path = varied / "train/class1/3.jpg"  # row 11
    options = {"crop": "resized", "image_size": 24, "stream": True, "workers": workers}
    train, skipping = (data.load(f"folder:{varied}", corrupt=how, **options).train for how in ("stop", "skip"))
    damage(path, "pixels")
    with pytest.raises(InputError, match=r"^\S+train/class1/3\.jpg cannot be read") as error:
        list(Sampler(train).batches(8, data_seed=0, epoch=0))
    assert "\n" not in str(error.value)
    capsys.readouterr()
    seen = {}
    loader = data.Loader(skipping)
    planned = [(0, torch.tensor([11, 2]), torch.tensor([4, 4])), (1, torch.tensor([12, 3]), torch.tensor([4, 4]))]
    for step in loader.steps(planned, data_seed=0, epoch=0):
        seen |= dict(zip(step.batch.index.tolist(), step.batch.images, strict=True))
    assert torch.equal(seen[11], seen[12]), "the next image of its class takes its place"
    assert loader.replaced == {11}
    assert capsys.readouterr().err.count("cannot be decoded; it and others like it are replaced") == 1
    loader.close()


def test_if_no_image_of_a_class_can_be_decoded_that_is_an_error(varied):
    given = {"crop": "resized", "image_size": 24, "stream": True, "corrupt": "skip"}
    train = data.load(f"folder:{varied}", **given).train
    for path in (varied / "train/class1").iterdir():
        damage(path, "pixels")
    with pytest.raises(InputError, match=r"no other image of its class can be read either"):
        list(Sampler(train).batches(8, data_seed=0, epoch=0))


@pytest.mark.parametrize("how", ["header", "pixels"])
def test_unreadable_files_of_varied_sizes_are_left_out_in_memory(varied, how, capsys):
    damage(varied / "train/class1/3.jpg", how)
    given = {"crop": "resized", "image_size": 24}
    with pytest.raises(InputError, match=r"train/class1/3\.jpg cannot be read"):
        data.load(f"folder:{varied}", **given)
    capsys.readouterr()
    train = data.load(f"folder:{varied}", corrupt="skip", **given).train
    assert train.index.tolist() == [i for i in range(24) if i != 11]
    assert capsys.readouterr().err.count("train: 1 unreadable files are left out") == 1


@pytest.mark.parametrize("given", [{}, {"crop": "resized"}, {"crop": "resized", "stream": True}], ids=str)
def test_a_class_of_which_no_file_can_be_read_is_an_error(varied, given):
    for path in (varied / "train/class1").iterdir():
        damage(path, "header")
    given = {"image_size": 24} | given
    with pytest.raises(InputError, match="no image of class 'class1' in folder:data/train can be read"):
        data.load(f"folder:{varied}", corrupt="skip", **given)
    for path in (varied / "train").rglob("*.jpg"):
        damage(path, "header")
    with pytest.raises(InputError, match="none of the 24 files of folder:data/train can be read"):
        data.load(f"folder:{varied}", corrupt="skip", **given)


def test_links_are_followed_alike_in_memory_and_streamed(folder, tmp_path):
    elsewhere = write_folder(tmp_path / "elsewhere", train=2, classes=1) / "train/class0"
    (folder / "train/class1/more").symlink_to(elsewhere, target_is_directory=True)
    (folder / "train/class1/around").symlink_to(folder / "train", target_is_directory=True)
    resident, streamed = (data.load(f"folder:{folder}", stream=stream).train for stream in (False, True))
    assert resident.files == streamed.files and len(resident) == 26
    assert torch.equal(resident.labels, streamed.labels)


@pytest.mark.parametrize("name", ["train", "data"])
def test_files_have_the_same_names_if_a_class_is_called_as_a_split(tmp_path, name):
    folder = write_folder(tmp_path / name, classes=2)
    for split in ("train", "test"):
        (folder / split / "class0").rename(folder / split / "train")
        (folder / split / "class1").rename(folder / split / "zoo")
    (folder / "unlabelled").mkdir()
    shutil.copy(next(folder.glob("test/train/*")), folder / "unlabelled/a.jpg")
    for given in ({}, {"unlabelled": "all"}):
        resident, streamed = (data.load(f"folder:{folder}", stream=stream, **given) for stream in (False, True))
        for split in ("train", "test"):
            files = getattr(resident, split).files
            assert files == getattr(streamed, split).files and files[0].startswith(f"{split}/train/")


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_an_orientation_in_xmp_data_is_that_of_the_pixels(tmp_path, suffix):
    folder = write_folder(tmp_path / "data", sizes=((40, 64),), suffix=suffix)
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    path = folder / f"train/class0/0.{suffix}"
    Image.open(path).copy().save(path, xmp=xmp)
    assert headers.header_of(path)[:2] == (64, 40)
    assert headers.upright_pixels(path, headers.header_of(path).jpeg).shape == (3, 64, 40)
    assert len(data.load(f"folder:{folder}", crop="resized", image_size=24).train) == 24


def test_an_empty_file_of_scans_is_written_anew(folder, cache):
    given = {"stream": True}
    data.load(f"folder:{folder}", **given)
    (scan, *_) = cache.glob("scan-*.npz")
    scan.write_bytes(b"")
    assert len(data.load(f"folder:{folder}", **given).train) == 24 and scan.stat().st_size > 0


def test_too_many_pixels_are_unreadable(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 399)
    with pytest.raises(InputError, match=r"20×20 pixels, more than Pillow's limit"):
        data.load(f"folder:{folder}", stream=True)


def test_paths_need_few_objects():
    """The paths of a split are one block of bytes, so that worker processes do not copy them."""
    names = [f"n{i // 100:08d}/n{i // 100:08d}_{i}.JPEG".encode() for i in range(5000)]
    ends = np.array([len(name) for name in names]).cumsum()
    found = files.Files("/root", np.frombuffer(b"".join(names), np.uint8), ends, ends, ends, ends, ends)
    assert [str(found.path(i)) for i in (0, 1, 4999)] == [f"/root/{names[i].decode()}" for i in (0, 1, 4999)]


# ------------------------------------------------------------------------------------------------- ImageNet


WNIDS = ("n01440764", "n01443537", "n01484850")


@pytest.fixture
def imagenet(tmp_path):
    written = write_folder(tmp_path / "written", sizes=VARIED, suffix="JPEG")
    root = tmp_path / "imagenet"
    root.mkdir()
    for split, name in (("train", "train"), ("test", "val")):
        (root / name).mkdir()
        for c, wnid in enumerate(WNIDS):
            (written / split / f"class{c}").rename(root / name / wnid)
    return root


def flatten(root):
    """Move the validation images into one folder, and return the WNID of each name."""
    wnid_of, number = {}, 0
    for i in range(3):
        for wnid in WNIDS:
            number += 1
            name = f"ILSVRC2012_val_{number:08d}"
            (root / "val" / wnid / f"{i}.JPEG").rename(root / "val" / f"{name}.JPEG")
            wnid_of[name] = wnid
    for wnid in WNIDS:
        (root / "val" / wnid).rmdir()
    return wnid_of


def test_imagenet_is_read_from_class_folders(imagenet):
    splits = data.load(f"imagenet:{imagenet}", stream=True)
    assert [len(split) for split in splits] == [24, 0, 9]
    assert splits.train.size == (224, 224) and splits.train.classes == WNIDS
    assert splits.train.mean == (0.485, 0.456, 0.406) and splits.train.std == (0.229, 0.224, 0.225)
    assert splits.test.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert splits.train.name.startswith("imagenet:") and splits.test.pixels(slice(0, 2)).shape == (2, 3, 224, 224)
    few = data.load(f"imagenet:{imagenet}", stream=True, labels=6, val=0.25, image_size=32)
    assert [len(split) for split in few] == [6, 6, 9] and few.train.size == (32, 32)


@pytest.mark.parametrize("truth", ["csv", "kit"])
def test_a_flat_folder_has_its_classes_in_the_ground_truth(imagenet, truth, monkeypatch):
    wnid_of = flatten(imagenet)
    with pytest.raises(InputError, match=r"contains neither LOC_val_solution\.csv nor"):
        data.load(f"imagenet:{imagenet}", stream=True)
    if truth == "csv":
        lines = [f"{name},{wnid} 1 2 30 40" for name, wnid in wnid_of.items()]
        (imagenet / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines[::-1]]))
    else:
        scipy = pytest.importorskip("scipy.io", reason="pip install scipy to read the development kit")
        kit = imagenet / "ILSVRC2012_devkit_t12" / "data"
        kit.mkdir(parents=True)
        number = {wnid: i for i, wnid in enumerate(reversed(WNIDS), 1)}
        record = np.array([(i, w) for w, i in number.items()], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])
        scipy.savemat(kit / "meta.mat", {"synsets": record})
        lines = [str(number[wnid]) for wnid in wnid_of.values()]
        (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(lines) + "\n")
    test = data.load(f"imagenet:{imagenet}", stream=True).test
    assert test.labels.tolist() == [0, 1, 2] * 3
    if truth == "csv":
        (imagenet / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,n9 1 2 3 4\n")
        with pytest.raises(
            InputError, match="gives ILSVRC2012_val_00000001 the class n9, but train/ has no such folder"
        ):
            data.load(f"imagenet:{imagenet}", stream=True)


def test_names_of_classes_come_from_the_published_lists(imagenet):
    text = "n01440764 tench, Tinca tinca\nn01443537 crane\nn01484850 crane\nn99999999 other"
    (imagenet / "LOC_synset_mapping.txt").write_text(text)
    assert data.load(f"imagenet:{imagenet}", stream=True).train.classes == (
        "tench",
        "crane (n01443537)",
        "crane (n01484850)",
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda root: shutil.rmtree(root / "val"), r"has no folder val/"),
        (lambda root: shutil.rmtree(root / "train" / WNIDS[0]), r"class folder that train/ does not have"),
        (lambda root: [os.remove(p) for p in (root / "train" / WNIDS[1]).iterdir()], r"n01443537 contains no image"),
        (lambda root: [os.remove(p) for p in (root / "val").rglob("*.JPEG")], r"val contains no image"),
    ],
)
def test_an_error_names_what_is_wrong_with_imagenet(imagenet, change, message):
    change(imagenet)
    with pytest.raises(InputError, match=message):
        data.load(f"imagenet:{imagenet}", stream=True)
    with pytest.raises(InputError, match="crop='pad' needs images of one size"):
        data.load(f"imagenet:{imagenet}", crop="pad")


def test_real_files_of_imagenet(tmp_path):
    sample = os.environ.get("ICKD_IMAGENET_SAMPLE", "")
    found = sorted(Path(sample).glob("*.JPEG"))[:40] if sample else []
    if not found:
        pytest.skip("set ICKD_IMAGENET_SAMPLE to a folder of JPEG files of ImageNet to run this test")
    for i, path in enumerate(found):
        folder = tmp_path / ("val" if i % 4 == 3 else "train") / f"n0000000{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).symlink_to(path.resolve())
    splits = data.load(f"imagenet:{tmp_path}", stream=True, workers=1)
    kept = data.load(f"imagenet:{tmp_path}", workers=0)
    same_batches(kept.train, splits.train)
    for i in range(5):
        assert torch.equal(
            headers.upright_pixels(splits.train.path(i), True), data.pillow.pixels_of(splits.train.path(i))
        )

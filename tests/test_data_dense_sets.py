"""Data sets with class masks or objects that are read from files: masks:PATH, voc:PATH and coco:PATH."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ickd_lib import data
from ickd_lib.data import Sampler
from ickd_lib.data.sets import annotated
from ickd_lib.runtime import InputError


def photo(path, seed, size=(24, 16)):
    """Save random pixels; `size` is width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------------------------------------- masks


def index_png(path, values, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, dtype=np.uint8))
    if palette:
        image = image.convert("P")
        image.putdata(np.asarray(values, dtype=np.uint8).ravel().tolist())
        image.putpalette(list(range(256)) * 3)
    image.save(path)


@pytest.fixture
def segmented(tmp_path):
    """4 + 2 images of two sizes with the classes 0 to 2, and 3 for void."""
    for split, count in (("train", 4), ("test", 2)):
        for i in range(count):
            size = (24, 16) if i % 2 else (20, 30)
            photo(tmp_path / split / "images" / f"{split}{i}.{'png' if i % 2 else 'jpg'}", 10 * count + i, size)
            mask = np.arange(size[0] * size[1]).reshape(size[1], size[0]) % 4
            index_png(tmp_path / split / "masks" / f"{split}{i}.png", mask, palette=i % 2)
    return tmp_path


def test_masks_are_read(segmented):
    splits = data.load(f"masks:{segmented}", ignore=3)
    train = splits.train
    assert (len(train), len(splits.val), len(splits.test)) == (4, 0, 2)
    assert train.classes == ("0", "1", "2") and train.spec["num_classes"] == 3
    assert train.sizes.tolist() == [[30, 20], [16, 24], [30, 20], [16, 24]] and train.name.endswith("/train")
    for image, mask, size in zip(train.images, train.masks, train.sizes.tolist(), strict=True):
        values = torch.arange(size[0] * size[1]).view(size) % 4
        assert torch.equal(mask.long(), torch.where(values == 3, 255, values)) and mask.dtype == torch.uint8
        assert image.dtype == torch.uint8 and list(image.shape) == [3, *size]
    every = torch.cat([image.flatten(1) for image in train.images], 1).double() / 255
    assert torch.allclose(torch.tensor(train.mean).double(), every.mean(1))
    assert torch.allclose(torch.tensor(train.std).double(), every.std(1, correction=0))
    assert data.load(f"masks:{segmented}").train.classes == ("0", "1", "2", "3")


def test_names_and_the_ignored_value_may_be_files(segmented):
    (segmented / "classes.txt").write_text("road\nsky\n\ntree\n")
    (segmented / "ignore.txt").write_text("0\n")
    train = data.load(f"masks:{segmented}").train
    assert train.classes == ("road", "sky", "tree")
    assert train.masks[0][0, :5].tolist() == [255, 0, 1, 2, 255]
    assert data.load(f"masks:{segmented}", ignore=3).train.masks[0][0, :5].tolist() == [0, 1, 2, 255, 0]


def test_val_is_the_test_split_if_there_is_no_other(segmented):
    (segmented / "test").rename(segmented / "val")
    assert len(data.load(f"masks:{segmented}").test) == 2
    splits = data.load(f"masks:{segmented}", val=0.5)
    assert (len(splits.train), len(splits.val)) == (2, 2) and splits.val.name.endswith("/val")
    assert sorted(splits.train.index.tolist() + splits.val.index.tolist()) == [0, 1, 2, 3]


def test_files_that_are_decoded_when_needed_give_the_same_batches(segmented, monkeypatch):
    whole = data.load(f"masks:{segmented}", ignore=3)
    monkeypatch.setattr(annotated, "RESIDENT", 0)
    lazy = data.load(f"masks:{segmented}", ignore=3)
    assert "in memory" in repr(whole.train) and "decoded when needed" in repr(lazy.train)
    assert whole.train.mean == lazy.train.mean
    for a, b in zip(*(Sampler(s.train).batches(2, data_seed=0, epoch=0) for s in (whole, lazy)), strict=True):
        assert same(a.images, b.images) and same(a.masks, b.masks) and torch.equal(a.index, b.index)
    assert len({lazy.train.fingerprint, lazy.test.fingerprint, data.load(f"masks:{segmented}").train.fingerprint}) == 3
    assert lazy.train.few(2).fingerprint != lazy.train.fingerprint
    path = segmented / "train" / "images" / "train1.png"
    photo(path, 99, (30, 10))
    with pytest.raises(InputError, match=r"train1.png has 30×10 pixels, but its annotation is of 24×16"):
        lazy.train.batch(torch.tensor([1]))


DAMAGE = {
    "size": r"masks/train1.png has 9×9 pixels, but its image .*images/train1.png has 24×16; make them the same size",
    "class": r"masks/train2.png has pixels of value 78, but there are 3 classes; add the class",
    "no mask": r"images/train3.png has no mask .*masks/train3; add it",
    "no image": r"masks/more.png has no image .*images/more; add it",
    "colours": r"masks/train0.png is an image of mode RGB; expected one number from 0 to 255 a pixel",
    "broken mask": r"masks/train0.png cannot be read",
    "broken image": r"images/train1.png cannot be read",
    "two suffixes": r"images/train1.png and .*train1.jpg differ in their extension only|train1.jpg and .*train1.png",
    "same image": r"more.png in test is the same image as .*train1.png in train; remove it from one of the splits",
    "names": r"classes.txt has 3 names, 2 of them different",
    "ignore": r"ignore.txt is 'void'; give one number from 0 to 255",
    "no test": r"lacks train/, or both test/ and val/",
    "no folder": r"train/masks does not exist",
    "jpeg": r"masks/train0.png is a JPEG file, which changes the values of pixels; save the mask as PNG",
    "one class": r"one class, '0', because pixels of value 255 are ignored; save the second .* value, such as 1",
    "one class beside the ignored one": r"pixels of value 0 and 255 are ignored; .* such as 2",
    "all ignored": r"has no pixel of a class",
    "no files": r"test contains no image; expected at least one",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_error_names_what_is_wrong_with_masks(segmented, damage):
    train, test = segmented / "train", segmented / "test"
    (segmented / "ignore.txt").write_text("3")
    (segmented / "classes.txt").write_text("a\nb\nc\n")
    if damage == "size":
        index_png(train / "masks" / "train1.png", np.zeros((9, 9)))
    elif damage == "class":
        index_png(train / "masks" / "train2.png", np.full((30, 20), 78))
    elif damage == "no mask":
        (train / "masks" / "train3.png").unlink()
    elif damage == "no image":
        index_png(train / "masks" / "more.png", np.zeros((9, 9)))
    elif damage == "colours":
        photo(train / "masks" / "train0.png", 0, (20, 30))
    elif damage.startswith("broken"):
        path = train / f"{damage.split()[1]}s" / ("train0.png" if "mask" in damage else "train1.png")
        path.write_bytes(path.read_bytes()[:20])
    elif damage == "two suffixes":
        photo(train / "images" / "train1.jpg", 0)
    elif damage == "same image":
        (test / "images" / "more.png").write_bytes((train / "images" / "train1.png").read_bytes())
        index_png(test / "masks" / "more.png", np.zeros((16, 24)))
    elif damage == "names":
        (segmented / "classes.txt").write_text("a\nb\na\n")
    elif damage == "ignore":
        (segmented / "ignore.txt").write_text("void")
    elif damage == "jpeg":
        Image.fromarray(np.zeros((30, 20), np.uint8)).save(train / "masks" / "train0.png", "JPEG")
    elif damage.startswith("one class"):
        (segmented / "ignore.txt").write_text("0" if "beside" in damage else "255")
        (segmented / "classes.txt").unlink()
        for path in segmented.rglob("masks/*.png"):
            index_png(path, np.asarray(Image.open(path)) % 2 * (1 if "beside" in damage else 255))
    elif damage == "no test":
        test.rename(segmented / "rest")
    elif damage == "no folder":
        (train / "masks").rename(train / "labels")
    elif damage == "no files":
        for path in test.rglob("*.*"):
            path.unlink()
    else:
        for path in segmented.rglob("masks/*.png"):
            index_png(path, np.full_like(np.asarray(Image.open(path)), 3))
    with pytest.raises(InputError, match=DAMAGE[damage]) as caught:
        data.load(f"masks:{segmented}")
    assert "\n" not in str(caught.value)


def test_notes_on_masks(segmented, notes):
    (segmented / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    for kind in ("images", "masks"):
        path = next((segmented / "test" / kind).glob("test1.*"))
        path.rename(path.with_stem("train1"))
    data.load(f"masks:{segmented}")
    title = f"masks:{segmented.name}"
    folder = str(segmented)
    first = f"{folder}/test/images/train1.png and {folder}/train/images/train1.png"
    assert sorted(notes()) == sorted(
        [f"note: {title}/{split} has no annotation of class 'e'" for split in ("train", "test")]
        + [f"note: 1 images of different splits have the same name, such as {first}"]
    )


# ------------------------------------------------------------------------------------------------ voc


def voc_xml(*objects):
    parts = [
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
        + "".join(
            f"<{edge}>{value}</{edge}>" for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        + "</bndbox></object>"
        for name, box, difficult in objects
    ]
    return f"<annotation>{''.join(parts)}</annotation>"


@pytest.fixture
def voc(tmp_path):
    """Images a and b to train on, c to test on, all of 24×16 pixels; b has no object."""
    for seed, name in enumerate("abc"):
        photo(tmp_path / "JPEGImages" / f"{name}.jpg", seed)
        index_png(tmp_path / "SegmentationClass" / f"{name}.png", np.full((16, 24), seed), palette=True)
    for name, text in {
        "Annotations/a.xml": voc_xml(("dog", (1, 1, 24, 16), 0), ("cat", (3, 2, 10.5, 9), 1)),
        "Annotations/b.xml": voc_xml(),
        "Annotations/c.xml": voc_xml(("cat", (2, 2, 5, 6), 0), ("dog", (5, 2, 9, 6), 0)),
        "ImageSets/Main/train.txt": "a  1\nb -1\n",
        "ImageSets/Main/val.txt": "c\n",
        "ImageSets/Segmentation/trainval.txt": "a\nb\n",
        "ImageSets/Segmentation/test.txt": "c\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_boxes_of_voc_are_read(voc):
    splits = data.load(f"voc:{voc}")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (2, 0, 1)
    assert splits.train.classes == ("cat", "dog") and splits.train.masks is None
    first, second = splits.train.objects[0], splits.train.objects[1]
    assert first.boxes.tolist() == [[0, 0, 24, 16], [2, 1, 10.5, 9]] and first.boxes.dtype == torch.float32
    assert first.labels.tolist() == [1, 0] and first.crowd.tolist() == [False, True] and first.key.tolist() == [0, 1]
    assert (
        torch.equal(first.difficult, first.crowd)
        and not first.groups.any()
        and splits.test.objects[0].difficult is None
    )
    assert second.boxes.shape == (0, 4) and len(second) == 0
    batch = splits.train.batch(torch.tensor([0, 1]), torch.tensor([4, 5]))
    assert [len(objects) for objects in batch.objects] == [2, 0] and batch.masks is None
    assert batch.objects[0].difficult.tolist() == [False, True] and len(batch.objects[1].difficult) == 0


def test_masks_of_voc_are_read(voc):
    splits = data.load(f"voc:{voc}", annotations="masks")
    assert (len(splits.train), len(splits.test)) == (2, 1) and splits.train.objects is None
    assert splits.train.classes == ("0", "1", "2")
    index_png(voc / "SegmentationClass" / "a.png", np.arange(24 * 16).reshape(16, 24) % 21, palette=True)
    train = data.load(f"voc:{voc}", annotations="masks").train
    assert len(train.classes) == 21 and train.classes[::20] == ("background", "tvmonitor")


def test_a_mask_of_voc_that_is_missing_or_of_another_size_is_named(voc):
    path = voc / "SegmentationClass" / "b.png"
    index_png(path, np.zeros((9, 9)))
    with pytest.raises(InputError, match=r"SegmentationClass/b.png has 9×9 pixels, but its image .*b.jpg has 24×16"):
        data.load(f"voc:{voc}", annotations="masks")
    path.unlink()
    with pytest.raises(InputError, match=r"SegmentationClass/b.png does not exist; add the mask, or remove its image"):
        data.load(f"voc:{voc}", annotations="masks")


def test_the_lists_are_the_splits(voc):
    (voc / "ImageSets/Main/train.txt").write_text("a\n")
    (voc / "ImageSets/Main/val.txt").write_text("b\n")
    (voc / "ImageSets/Main/test.txt").write_text("c\n")
    assert [len(split) for split in data.load(f"voc:{voc}")] == [1, 0, 1]
    assert [len(split) for split in data.load(f"voc:{voc}", val=0.5)] == [1, 1, 1]


@pytest.mark.parametrize("suffix", ["JPEG", "bmp", "Png"])
def test_images_of_voc_have_any_suffix(voc, suffix):
    before = data.load(f"voc:{voc}").train.objects
    path = voc / "JPEGImages" / "a.jpg"
    Image.open(path).save(path.with_suffix(f".{suffix}"))
    path.rename(voc / "a.jpg")
    train = data.load(f"voc:{voc}").train
    assert torch.equal(train.objects.flat.boxes, before.flat.boxes) and len(train) == 2
    (voc / "a.jpg").rename(path)
    photo(voc / "JPEGImages" / "a.png", 9, (9, 9))  # with two files of one name, .jpg is read
    assert data.load(f"voc:{voc}").train.sizes[0].tolist() == [16, 24]


VOC_DAMAGE = {
    "no image": (r"train.txt lists image 'x', which is not in .*JPEGImages; add it there", "train.txt", "a\nx\n"),
    "twice": (r"train.txt lists image 'a' twice", "train.txt", "a\nb\na\n"),
    "both": (r"a.jpg in test is the same image as .*a.jpg in train", "val.txt", "c\na\n"),
    "no list": (r"ImageSets/Main/test.txt does not exist", "val.txt", None),
    "empty list": (r"voc:.*/test contains no image", "val.txt", ""),
    "no annotation": (r"b.xml does not exist; add the annotation", "b.xml", None),
    "no xml": (r"b.xml is not XML", "b.xml", "<annotation>"),
    "no box": (r"object 1 in .*b.xml has no bndbox of four numbers", "b.xml", voc_xml(("dog", (1, 2, "", 4), 0))),
    "no name": (r"object 1 in .*b.xml has no name", "b.xml", voc_xml(("", (1, 2, 3, 4), 0))),
    "class": (
        r"unknown class of object 1 in .*c.xml 'cow' .*known: cat, dog",
        "c.xml",
        voc_xml(("cow", (1, 2, 3, 4), 0)),
    ),
}


@pytest.mark.parametrize("damage", VOC_DAMAGE)
def test_an_error_names_what_is_wrong_in_voc(voc, damage):
    message, name, text = VOC_DAMAGE[damage]
    (voc / "classes.txt").write_text("cat\ndog\n")
    path = voc / ("ImageSets/Main" if name.endswith("txt") else "Annotations") / name
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        data.load(f"voc:{voc}")
    assert "\n" not in str(caught.value)


def test_bad_boxes_are_noted_and_left_out(voc, notes):
    bad = [("cat", (5, 5, 5, 5), 0), ("cat", (30, 2, 40, 9), 0), ("dog", (4, 4, 8, 8), 0), ("cat", (-5, 3, 9, 90), 0)]
    (voc / "Annotations/b.xml").write_text(voc_xml(*bad))
    train = data.load(f"voc:{voc}").train
    assert train.objects[1].boxes.tolist() == [[3, 3, 8, 8], [0, 2, 9, 16]]
    assert train.objects[1].key.tolist() == [2, 3] and train.objects[1].labels.tolist() == [1, 0]
    title = f"note: voc:{voc.name}/train"
    assert notes() == [
        f"{title}: boxes without an area inside the image are left out, in {voc}/Annotations: "
        "object 1 in b.xml; object 2 in b.xml",
        f"{title}: boxes that reach out of the image are cut off, in {voc}/Annotations: object 4 in b.xml",
    ]


def test_a_box_of_voc_with_equal_edges_is_one_pixel_wide(voc, notes):
    (voc / "Annotations/b.xml").write_text(voc_xml(("cat", (5, 5, 5, 9), 0), ("dog", (4, 7, 8, 7), 0)))
    assert data.load(f"voc:{voc}").train.objects[1].boxes.tolist() == [[4, 4, 5, 9], [3, 6, 8, 7]] and not notes()


@pytest.mark.parametrize("stream", [False, True])
def test_the_size_in_an_annotation_of_voc_is_that_of_the_image(voc, stream):
    path = voc / "Annotations/b.xml"
    for width, height in ((24, 16), (0, 0), ("", 16), (24, 0)):
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        path.write_text(voc_xml().replace("<annotation>", f"<annotation>{size}"))
        data.load(f"voc:{voc}", stream=stream)
    path.write_text(path.read_text().replace("<height>0<", "<height>20<"))
    message = r"JPEGImages/b.jpg has 24×16 pixels, but its annotation is of 24×20; restore the image or correct the ann"
    with pytest.raises(InputError, match=message):
        data.load(f"voc:{voc}", stream=stream)


# ----------------------------------------------------------------------------------------------- coco


def coco_json(images, annotations, categories=((7, "dog"), (3, "cat"))):
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 16, "width": 24} for i in images],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": box, "iscrowd": 0, "area": 1.0} | more
            for n, i, c, box, more in annotations
        ],
        "categories": [{"id": i, "name": name} for i, name in categories],
    }


SQUARE = {"segmentation": [[2, 2, 8, 2, 8, 8, 2, 8]]}
RUNS = {"segmentation": {"counts": [0, 32, 352], "size": [16, 24]}, "iscrowd": 1}


@pytest.fixture
def coco(tmp_path):
    """Images 9 and 4 (without objects) to train on, 5 to test on."""
    contents = {
        "train2017": coco_json([9, 4], [(11, 9, 7, [2, 2, 6, 6], SQUARE), (12, 9, 3, [0, 0, 2, 16], RUNS)]),
        "val2017": coco_json([5], [(1, 5, 3, [1, 1, 4.5, 4], SQUARE), (2, 5, 7, [1, 1, 4, 4], SQUARE)]),
    }
    (tmp_path / "annotations").mkdir()
    for split, content in contents.items():
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        for image in content["images"]:
            photo(tmp_path / "images" / split / image["file_name"], image["id"])
    return tmp_path


def test_coco_is_read(coco):
    splits = data.load(f"coco:{coco}")
    assert splits.train.classes == ("cat", "dog") and (len(splits.train), len(splits.test)) == (2, 1)
    empty, full = splits.train.objects[0], splits.train.objects[1]  # the images 4 and 9
    assert len(empty) == 0 and full.boxes.tolist() == [[2, 2, 8, 8], [0, 0, 2, 16]]
    assert full.labels.tolist() == [1, 0] and full.crowd.tolist() == [False, True] and full.masks is None
    assert torch.equal(full.groups, full.crowd)
    assert splits.test.objects[0].boxes.tolist() == [[1, 1, 5.5, 5], [1, 1, 5, 5]]
    (coco / "images" / "train2017").rename(coco / "train2017")
    assert data.load(f"coco:{coco}").train.fingerprint == splits.train.fingerprint


def test_coco_of_other_programs_is_read(coco, notes):
    """A byte-order mark, lengths as 16.0, no area, and a box whose width is lost in float32."""
    before = data.load(f"coco:{coco}").train
    path = coco / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["height"] = float(image["height"])
    content["annotations"].append({"id": 13, "image_id": 4, "category_id": 3, "bbox": [20, 5, 1e-7, 9], "area": None})
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    notes()
    train = data.load(f"coco:{coco}").train
    assert train.fingerprint == before.fingerprint and len(train.objects[0]) == 0
    assert any("boxes without an area" in note and note.endswith("annotation 13") for note in notes())


def test_masks_of_objects_need_pycocotools(coco, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(InputError, match="annotations='instances' needs pycocotools; run pip install pycocotools"):
        data.load(f"coco:{coco}", annotations="instances")


def test_masks_of_objects_are_read_with_pycocotools(coco):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    train = data.load(f"coco:{coco}", annotations="instances").train
    assert train.objects[0].masks.shape == (0, 16, 24)
    square, left = train.objects[1].masks
    expected = torch.zeros(16, 24, dtype=torch.bool)
    expected[2:8, 2:8] = True
    assert torch.equal(square, expected) and left[:, :2].all() and left.sum() == 32
    batch = train.batch(torch.tensor([1, 0]), torch.tensor([1, 2]))
    assert batch.objects[0].masks.shape[1:] == batch.images[0].shape[1:]


COCO_DAMAGE = {
    "no json": r"instances_train2017.json is not JSON",
    "no list": r"instances_train2017.json has no list 'categories'",
    "no object": r"an entry of 'images' is 7; expected a JSON object",
    "kinds of ids": r"not all ids of 'images' are numbers, or not all are texts",
    "no id": r"annotation 11 has the unknown image_id \[4\]",
    "file name": r"image 9 has the file_name 5; expected a text",
    "no box": r"an entry of 'annotations' has no 'bbox': .*'id': 11",
    "short box": r"annotation 11 has the bbox \[1, 2\]; expected four numbers",
    "text box": r"annotation 11 has the bbox \[1, '2', 3, 4\]; expected four numbers",
    "size": r"train2017/9.png has 24×16 pixels, but its annotation is of 30×16; restore the image or correct",
    "no size": r"image 9 has the height None; expected a whole number above 0",
    "text size": r"image 9 has the height '16'; expected a whole number above 0",
    "half a pixel": r"image 9 has the height 16.5; expected a whole number above 0",
    "text area": r"annotation 11 has the area '9'; expected a number, or none",
    "image id": r"annotation 11 has the unknown image_id 77",
    "category": r"annotation 11 has the unknown category_id 77",
    "image twice": r"several entries of 'images' have the id 4",
    "category twice": r"several entries of 'categories' have the id",
    "categories": r"instances_val2017.json has other categories than .*instances_train2017.json",
    "no image": r"has annotations of .*train2017/4.png, which does not exist; add the image",
    "no folder": r"has no folder train2017/ or images/train2017/ for the images of",
    "no val": r"annotations lacks instances_train\*.json, or both",
    "two files": r"annotations has 2 files instances_train\*.json",
}


@pytest.mark.parametrize("damage", COCO_DAMAGE)
def test_an_error_names_what_is_wrong_in_coco(coco, damage):
    path = coco / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    annotation = content["annotations"][0]
    if damage == "no list":
        del content["categories"]
    elif damage == "no object":
        content["images"].append(7)
    elif damage == "kinds of ids":
        content["images"][0]["id"] = "4"
    elif damage == "no id":
        annotation["image_id"] = [4]
    elif damage == "file name":
        content["images"][0]["file_name"] = 5
    elif damage == "no box":
        del annotation["bbox"]
    elif damage == "short box":
        annotation["bbox"] = [1, 2]
    elif damage == "text box":
        annotation["bbox"] = [1, "2", 3, 4]
    elif damage == "size":
        content["images"][0]["width"] = 30
    elif damage in (sizes := {"no size": None, "text size": "16", "half a pixel": 16.5}):
        content["images"][0]["height"] = sizes[damage]
    elif damage == "text area":
        annotation["area"] = "9"
    elif damage in ("image id", "category"):
        annotation["image_id" if damage == "image id" else "category_id"] = 77
    elif damage == "image twice":
        content["images"] = [image | {"id": 4} for image in content["images"]]
    elif damage == "category twice":
        content["categories"] += content["categories"][:1]
    elif damage == "categories":
        content["categories"][0]["name"] = "cow"
    path.write_text("{" if damage == "no json" else json.dumps(content))
    if damage == "no image":
        (coco / "images" / "train2017" / "4.png").unlink()
    elif damage == "no folder":
        (coco / "images" / "train2017").rename(coco / "images" / "training")
    elif damage == "no val":
        (coco / "annotations" / "instances_val2017.json").unlink()
    elif damage == "two files":
        (coco / "annotations" / "instances_train2014.json").write_text("{}")
    for stream in (False, True):
        with pytest.raises(InputError, match=COCO_DAMAGE[damage]) as caught:
            data.load(f"coco:{coco}", stream=stream)
        assert "\n" not in str(caught.value)


def test_notes_on_coco(coco, notes):
    path = coco / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [2, 2, 0, 6]
    path.write_text(json.dumps(content))
    photo(coco / "images/train2017/other.png", 77)
    train = data.load(f"coco:{coco}").train
    assert [len(train.objects[i]) for i in range(2)] == [0, 1]
    title = f"note: coco:{coco.name}/train"
    assert notes() == [
        f"note: 1 images are not in {path} and are left out, such as {coco}/images/train2017/other.png",
        f"{title}: boxes without an area inside the image are left out, in {path}: annotation 11",
        f"{title} has no annotation of class 'dog'",
    ]
    data.load(f"coco:{coco}")
    assert notes() == [], "each is named once"


def test_published_splits_are_used_as_they_are(coco, notes):
    (coco / "images/val2017/5.png").write_bytes((coco / "images/train2017/9.png").read_bytes())
    assert len(data.load(f"coco:{coco}").test) == 1
    assert next(note for note in notes() if "val" in note).endswith("9.png in train")


# ------------------------------------------------------------------------------------------ real data


def real(variable, inside):
    root = os.environ.get(variable, "")
    if not Path(root, inside).is_dir():
        pytest.skip(f"set {variable} to the folder of the data set to run this test")
    return root


def test_camvid_itself():
    splits = data.load(f"masks:{real('ICKD_CAMVID', 'train/masks')}", ignore=11, val=0.1)
    assert [len(split) for split in splits] == [367, 101, 233] and len(splits.train.classes) == 11
    batch = next(Sampler(splits.train).batches(8, data_seed=0, epoch=0))
    assert batch.images.shape == (8, 3, 180, 240) and set(batch.masks.unique().tolist()) <= {*range(11), 255}


def test_bccd_itself(notes):
    splits = data.load(f"voc:{real('ICKD_BCCD', 'Annotations')}", val=0.1)
    assert [len(split) for split in splits] == [205, 87, 72] and splits.train.classes == ("Platelets", "RBC", "WBC")
    assert sum(len(split.objects.flat) for split in splits) == 4888 - 2
    assert [note.rsplit(": ", 1)[1] for note in notes()] == [
        "object 4 in BloodImage_00343.xml",
        "object 13 in BloodImage_00338.xml",
    ]

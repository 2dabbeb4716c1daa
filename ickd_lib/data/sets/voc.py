"""Data in the layout of Pascal VOC (Everingham et al. 2010), with boxes or class masks."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from ickd_lib.data.dense import check_sizes
from ickd_lib.data.images import Splits
from ickd_lib.data.joint import RandomResize
from ickd_lib.data.pillow import image_files
from ickd_lib.data.sets.annotated import Annotation, Part, check_apart, class_names, files, read_lines, sizes_of
from ickd_lib.data.sets.base import register
from ickd_lib.data.sets.masks import MaskDataSet
from ickd_lib.runtime import InputError, choose

# The classes of the values 0 to 20 in masks. For boxes, the names of the classes are in the annotations.
CLASSES = tuple(
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor".split()
)
SIZES, LONGEST = tuple(range(480, 801, 32)), 1333  # as is usual for two-stage detectors
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG")  # those that are preferred if several files have one name
EDGES = ("xmin", "ymin", "xmax", "ymax")


@register("voc")
class Voc(MaskDataSet):
    """Images in PATH/JPEGImages/, with boxes in PATH/Annotations/ or class masks in PATH/SegmentationClass/.

    The lists in PATH/ImageSets/Main/, for masks in PATH/ImageSets/Segmentation/, are the splits: train.txt (or
    trainval.txt where it is missing), val.txt and test.txt; if there is no test.txt, val.txt is the test split. The
    classes are the names in PATH/classes.txt, or else those in the annotations, sorted. The coordinates in the files
    count pixels from 1, so a box with xmin = xmax is one pixel wide; a box that is a single pixel is left out. Objects
    that are marked as difficult are left out of the training and ignored by the metrics. Pixels of masks with the value
    255 are ignored. Without PATH/classes.txt, the classes of masks are those of Pascal VOC if 20 is the highest value,
    and numbers otherwise.
    """

    options = frozenset({"path", "annotations", "image_size", "stream"})
    kinds = ("boxes", "masks")

    def read(self) -> Splits:
        masks = self.annotations == "masks"
        lists = self._lists(self.path / "ImageSets" / ("Segmentation" if masks else "Main"))
        every = self._images()
        images = {split: [self._image(name, path, every) for name in names] for split, (path, names) in lists.items()}
        if masks:
            folder = self.path / "SegmentationClass"
            paths = {split: [folder / f"{name}.png" for name in names] for split, (_, names) in lists.items()}
            return self.segmented(images, paths, class_names(self.path), usual=CLASSES)
        check_apart(images, published=True)
        paths = {split: [self.path / "Annotations" / f"{x}.xml" for x in names] for split, (_, names) in lists.items()}
        found = {split: [_annotated(path) for path in files] for split, files in paths.items()}
        names = {one.name for per_image in found.values() for image in per_image for one in image.objects}
        classes = class_names(self.path) or tuple(sorted(names))
        parts = {split: self._part(split, images[split], paths[split], found[split], classes) for split in lists}
        return self.dense(parts, classes, RandomResize(SIZES, LONGEST))

    def _lists(self, folder: Path) -> dict[str, tuple[Path, list[str]]]:
        """Return the list of each split and the names of images in it."""
        paths = {split: folder / f"{split}.txt" for split in ("train", "val", "test")}
        if not paths["train"].exists():
            paths["train"] = folder / "trainval.txt"
        if not paths["test"].exists() and paths["val"].exists():
            paths["test"] = paths.pop("val")
        lists = {split: path for split, path in paths.items() if split != "val" or path.exists()}
        result = {}
        for split, path in lists.items():
            names = [line.split()[0] for line in read_lines(path)]
            twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
            if twice:
                raise InputError(f"{path} lists image {twice[0]!r} twice; remove one of the lines")
            result[split] = (path, names)
        return result

    def _images(self) -> dict[str, Path]:
        """Return the files in JPEGImages/ by their names in lists; of several with one name, the usual kind."""
        folder = self.path / "JPEGImages"
        ordered = sorted(image_files(folder), key=lambda path: (*SUFFIXES, path.suffix).index(path.suffix))
        return {path.relative_to(folder).with_suffix("").as_posix(): path for path in reversed(ordered)}

    def _image(self, name: str, listed: Path, images: dict[str, Path]) -> Path:
        if name not in images:
            raise InputError(f"{listed} lists image {name!r}, which is not in {self.path / 'JPEGImages'}; add it there")
        return images[name]

    def _part(
        self,
        split: str,
        images: list[Path],
        paths: list[Path],
        found: list[_Annotated],
        classes: tuple[str, ...],
    ) -> Part:
        label = {name: c for c, name in enumerate(classes)}
        flat = [(i, n, one) for i, image in enumerate(found) for n, one in enumerate(image.objects, 1)]
        for i, n, one in flat:
            if one.name not in label:
                choose(one.name, classes, f"class of object {n} in {paths[i]}")
        sizes = sizes_of(images, split)
        measured = sizes.tolist()
        check_sizes(measured, [one.size or size for one, size in zip(found, measured, strict=True)], images)
        annotations = [Annotation(i, label[one.name], one.box, difficult=one.difficult) for i, _, one in flat]
        objects, _ = self.objects(
            split,
            annotations,
            sizes,
            classes,
            self.path / "Annotations",
            lambda k: f"object {flat[k][1]} in {paths[flat[k][0]].name}",
        )
        return Part(files(images), sizes, objects=objects)


class _Object(NamedTuple):
    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class _Annotated(NamedTuple):
    """The content of a file: the objects, and height and width of the image, or None where they are not stated."""

    objects: list[_Object]
    size: list[int] | None


class _Doctype(Exception):
    """Raised where a file declares a document type."""


class _NoDoctype(ElementTree.TreeBuilder):
    """Builds a tree, and refuses a document type before its entities are read.

    Entities can refer to other files, and to each other so often that their text fills the memory. Annotations need
    none.
    """

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise _Doctype


def _annotated(path: Path) -> _Annotated:
    """Read an annotation file.

    Raises:
        InputError: the file is missing, is not XML or declares a document type, or an object has no name or no box.
    """
    try:
        root = ElementTree.parse(path, ElementTree.XMLParser(target=_NoDoctype())).getroot()
    except _Doctype:
        raise InputError(f"{path} declares a document type, which can define entities; remove it") from None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; add the annotation, or remove the image from the lists") from None
    except ElementTree.ParseError as error:
        raise InputError(f"{path} is not XML ({error}); restore or remove it") from None
    objects = []
    for number, found in enumerate(root.iter("object"), 1):
        try:
            left, top, right, bottom = (float(found.findtext(f"bndbox/{edge}", "")) for edge in EDGES)
        except ValueError:
            raise InputError(f"object {number} in {path} has no bndbox of four numbers; correct it") from None
        if left <= right and top <= bottom and (left, top) != (right, bottom):
            left, top = left - 1, top - 1  # other boxes have no area, and are left out later, with a note
        name = found.findtext("name", "").strip()
        if not name:
            raise InputError(f"object {number} in {path} has no name; correct it")
        objects.append(_Object(name, (left, top, right, bottom), found.findtext("difficult", "0").strip() == "1"))
    sides = [root.findtext(f"size/{side}", "").strip() for side in ("height", "width")]
    size = [int(side) for side in sides if side.isdecimal() and int(side)]
    return _Annotated(objects, size if len(size) == 2 else None)

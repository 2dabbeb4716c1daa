"""Images of your own with class masks, for segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ickd_lib.data.dense import IGNORED
from ickd_lib.data.images import Splits
from ickd_lib.data.joint import RandomCrop
from ickd_lib.data.pillow import image_files, require_few_pixels
from ickd_lib.data.sequences import Decoded, threaded
from ickd_lib.data.sets.annotated import (
    DenseDataSet,
    Part,
    check_apart,
    class_names,
    files,
    is_small,
    read_lines,
    sizes_of,
)
from ickd_lib.data.sets.base import register
from ickd_lib.runtime import InputError

CROP = 512  # pixels of a side of a training crop, at most


class MaskDataSet(DenseDataSet):
    """A data set whose class masks are files. A subclass finds the files and makes the result with `segmented`."""

    def segmented(
        self,
        images: Mapping[str, Sequence[Path]],
        masks: Mapping[str, Sequence[Path]],
        names: Sequence[str] = (),
        ignore: int = IGNORED,
        usual: Sequence[str] = (),
    ) -> Splits:
        """Read and check all masks, and make the splits.

        The size of the training crops is the median height and width of the training images, at most CROP.

        Args:
            images, masks: the image files of each split, and the masks of the same images.
            names: names of the classes. If there are none, they are those in `usual`, or else the numbers of the
                classes.
            ignore: value of the pixels that are ignored, beside 255.
            usual: names of the classes of a published data set, used if the highest value is that of the last of them.
        Raises:
            InputError: a mask cannot be read, has another size than its image or a class that has no name, there are
                fewer than two classes, or an image is in two splits.
        """
        for split, paths in images.items():
            if not paths:
                raise InputError(f"{self.title}/{split} contains no image; expected at least one")
        check_apart(images, published=bool(usual))
        sizes = {split: sizes_of(paths, split) for split, paths in images.items()}
        keep = not self.stream and is_small(list(sizes.values()))
        found: dict[str, list[Tensor]] = {}
        pixels: dict[str, Tensor] = {}
        for split, paths in masks.items():
            found[split], counts = [], []
            items = list(zip(paths, images[split], sizes[split].tolist(), strict=True))
            for mask in threaded(partial(_checked, ignore), items, f"reading masks of {split}"):
                counts.append(torch.bincount(mask.flatten(), minlength=256))
                if keep:
                    found[split].append(mask)
            pixels[split] = torch.stack(counts)[:, :IGNORED]
        present = torch.cat(list(pixels.values())).any(0).nonzero()
        if not len(present):
            raise InputError(f"{self.title} has no pixel of a class: all values of its masks are ignored")
        count = int(present.max()) + 1
        classes = tuple(names) or (tuple(usual) if count == len(usual) else tuple(str(c) for c in range(count)))
        if len(classes) < 2:
            ignored = " and ".join(map(str, sorted({ignore, IGNORED})))
            raise InputError(
                f"{self.title} has one class, {classes[0]!r}, because pixels of value {ignored} are ignored; save the "
                f"second class with another value, such as {_table(ignore).tolist().index(1)}"
            )
        for split, counts_of in pixels.items():
            outside = counts_of[:, len(classes) :].nonzero()
            if len(outside):
                position, c = int(outside[0, 0]), len(classes) + int(outside[0, 1])
                raise InputError(
                    f"{masks[split][position]} has pixels of value {_table(ignore).tolist().index(c)}, but there are "
                    f"{len(classes)} classes; add the class, correct the mask, or ignore the value"
                )
            self.note_absent(split, classes, counts_of.sum(0)[: len(classes)])
        parts = {
            split: Part(
                files(paths),
                sizes[split],
                tuple(found[split]) if keep else Decoded(partial(read_mask, ignore), tuple(masks[split])),
            )
            for split, paths in images.items()
        }
        height, width = sizes["train"].median(0).values.clamp(max=CROP).tolist()
        return self.dense(parts, classes, RandomCrop((height, width)))


@register("masks")
class Masks(MaskDataSet):
    """Images in PATH/SPLIT/images/ and their class masks in PATH/SPLIT/masks/, PNG files with the same names.

    The splits are train, test and optionally val; if there is no folder test/, val/ is the test split. The value of a
    pixel of a mask is the position of a class in PATH/classes.txt, which has a name on each line; without that file the
    names of the classes are their numbers. There must be two or more classes. Pixels with the value 255 are ignored.
    One more value can be ignored, which is the option `ignore` or the number in PATH/ignore.txt. Higher values then
    move down by one: if 0 is ignored, 1 is the first class.
    """

    options = frozenset({"path", "ignore", "image_size", "stream"})

    def read(self) -> Splits:
        images, masks = {}, {}
        for split, folder in self._split_folders().items():
            image, mask = _by_name(folder / "images"), _by_name(folder / "masks")
            for name in sorted(image.keys() ^ mask.keys()):
                path, lacks = (image[name], "mask") if name in image else (mask[name], "image")
                raise InputError(f"{path} has no {lacks} {folder / f'{lacks}s' / name}; add it, or remove the file")
            images[split] = list(image.values())
            masks[split] = [mask[name] for name in image]
        return self.segmented(images, masks, class_names(self.path), self._ignored())

    def _split_folders(self) -> dict[str, Path]:
        """Return the folders of the splits "train", "test" and, where both val/ and test/ exist, "val"."""
        found = {split: self.path / split for split in ("train", "val", "test") if (self.path / split).is_dir()}
        if "train" not in found or len(found) == 1:
            raise InputError(f"{self.path} lacks train/, or both test/ and val/; expected images/ and masks/ in each")
        if "test" not in found:
            found["test"] = found.pop("val")
        return found

    def _ignored(self) -> int:
        path = self.path / "ignore.txt"
        given = [str(self.ignore)] if self.ignore is not None else read_lines(path) if path.exists() else [str(IGNORED)]
        if len(given) != 1 or not given[0].isdecimal() or int(given[0]) > 255:
            raise InputError(
                f"{'ignore' if self.ignore is not None else path} is {' '.join(given)!r}; give one number from 0 to 255"
            )
        return int(given[0])


def _by_name(folder: Path) -> dict[str, Path]:
    """Return the image files in a folder by their paths in it without the extension, sorted."""
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; expected images/ and masks/ in the folder of each split")
    found: dict[str, Path] = {}
    for path in image_files(folder):
        other = found.setdefault(str(path.relative_to(folder).with_suffix("")), path)
        if other != path:
            raise InputError(f"{path} and {other} differ in their extension only; remove one of them")
    return dict(sorted(found.items()))


def read_mask(ignore: int, path: Path) -> Tensor:
    """Read a class mask, uint8 [h, w], in which pixels of the values `ignore` and 255 become 255.

    Raises:
        InputError: the file cannot be read or is a JPEG file, or its pixels are not whole numbers from 0 to 255.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            require_few_pixels(path, file.height, file.width)
            if file.format in ("JPEG", "MPO"):
                raise InputError(f"{path} is a JPEG file, which changes the values of pixels; save the mask as PNG")
            values, mode = np.asarray(file), file.mode
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; add the mask, or remove its image from the data set") from None
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read ({error}); repair or remove it") from None
    if values.ndim != 2 or mode == "F" or values.min() < 0 or values.max() > 255:
        raise InputError(f"{path} is an image of mode {mode}; expected one number from 0 to 255 a pixel: its class")
    return _table(ignore)[torch.from_numpy(values.astype(np.int64))]


def _table(ignore: int) -> Tensor:
    """Return the class that each of the 256 values of a pixel stands for, uint8 [256]."""
    table = torch.arange(256)
    table -= (table > ignore).long()
    table[[ignore, IGNORED]] = IGNORED
    return table.to(torch.uint8)


def _checked(ignore: int, item: tuple[Path, Path, list[int]]) -> Tensor:
    """Read a mask whose size must be that of its image."""
    path, image, (height, width) = item
    mask = read_mask(ignore, path)
    if mask.shape != (height, width):
        raise InputError(
            f"{path} has {mask.shape[1]}×{mask.shape[0]} pixels, but its image {image} has {width}×{height}; "
            "make them the same size"
        )
    return mask

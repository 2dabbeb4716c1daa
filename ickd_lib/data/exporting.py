"""A data set as a folder of PNG files, in the layout of `folder:PATH`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from ickd_lib.data.dense import DenseImages
from ickd_lib.data.images import Images, Splits
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import Natural, checked


@checked
def write_folder(splits: Splits, path: str | Path, *, labels: Natural = 0) -> Path:
    """Write the images of a data set into class folders of PNG files, which `load("folder:PATH")` reads.

    A folder that exists is left as it is.

    Args:
        splits: training, test and, where there are some, validation images, whose classes have names that can be names
            of folders.
        path: the folder to write.
        labels: number of training images that keep their label, stratified by class; the others, and images without a
            label, are written into PATH/unlabelled. With 0, all keep it.
    Returns:
        The path.
    Raises:
        InputError: the images have masks or objects, and so not one class each.
    """
    if isinstance(splits.train, DenseImages):
        raise InputError(f"{splits.train.name} has masks or objects, and class folders hold one class of each image")
    path = Path(path)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as made:
        part = Path(made, path.name)
        labelled = splits.train.subset((splits.train.labels >= 0).nonzero().squeeze(1))
        labelled = labelled.few(labels) if labels else labelled
        _write(labelled, part / "train", by_class=True)
        _write(splits.val, part / "val", by_class=True)
        _write(splits.test, part / "test", by_class=True)
        others = splits.train.subset((~torch.isin(splits.train.index, labelled.index)).nonzero().squeeze(1))
        if len(others):
            _write(others, part / "unlabelled", by_class=False)
        part.rename(path)
    return path


def _write(images: Images, folder: Path, *, by_class: bool) -> None:
    from PIL import Image

    for at in range(len(images)):
        below = folder / images.classes[int(images.labels[at])] if by_class else folder
        below.mkdir(parents=True, exist_ok=True)
        pixels = images.shown(slice(at, at + 1))[0].cpu().permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(pixels).save(below / f"{int(images.index[at]):05}.png")

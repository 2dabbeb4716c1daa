"""Small folders of image files for the tests of streamed data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_folder(root: Path, train: int = 8, test: int = 3, classes: int = 3, sizes=((20, 20),), suffix="jpg") -> Path:
    """Write train/ and test/ with `train` and `test` images of each class, whose sizes take turns; return the root.

    The brightness of an image follows its class, so that a network can learn something.
    """
    rng, number = np.random.default_rng(0), 0
    for split, count in (("train", train), ("test", test)):
        for c in range(classes):
            folder = root / split / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = sizes[number % len(sizes)]
                pixels = rng.integers(0, 100, (height // 2, width // 2, 3)) + 70 * c
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize((width, height))
                image.save(folder / f"{i}.{suffix}", quality=95)
                number += 1
    return root

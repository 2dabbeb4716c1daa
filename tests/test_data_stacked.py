"""Pixels and labels of data sets of pairs."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision.datasets import FakeData
from torchvision.transforms import v2

from ickd_lib import data
from ickd_lib.runtime import InputError

GREY = torch.arange(64, dtype=torch.uint8).reshape(8, 8) * 4
RGB = torch.stack([GREY, 255 - GREY, GREY // 2])


def test_a_data_set_of_torchvision():
    pairs = FakeData(5, (3, 9, 7), num_classes=4)
    pixels, labels = data.stacked(pairs)
    assert pixels.dtype == torch.uint8 and pixels.shape == (5, 3, 9, 7) and pixels.is_contiguous()
    assert labels.tolist() == [int(label) for _, label in pairs]
    assert torch.equal(pixels[3], torch.from_numpy(np.array(pairs[3][0])).permute(2, 0, 1))
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    assert torch.equal(data.stacked(FakeData(5, (3, 9, 7), num_classes=4, transform=to_tensor))[0], pixels)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GREY.numpy()), GREY.expand(3, 8, 8)),
        (GREY, GREY.expand(3, 8, 8)),
        (GREY[None], GREY.expand(3, 8, 8)),
        (GREY.numpy()[..., None], GREY.expand(3, 8, 8)),
        (RGB, RGB),
        (RGB / 255, RGB),
        (RGB.permute(1, 2, 0).numpy(), RGB),
        (RGB.permute(1, 2, 0).numpy().astype(np.float64) / 255, RGB),
    ],
    ids=["pillow", "tensor", "one channel", "array of one channel", "three", "float", "array", "float array"],
)
def test_each_kind_of_image(image, expected):
    pixels, labels = data.stacked([(image, 1), (image, torch.tensor(0))])
    assert torch.equal(pixels[0], expected) and torch.equal(pixels[1], expected) and labels.tolist() == [1, 0]


def test_images_of_different_sizes_are_resized():
    pairs = [(Image.new("RGB", size, colour), 0) for size, colour in (((8, 6), "red"), ((20, 30), "blue"))]
    pixels, _ = data.stacked(pairs, image_size=4)
    assert pixels.shape == (2, 3, 4, 4) and pixels[0, 0].eq(255).all() and pixels[1, 2].eq(255).all()
    with pytest.raises(InputError, match="item 1 of list has 20×30 pixels, but the first image has 8×6"):
        data.stacked(pairs)


@pytest.mark.parametrize(
    ("items", "problem"),
    [
        ([], "list has no items"),
        ([5], "item 0 of list is not a pair"),
        ([(GREY, "cat")], "the number of its class"),
        ([(GREY, (1, 2))], "the number of its class"),
        ([(RGB / 255 - 0.5, 0)], "values from -0.5 to .*leave out transforms that normalise"),
        ([(GREY / torch.nan, 0)], "values from nan to nan"),
        ([(GREY.long(), 0)], "values of type int64; expected uint8"),
        ([(RGB.permute(1, 2, 0), 0)], r"shape \[8, 8, 3\]; expected"),
        ([("file.png", 0)], "item 0 of list has a str; expected"),
    ],
)
def test_wrong_items_are_named(items, problem):
    with pytest.raises(InputError, match=problem):
        data.stacked(items)


def test_it_takes_a_dataset_of_tensors():
    pixels, labels = data.stacked(TensorDataset(torch.stack([RGB, RGB // 2]), torch.tensor([2, 1])))
    assert torch.equal(pixels, torch.stack([RGB, RGB // 2])) and labels.tolist() == [2, 1]

"""The operations of RandAugment on a batch are those that torchvision applies to one image."""

import pytest
import torch
from torchvision.transforms import v2

from ickd_lib.data import randaugment

NAMES = dict(
    zip(
        randaugment.OPERATIONS,
        (
            *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
            *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
        ),
        strict=True,
    )
)
STRENGTH, SIGNS = torch.arange(31).repeat(2), torch.tensor([1] * 31 + [-1] * 31)


@pytest.fixture(scope="module")
def pixels():
    coarse = torch.rand(62, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(24, 40), mode="bilinear").mul(255).byte()


def by_torchvision(pixels, name):
    augment, found = v2.RandAugment(), []
    strengths, signed = augment._AUGMENTATION_SPACE[NAMES[name]]
    strengths = strengths(31, *pixels.shape[2:])
    for image, strength, sign in zip(pixels, STRENGTH.tolist(), SIGNS.tolist(), strict=True):
        value = 0.0 if strengths is None else float(strengths[strength]) * (sign if signed else 1)
        options = {"interpolation": v2.InterpolationMode.NEAREST, "fill": augment._fill}
        found.append(augment._apply_image_or_video_transform(image, NAMES[name], value, **options))
    return torch.stack(found)


@pytest.mark.parametrize("name", randaugment.OPERATIONS)
def test_each_operation_is_that_of_torchvision_at_every_strength(name, pixels):
    before = pixels.clone()
    kinds = torch.full((62,), randaugment.OPERATIONS.index(name))
    differences = (randaugment.applied(pixels, kinds, STRENGTH, SIGNS).int() - by_torchvision(pixels, name).int()).abs()
    assert torch.equal(pixels, before)
    # A pixel whose source, or whose threshold, is rounded the other way may be another one.
    assert (differences > 1).float().mean() < (0.001 if name in ("shear x", "shear y", "solarize") else 1e-9)
    assert (differences > 0).float().mean() < 0.01


def test_images_of_a_batch_have_their_own_operations(pixels):
    kinds = torch.arange(62) % len(randaugment.OPERATIONS)
    together = randaugment.applied(pixels, kinds, STRENGTH, SIGNS)
    alone = [
        randaugment.applied(pixels[i : i + 1], kinds[i : i + 1], STRENGTH[i : i + 1], SIGNS[i : i + 1])
        for i in range(62)
    ]
    assert torch.equal(together, torch.cat(alone)) and together.dtype == torch.uint8


def test_each_operation_is_drawn_as_often_as_the_others_with_both_signs(monkeypatch):
    given = []
    monkeypatch.setattr(randaugment, "applied", lambda *arguments: given.append(arguments))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        randaugment.drawn(torch.zeros(2800, 3, 1, 1, dtype=torch.uint8), torch.full((2800,), 9))
    ((_, kinds, strength, signs),) = given
    counts = kinds.bincount()
    assert len(counts) == len(randaugment.OPERATIONS) == 14 and 150 < counts.min() <= counts.max() < 250
    assert (strength == 9).all() and signs.unique().tolist() == [-1, 1] and signs.sum().abs() < 200

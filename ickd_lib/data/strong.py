"""Strong augmentation after crop and flip: RandAugment, Mixup and CutMix as torchvision implements them, Cutout, and
changes of colour and sharpness that leave class masks and boxes as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data import randaugment
from ickd_lib.data.randaugment import STRENGTHS
from ickd_lib.runtime import InputError

AUGMENTATIONS = ("crop", "randaugment", "mixup", "cutmix")
MIXUP_ALPHA = 1.0  # Zhang et al. 2018 (arXiv 1710.09412) for CIFAR; they use 0.2 for ImageNet.
COLOURS = (0.6, 1.4)  # smallest and largest factor of brightness, contrast and saturation of `recoloured`
BLUR = (0.1, 1.5)  # smallest and largest standard deviation of its blur in pixels
CUTMIX_ALPHA = 1.0  # Yun et al. 2019 (arXiv 1905.04899) for ImageNet and CIFAR.


def augmentation(name: str) -> str:
    """Return the augmentation `name` with its parts, joined by "+", in the order in which they are applied.

    Raises:
        InputError: a part is unknown or given twice, mixup is combined with cutmix, or crop with another part.
    """
    parts = [runtime.choose(part.strip(), AUGMENTATIONS, "augmentation") for part in str(name).split("+")]
    if len(set(parts)) < len(parts):
        raise InputError(f"augment={name!r} contains a part twice; give each part once")
    if len(parts) > 1 and "crop" in parts:
        raise InputError(f"augment={name!r}: crop and flip always come before the other parts; remove 'crop'")
    if {"mixup", "cutmix"} <= set(parts):
        raise InputError(f"augment={name!r} mixes images in two ways; choose mixup or cutmix")
    return "+".join(sorted(parts, key=AUGMENTATIONS.index))


def distorted(pixels: Tensor, *keys: object) -> Tensor:
    """Apply two operations of RandAugment at random magnitudes, and then Cutout, to each image.

    This is the strong view of multi-level logit distillation and of semi-supervised learning (Sohn et al. 2020, arXiv
    2001.07685). The square of Cutout is grey, its side is drawn between 0 and half the width of the image, and its
    centre is drawn over the image. The result is a function of the arguments.

    Args:
        pixels: cropped and flipped images, uint8, shape [B, 3, H, W].
        keys: the random numbers are a function of these values.
    Returns:
        Images, float in [0, 1], shape [B, 3, H, W], in channels-last memory format.
    """
    count, _, height, width = pixels.shape
    with runtime.seeded("strong view", *keys):
        images = pixels
        for strength in torch.randint(STRENGTHS, (2, count), device="cpu"):
            images = randaugment.drawn(images, strength)
        side, down, right = torch.rand(3, count, 1, device="cpu").to(pixels.device)
    half = side * width / 4
    rows = (torch.arange(height, device=pixels.device) + 0.5 - down * height).abs() < half
    columns = (torch.arange(width, device=pixels.device) + 0.5 - right * width).abs() < half
    images = images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 127)
    return images.float().div_(255).contiguous(memory_format=torch.channels_last)


def recoloured(image: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and saturation of an image at random and, in half of the cases, blur it.

    No pixel moves, so that class masks and boxes stay right.

    Args:
        image: floats in [0, 1], shape [3, h, w].
        generator: the random numbers are drawn from it.
    Returns:
        An image of the same shape, floats in [0, 1].
    """
    from torchvision.transforms.v2 import functional

    low, high = COLOURS
    *factors, blur, sigma = torch.rand(5, generator=generator).tolist()
    changes = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    for change, factor in zip(changes, factors, strict=True):
        image = change(image, low + (high - low) * factor)
    if blur < 0.5 and min(image.shape[1:]) > 2:  # the border is reflected
        image = functional.gaussian_blur(image, [5, 5], [BLUR[0] + (BLUR[1] - BLUR[0]) * sigma])
    return image


def augmented(pixels: Tensor, augment: str, *keys: object) -> tuple[Tensor, Tensor | None]:
    """Apply RandAugment, then Mixup or CutMix, according to `augment`.

    The result is a function of the arguments; torch's global generators keep their state.

    Args:
        pixels: cropped and flipped images, uint8, shape [B, 3, H, W].
        augment: an augmentation as `augmentation` returns it.
        keys: the random numbers are a function of these values.
    Returns:
        Images, float in [0, 1], shape [B, 3, H, W], in channels-last memory format. With Mixup or CutMix also the share
        of image j in the mixed image i, shape [B, B], where each row sums to 1; otherwise None.
    """
    from torchvision.transforms import v2

    parts, shares = augment.split("+"), None
    with runtime.seeded("augment", *keys):
        if "randaugment" in parts:
            for _ in range(2):  # operations for each image, at torchvision's default strength
                pixels = randaugment.drawn(pixels, torch.full((len(pixels),), 9, device="cpu"))
        images = pixels.float().div_(255)
        if "mixup" in parts or "cutmix" in parts:
            kind, alpha = (v2.MixUp, MIXUP_ALPHA) if "mixup" in parts else (v2.CutMix, CUTMIX_ALPHA)
            # With each image's own position as its label, the soft labels are the shares of the images.
            own = torch.arange(len(images), device=images.device)
            images, shares = kind(alpha=alpha, num_classes=len(images))(images, own)
            images.clamp_(0, 1)  # Rounding can make the weighted mean of two ones slightly larger than 1.
    return images.contiguous(memory_format=torch.channels_last), shares

"""Strong augmentation, applied after crop and flip: RandAugment, Mixup and CutMix as torchvision implements them."""

from __future__ import annotations

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.runtime import InputError

AUGMENTATIONS = ("crop", "randaugment", "mixup", "cutmix")
MIXUP_ALPHA = 1.0  # Zhang et al. 2018 (arXiv 1710.09412) for CIFAR; they use 0.2 for ImageNet.
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
            transform = v2.RandAugment()
            # One call for the whole batch would apply the same operations to every image.
            pixels = torch.stack([transform(image) for image in pixels])
        images = pixels.float().div_(255)
        if "mixup" in parts or "cutmix" in parts:
            kind, alpha = (v2.MixUp, MIXUP_ALPHA) if "mixup" in parts else (v2.CutMix, CUTMIX_ALPHA)
            # With each image's own position as its label, the soft labels are the shares of the images.
            own = torch.arange(len(images), device=images.device)
            images, shares = kind(alpha=alpha, num_classes=len(images))(images, own)
            images.clamp_(0, 1)  # Rounding can make the weighted mean of two ones slightly larger than 1.
    return images.contiguous(memory_format=torch.channels_last), shares

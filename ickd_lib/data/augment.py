"""Strong augmentation, after crop and flip: RandAugment, Mixup and CutMix of torchvision."""

from __future__ import annotations

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.runtime import InputError

AUGMENTATIONS = ("crop", "randaugment", "mixup", "cutmix")
MIXUP_ALPHA = 1.0  # Zhang et al. 2018 (arXiv 1710.09412), CIFAR; 0.2 on ImageNet
CUTMIX_ALPHA = 1.0  # Yun et al. 2019 (arXiv 1905.04899), ImageNet and CIFAR


def augmentation(name: str) -> str:
    """The augmentation `name`, parts joined by "+", with its parts in the order in which they are taken.

    Raises:
        InputError: an unknown part, one given twice, mixup with cutmix, or crop with others.
    """
    parts = [runtime.choose(part.strip(), AUGMENTATIONS, "augmentation") for part in str(name).split("+")]
    if len(set(parts)) < len(parts):
        raise InputError(f"augment={name!r} names a part twice; give each once")
    if len(parts) > 1 and "crop" in parts:
        raise InputError(f"augment={name!r}: crop and flip come before the others anyway; leave 'crop' out")
    if {"mixup", "cutmix"} <= set(parts):
        raise InputError(f"augment={name!r} mixes images in two ways; choose mixup or cutmix")
    return "+".join(sorted(parts, key=AUGMENTATIONS.index))


def strong(pixels: Tensor, augment: str, *keys: object) -> tuple[Tensor, Tensor | None]:
    """RandAugment, then Mixup or CutMix, as `augment` says; a function of `keys` and the pixels.

    Args:
        pixels: uint8, shape [B, 3, H, W], cropped and flipped.
        augment: what `augmentation` returns.
        keys: the random draws are a function of them; the global generators stay as they were.
    Returns:
        Images, float in [0, 1], shape [B, 3, H, W], channels-last; and, where they are mixed, the share that image j
        has in image i, shape [B, B], rows summing to 1, else None.
    """
    from torchvision.transforms import v2

    parts, shares = augment.split("+"), None
    with runtime.seeded("augment", *keys):
        if "randaugment" in parts:
            one = v2.RandAugment()
            pixels = torch.stack([one(image) for image in pixels])  # a call on all of them would draw once
        images = pixels.float().div_(255)
        if "mixup" in parts or "cutmix" in parts:
            kind, alpha = (v2.MixUp, MIXUP_ALPHA) if "mixup" in parts else (v2.CutMix, CUTMIX_ALPHA)
            own = torch.arange(len(images), device=images.device)
            images, shares = kind(alpha=alpha, num_classes=len(images))(images, own)
            images.clamp_(0, 1)  # a convex sum of ones may round to more
    return images.contiguous(memory_format=torch.channels_last), shares

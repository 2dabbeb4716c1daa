"""How a teacher cache stores the teacher's outputs: in half precision, all logits or the largest ones alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.models.network import Network, Output
from ickd_lib.runtime import InputError

LARGEST = 2**15  # number of classes that 16 bits can count
LEAST = 4  # smallest number of images in a pass
SPREAD = 2.0  # a compromise between 1 and 4, the temperatures that are usual


@torch.no_grad()
def teacher_outputs(teacher: Network, images: Tensor, precision: str) -> Output:
    """Return a teacher's outputs of images [n, 3, H, W], each of which does not depend on the others.

    On a CPU, products of matrices with fewer than `LEAST` rows are rounded in another way. Which images are computed in
    one pass depends on when a training was stopped, so a smaller pass repeats an image.
    """
    count = len(images)
    if count < LEAST:
        images = torch.cat([images, images[-1:].expand(LEAST - count, -1, -1, -1)])
        images = images.contiguous(memory_format=torch.channels_last)
    with runtime.autocast(images.device, precision):
        output = teacher(images)
    return Output(output.logits[:count], output.features[:count])


class StoredOutputs:
    """The form of the stored outputs.

    With `top`, the K largest logits are stored, with their positions. All other classes get one common logit,
    with which their total probability at the temperature `SPREAD` is that of the teacher; it is never larger than the K
    stored ones. At temperature 1 these classes then have a little less probability than the teacher gives them, and at
    4 a little more.

    Args:
        classes: number of classes C.
        features_dim: number of features D, or 0 if they are not stored.
        top: number K of the logits that are stored; 0 stores all.
    Raises:
        InputError: K is negative or not smaller than C, or C is too large for it.
    """

    def __init__(self, classes: int, features_dim: int, top: int = 0) -> None:
        if top and not (0 < top < classes <= LARGEST):
            raise InputError(
                f"teacher_cache_top={top} is not a number of logits from 1 to {min(classes, LARGEST) - 1}, one less "
                "than the teacher's classes; give 0 to store all logits"
            )
        self.classes, self.features_dim, self.top = classes, features_dim, top
        self.logits = 2 * top + 1 if top else classes  # numbers of 16 bits
        self.width = self.logits + features_dim

    def pack(self, logits: Tensor, features: Tensor) -> Tensor:
        """Return logits [n, C] and features [n, D] as records, half, shape [n, width].

        Raises:
            InputError: a number is finite, but too large for half precision.
        """
        logits = logits.float()
        if self.top:
            values, at = logits.topk(self.top, 1)
            others = logits.scatter(1, at, -torch.inf)
            rest = (others / SPREAD).logsumexp(1, keepdim=True) - math.log(self.classes - self.top)
            logits = torch.cat([values, SPREAD * rest], 1)
        parts = [logits, features.float()] if self.features_dim else [logits]
        exact = torch.cat(parts, 1)
        record = exact.half()
        if bool((record.isinf() & exact.isfinite()).any()):
            raise InputError(
                f"the teacher's outputs reach {exact[exact.isfinite()].abs().max():,.0f}, and a teacher cache stores "
                "numbers up to 65,504; train without a teacher cache"
            )
        # The positions are 16 bits wide as well, and are stored as if they were half precision numbers.
        return torch.cat([at.to(torch.int16).view(torch.half), record], 1) if self.top else record

    def unpack(self, records: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits [n, C] and features [n, D] of records [n, width], in float32."""
        features = records[:, self.logits :].float()
        if not self.top:
            return records[:, : self.classes].float(), features
        at = records[:, : self.top].contiguous().view(torch.int16).long()
        values = records[:, self.top : self.logits].float()
        logits = values[:, -1:].expand(-1, self.classes).scatter(1, at, values[:, :-1])
        return logits, features

"""The handwritten digits of scikit-learn."""

from __future__ import annotations

import numpy as np
import torch

from ickd_lib.data.images import Splits
from ickd_lib.data.selection import stratified
from ickd_lib.data.sets.base import DataSet, register
from ickd_lib.runtime import InputError


@register("digits")
class Digits(DataSet):
    """1,797 handwritten digits of 8×8 pixels in 10 classes, which scikit-learn contains.

    The data set has no published split. Here 1,000 stratified images, always the same, are the training split and the
    other 797 the test split.
    """

    def read(self) -> Splits:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise InputError("data set 'digits' is part of scikit-learn; run pip install scikit-learn") from None
        bunch = load_digits()
        images = torch.from_numpy((bunch.images * 255 / 16).round().astype(np.uint8))  # 17 grey levels, 0 to 16
        images = images[:, None].expand(-1, 3, -1, -1)
        digit = torch.from_numpy(bunch.target).long()
        classes = tuple(str(c) for c in bunch.target_names)
        train = stratified(digit, 1000, classes, seed=0)
        in_test = torch.ones(len(digit), dtype=torch.bool)
        in_test[train] = False
        test = in_test.nonzero().squeeze(1)
        return self.splits(
            {"train": images[train], "test": images[test]},
            {"train": digit[train], "test": digit[test]},
            classes=classes,
            pad=1,
        )

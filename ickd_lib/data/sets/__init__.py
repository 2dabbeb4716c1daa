"""The data sets, each a registered class in a file of its own."""

from ickd_lib.data.sets import cifar100, coco, digits, folder, imagenet, masks, scenes, voc  # noqa: F401  # registers them
from ickd_lib.data.sets.base import DataSet, create, kinds, names, register

__all__ = ["DataSet", "create", "kinds", "names", "register"]

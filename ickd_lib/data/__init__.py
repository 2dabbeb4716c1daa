"""Data sets whose images stay in memory as tensors: `load` one by name, then draw batches with a `Sampler`."""

from ickd_lib.data.images import Batch, Images, Splits
from ickd_lib.data.loading import load
from ickd_lib.data.sampler import Sampler
from ickd_lib.data.selection import stratified
from ickd_lib.data.sets import DataSet, names, register
from ickd_lib.data.strong import AUGMENTATIONS

__all__ = [
    "AUGMENTATIONS",
    "Batch",
    "DataSet",
    "Images",
    "Sampler",
    "Splits",
    "load",
    "names",
    "register",
    "stratified",
]

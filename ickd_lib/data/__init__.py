"""Data sets: `load` one by name, then draw batches with a `Sampler`.

`Images` and `StreamedImages` have one label each; `DenseImages` have class masks or objects.
"""

from ickd_lib.data.by_name import load
from ickd_lib.data.dense import DenseBatch, DenseImages
from ickd_lib.data.exporting import write_folder
from ickd_lib.data.images import Images, Splits
from ickd_lib.data.joint import RandomCrop, RandomResize
from ickd_lib.data.labelled import Batch, LabelledImages
from ickd_lib.data.loader import Loader
from ickd_lib.data.objects import Objects, SplitObjects
from ickd_lib.data.pairs import stacked
from ickd_lib.data.sampler import Sampler
from ickd_lib.data.selection import stratified
from ickd_lib.data.sets import DataSet, kinds, names, register
from ickd_lib.data.streamed import StreamedImages
from ickd_lib.data.strong import AUGMENTATIONS

__all__ = [
    "AUGMENTATIONS",
    "Batch",
    "DataSet",
    "DenseBatch",
    "DenseImages",
    "Images",
    "LabelledImages",
    "Loader",
    "Objects",
    "RandomCrop",
    "RandomResize",
    "Sampler",
    "SplitObjects",
    "Splits",
    "StreamedImages",
    "kinds",
    "load",
    "names",
    "register",
    "stacked",
    "stratified",
    "write_folder",
]

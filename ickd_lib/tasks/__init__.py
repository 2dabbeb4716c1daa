"""Tasks: they turn batches of images into samples, and define the metrics of a network."""

from ickd_lib.tasks.base import Column, Pixels, Samples, Task, create, mean_of_each, names, register
from ickd_lib.tasks.classification import Classification
from ickd_lib.tasks.detection import Detection
from ickd_lib.tasks.segmentation import Segmentation

__all__ = [
    "Classification",
    "Column",
    "Detection",
    "Pixels",
    "Samples",
    "Segmentation",
    "Task",
    "create",
    "mean_of_each",
    "names",
    "register",
]

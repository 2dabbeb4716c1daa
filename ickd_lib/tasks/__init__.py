"""Tasks: they turn batches of images into samples, and define the metrics of a network."""

from ickd_lib.tasks.base import Column, Pixels, Samples, Task, create, names, register
from ickd_lib.tasks.classification import Classification

__all__ = ["Classification", "Column", "Pixels", "Samples", "Task", "create", "names", "register"]

"""Tasks: how a batch of images becomes samples, and what is measured of a network."""

from ickd_lib.tasks.base import Column, Samples, Task, create, names, register
from ickd_lib.tasks.classification import Classification

__all__ = ["Classification", "Column", "Samples", "Task", "create", "names", "register"]

"""Training: one loop for every method, teachers that are kept, comparisons over seeds."""

from ickd_lib.training.loop import distill
from ickd_lib.training.published import Published, published, published_accuracy
from ickd_lib.training.recipe import SCHEDULES, Recipe
from ickd_lib.training.records import History, Student
from ickd_lib.training.runs import circle, compare, evaluate, load, pretrain, step_seconds

__all__ = [
    "SCHEDULES",
    "History",
    "Published",
    "Recipe",
    "Student",
    "circle",
    "compare",
    "distill",
    "evaluate",
    "load",
    "pretrain",
    "published",
    "published_accuracy",
    "step_seconds",
]

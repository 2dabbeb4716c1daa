"""Training: one loop for every method, teachers that are kept, comparisons over seeds."""

from ickd_lib.training.learner import History, Student
from ickd_lib.training.loop import distill
from ickd_lib.training.recipe import SCHEDULES, Recipe
from ickd_lib.training.runs import compare, evaluate, load, pretrain

__all__ = ["SCHEDULES", "History", "Recipe", "Student", "compare", "distill", "evaluate", "load", "pretrain"]

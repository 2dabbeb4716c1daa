"""Training: one loop for every method and task, teachers that are kept for reuse, and comparisons over seeds."""

from ickd_lib.training.callbacks import Callback, KeepWeights, ProgressBar
from ickd_lib.training.comparison import check_methods, compare, peer_group, step_seconds
from ickd_lib.training.distillation import distill
from ickd_lib.training.finetuning import teach
from ickd_lib.training.jobs import JobsDied
from ickd_lib.training.predictions import Predictions, load_predictions
from ickd_lib.training.presets import Published, published, published_accuracy
from ickd_lib.training.processes import Processes
from ickd_lib.training.recipe import SCHEDULES, Recipe
from ickd_lib.training.records import History
from ickd_lib.training.slurm import Slurm
from ickd_lib.training.streamed_cache import StreamedTeacherCache
from ickd_lib.training.students import Student
from ickd_lib.training.teacher_cache import TeacherCache
from ickd_lib.training.teachers import evaluate, load, pretrain

__all__ = [
    "SCHEDULES",
    "Callback",
    "History",
    "JobsDied",
    "KeepWeights",
    "Predictions",
    "Processes",
    "ProgressBar",
    "Published",
    "Recipe",
    "Slurm",
    "StreamedTeacherCache",
    "Student",
    "TeacherCache",
    "check_methods",
    "compare",
    "distill",
    "evaluate",
    "load",
    "load_predictions",
    "peer_group",
    "pretrain",
    "published",
    "published_accuracy",
    "step_seconds",
    "teach",
]

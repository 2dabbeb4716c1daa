"""The results in run folders: overview and progress of all runs, tables over seeds, differences between two runs."""

from ickd_lib.runs.difference import diff, distinctions
from ickd_lib.runs.folders import (
    averaged,
    collected,
    csv_of,
    diverged,
    finished,
    finished_rows,
    long,
    overview,
    records,
)
from ickd_lib.runs.seeds import (
    behind_labels,
    chosen_baseline,
    differences,
    grouped,
    interval,
    mean_std,
    named,
    paired,
    without_teacher,
)
from ickd_lib.runs.status import progress, progress_table
from ickd_lib.runs.tables import beside_published, escaped, latex, published_table, table

__all__ = [
    "averaged",
    "behind_labels",
    "beside_published",
    "chosen_baseline",
    "collected",
    "csv_of",
    "diff",
    "differences",
    "distinctions",
    "diverged",
    "escaped",
    "finished",
    "finished_rows",
    "grouped",
    "interval",
    "latex",
    "long",
    "mean_std",
    "named",
    "overview",
    "paired",
    "progress",
    "progress_table",
    "published_table",
    "records",
    "table",
    "without_teacher",
]

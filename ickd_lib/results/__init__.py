"""Tables from run folders: all runs with what became of them, mean ± std over seeds, differences paired by seed."""

from ickd_lib.results.folders import averaged, csv_of, finished, long, overview, records
from ickd_lib.results.seeds import differences, grouped, interval, mean_std, named, paired
from ickd_lib.results.tables import beside_published, escaped, latex, table

__all__ = [
    "averaged",
    "beside_published",
    "csv_of",
    "differences",
    "escaped",
    "finished",
    "grouped",
    "interval",
    "latex",
    "long",
    "mean_std",
    "named",
    "overview",
    "paired",
    "records",
    "table",
]

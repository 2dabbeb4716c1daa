"""HTML pages about runs: each is one file, which is opened without a network."""

from ickd_lib.pages.networks import Evaluated, Outputs
from ickd_lib.pages.writing import LIMIT, report, write

__all__ = ["LIMIT", "Evaluated", "Outputs", "report", "write"]

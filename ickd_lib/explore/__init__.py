"""Computations behind the explorers: in-context samples of queries, and maps and regions of the logit space."""

from ickd_lib.explore.maps import embed
from ickd_lib.explore.neighbours import Neighbourhood, in_context, neighbourhood, require_fit, terms
from ickd_lib.explore.regions import Region, region
from ickd_lib.explore.samples import SampleSet
from ickd_lib.explore.selection import positions, search, selection_csv

__all__ = [
    "Neighbourhood",
    "Region",
    "SampleSet",
    "embed",
    "in_context",
    "neighbourhood",
    "positions",
    "region",
    "require_fit",
    "search",
    "selection_csv",
    "terms",
]

"""Computations behind the explorers: in-context samples, maps and regions of the logit space, contributions."""

from ickd_lib.explore.contributions import Attribution, Attributor, attribution
from ickd_lib.explore.gradients import attributable
from ickd_lib.explore.maps import embed
from ickd_lib.explore.neighbours import Neighbourhood, in_context, neighbourhood, require_fit, terms
from ickd_lib.explore.own import own_image
from ickd_lib.explore.regions import Region, region
from ickd_lib.explore.samples import SampleSet
from ickd_lib.explore.selection import next_key, positions, search, selection_csv
from ickd_lib.explore.suspects import Suspects, suspect_labels

__all__ = [
    "Attribution",
    "Attributor",
    "Neighbourhood",
    "Region",
    "SampleSet",
    "Suspects",
    "attributable",
    "attribution",
    "embed",
    "in_context",
    "neighbourhood",
    "next_key",
    "own_image",
    "positions",
    "region",
    "require_fit",
    "search",
    "selection_csv",
    "suspect_labels",
    "terms",
]

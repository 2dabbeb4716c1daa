"""What the explorers show, as data: one query and its in-context samples; maps and regions of the logit space."""

from ickd_lib.explore.neighbourhood import Neighbourhood, in_context, neighbourhood, require_fit, search, terms
from ickd_lib.explore.space import Region, embed, positions, region

__all__ = [
    "Neighbourhood",
    "Region",
    "embed",
    "in_context",
    "neighbourhood",
    "positions",
    "region",
    "require_fit",
    "search",
    "terms",
]

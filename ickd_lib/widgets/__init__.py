"""Interactive explorers for notebooks: thin layers of controls over `explore` and `plots`."""

from ickd_lib.widgets.attribution import AttributionExplorer
from ickd_lib.widgets.logits import LogitSpaceExplorer
from ickd_lib.widgets.neighbours import NeighbourExplorer
from ickd_lib.widgets.runs import RunExplorer
from ickd_lib.widgets.suspects import SuspectExplorer
from ickd_lib.widgets.view import Explorer, View

__all__ = [
    "AttributionExplorer",
    "Explorer",
    "LogitSpaceExplorer",
    "NeighbourExplorer",
    "RunExplorer",
    "SuspectExplorer",
    "View",
]

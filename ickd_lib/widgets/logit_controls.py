"""The controls of the logit-space explorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as ipw

from ickd_lib.explore import SampleSet
from ickd_lib.explore.maps import MAPS
from ickd_lib.widgets.scatter import NAMED
from ickd_lib.widgets.search import SearchBox
from ickd_lib.widgets.terms import TERMS
from ickd_lib.widgets.view import View

PLACES = {1: ("map of",), 2: ("left map", "right map"), 3: ("left map", "middle map", "right map")}
ORDERS = ("outliers first", "row", "lowest confidence", "highest confidence", "label", "prediction")
SHOWN = ("all", "right", "wrong", "networks differ")
WRAP = {"layout": {"flex_flow": "row wrap", "grid_gap": "4px 12px"}}


class LogitControls:
    """The controls of the logit-space explorer, and the empty panels of its maps.

    Attributes:
        how, colour, shows: the kind of map, the colours of the points, and the network of each map.
        names: whether the maps contain the names of classes or superclasses.
        search, class_, written, clear: selection by search, class or rows, and its removal.
        fit: shows all points.
        first_only, second_only: selection of what the first of two displayed networks gets right and the second wrong,
            and the other way round.
        judged, order, shown: whose predictions the tiles and the errors show, the order of the tiles, and which.
        export: download of the selection.
    """

    def _make_controls(self, samples: SampleSet, names: Sequence[str], how: str, first: Sequence[str]) -> None:
        """Create the controls.

        Args:
            samples: the samples.
            names: names of the networks.
            how: the kind of map that is displayed first.
            first: names of the networks with the maps that are displayed first.
        """
        many = len(samples.classes) > 10
        by = ["superclass"] * bool(many and samples.superclasses) + ["selected classes"] * many or ["class"]
        by += ["prediction", "right or wrong", "confidence", *["disagreement"] * (len(names) > 1)]
        classes = [("–", -1), *((name, c) for c, name in enumerate(samples.classes))]
        self.how = labelled(ipw.Dropdown, "map", options=[(MAPS[key][0], key) for key in MAPS], value=how)
        self.colour = labelled(ipw.Dropdown, "colour", options=by)
        readable = not many or len(samples.superclasses) <= NAMED  # too many names would cover the points
        self.names = ipw.Checkbox(
            readable, description="names", tooltip=TERMS["names"], indent=False, layout={"width": "auto"}
        )
        self.search = SearchBox(samples, names)
        self.class_ = labelled(ipw.Dropdown, "select class", options=classes, value=-1)
        self.written = labelled(ipw.Text, "select rows", placeholder="3 7 10-20", continuous_update=False)
        self.clear = ipw.Button(description="clear selection", tooltip=f"deselect all {samples.task.sample[1]}")
        places = zip(PLACES[len(first)], first, strict=True)
        # The plot's own reset would show the same section on narrow pages too, without the points at its sides.
        self.fit = ipw.Button(description="fit maps", tooltip="show all points", layout={"width": "auto"})
        self.shows = [labelled(ipw.Dropdown, place, options=names, value=name) for place, name in places]
        column = ipw.Layout(flex="1 1 0", min_width="240px", overflow="hidden")
        self.panels = [ipw.VBox([one], layout=column) for one in self.shows]
        self.first_only, self.second_only = (ipw.Button(layout={"width": "auto"}) for _ in range(2))
        self.judged = labelled(ipw.Dropdown, "predictions of", options=names, value=first[-1])
        self.order = labelled(ipw.Dropdown, "order", options=ORDERS)
        self.shown = labelled(ipw.Dropdown, "show", options=SHOWN if len(names) > 1 else SHOWN[:3])
        self.export = ipw.Button(
            description="save selection", tooltip="CSV of rows, files, labels and predictions", layout={"width": "auto"}
        )
        self.hovered = View(styled=False)
        # Beside the maps where the page is wide enough. Its size does not follow its content, so that nothing moves
        # while the pointer is on a map.
        size = {"flex": "1 1 280px", "min_width": "280px", "height": "410px", "overflow": "auto"}
        for name, value in size.items():
            setattr(self.hovered.layout, name, value)

    def _arranged(self, message: ipw.Widget, view: View) -> tuple[ipw.Widget, ...]:
        """Return the rows of the page."""
        pair = [self.first_only, self.second_only] if len(self.judged.options) > 1 else []
        maps = ipw.HBox(self.panels, layout={"flex": "3 1 500px", "grid_gap": "4px 12px", "overflow": "hidden"})
        return (
            self.search,
            ipw.HBox(
                [self.how, self.colour, self.names, self.class_, self.written, *pair, self.clear, self.fit], **WRAP
            ),
            message,
            ipw.HBox([maps, self.hovered], **WRAP),
            ipw.HBox([self.judged, self.order, self.shown, self.export], **WRAP),
            view,
        )


def labelled(kind: Any, description: str, **given: Any) -> Any:
    """Create a control that is as wide as its label and its content."""
    tip = TERMS["show selected" if description == "show" else "map of" if "map" in description[1:] else description]
    layout = ipw.Layout(width="auto", max_width="230px" if kind is ipw.Text else "100%")
    return kind(description=description, tooltip=tip, layout=layout, style={"description_width": "initial"}, **given)

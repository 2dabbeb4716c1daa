"""Scatter plots of maps, made with jupyter-scatter: their points and colours."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgba
from torch import Tensor

from ickd_lib.explore import SampleSet
from ickd_lib.plots.style import PALETTE, REST, class_colours

HEIGHT = 380  # height of a map in pixels
BACKGROUND = {False: "#ffffff", True: "#212121"}  # in JupyterLab's light (False) and dark (True) theme
GREY = {False: "#d9d9d9", True: "#4d4d4d"}  # colour of classes that are not highlighted, by theme
SIZES = (4, 7, 10, 13)  # sizes of the points of groups 1 to 10, 11 to 20, …, which have the same ten colours
RIGHT, WRONG = to_hex(PALETTE[0]), to_hex(PALETTE[1])
NAMED = 20  # largest number of clusters that are named at first
FONT, LETTER, LINE = 12, 7.5, 16  # of the names of clusters: size, width of a letter and height of a line in pixels
WRAPPED = 16  # longest line of a name, in letters

Entry = tuple[str, str, int]  # name, colour, and size of a group of points


@dataclass(frozen=True)
class Colouring:
    """Colours and sizes of the points of a map, by the kinds that `kinds` gives the points.

    Args:
        entries: the entries of the legend.
        by_kind: the legend's entry for each kind of point.
        by_class: colour of each class, length C, even where the points are not coloured by class.
        clusters: names of the groups of classes that have a name on the map.
        cluster_of: the group of each class, length C; classes with a number beyond `clusters` are not named.
    """

    entries: Sequence[Entry]
    by_kind: Sequence[Entry]
    by_class: Sequence[str]
    clusters: Sequence[str]
    cluster_of: Sequence[int]


def kinds(by: str, labels: Tensor, logits: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
    """Return the kind of each point of a network's map, int64, shape [N].

    Args:
        by: what the points are coloured by: "prediction", "confidence", "disagreement", or something that follows from
            class and correctness. By default the kind is the class c where the network is right, and C + c where it
            is wrong; by prediction, c is the predicted class. By confidence, it is the tenth from 0 to 9. By
            disagreement, it is 0 where both of two networks are right, 1 or 2 where only the first or second one is,
            and 3 where both are wrong.
        labels: class of each point, shape [N].
        logits: the network's logits, shape [N, C].
        pair: the logits of the two networks that are compared, shape [N, C] each.
    """
    predicted = logits.argmax(1)
    wrong = predicted != labels
    if by == "confidence":
        return (10 * logits.softmax(1).amax(1)).long().clamp(max=9)
    if by == "disagreement":
        first, second = (one.argmax(1) != labels for one in pair)
        return second.long() + 2 * first.long()
    return (predicted if by == "prediction" else labels) + logits.shape[1] * wrong


def colouring(
    samples: SampleSet, by: str, highlight: Sequence[int], dark: bool, pair: tuple[str, str] = ("A", "B")
) -> Colouring:
    """Choose the colours of points.

    Args:
        samples: the samples, for their classes and superclasses.
        by: "class", "superclass", "selected classes", "prediction", "right or wrong", "confidence" or "disagreement".
        highlight: the coloured classes where `by` is "selected classes"; all others are grey.
        dark: whether the page has a dark theme.
        pair: names of the networks of which the disagreement is shown.
    """
    upper = (samples.superclasses, samples.superclass_of) if by != "selected classes" else ((), ())
    names, group, looks = class_colours(samples.classes, *upper, highlight, dark)
    rest = looks[-1] == REST  # all other classes
    clusters = (names[:-1] if rest else names, group)
    colours, sizes = [to_hex(look["color"]) for look in looks], [SIZES[g // 10 % 4] for g in range(len(names))]
    if rest:
        colours[-1], sizes[-1] = GREY[dark], SIZES[0]
    by_class = [colours[g] for g in group]
    if by == "right or wrong":
        entries = [("right", RIGHT, SIZES[0]), ("wrong", WRONG, SIZES[1])]
        return Colouring(entries, [entries[0]] * len(group) + [entries[1]] * len(group), by_class, *clusters)
    if by == "confidence":
        least = 0.3 if dark else 0.0  # the darkest colours would not be visible on a dark page
        tenths = [to_hex(colormaps["viridis"](least + (1 - least) * i / 9)) for i in range(10)]
        entries = [(f"{10 * i}–{10 * i + 10} %", tenths[i], SIZES[0]) for i in range(10)]
        return Colouring(entries, entries, by_class, *clusters)
    if by == "disagreement":
        first, second = pair
        texts = ("both right", f"only {first} right", f"only {second} right", "both wrong")
        shades = (GREY[dark], RIGHT, to_hex(PALETTE[2]), WRONG)
        entries = list(zip(texts, shades, (SIZES[0], SIZES[1], SIZES[1], SIZES[0]), strict=True))
        return Colouring(entries, entries, by_class, *clusters)
    entries = list(zip(names, colours, sizes, strict=True))
    return Colouring(entries, [entries[g] for g in group] * 2, by_class, *clusters)


def points_of(plane: np.ndarray, kind: Tensor) -> np.ndarray:
    """Convert a map to the points of a scatter plot, float32, shape [N, 4]: x, y, kind and 0.

    Args:
        plane: the map, shape [N, 2]. It is shifted and scaled to the range from -0.95 to 0.95, equally in x and y.
        kind: from `kinds`, shape [N].
    """
    low, high = plane.min(0), plane.max(0)
    plane = 1.9 * (plane - (low + high) / 2) / max(float((high - low).max()), 1e-9)
    return np.column_stack([plane, kind.numpy(), np.zeros(len(kind))]).astype(np.float32)


def make_scatter(points: np.ndarray, classes: int) -> Any:
    """Create the scatter plot (a `jscatter.Scatter`) of some points; `paint` sets its colours.

    Every property is set before the page displays the plot, because changes during the start of the page are lost.

    Args:
        points: from `points_of`, shape [N, 4].
        classes: number C of classes.
    """
    import jscatter
    import pandas as pd
    from jscatter.widget import JupyterScatter

    names = [str(kind) for kind in range(max(2 * classes, 10))]
    kind = pd.Categorical.from_codes(points[:, 2].astype(int), categories=names)
    scatter = jscatter.Scatter(
        data=pd.DataFrame({"x": points[:, 0], "y": points[:, 1], "kind": kind}),
        x="x",
        y="y",
        x_scale=(-1, 1),
        y_scale=(-1, 1),
        height=HEIGHT,
        color_by="kind",
        color_map=["black"] * len(names),
        size_by="kind",
        size_map=[4] * len(names),
        axes=False,
        opacity_unselected=0.25,
        mouse_mode="lasso",
        transition_points_duration=700,
    )
    scatter.widget.points = points  # jscatter would number only the kinds that occur, and all colours would be shifted
    for file in (JupyterScatter._esm, JupyterScatter._css):
        file.changed.disconnect()  # anywidget watches these files, and its watcher would keep every plot alive
    scatter.widget.toolbar_buttons = ["pan_zoom", "lasso", "divider", "full_screen"]
    scatter.widget.transition_points = True
    return scatter


def paint(scatter: Any, colours: Colouring, dark: bool) -> None:
    """Set the colours and sizes of a scatter plot's points, and its background."""
    # scatter.background() would also draw axes and a legend, which are switched off.
    scatter.widget.background_color = to_rgba(BACKGROUND[dark])
    scatter.widget.reticle_color = to_rgba(GREY[dark])
    # All kinds that were passed to jscatter have a colour, even those that this colouring does not use.
    by_kind = [*colours.by_kind, *[colours.by_kind[-1]] * (10 - len(colours.by_kind))]
    scatter.widget.color = [to_rgba(colour) for _, colour, _ in by_kind]
    scatter.widget.color_selected = scatter.widget.color
    scatter.widget.color_hover = to_rgba(BACKGROUND[not dark])
    scatter.widget.size = [size for *_, size in by_kind]


class ClusterNames:
    """The names of clusters on a map, as the scatter plot's `label_placement`.

    jscatter's own placement refuses names without Latin letters. Here each name stands at the median of its points. It
    is displayed where the zoom is large enough that it overlaps no name of a larger cluster.

    Args:
        points: shape [N, 2 or more].
        cluster: number of each point's cluster, shape [N].
        names: names of clusters; those with a higher number have none.
        dark: whether the page has a dark theme.
        width: width of the map in pixels.
    """

    def __init__(
        self, points: np.ndarray, cluster: Tensor, names: Sequence[str], dark: bool, width: int = HEIGHT
    ) -> None:
        import pandas as pd

        members = [points[(cluster == c).numpy(), :2] for c in range(len(names))]
        order = sorted((c for c in range(len(names)) if len(members[c])), key=lambda c: -len(members[c]))
        texts: list[str] = []
        zooms: list[float] = []
        sizes: list[np.ndarray] = []
        centres: list[np.ndarray] = []
        for c in order:
            lines = textwrap.wrap(names[c].replace("_", " "), WRAPPED) or [""]
            letters = max(sum(1 + (unicodedata.east_asian_width(x) in "WF") for x in line) for line in lines)
            size = np.array([LETTER * letters, LINE * len(lines)]) / (HEIGHT / 2)  # at zoom 1
            half = size / 2 * max(1.0, HEIGHT / width)  # where all points are displayed
            low, high = points[:, :2].min(0) + half, points[:, :2].max(0) - half
            centre = np.where(low < high, np.median(members[c], 0).clip(low, high), (low + high) / 2)  # not cut off
            zoom = 0.0
            for larger, of in zip(centres, sizes, strict=True):
                distance = np.maximum(np.abs(centre - larger), 1e-9)
                zoom = max(zoom, float(((size + of) / 2 / distance).min()))
            texts.append("\n".join(lines))
            sizes.append(size)
            centres.append(centre)
            zooms.append(zoom)
        font = {"font_face": "sans-serif", "font_style": "normal", "font_weight": "bold", "font_size": FONT}
        always = {"zoom_out": 1e9, "zoom_fade_extent": 1.0, "font_color": BACKGROUND[not dark]}
        x, y = np.array(centres).reshape(-1, 2).T
        place = {"label": texts, "x": x, "y": y, "zoom_in": zooms}
        self.frame = pd.DataFrame(place).assign(**always, **font)

    def get_labels_from_tiles(self, _: Sequence[str]) -> Any:
        """Return all names; the scatter plot calls this when another part of the map becomes visible."""
        return self.frame


def write_names(scatter: Any, names: ClusterNames, dark: bool) -> None:
    """Write the names of clusters on a scatter plot."""
    from jscatter.label_placement import to_js

    scatter.widget.label_scale_function = "constant"
    scatter.widget.label_tile_size = HEIGHT  # the height at which the zoom is 1
    scatter.widget.label_shadow_color = BACKGROUND[dark]
    scatter.widget.label_placement = names
    scatter.widget.labels = to_js(names.frame)


def refit(scatter: Any) -> None:
    """Show all points of a scatter plot, whatever its width is now."""
    from jscatter.widget import EVENT_TYPES

    # Another height makes the plot measure the page again; after a change of the theme, names would stay distorted.
    for height in (HEIGHT + 1, HEIGHT):
        scatter.widget.height = height
    low, high = scatter.widget.points[:, :2].min(0) - 0.05, scatter.widget.points[:, :2].max(0) + 0.05
    area = {"x": low[0], "width": high[0] - low[0], "y": low[1], "height": high[1] - low[1]}
    area = {name: float(value) for name, value in area.items()}
    scatter.widget.send({"type": EVENT_TYPES["VIEW_RESET"], "area": area, "animation": 0})

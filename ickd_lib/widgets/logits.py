"""An explorer of the logit space: linked maps of the same samples in the logit spaces of several networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ickd_lib import metrics, plots, runtime
from ickd_lib.data import Images
from ickd_lib.explore import SampleSet, embed
from ickd_lib.explore.maps import MAPS
from ickd_lib.models import Network
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Classification, Task
from ickd_lib.widgets import logit_blocks as blocks
from ickd_lib.widgets import logit_gallery
from ickd_lib.widgets.logit_controls import PLACES
from ickd_lib.widgets.logit_selection import Selection
from ickd_lib.widgets.rerun import resume
from ickd_lib.widgets.scatter import (
    HEIGHT,
    ClusterNames,
    Colouring,
    colouring,
    kinds,
    make_scatter,
    paint,
    points_of,
    refit,
    write_names,
)
from ickd_lib.widgets.terms import TERMS
from ickd_lib.widgets.view import Block, View, strip

MATRIX = 20  # largest number of classes for which the whole confusion matrix is displayed


class LogitSpaceExplorer(Selection):
    """Display linked maps of the logit spaces of several networks, such as a teacher and its students.

    While the pointer is on an image in one map, the image is marked in all maps and a table beside them lists the
    networks' predictions. Images are selected with a lasso, a click, a search, a class, row numbers, a cell of the
    confusion matrix, or as those that one network gets right and another one wrong. The explorer then displays the
    selected images, measures of how well each network separates them, and the nearest images outside the selection.
    Where a sample is a region or a box of an image, each point is one of these, and is displayed as a crop.

    Args:
        networks: by name, a network, or its logits of the samples, shape [N, C].
        images: the images, on the networks' device: `Images`, or `DenseImages` with a task for regions or boxes.
        how: the first kind of map: "umap", "pca" or "tsne" (see `explore.embed`).
        seed: seed of the maps.
        cache: a folder in which maps are stored; None computes them anew in each session.
        precision: numerical precision of the networks: "auto", "fp32" or "bf16".
        panels: number of maps side by side, 1 to 3, or the names of their networks at first.
        task: which samples an image has; classification by default, where each image is one of the N samples.
    Raises:
        InputError: there are no networks; logits have a wrong shape or are not finite; `how` or `panels` is unknown.
    """

    def __init__(
        self,
        networks: Mapping[str, Network | Tensor],
        images: Images,
        *,
        how: str = "umap",
        seed: int = 0,
        cache: str | Path | None = None,
        precision: str = "auto",
        panels: int | Sequence[str] = 2,
        task: Task | None = None,
    ) -> None:
        how = runtime.choose(how, MAPS, "map")
        if not networks:
            raise InputError("there are no networks; pass one or more, by name")
        names = list(networks)
        first = (
            names[:panels] if isinstance(panels, int) else [runtime.choose(name, names, "network") for name in panels]
        )
        if not 1 <= (panels if isinstance(panels, int) else len(panels)) <= len(PLACES):
            raise InputError(f"panels={panels!r}; choose 1, 2 or 3 maps")
        self.images, self.samples = images, SampleSet(images, task or Classification()).labelled()
        self.labels, self.rows = self.samples.labels.cpu(), self.samples.rows.cpu()
        self.seed, self.cache = seed, cache
        self.logits = {name: self._logits(name, of, precision) for name, of in networks.items()}
        self.members = torch.zeros(0, dtype=torch.long)
        # Each scatter plot contains 2 MB of script and all points, so they are created only when a page displays them.
        self.scatters: list[Any] = []
        self._maps: dict[tuple[str, str], np.ndarray] = {}
        self._margins: dict[str, tuple[Tensor, Tensor]] = {}
        self._changing = self._has_page = False

        self._width = HEIGHT  # of a map in pixels
        self.page = 0  # of the tiles of the selection
        self._make_controls(self.samples, list(self.logits), how, first)
        super().__init__([], View(self._on_event, waiting="The maps appear as soon as the kernel is idle …"))
        self._selected: tuple[list[Block], bytes] = [], b""
        self._colours: Colouring
        self._errors: list[Block] = []
        self.children = self._arranged(self.message, self.view)
        earlier = resume(self, ("how", "colour", "names", "judged", "order", "shown"), [self.samples, *self.logits])
        if earlier is not None:
            self.members = earlier.members
        for control in (self.how, *self.shows):
            control.observe(self._on_map_choice, "value")
        self.colour.observe(self._on_colour_choice, "value")
        self.names.observe(self._on_names, "value")
        self.class_.observe(self._on_class_choice, "value")
        self.written.observe(self._on_rows, "value")
        self.search.observe(self._on_search, "value")
        for control in (self.order, self.shown):
            control.observe(self._on_tile_choice, "value")
        self.judged.observe(self._on_judged, "value")
        self.clear.on_click(lambda _: self.select([]))
        self.first_only.on_click(lambda _: self._select_right_only(*self.pair))
        self.second_only.on_click(lambda _: self._select_right_only(*self.pair[::-1]))
        self.export.on_click(self._on_export)
        self.fit.on_click(lambda _: self._fit())
        self._paint()
        self._name_pair()

    def save(self, path: str | Path, *, points: int = 400) -> None:
        """Write a gallery: one HTML file that needs neither a kernel nor a network connection.

        It contains the maps that the explorer displays now, with the current selection and randomly drawn samples.

        Args:
            path: the file, which ends with .html.
            points: number of samples.
        Raises:
            InputError: the path does not end with .html, or its folder does not exist.
        """
        logit_gallery.save(self, path, points)

    def figures(self) -> list[Figure]:
        """Return one figure with the map of every network."""
        samples, how = self.samples, MAPS[self.how.value][0]
        maps = {name: self._map(name) for name in self.logits}
        upper: dict[str, Any] = {"superclasses": samples.superclasses, "superclass_of": samples.superclass_of}
        highlight = self._highlight()
        return [plots.embeddings(maps, self.labels, samples.classes, **upper, highlight=highlight, how=how)]

    # ------------------------------------------------------------------------------------------- events

    def _on_event(self, event: str, key: str) -> None:
        with self.guarded():
            if event == "ready" and not self.scatters:
                self._has_page = True
                self._open()
            elif event in ("ready", "theme"):
                self._paint()
                self._display_errors()
            elif event == "resize":
                self._fit()
                if key not in ("", "0", str(self._width)):
                    self._width = int(key)
                    self._write_names()
            elif event == "look":
                self._display_one(int(key))
            elif event == "page":
                self.page = int(key)
                self._describe()
            elif event == "legend":
                members = (self._entry_of() == int(key)).nonzero().squeeze(1)
                self.select([] if torch.equal(members, self.members) else members)
            elif event in ("cell", "class"):
                label, *rest = map(int, key.split(","))
                chosen = self.labels == label
                for predicted in rest:
                    chosen &= self.logits[self.judged.value].argmax(1) == predicted
                self.select(chosen)

    def _fit(self) -> None:
        """Show all points of each map."""
        for scatter in self.scatters:
            refit(scatter)

    def _on_map_choice(self, change: dict[str, Any]) -> None:
        with self.guarded():
            if self._has_page and not self.scatters:
                return self._open()  # the first attempt failed
            for control, scatter in zip(self.shows, self.scatters, strict=False):
                if change["owner"] in (control, self.how):
                    scatter.widget.points = self._points(control.value)
            self._name_pair()
            self._write_names()
            if self.colour.value == "disagreement":
                self._repaint()
            self._describe()

    def _on_colour_choice(self, _: dict[str, Any]) -> None:
        with self.guarded():
            self._repaint()

    def _on_names(self, _: dict[str, Any]) -> None:
        with self.guarded():
            self._write_names()

    def _on_judged(self, _: dict[str, Any]) -> None:
        with self.guarded():
            self._describe()
            self._display_errors()

    def _on_lasso(self, change: dict[str, Any]) -> None:
        if not self._changing:
            self.select([] if change["new"] is None else change["new"], by=change["owner"])

    def _on_hover(self, change: dict[str, Any]) -> None:
        if self._changing:
            return
        with self._changing_controls():  # without `guarded`, because moving the pointer must not clear a message
            try:
                at = -1 if change["new"] is None else int(change["new"])
                for scatter in self.scatters:
                    if scatter.widget is not change["owner"]:
                        scatter.widget.hovering = at
                if at >= 0:
                    self._display_one(at)
            except Exception as error:
                self._show_error(error)

    # ------------------------------------------------------------------------------------------- displaying

    def _open(self) -> None:
        """Create the scatter plots and connect them."""
        from sklearn import metrics as _  # noqa: F401  imported early, because it would delay the first lasso by seconds

        self.show_message("Preparing the maps …")
        self.scatters = [make_scatter(self._points(one.value), len(self.samples.classes)) for one in self.shows]
        self._paint()
        for panel, control, scatter in zip(self.panels, self.shows, self.scatters, strict=True):
            scatter.widget.selection = self.members.numpy().astype(np.uint32)
            scatter.widget.observe(self._on_lasso, "selection")
            scatter.widget.observe(self._on_hover, "hovering")
            panel.children = (control, scatter.widget)
        self.show_message("")
        self._describe()
        self._display_errors()

    def _name_pair(self) -> None:
        """Write the names of the two compared networks on the buttons."""
        first, second = self.pair
        self.first_only.description = f"{first} right, {second} wrong"
        self.second_only.description = f"{second} right, {first} wrong"
        one = self.samples.task.sample[1]
        self.first_only.tooltip = f"Select the {one} that {first} classifies correctly and {second} wrongly."
        self.second_only.tooltip = f"Select the {one} that {second} classifies correctly and {first} wrongly."

    def _display_errors(self) -> None:
        """Display the confusion matrix and the accuracy by class of the chosen network."""
        name, classes = self.judged.value, self.samples.classes
        counts = metrics.confusion(self.logits[name].argmax(1), self.labels, len(classes))
        whole = [blocks.matrix(counts, classes, name)] if len(classes) <= MATRIX else []
        lists = [
            blocks.most_confused(counts, classes, name),
            blocks.class_accuracies(counts, classes, self._by_class, name),
        ]
        self._errors = [{"kind": "row", "blocks": [*whole, *lists]}]
        self._display()

    def _display(self) -> None:
        """Display what describes the selection and, below it, the errors."""
        shown, data = self._selected
        of = self._entry_of()
        legend = blocks.legend(self._colours.entries, of, self.members, self.samples.task.sample[1], self.judged.value)
        self.view.show(legend, *shown, *self._errors, data=data)

    def _display_one(self, at: int) -> None:
        """Display one image and each network's prediction for it."""
        data, shape = strip(self.samples.thumbnails(torch.tensor([at])))
        table = blocks.prediction_table(self.samples, at, self.logits)
        tile = blocks.sample_tiles(
            self.samples,
            torch.tensor([at]),
            self._by_class,
            title=self.samples.task.sample[0],
            tip=TERMS["sample"],
            shape=shape,
            tone="query",
            event=None,
        )
        self.hovered.show({"kind": "row", "blocks": [tile, table]}, data=data)

    def _highlight(self) -> list[int]:
        """Return the ten most frequent classes of the selection if points are coloured by them, and otherwise none."""
        if self.colour.value != "selected classes" or not len(self.members):
            return []
        counts = torch.bincount(self.labels[self.members], minlength=len(self.samples.classes))
        return sorted(c for c in counts.topk(10).indices.tolist() if counts[c])

    def _paint(self) -> None:
        """Set the colours of the points and the legend, for the theme of the page."""
        dark = self.view.dark
        colours = colouring(self.samples, self.colour.value, self._highlight(), dark, self.pair)
        self._by_class = colours.by_class
        self._colours = colours
        for scatter in self.scatters:
            paint(scatter, colours, dark)
        self._write_names()

    def _write_names(self) -> None:
        """Write the names of the clusters on the maps, or remove them."""
        colours, dark = self._colours, self.view.dark
        names, cluster = colours.clusters if self.names.value else (), torch.tensor(colours.cluster_of)[self.labels]
        for control, scatter in zip(self.shows, self.scatters, strict=False):
            points = points_of(self._map(control.value), cluster)
            write_names(scatter, ClusterNames(points, cluster, names, dark, self._width), dark)

    def _entry_of(self) -> Tensor:
        """Return the number of each sample's entry in the legend, by the predictions of `judged`, int64, shape [N]."""
        pair = (self.logits[self.pair[0]], self.logits[self.pair[1]])
        kind = kinds(self.colour.value, self.labels, self.logits[self.judged.value], pair)
        entries = list(dict.fromkeys(self._colours.entries))
        return torch.tensor([entries.index(entry) for entry in self._colours.by_kind])[kind]

    def _repaint(self) -> None:
        """Give the points their kinds and colours anew."""
        for control, scatter in zip(self.shows, self.scatters, strict=False):
            scatter.widget.points = self._points(control.value)
        self._paint()
        self._display()

    def _logits(self, name: str, of: Network | Tensor, precision: str) -> Tensor:
        """Return the logits of a network, or given logits, after a check, as float32 on the CPU, shape [N, C]."""
        logits = of if isinstance(of, Tensor) else self.samples.outputs(of, precision=precision).logits
        expected = [len(self.samples), len(self.samples.classes)]
        if list(logits.shape) != expected:
            raise InputError(
                f"the logits of {name!r} are {list(logits.shape)}, but {self.samples.name} needs shape {expected}"
            )
        if not logits.isfinite().all():
            raise InputError(f"some logits of {name!r} are nan or infinite; check the network's training")
        return logits.detach().float().cpu()

    def _map(self, name: str) -> np.ndarray:
        """Return a network's map of the chosen kind, [N, 2]. Each map is computed once."""
        how = self.how.value
        if (how, name) not in self._maps:
            show = self.show_message if self._has_page else print  # without a page, print to the cell's output
            self._maps[how, name] = embed(
                self.logits[name], how, seed=self.seed, cache=self.cache, report=lambda text: show(f"{name}: {text}")
            )
            if self._has_page:
                self.show_message("")
        return self._maps[how, name]

    def _points(self, name: str) -> np.ndarray:
        first, second = self.pair
        pair = (self.logits[first], self.logits[second])
        return points_of(self._map(name), kinds(self.colour.value, self.labels, self.logits[name], pair))

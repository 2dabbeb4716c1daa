"""An explorer of the logit space: maps of what networks make of the same images, side by side and linked."""

from __future__ import annotations

import contextlib
import html
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import numpy as np
import torch
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from torch import Tensor

from ickd_lib import metrics, models, plots, runtime
from ickd_lib.data import Images
from ickd_lib.explore.space import MAPS, Region, embed, positions, region
from ickd_lib.models import Network
from ickd_lib.plots.style import PALETTE, class_colours
from ickd_lib.runtime import InputError
from ickd_lib.widgets.view import Block, Explorer, View, strip

PLACES = {1: ("shows",), 2: ("left shows", "right shows"), 3: ("left shows", "middle shows", "right shows")}
MEMBERS, NEIGHBOURS = 24, 8  # tiles of each at most
HEIGHT = 380  # pixels of a map
GROUND = {False: "#ffffff", True: "#212121"}  # JupyterLab's own, light and dark
GREY = {False: "#d9d9d9", True: "#4d4d4d"}  # of classes that are not highlighted
SIZES = (4, 7, 10, 13)  # of the first ten groups, which the colours tell apart, the next ten, …
RIGHT, WRONG = to_hex(PALETTE[0]), to_hex(PALETTE[1])


class LogitSpaceExplorer(Explorer):
    """Maps of the logit spaces of a teacher and its students, or of a student before and after, as linked scatters.

    Point at an image in one map: all show it, and what each network says of it is below. Draw a lasso, click, choose a
    class or write rows: the members are shown, how well each network tells them apart, and what lies next to them.

    Args:
        networks: by name, a network, or its logits of the images, shape [N, C].
        images: N images, on the networks' device.
        how: the map at the start: "umap", "pca" or "tsne" (see `explore.embed`).
        seed: of the maps.
        cache: a folder in which maps are kept; None makes them anew in each session.
        precision: in which networks compute.
        panels: maps beside each other, 1 to 3; or the names of the networks that they show at first.
    Raises:
        InputError: no networks; logits that are not one row an image and one column a class, or not finite; an unknown
            map; `panels` out of its range.
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
    ) -> None:
        how = runtime.choose(how, MAPS, "map")
        if not networks:
            raise InputError("no networks; give one or more, by name")
        names = list(networks)
        first = (
            names[:panels] if isinstance(panels, int) else [runtime.choose(name, names, "network") for name in panels]
        )
        if not 1 <= (panels if isinstance(panels, int) else len(panels)) <= len(PLACES):
            raise InputError(f"panels={panels!r}; 1, 2 or 3 maps stand beside each other")
        self.images, self.labels, self.rows = images, images.labels.cpu(), images.index.cpu()
        self.seed, self.cache = seed, cache
        self.logits = {name: self._logits(name, of, precision) for name, of in networks.items()}
        self.members = torch.zeros(0, dtype=torch.long)
        self.scatters: list[Any] = []  # jscatter's, made when a page is there: each is 2 MB of script and all points
        self._maps: dict[tuple[str, str], np.ndarray] = {}
        self._margins: dict[str, tuple[Tensor, Tensor]] = {}
        self._quiet = self._page = False

        many = len(images.classes) > 10
        by = ["superclass"] * bool(many and images.superclasses) + ["what is selected"] * many or ["class"]
        classes = [("–", -1), *((name, c) for c, name in enumerate(images.classes))]
        self.how = labelled(ipw.Dropdown, "map", options=[(MAPS[key][0], key) for key in MAPS], value=how)
        self.colour = labelled(ipw.Dropdown, "colour", options=[*by, "right or wrong"])
        self.class_ = labelled(ipw.Dropdown, "select class", options=classes, value=-1)
        self.written = labelled(ipw.Text, "select rows", placeholder="3 7 10-20", continuous_update=False)
        self.clear = ipw.Button(description="clear selection", tooltip="select nothing")
        places = zip(PLACES[len(first)], first, strict=True)
        self.shows = [labelled(ipw.Dropdown, place, options=names, value=name) for place, name in places]
        column = ipw.Layout(flex="1 1 0", min_width="240px", overflow="hidden")
        self.panels = [ipw.VBox([one], layout=column) for one in self.shows]
        self.legend, self.hovered = ipw.HTML(), View()
        self.hovered.layout.min_height = f"{max(220, 60 + 24 * len(names))}px"  # whatever it shows, the rest stays
        controls = [self.how, self.colour, self.class_, self.written, self.clear]
        flow = ipw.Layout(flex_flow="row wrap", grid_gap="4px 12px")
        super().__init__([], View(self._told, waiting="The maps appear when the kernel is free …"))
        maps = ipw.HBox(self.panels, layout=flow)
        self.children = (ipw.HBox(controls, layout=flow), self.message, maps, self.legend, self.hovered, self.view)
        for control in (self.how, *self.shows):
            control.observe(self._moved, "value")
        self.colour.observe(self._coloured, "value")
        self.class_.observe(self._class_chosen, "value")
        self.written.observe(self._rows_written, "value")
        self.clear.on_click(lambda _: self.select([]))
        self._paint()

    def select(self, members: Tensor | np.ndarray | Sequence[int], *, by: ipw.Widget | None = None) -> None:
        """Select images, as a lasso does; what goes wrong is shown.

        Args:
            members: their positions in `images`, or for each image whether it is one.
            by: the control or the map that they were selected in, which is left as it is.
        """
        with self.guarded(), self._quietly():
            given = torch.as_tensor(members).cpu()
            at = given.nonzero().squeeze(1) if given.dtype == torch.bool else given.long().unique()  # sorted
            if len(at) and not 0 <= int(at[0]) <= int(at[-1]) < len(self.labels):
                raise InputError(f"positions from {at[0]} to {at[-1]}; there are {len(self.labels)} images")
            self.members = at
            for control, nothing in ((self.class_, -1), (self.written, "")):
                if control is not by and control.value != nothing:
                    control.value = nothing
            for scatter in self.scatters:
                if scatter.widget is not by:
                    scatter.widget.selection = self.members.numpy().astype(np.uint32)
            if self.colour.value == "what is selected":
                self._paint()
            self._describe()

    def figures(self) -> list[Figure]:
        """The map of every network."""
        images, how = self.images, MAPS[self.how.value][0]
        maps = {name: self._map(name) for name in self.logits}
        upper: dict[str, Any] = {"superclasses": images.superclasses, "superclass_of": images.superclass_of}
        highlight = self._highlight()
        return [plots.embeddings(maps, self.labels, images.classes, **upper, highlight=highlight, how=how)]

    @contextlib.contextmanager
    def _quietly(self) -> Iterator[None]:
        """Inside, what the program sets is not taken for a touch."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def _told(self, event: str, key: str) -> None:
        with self.guarded():
            if event == "ready" and not self.scatters:
                self._page = True
                self._open()
            elif event in ("ready", "theme"):
                self._paint()
            elif event == "look":
                self._look(int(key))

    def _open(self) -> None:
        """Make the scatters. All is set before the page makes them: what it is told meanwhile it misses."""
        import jscatter
        import pandas as pd
        from sklearn import metrics as _  # noqa: F401  seconds that the first lasso would take

        self.say("Making the maps …")
        kinds = [str(kind) for kind in range(2 * len(self.images.classes))]
        coded = {
            "color_by": "kind",
            "color_map": ["black"] * len(kinds),
            "size_by": "kind",
            "size_map": [4] * len(kinds),
        }
        plain = {"axes": False, "opacity_unselected": 0.25, "mouse_mode": "lasso", "transition_points_duration": 700}
        within = {"x": "x", "y": "y", "x_scale": (-1, 1), "y_scale": (-1, 1), "height": HEIGHT}
        made = []
        for control in self.shows:
            points = self._points(control.value)
            kind = pd.Categorical.from_codes(points[:, 2].astype(int), categories=kinds)
            frame = pd.DataFrame({"x": points[:, 0], "y": points[:, 1], "kind": kind})
            made.append(jscatter.Scatter(data=frame, **within, **coded, **plain))
            made[-1].widget.points = points  # it counts kinds anew, without those that no point has
            made[-1].widget.toolbar_buttons = ["pan_zoom", "lasso", "divider", "full_screen", "reset"]
            made[-1].widget.transition_points = True
        self.scatters = made
        self._paint()
        for panel, control, one in zip(self.panels, self.shows, made, strict=True):
            one.widget.selection = self.members.numpy().astype(np.uint32)
            one.widget.observe(self._lassoed, "selection")
            one.widget.observe(self._pointed, "hovering")
            panel.children = (control, one.widget)
        self.say("")
        self._describe()

    def _moved(self, change: dict[str, Any]) -> None:
        with self.guarded():
            if self._page and not self.scatters:
                return self._open()  # the first maps went wrong
            for control, scatter in zip(self.shows, self.scatters, strict=False):
                if change["owner"] in (control, self.how):
                    scatter.widget.points = self._points(control.value)
            self._describe()

    def _coloured(self, _: dict[str, Any]) -> None:
        with self.guarded():
            self._paint()

    def _class_chosen(self, change: dict[str, Any]) -> None:
        if not self._quiet:
            self.select((self.labels == change["new"]).nonzero().squeeze(1), by=self.class_)

    def _rows_written(self, change: dict[str, Any]) -> None:
        with self.guarded():
            if not self._quiet:
                self.select(positions(change["new"], self.rows, self.images.name), by=self.written)

    def _lassoed(self, change: dict[str, Any]) -> None:
        if not self._quiet:
            self.select([] if change["new"] is None else change["new"], by=change["owner"])

    def _pointed(self, change: dict[str, Any]) -> None:
        if self._quiet:
            return
        with self._quietly():  # not guarded: to pass over the map is no touch that a message should go away with
            try:
                at = -1 if change["new"] is None else int(change["new"])
                for scatter in self.scatters:
                    if scatter.widget is not change["owner"]:
                        scatter.widget.hovering = at
                if at >= 0:
                    self._look(at)
            except Exception as error:
                self._fail(error)

    def _look(self, at: int) -> None:
        """Show one image and what each network says of it."""
        own, row, names = int(self.labels[at]), int(self.rows[at]), self.images.classes
        data, shape = strip(self.images.images[[at]])
        lines = []
        for network, logits in self.logits.items():
            shares = logits[at].softmax(0)
            says = int(shares.argmax())
            mark = "✓" if says == own else "✗"
            lines.append([network, f"{mark} {names[says]}", f"{shares[says]:.3f}", f"{shares[own]:.3f}"])
        title, columns = f"what they say of row {row} ({names[own]})", ["says", "probability", "of its class"]
        table = {"kind": "table", "title": title, "columns": ["network", *columns], "rows": lines}
        tile = self._tiles("pointed at", shape, 0, torch.tensor([at]), tone="query", event=None)
        self.hovered.show({"kind": "row", "blocks": [tile, table]}, data=data)

    def _describe(self) -> None:
        """Show the members, how each network separates them, and what is next to them in the spaces shown."""
        count, names = len(self.members), self.images.classes
        if not count:
            hint = "Point at an image. Draw a lasso around some, click one, choose a class or write rows, to see them."
            return self.view.show({"kind": "text", "text": hint})
        found = {}
        for name, logits in self.logits.items():
            if name not in self._margins:
                self._margins[name] = metrics.margins(logits, self.labels)
            margins = self._margins[name]
            found[name] = region(logits, self.labels, self.members, neighbours=NEIGHBOURS, margins=margins)
        most = next(iter(found.values())).counts.topk(min(3, len(names)))
        mix = [f"{n:,} of {names[c]}" for n, c in zip(*map(Tensor.tolist, most), strict=True) if n]
        title = f"how each network separates them: {', '.join(mix)}{', …' * (most.values.sum().item() < count)}"
        numbers = {name: _numbers(of) for name, of in found.items()}
        columns = ["network", *next(iter(numbers.values()))]
        rows = [[name, *of.values()] for name, of in numbers.items()]
        shown = list(dict.fromkeys(control.value for control in self.shows))
        groups = [self.members[:MEMBERS], *(found[name].nearest for name in shown)]
        data, shape = strip(self.images.images[torch.cat(groups).to(self.images.labels.device)])
        first = f"{count:,} selected{f', the first {MEMBERS}' * (count > MEMBERS)}"
        blocks: list[Block] = [self._tiles(first, shape, 0, groups[0])]
        for i, name in enumerate(shown, 1):
            near = [f"cos {cosine:.3f}" for cosine in found[name].cosine]
            start = sum(map(len, groups[:i]))
            blocks.append(self._tiles(f"nearest outside, for {name}", shape, start, groups[i], near, tone="other"))
        self.view.show({"kind": "table", "title": title, "columns": columns, "rows": rows}, *blocks, data=data)
        if count == 1:
            self._look(int(self.members[0]))

    def _tiles(self, title: str, shape: Any, start: int, at: Tensor, more: Sequence[str] = (), **how: Any) -> Block:
        tiles = []
        for i, position in enumerate(at.tolist()):
            own, row = int(self.labels[position]), int(self.rows[position])
            name = self.images.classes[own]
            lines = {"lines": [name, f"row {row}", *more[i : i + 1]], "label": f"look at row {row}, {name}"}
            tiles.append({"at": start + i, "key": str(position), "colour": self._tint[own], **lines})
        return {"kind": "tiles", "title": title, "shape": shape, "tiles": tiles, "event": "look", **how}

    def _highlight(self) -> list[int]:
        """The classes to colour where that is what is selected: the ten most frequent ones of the selection."""
        if self.colour.value != "what is selected" or not len(self.members):
            return []
        counts = torch.bincount(self.labels[self.members], minlength=len(self.images.classes))
        return sorted(c for c in counts.topk(10).indices.tolist() if counts[c])

    def _paint(self) -> None:
        """Colour the points and their legend, for the theme of the page."""
        images, dark = self.images, self.view.dark
        upper = (images.superclasses, images.superclass_of) if self.colour.value != "what is selected" else ((), ())
        names, group, looks = class_colours(images.classes, *upper, self._highlight(), dark)
        colours, sizes = [to_hex(look["color"]) for look in looks], [SIZES[g // 10 % 4] for g in range(len(names))]
        if names[-1] == "others":
            colours[-1], sizes[-1] = GREY[dark], SIZES[0]
        self._tint = [colours[g] for g in group]
        if self.colour.value == "right or wrong":
            entries = [("right", RIGHT, SIZES[0]), ("wrong", WRONG, SIZES[1])]
            by_kind = [entries[0]] * len(group) + [entries[1]] * len(group)
        else:
            entries = list(zip(names, colours, sizes, strict=True))
            by_kind = [entries[g] for g in group] * 2
        self.legend.value = legend(entries)
        for scatter in self.scatters:
            # Not by scatter.background(), upon which the page draws axes and a legend that are switched off.
            scatter.widget.background_color = to_rgba(GROUND[dark])
            scatter.widget.reticle_color = to_rgba(GREY[dark])
            scatter.widget.color = [to_rgba(hue) for _, hue, _ in by_kind]
            scatter.widget.color_selected = scatter.widget.color
            scatter.widget.color_hover = to_rgba(GROUND[not dark])
            scatter.widget.size = [size for *_, size in by_kind]

    def _logits(self, name: str, of: Network | Tensor, precision: str) -> Tensor:
        logits = of if isinstance(of, Tensor) else models.predict(of, self.images, precision=precision).logits
        wanted = [len(self.images), len(self.images.classes)]
        if list(logits.shape) != wanted:
            raise InputError(f"logits of {name!r} are {list(logits.shape)}; {self.images.name} wants {wanted}")
        if not logits.isfinite().all():
            raise InputError(f"some logits of {name!r} are nan or infinite; look at its training")
        return logits.detach().float().cpu()

    def _map(self, name: str) -> np.ndarray:
        how = self.how.value
        if (how, name) not in self._maps:
            told = self.say if self._page else print  # before the page shows this, the cell does
            self._maps[how, name] = embed(
                self.logits[name], how, seed=self.seed, cache=self.cache, told=lambda text: told(f"{name}: {text}")
            )
            if self._page:
                self.say("")
        return self._maps[how, name]

    def _points(self, name: str) -> np.ndarray:
        """A network's map as jscatter takes points, [N, 4]: within -1 and 1, and class + C · (whether it errs)."""
        plane = self._map(name)
        low, high = plane.min(0), plane.max(0)
        plane = 1.9 * (plane - (low + high) / 2) / max(float((high - low).max()), 1e-9)
        wrong = self.logits[name].argmax(1) != self.labels
        kind = (self.labels + len(self.images.classes) * wrong).numpy()
        return np.column_stack([plane, kind, np.zeros_like(kind)]).astype(np.float32)


def _numbers(of: Region) -> dict[str, str]:
    """What the table says of a network's members: against the classes of all images, then of the members alone."""
    apart = of.separation or {}
    shown = {
        "accuracy, %": 100 * of.accuracy,
        "to own mean": of.within,
        "margin": of.margin,
        "nearer to a wrong mean, %": 100 * of.negative_margin,
        "ratio, alone": apart.get("ratio", math.nan),
        "silhouette, alone": apart.get("silhouette", math.nan),
    }
    return {name: "–" if math.isnan(x) else f"{x:.{1 if '%' in name else 3}f}" for name, x in shown.items()}


def labelled(kind: Any, description: str, **given: Any) -> Any:
    """A control as wide as its label and what it holds."""
    layout, style = (
        ipw.Layout(width="auto", max_width="230px" if kind is ipw.Text else "100%"),
        {"description_width": "initial"},
    )
    return kind(description=description, layout=layout, style=style, **given)


def legend(entries: Sequence[tuple[str, str, int]]) -> str:
    """Names beside dots of their colour and size, as HTML. Entries: name, colour, size."""
    dots = "".join(
        f'<span style="white-space:nowrap"><span style="display:inline-block;width:{size + 5}px;height:{size + 5}px;'
        f'border-radius:50%;background:{colour};margin-right:4px;vertical-align:middle"></span>{html.escape(name)}</span>'
        for name, colour, size in entries
    )
    return f'<div style="display:flex;flex-wrap:wrap;gap:2px 14px;line-height:1.5">{dots}</div>'

"""The controls of the neighbour explorer."""

from __future__ import annotations

import math

import ipywidgets as ipw
import torch

from ickd_lib.explore import SampleSet
from ickd_lib.widgets.search import SearchBox
from ickd_lib.widgets.terms import TERMS

MOST = 128  # largest number of positives and of negatives that can be requested
STYLE = {"style": {"description_width": "initial"}}
NARROW = {"layout": {"width": "auto"}}


class NeighbourControls:
    """The controls of the neighbour explorer, in the order of the page.

    Attributes:
        number: key of the query: its data-set row, or the number of its region or box.
        of_class, search: which queries the buttons go through.
        back, following, random, mistake: the buttons.
        positives, negatives, aggregation: the sliders.
        scale: temperature of the displayed probabilities.
        upload, file: an image of one's own as the query, from the user's machine or by its path where the kernel runs.
    """

    def _make_controls(
        self,
        bank_samples: SampleSet,
        queries: SampleSet,
        *,
        positives: int,
        negatives: int,
        tau: float | None,
        temperature: float,
        training_temperature: float,
        student: bool,
        own: bool,
    ) -> list[ipw.Widget]:
        """Create the controls and return them in rows.

        Args:
            bank_samples, queries: the samples of the bank, and those to choose queries from.
            positives, negatives: numbers at which the sliders start; 0 for none.
            tau: aggregation temperature at which its slider starts; None disables the slider.
            temperature: temperature that is selected at first.
            training_temperature: temperature of the KL terms of the method, which can be selected, too, as can 1.
            student: whether there is a student.
            own: whether an image of one's own can be a query.
        """
        largest_class = int(torch.bincount(bank_samples.labels).max())
        one, keys = queries.task.sample[0], queries.keys
        self.number = ipw.BoundedIntText(
            int(keys[0]),
            int(keys.min()),
            int(keys.max()),
            # Neighbours are rows of the bank, so the name contains the split of which this is the number.
            description=f"{queries.name.rpartition('/')[2]} {'row' if one == 'image' else one}",
            tooltip=TERMS["row"],
            layout={"width": "140px"},
            **STYLE,
        )
        options = [("all", -1), *((name, c) for c, name in enumerate(bank_samples.classes))]
        width = {"layout": {"width": "200px"}}
        self.of_class = ipw.Dropdown(options=options, description="class", tooltip=TERMS["of class"], **width, **STYLE)
        self.search = SearchBox(queries, ["teacher", "student"] if student else ["teacher"])
        self.back = ipw.Button(description="back", tooltip=TERMS["back"], disabled=True, **NARROW)
        self.following = ipw.Button(description="next", tooltip=TERMS["next"], **NARROW)
        self.random = ipw.Button(description="random", tooltip=TERMS["random"], **NARROW)
        self.mistake = ipw.Button(
            description="next mistake", tooltip=TERMS["next mistake"], disabled=not student, **NARROW
        )
        most = max(1, min(MOST, largest_class - 1)), max(1, min(MOST, len(bank_samples) - largest_class))
        self.positives, self.negatives = (
            ipw.IntSlider(min(start or 8, end), 1, end, description=name, tooltip=TERMS[name], **STYLE)
            for start, end, name in zip((positives, negatives), most, ("positives k⁺", "negatives k⁻"), strict=True)
        )
        first = tau or 1.0
        self.aggregation = ipw.FloatLogSlider(
            first,
            min=min(-3, math.log10(first)),
            max=max(0, math.log10(first)),
            step=0.05,
            disabled=tau is None,
            description="aggregation τₐ",
            tooltip=TERMS["aggregation τₐ"],
            readout_format=".3f",
            **STYLE,
        )
        temperatures = sorted({1.0, float(training_temperature), float(temperature)})
        self.scale = ipw.ToggleButtons(
            options=[(f"{t:g}", t) for t in temperatures],
            value=float(temperature),
            tooltips=[f"Display the probabilities at temperature {t:g}." for t in temperatures],
            description="temperature",
            tooltip=TERMS["temperature"],
            layout={"width": "max-content", "display": "flex", "flex_flow": "row nowrap", "align_items": "center"},
            style={"description_width": "initial", "button_width": "40px"},
        )
        tip = TERMS["your own image"]
        self.upload = ipw.FileUpload(
            accept="image/*", description="your own image", tooltip=tip, disabled=not own, **NARROW
        )
        self.file = ipw.Text(
            description="or its path",
            tooltip=TERMS["or its path"],
            placeholder="photo.jpg" if own else "needs teacher=… and whole images",
            continuous_update=False,
            disabled=not own,
            **STYLE,
        )
        wrap = {"layout": {"flex_flow": "row wrap"}}
        return [
            self.search,
            ipw.HBox([self.number, self.of_class, self.back, self.following, self.random, self.mistake], **wrap),
            ipw.HBox([self.positives, self.negatives, self.aggregation, self.scale], **wrap),
            ipw.HBox([self.upload, self.file], **wrap),
        ]

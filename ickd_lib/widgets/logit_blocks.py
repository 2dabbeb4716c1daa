"""The blocks that the logit-space explorer displays: tiles of samples, predictions, and measures of a region."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ickd_lib.explore import Region, SampleSet
from ickd_lib.widgets.view import Block


def hint(samples: SampleSet) -> Block:
    """Return the text that is displayed while nothing is selected."""
    one, several = samples.task.sample
    a = "an" if one[0] in "aeiou" else "a"
    text = (
        f"Point at {a} {one} to see its predictions. To select {several}, draw a lasso around them, click one, choose "
        "a class, or enter row numbers."
    )
    return {"kind": "text", "text": text}


def sample_tiles(
    samples: SampleSet,
    at: Tensor,
    colour: Sequence[str],
    *,
    title: str,
    shape: Sequence[int],
    start: int = 0,
    more: Sequence[str] = (),
    **options: Any,
) -> Block:
    """Return a block with one tile for each sample.

    A click on a tile sends the event "look" with the sample's position as its key.

    Args:
        samples: the samples.
        at: positions of the displayed samples, shape [n].
        colour: colour of each class.
        title: text above the tiles.
        shape: shape (N, height, width) of the images in the message.
        start: position of the first displayed sample among these images.
        more: one more line of text for each tile.
        options: further entries of the block, such as `tone`.
    """
    tiles = []
    for i, position in enumerate(at.tolist()):
        label, where = int(samples.labels[position]), samples.address(position)
        name = samples.classes[label]
        lines = {"lines": [name, *where, *more[i : i + 1]], "label": f"look at {', '.join(where)}, {name}"}
        tiles.append({"at": start + i, "key": str(position), "colour": colour[label], **lines})
    return {"kind": "tiles", "title": title, "shape": shape, "tiles": tiles, "event": "look", **options}


def prediction_table(samples: SampleSet, at: int, logits: Mapping[str, Tensor]) -> Block:
    """Return a table with each network's prediction for one sample.

    Args:
        samples: the N samples.
        at: position of the sample.
        logits: each network's logits of all samples, shape [N, C].
    """
    label, where, names = int(samples.labels[at]), ", ".join(samples.address(at)), samples.classes
    rows = []
    for network, of_all in logits.items():
        probabilities = of_all[at].softmax(0)
        predicted = int(probabilities.argmax())
        mark = "✓" if predicted == label else "✗"
        numbers = [f"{probabilities[predicted]:.3f}", f"{probabilities[label]:.3f}"]
        rows.append([network, f"{mark} {names[predicted]}", *numbers])
    columns = ["network", "prediction", "its probability", "probability of the label"]
    return {
        "kind": "table",
        "title": f"predictions for {where} (class {names[label]})",
        "columns": columns,
        "rows": rows,
    }


def region_table(found: Mapping[str, Region], samples: SampleSet) -> Block:
    """Return a table with each network's measures of the selected samples.

    Args:
        found: the region of the selected samples in each network's logit space; at least one network.
        samples: all samples.
    """
    classes = samples.classes
    counts = next(iter(found.values())).counts
    most = counts.topk(min(3, len(classes)))
    mix = [f"{n:,} of class {classes[c]}" for n, c in zip(*map(Tensor.tolist, most), strict=True) if n]
    more = ", …" if int(most.values.sum()) < int(counts.sum()) else ""
    numbers = {name: _numbers(region) for name, region in found.items()}
    columns = ["network", *next(iter(numbers.values()))]
    rows = [[name, *texts.values()] for name, texts in numbers.items()]
    title = f"separation of the selected {samples.task.sample[1]} in each logit space: {', '.join(mix)}{more}"
    return {"kind": "table", "title": title, "columns": columns, "rows": rows}


def _numbers(region: Region) -> dict[str, str]:
    """Return the texts of one row: measures relative to the classes of all images, then of the members alone."""
    alone = region.separation or {}
    numbers = {
        "accuracy, %": 100 * region.accuracy,
        "distance to own mean": region.within,
        "margin": region.margin,
        "nearer to a wrong mean, %": 100 * region.negative_margin,
        "between / within (selection only)": alone.get("ratio", math.nan),
        "silhouette (selection only)": alone.get("silhouette", math.nan),
    }
    return {name: "–" if math.isnan(x) else f"{x:.{1 if '%' in name else 3}f}" for name, x in numbers.items()}

"""The blocks of the logit-space explorer: tiles, predictions, measures of a region, and the errors of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ickd_lib.explore import Region, SampleSet
from ickd_lib.widgets.terms import TERMS, tips
from ickd_lib.widgets.view import Block

CONFUSED = 30  # largest number of pairs in the list of errors


def legend(entries: Sequence[tuple[str, str, int]], of: Tensor, members: Tensor, several: str, name: str) -> Block:
    """Return the legend of the maps. A click on an entry sends the event "legend" with the entry's number.

    Args:
        entries: name, colour and size of each kind of point.
        of: number of each sample's entry, shape [N].
        members: positions of the selected samples, shape [M], ascending.
        several: what the points are, such as "images".
        name: the network whose predictions decide, where the colours differ between maps.
    """
    items = []
    for at, (text, colour, _) in enumerate(dict.fromkeys(entries)):
        pressed = len(members) > 0 and torch.equal((of == at).nonzero().squeeze(1), members)
        tip = f"{'deselect' if pressed else 'select'} these {several}, by the predictions of {name}"
        items.append({"key": at, "name": text, "colour": colour, "tip": tip, "pressed": pressed})
    return {"kind": "legend", "title": "legend; a click selects, another one deselects", "items": items}


def hint(samples: SampleSet) -> Block:
    """Return the text that is displayed while nothing is selected."""
    one, several = samples.task.sample
    a = "an" if one[0] in "aeiou" else "a"
    text = (
        f"Point at {a} {one} to see its predictions. To select {several}, draw a lasso around them, click one, choose "
        "a class, or enter row numbers."
    )
    return {"kind": "text", "text": text}


def ordered(
    members: Tensor,
    labels: Tensor,
    logits: Tensor,
    pair: Sequence[Tensor],
    margins: Tensor,
    shown: str,
    order: str,
) -> Tensor:
    """Return the positions of the selected samples that are displayed, in the order of their tiles.

    Args:
        members: positions of the selected samples, shape [M].
        labels: class of each sample, shape [N].
        logits: a network's logits of all samples, shape [N, C], for correctness, confidence and prediction.
        pair: the logits of two networks, shape [N, C] each.
        margins: of each sample in the network's logit space, shape [N] (`metrics.margins`).
        shown: "all", "right", "wrong", or "networks differ" for where the two predict different classes.
        order: "outliers first" for ascending margins, "row", "lowest confidence", "highest confidence", "label" or
            "prediction".
    """
    labels, (confidence, predicted) = labels[members], logits[members].softmax(1).max(1)
    first, second = (one[members].argmax(1) for one in pair)
    keep = {
        "all": labels >= 0,
        "right": predicted == labels,
        "wrong": predicted != labels,
        "networks differ": first != second,
    }[shown]
    keys = {
        "outliers first": margins[members],
        "row": members,
        "lowest confidence": confidence,
        "highest confidence": -confidence,
        "label": labels,
        "prediction": predicted,
    }[order]
    return members[keep][keys[keep].argsort(stable=True)]


def sample_tiles(
    samples: SampleSet,
    at: Tensor,
    colour: Sequence[str],
    *,
    title: str,
    shape: Sequence[int],
    start: int = 0,
    more: Sequence[str] = (),
    logits: Tensor | None = None,
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
        logits: logits of all samples, shape [N, C]. If given, each tile has the prediction, ✓ or ✗, and the confidence.
        options: further entries of the block, such as `tone`.
    """
    tiles = []
    for i, position in enumerate(at.tolist()):
        label, where = int(samples.labels[position]), samples.address(position)
        name = samples.classes[label]
        predicted = []
        if logits is not None:
            confidence, best = logits[position].softmax(0).max(0)
            mark = "✓" if int(best) == label else "✗"
            predicted = [f"{mark} {samples.classes[int(best)]} {confidence:.2f}"]
        file = samples.file(position)
        text = f"look at {', '.join(filter(None, (*where, name, file, *predicted)))}"
        short = [file.rpartition("/")[2]] if file else []
        lines = {"lines": [name, *predicted, *where, *short, *more[i : i + 1]], "label": text}
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
    columns = ["network", "prediction", "its probability", "that of the label"]
    title = f"predictions for {where} (class {names[label]})"
    sentences = {"tip": TERMS["predictions for"], "tips": tips(columns)}
    return {"kind": "table", "title": title, "columns": columns, "rows": rows, **sentences}


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
    sentences = {"tip": TERMS["separation"], "tips": tips(columns)}
    return {"kind": "table", "title": title, "columns": columns, "rows": rows, **sentences}


def matrix(counts: Tensor, classes: Sequence[str], name: str) -> Block:
    """Return the confusion matrix of a network. A click on a cell sends "cell" with "label,prediction" as its key.

    Args:
        counts: number of samples of each label (row) with each prediction (column), shape [C, C].
        classes: names of the classes.
        name: name of the network.
    """
    title = f"confusion matrix of {name}: label in rows, prediction in columns"
    block = {"kind": "matrix", "title": title, "tip": TERMS["confusion matrix"]}
    return {**block, "classes": list(classes), "counts": counts.tolist()}


def most_confused(counts: Tensor, classes: Sequence[str], name: str) -> Block:
    """Return the most frequent errors of a network as a list. A click sends "cell", as in `matrix`."""
    errors = counts.clone().fill_diagonal_(0)
    top = errors.flatten().topk(min(CONFUSED, errors.numel()))
    items = []
    for count, at in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        if count:
            label, predicted = divmod(at, len(classes))
            share = count / int(errors.max())
            text = f"{classes[label]} → {classes[predicted]}"
            items.append({"key": f"{label},{predicted}", "name": text, "number": str(count), "share": share})
    title = f"most frequent errors of {name}: label → prediction" if items else f"{name} makes no error"
    return {"kind": "ranking", "title": title, "tip": TERMS["errors"], "event": "cell", "items": items}


def class_accuracies(counts: Tensor, classes: Sequence[str], colour: Sequence[str], name: str) -> Block:
    """Return the accuracy of a network for each class, the lowest first. A click sends "class" with the class's number.

    Args:
        counts: as for `matrix`.
        classes: names of the classes.
        colour: colour of each class.
        name: name of the network.
    """
    accuracy = counts.diagonal() / counts.sum(1)
    items = [
        {"key": c, "name": classes[c], "colour": colour[c], "number": f"{100 * accuracy[c]:.1f} %"}
        | {"share": float(accuracy[c])}
        for c in accuracy.argsort().tolist()
        if counts[c].sum()
    ]
    title = f"accuracy of {name} by class"
    return {"kind": "ranking", "title": title, "tip": TERMS["accuracy by class"], "event": "class", "items": items}


def _numbers(region: Region) -> dict[str, str]:
    """Return the texts of one row: measures relative to the classes of all images, then of the members alone."""
    alone = region.separation or {}
    numbers = {
        "accuracy, %": 100 * region.accuracy,
        "distance to own mean": region.within,
        "margin": region.margin,
        "nearer to a wrong mean, %": 100 * region.negative_margin,
        "ratio (selection alone)": alone.get("ratio", math.nan),
        "silhouette (selection alone)": alone.get("silhouette", math.nan),
    }
    return {name: "–" if math.isnan(x) else f"{x:.{1 if '%' in name else 3}f}" for name, x in numbers.items()}

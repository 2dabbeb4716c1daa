"""The blocks that the neighbour explorer displays: the path of queries, tiles, probability bars and loss terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.colors import to_hex
from torch import Tensor

from ickd_lib import plots
from ickd_lib.explore import Neighbourhood, SampleSet
from ickd_lib.widgets.view import Block

CRUMBS = 8  # largest number of displayed entries of the path; these are the last ones
CLASSES = 10  # classes with a bar

Location = tuple[SampleSet, int]  # of a sample: the set that contains it, and its position there


def label_of(location: Location) -> int:
    """Return the class of a sample."""
    samples, at = location
    return int(samples.labels[at])


def crumbs(path: Sequence[Location]) -> Block:
    """Return the block with the path of queries. The key of each query is its position in the path."""
    items = []
    for i, (samples, at) in enumerate(path):
        name = samples.name.partition("/")[2] or samples.name
        where = ", ".join([*samples.address(at), samples.classes[label_of((samples, at))]])
        items.append({"text": f"{name} {where}", "key": i})
    return {"kind": "crumbs", "title": "path", "items": items[-CRUMBS:]}


def displayed_classes(probabilities: Mapping[str, Tensor], label: int) -> list[int]:
    """Return the classes that have a bar: the true class and those with the highest probabilities from any predictor.

    Args:
        probabilities: probabilities from each predictor, shape [C].
        label: the true class.
    """
    peak = torch.stack(list(probabilities.values())).amax(0)
    peak[label] = torch.inf
    return sorted(peak.argsort(descending=True, stable=True)[:CLASSES].tolist())


def colours(samples: SampleSet, displayed: Sequence[int], dark: bool) -> list[str]:
    """Return the colour of each class, as in figures.

    Where there are more than ten classes and no superclasses, all classes but the `displayed` ones are grey.
    """
    highlight = () if len(samples.classes) <= 10 or samples.superclasses else displayed
    upper = (samples.superclasses, samples.superclass_of)
    _, group, looks = plots.class_colours(samples.classes, *upper, highlight, dark)
    return [to_hex(looks[g]["color"]) for g in group]


def tiles(
    query: Location,
    bank_samples: SampleSet,
    found: Neighbourhood,
    positives: Tensor,
    negatives: Tensor,
    colour: Sequence[str],
    shape: Sequence[int],
) -> list[Block]:
    """Return three blocks of tiles: the query, its positives and its negatives.

    Args:
        query: location of the query.
        bank_samples: the samples of the bank.
        found: the query's neighbourhood, with B = 1.
        positives, negatives: positions of the displayed in-context samples in `bank_samples`, shape [n] each.
        colour: colour of each class.
        shape: shape (N, height, width) of the images in the message: the query, then the positives, then the negatives.
    """
    samples, at = query
    label = label_of(query)
    lines = [samples.classes[label], *samples.address(at)]
    tile = {"at": 0, "key": 0, "colour": colour[label], "lines": lines, "label": f"query: {', '.join(lines)}"}
    blocks: list[Block] = [{"kind": "tiles", "tone": "query", "title": "query", "shape": shape, "tiles": [tile]}]
    weights = [f"w {weight:.0%}" for weight in found.weights[0].tolist()]
    for kind, positions, retrieved, start in (
        ("positive", positives, found.positives, 1),
        ("negative", negatives, found.negatives, 1 + len(positives)),
    ):
        of_class = kind == "positive"
        row = []
        for i, (position, cosine) in enumerate(zip(positions.tolist(), retrieved.similarity[0].tolist(), strict=False)):
            label, key = label_of((bank_samples, position)), int(bank_samples.keys[position])
            lines = [bank_samples.classes[label], f"cos {cosine:.3f}", *(weights[i : i + 1] if of_class else [])]
            text = f"{kind} {i + 1}: {', '.join([*lines, *bank_samples.address(position)])}"
            row.append({"at": start + i, "key": key, "colour": colour[label], "lines": lines, "label": text})
        requested, count = retrieved.mask.shape[1], int(retrieved.mask.sum())
        title = f"{count} nearest of {'its class: cosine, weight w' if of_class else 'other classes'}"
        title += f" ({requested} requested)" if count < requested else ""
        title += f", {len(positions)} shown" if len(positions) < count else ""
        block = {"kind": "tiles", "tone": "same" if of_class else "other", "title": title, "shape": shape}
        blocks.append({**block, "tiles": row, "event": "open"})
    return blocks


def scene(query: Location, shape: Sequence[int], start: int) -> Block:
    """Return the block with the image of the query, in which the query is marked.

    Args:
        query: location of the query.
        shape: shape (1, height, width) of the image in the message.
        start: position of the image among the bytes of the message.
    """
    samples, at = query
    row, *rest = samples.address(at)
    tile = {"at": 0, "key": 0, "lines": [row], "label": f"the image of the query, {row}, with {' '.join(rest)} marked"}
    return {"kind": "tiles", "tone": "scene", "title": "its image", "shape": shape, "start": start, "tiles": [tile]}


def bars(
    query: Location,
    probabilities: Mapping[str, Tensor],
    displayed: Sequence[int],
    colour: Sequence[str],
    temperature: float,
) -> Block:
    """Return the block with the probabilities from each predictor for the query.

    Args:
        query: location of the query.
        probabilities: probabilities from each predictor, shape [C].
        displayed: classes with a bar.
        colour: colour of each class.
        temperature: temperature of the probabilities.
    """
    classes, label = query[0].classes, label_of(query)
    rows = [
        {
            "name": classes[c],
            "colour": colour[c],
            "marked": c == label,
            "values": [float(p[c]) for p in probabilities.values()],
        }
        for c in displayed
    ]
    columns = [f"{name} predicts {classes[int(p.argmax())]}" for name, p in probabilities.items()]
    title = f"probabilities at temperature {temperature:g} (longest bar: the largest value)"
    return {"kind": "bars", "title": title, "columns": columns, "rows": rows}


def term_table(terms: Mapping[str, tuple[float, float]], count: int, title: str) -> Block:
    """Return the table of a query's loss terms.

    Args:
        terms: for each weighted loss term, its value for the query and its mean over `count` queries.
        count: number of queries in the mean.
        title: title of the table.
    """
    total = sum(value for value, _ in terms.values())
    rows = [
        [
            name.upper(),
            f"{value:.3f}",
            f"{value / total:.0%}" if total else "–",
            f"{value / mean:.2f} ×" if mean > 0 else "–",
        ]
        for name, (value, mean) in terms.items()
    ]
    columns = ["weighted term", "this query", "share of its loss", f"relative to the mean of {count} queries"]
    return {"kind": "table", "title": title, "columns": columns, "rows": rows}

"""The blocks of the neighbour explorer: the path of queries, tiles, predictions, probabilities and loss terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.colors import to_hex
from torch import Tensor

from ickd_lib import plots
from ickd_lib.explore import Neighbourhood, SampleSet
from ickd_lib.widgets import gallery
from ickd_lib.widgets.terms import TERMS, tips
from ickd_lib.widgets.view import Block

CRUMBS = 8  # largest number of displayed entries of the path; these are the last ones
CLASSES = 10  # classes with a bar

Location = tuple[SampleSet, int]  # of a sample: the set that contains it, and its position there


def label_of(location: Location) -> int:
    """Return the class of a sample; -1 where it is unknown."""
    samples, at = location
    return int(samples.labels[at])


def crumbs(path: Sequence[Location]) -> Block:
    """Return the block with the path of queries. The key of each query is its position in the path."""
    items = []
    for i, (samples, at) in enumerate(path):
        name = samples.name.partition("/")[2] or samples.name
        label = label_of((samples, at))
        where = ", ".join([*samples.address(at), *([samples.classes[label]] if label >= 0 else [])])
        items.append({"text": f"{name} {where}", "key": i})
    return {"kind": "crumbs", "title": "path", "tip": TERMS["path"], "items": items[-CRUMBS:]}


def displayed_classes(probabilities: Mapping[str, Tensor], label: int) -> list[int]:
    """Return the classes that have a bar: the true class, the predicted ones, and the next most probable ones.

    They are in descending order of their highest probability from any predictor.

    Args:
        probabilities: probabilities from each predictor, shape [C].
        label: the true class; -1 where it is unknown.
    """
    order = torch.stack(list(probabilities.values())).amax(0).argsort(descending=True, stable=True).tolist()
    wanted = {int(p.argmax()) for p in probabilities.values()} | {label}
    shown = [*(c for c in order if c in wanted), *(c for c in order if c not in wanted)][:CLASSES]
    return sorted(shown, key=order.index)


def colours(samples: SampleSet, displayed: Sequence[int], dark: bool | None) -> list[str]:
    """Return the colour of each class, as in figures.

    Where there are more than ten classes and no superclasses, all classes but the `displayed` ones are grey.

    Args:
        samples: the samples, for their classes and superclasses.
        displayed: the classes that are not grey; empty for the first ten.
        dark: whether the page has a dark theme; None for the colours of a gallery, which follow its theme.
    """
    if dark is None:
        return list(map(gallery.themed, *(colours(samples, displayed, theme) for theme in (False, True))))
    highlight = () if len(samples.classes) <= 10 or samples.superclasses else displayed
    upper = (samples.superclasses, samples.superclass_of)
    _, group, looks = plots.class_colours(samples.classes, *upper, sorted(highlight), dark)
    return [to_hex(looks[g]["color"]) for g in group]


def query_tile(query: Location, colour: Sequence[str], shape: Sequence[int]) -> Block:
    """Return the block with the tile of the query.

    Args:
        query: location of the query.
        colour: colour of each class.
        shape: shape (N, height, width) of the images in the message, of which the query is the first.
    """
    samples, at = query
    label = label_of(query)
    file = [samples.file(at)] if samples.numbered and samples.file(at) else []
    lines = [samples.classes[label] if label >= 0 else "label unknown", *samples.address(at), *file]
    tile = {"at": 0, "key": 0, "colour": colour[label] if label >= 0 else "", "lines": lines}
    tile["label"] = f"query: {', '.join(lines)}"
    return {"kind": "tiles", "tone": "query", "title": "query", "tip": TERMS["query"], "shape": shape, "tiles": [tile]}


def verdicts(query: Location, probabilities: Mapping[str, Tensor], colour: Sequence[str], temperature: float) -> Block:
    """Return the block with each predictor's prediction for the query, its probability, and whether it is right.

    Args:
        query: location of the query.
        probabilities: probabilities from each predictor, shape [C].
        colour: colour of each class.
        temperature: temperature of the probabilities.
    """
    label, classes = label_of(query), query[0].classes
    items = []
    for name, p in probabilities.items():
        predicted = int(p.argmax())
        item = {"who": name, "tip": TERMS[name], "name": classes[predicted], "colour": colour[predicted]}
        items.append(
            {**item, "number": f"{float(p[predicted]):.3f}", "right": predicted == label if label >= 0 else None}
        )
    return {"kind": "verdicts", "title": f"predictions at temperature {temperature:g}", "items": items}


def in_context_tiles(
    bank_samples: SampleSet,
    found: Neighbourhood,
    positives: Tensor,
    negatives: Tensor,
    colour: Sequence[str],
    shape: Sequence[int],
    of: str,
) -> list[Block]:
    """Return the blocks of tiles of the query's positives and negatives.

    Args:
        bank_samples: the samples of the bank.
        found: the query's neighbourhood, with B = 1.
        positives, negatives: positions of the displayed in-context samples in `bank_samples`, shape [n] each.
        colour: colour of each class.
        shape: shape (N, height, width) of the images in the message: the query, then the positives, then the negatives.
        of: what the positives share with the query: "its class", or "the predicted class" of a query without a label.
    """
    blocks: list[Block] = []
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
            file = [bank_samples.file(position)] if bank_samples.file(position) else []
            text = f"{kind} {i + 1}: {', '.join([*lines, *file, *bank_samples.address(position)])}"
            lines += [name.rpartition("/")[2] for name in file]
            row.append({"at": start + i, "key": key, "colour": colour[label], "lines": lines, "label": text})
        requested, count = retrieved.mask.shape[1], int(retrieved.mask.sum())
        title = f"{count} nearest of {f'{of}: cosine, weight w' if of_class else 'other classes'}"
        title += f" ({requested} requested)" if count < requested else ""
        title += f", of which the first {len(positions)} can be displayed" if len(positions) < count else ""
        block = {"kind": "tiles", "tone": "same" if of_class else "other", "title": title, "shape": shape}
        block |= {"tip": TERMS[f"{kind}s"]} | ({} if of_class else {"folded": "negatives"})
        blocks.append({**block, "tiles": row, "event": "open"})
    return blocks


def whole_image(query: Location, shape: Sequence[int], start: int) -> Block:
    """Return the block with the image of the query, in which the query is marked.

    Args:
        query: location of the query.
        shape: shape (1, height, width) of the image in the message.
        start: position of the image among the bytes of the message.
    """
    samples, at = query
    row, *rest = samples.address(at)
    tile = {"at": 0, "key": 0, "lines": [row], "label": f"the image of the query, {row}, with {' '.join(rest)} marked"}
    block = {"kind": "tiles", "tone": "image", "title": "its image", "tip": TERMS["its image"], "shape": shape}
    return {**block, "start": start, "tiles": [tile]}


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
    if others := len(classes) - len(displayed):
        rest = [max(0.0, 1 - sum(float(p[c]) for c in displayed)) for p in probabilities.values()]
        name = f"{others} other class{'es' * (others > 1)}"
        rows.append({"name": name, "colour": "", "marked": False, "values": rest})
    title = f"probabilities at temperature {temperature:g}, the largest first"
    block = {"kind": "bars", "title": title, "tip": TERMS["probabilities"], "tips": tips(["class", *probabilities])}
    return {**block, "columns": list(probabilities), "rows": rows}


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
    against = f"relative to the mean of {count} queries"
    columns = ["weighted term", "this query", "share of its loss", against]
    sentences = tips([*columns, *(name.upper() for name in terms)]) | {against: TERMS["relative to the mean"]}
    block = {"kind": "table", "title": title, "tip": TERMS["loss terms"], "tips": sentences}
    return {**block, "columns": columns, "rows": rows}

"""The sections of a page about classifiers: classes, probabilities, mistakes, and how two students differ."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ickd_lib import metrics, plots
from ickd_lib.data import Images
from ickd_lib.memory import InContext
from ickd_lib.pages.html import Markup, bar, element, figure, note, plain, section, table, tile
from ickd_lib.pages.networks import Evaluated, Outputs, most_confident

MISTAKES = 10  # number of mistakes that are shown
SIMILAR = 3  # number of in-context samples of each kind beside a mistake
DIFFERENT = 7  # number of images for which only one of two students is right, for each of them
CONFUSIONS = 10  # number of confusions that are listed
LINES = 200  # largest number of classes in a table


def sections(found: Evaluated, baseline: str = "") -> list[Markup]:
    """Return all sections about the networks.

    Args:
        found: the networks.
        baseline: the student with which the best one is compared; by default the second best.
    """
    parts = [_classes(found), _confusion(found), _probabilities(found), _mistakes(found)]
    best, *others = found.students
    for other in [one for one in others if one.name == baseline] or others[:1]:
        parts.append(_differences(best, other, found.images))
    return parts


def _networks(found: Evaluated) -> list[Outputs]:
    return [*found.students, *([found.teacher] if found.teacher else [])]


def _classes(found: Evaluated) -> Markup:
    labels, classes = found.images.labels, found.images.classes
    count = labels.bincount(minlength=len(classes))
    networks = _networks(found)
    right = {one.name: _by_class(one, labels, count) for one in networks}
    worst = right[networks[0].name].masked_fill(count == 0, 2.0).argsort(stable=True).tolist()
    present = [c for c in worst if count[c]]
    rows = [[classes[c], int(count[c]), *(bar(float(of[c])) for of in right.values())] for c in present[:LINES]]
    left_out = [note(f"The other {len(present) - LINES:,} classes are left out.")] if len(present) > LINES else []
    return section(
        "Accuracy of each class",
        f"Share of the {len(labels):,} images of {found.images.name} that are classified correctly, in percent. The "
        f"classes with the lowest accuracy of {networks[0].name} come first.",
        table(["class", "images", *right], rows),
        *left_out,
    )


def _by_class(outputs: Outputs, labels: Tensor, count: Tensor) -> Tensor:
    correct = (outputs.predicted == labels).double()
    return torch.zeros(len(count), dtype=torch.double).index_add_(0, labels, correct) / count.clamp(min=1)


def _confusion(found: Evaluated) -> Markup:
    best, labels, classes = found.students[0], found.images.labels, found.images.classes
    counts = metrics.confusion(best.predicted, labels, len(classes))
    wrong = counts.clone().fill_diagonal_(0)
    order = wrong.flatten().argsort(descending=True, stable=True)[:CONFUSIONS].tolist()
    cells = [(at // len(classes), at % len(classes)) for at in order if wrong.flatten()[at]]
    rows = [
        [classes[row], classes[column], int(wrong[row, column]), f"{100 * wrong[row, column] / counts[row].sum():.1f}"]
        for row, column in cells
    ]
    draw = partial(plots.confusion, counts, plain(classes))
    listed = (
        table(["label", "prediction", "images", "% of the label's images"], rows) if rows else "There is no mistake."
    )
    text = f"Rows are the labels, columns are what {best.name} predicts. The table lists the most frequent mistakes."
    return section("Confusion matrix", text, figure(draw, f"Confusion matrix of {best.name}"), listed)


def _probabilities(found: Evaluated) -> Markup:
    labels, networks = found.images.labels, _networks(found)
    names = plain([one.name for one in networks])
    bins = {name: metrics.reliability(one.logits, labels) for name, one in zip(names, networks, strict=True)}
    rows = []
    for one in networks:
        measured = metrics.classification(one.logits, labels)
        shares = (f"{100 * measured[key]:.1f}" for key in ("accuracy", "confidence", "ece"))
        rows.append([one.name, *shares, f"{measured['nll']:.3f}"])
    return section(
        "Can the probabilities be trusted?",
        "A network is calibrated if it is right in 80% of the cases in which it predicts a class with a probability of "
        "80%. Its line in the left panel is then the diagonal. The expected calibration error (ECE) is the mean "
        "distance from it. The negative log-likelihood (NLL) rates the probabilities of the labels. Lower is better "
        "for both.",
        figure(partial(plots.reliability, bins), "Reliability diagram: accuracy over the predicted probability"),
        table(["network", "accuracy, %", "mean probability, %", "ECE, %", "NLL"], rows),
    )


def _mistakes(found: Evaluated) -> Markup:
    best, images = found.students[0], found.images
    wrong = best.predicted != images.labels
    rows = most_confident(best, wrong, MISTAKES)
    title, count = (
        "Most confident mistakes",
        f"{best.name} is wrong for {int(wrong.sum()):,} of {len(images):,} images.",
    )
    if not rows:
        return section(title, count)
    if found.bank is None or found.queries is None:
        reason = f"In-context samples are not shown: {found.no_bank}."
        tiles = (_query(best, images, at) for at in rows)
        return section(title, f"{count} Those with the highest probabilities are shown.", note(reason), _tiles(*tiles))
    samples = found.bank.retrieve(
        found.queries[rows], images.labels[rows], positives=SIMILAR, negatives=SIMILAR, allow_missing=True
    )
    lines = []
    for i, at in enumerate(rows):
        near = [
            _sample(found.train, kind, i, j, of)
            for kind, of in zip(samples, ("same", "other"), strict=True)
            for j in range(SIMILAR)
            if bool(kind.mask[i, j])
        ]
        lines.append(element("div", _query(best, images, at), *near, of="line"))
    text = (
        f"{count} Those with the highest probabilities are shown, each beside its in-context samples: the training "
        "images that are most similar by the features of the teacher, first those of the class of the label (blue), "
        "then those of other classes (orange), with the cosine of the features. If those of other classes are the "
        "more similar ones, the image is hard, or its label is wrong."
    )
    return section(title, text, *lines)


def _query(outputs: Outputs, images: Images, at: int) -> Markup:
    probabilities = outputs.logits[at].softmax(0)
    label, predicted = int(images.labels[at]), int(outputs.predicted[at])
    name = images.files[int(images.index[at])] if images.files else f"row {int(images.index[at])}"
    return tile(
        images.shown(slice(at, at + 1))[0],
        name,
        f"label: {images.classes[label]} ({probabilities[label]:.0%})",
        f"prediction: {images.classes[predicted]} ({probabilities[predicted]:.0%})",
        of="query",
    )


def _sample(train: Images, found: InContext, query: int, j: int, of: str) -> Markup:
    at = int((train.index == found.index[query, j]).nonzero()[0, 0])
    label = int(train.labels[at])
    name = train.classes[label] if label >= 0 else "no label"
    return tile(train.shown(slice(at, at + 1))[0], name, f"{float(found.similarity[query, j]):.3f}", of=of)


def _tiles(*tiles: Markup) -> Markup:
    return element("div", *tiles, of="tiles")


def _differences(one: Outputs, other: Outputs, images: Images) -> Markup:
    right = [student.predicted == images.labels for student in (one, other)]
    wrong = ~right[0] & ~right[1]
    masks = {
        "both are right": right[0] & right[1],
        f"only {one.name} is right": right[0] & ~right[1],
        f"only {other.name} is right": right[1] & ~right[0],
        "both are wrong, with the same class": wrong & (one.predicted == other.predicted),
        "both are wrong, with different classes": wrong & (one.predicted != other.predicted),
    }
    counted = [[text, f"{int(mask.sum()):,}", f"{100 * mask.double().mean():.1f}"] for text, mask in masks.items()]
    blocks: list[Markup] = []
    for student, better in ((other, one), (one, other)):
        text = f"only {better.name} is right"
        shown = [_query(student, images, at) for at in most_confident(student, masks[text], DIFFERENT)]
        if shown:
            heading = f"O{text[1:]}: the most confident mistakes of {student.name}"
            blocks += [element("h3", heading), _tiles(*shown)]
    return section(
        f"What {one.name} and {other.name} disagree on",
        table(["images for which", "number", "%"], counted),
        *blocks,
    )

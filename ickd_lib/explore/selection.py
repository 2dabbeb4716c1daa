"""Selection of samples by a text: words about classes and predictions, or row numbers."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ickd_lib.data import Images
from ickd_lib.explore.samples import SampleSet
from ickd_lib.runtime import InputError


def search(
    text: str,
    images: Images | SampleSet,
    *,
    teacher_logits: Tensor | None = None,
    student_logits: Tensor | None = None,
) -> list[int]:
    """Return the positions of the samples that match all words of a search text, in ascending order.

    A word is matched against the names of classes and superclasses, in part or whole and in any case. Further forms:
    `teacher:word` and `student:word` match the class that this network predicts, `row:12` matches the samples of the
    image with this data-set row, and `wrong` matches the samples that the student misclassifies.

    Args:
        text: the search text. An empty one matches all samples.
        images: the N samples, or images that are one sample each.
        teacher_logits, student_logits: logits of all samples, shape [N, C]; needed for words about predictions.
    Raises:
        InputError: no sample matches, a row number is not a number, or a word needs logits that are not given.
    """
    samples = images if isinstance(images, SampleSet) else SampleSet(images)
    labels, (one, several) = samples.labels.cpu(), samples.task.sample
    logits_of = {"teacher": teacher_logits, "student": student_logits}
    match = torch.ones(len(samples), dtype=torch.bool)
    for word in text.lower().split():
        prefix, colon, rest = word.partition(":")
        if prefix == "row" and colon:
            if not rest.isdecimal():
                raise InputError(f"{word!r} is not a data-set row; write a number, such as row:12")
            match &= torch.tensor([row == int(rest) for row in samples.rows.tolist()])
        elif word == "wrong" or (prefix in logits_of and colon):
            network = "student" if word == "wrong" else prefix
            logits = logits_of[network]
            if logits is None:
                raise InputError(f"{word!r} needs a {network}; pass {network}=…")
            predicted = logits.argmax(1).cpu()
            wrong = predicted != labels
            if word == "wrong" and not wrong.any():
                raise InputError(
                    f"the student classifies all of these {several} correctly, so there is no mistake to show"
                )
            match &= wrong if word == "wrong" else _classes_with(rest, samples)[predicted]
        else:
            match &= _classes_with(word, samples)[labels]
    if not match.any():
        raise InputError(
            f"no {one} matches {text!r}; use parts of class names, teacher:NAME, student:NAME, row:NUMBER or wrong"
        )
    return match.nonzero().squeeze(1).tolist()


def positions(text: str, rows: Tensor, name: str) -> Tensor:
    """Return the positions of the data-set rows that a text such as "3 7 10-20" lists, in ascending order.

    Args:
        text: row numbers and ranges, separated by spaces or commas.
        rows: data-set row of the image of each sample, shape [N].
        name: name of the data, for error messages.
    Returns:
        Each position once, shape [n].
    Raises:
        InputError: a part of the text is neither a number nor a range, or no sample has such a row.
    """
    chosen = torch.zeros(len(rows), dtype=torch.bool)
    for part in text.replace(",", " ").split():
        ends = re.fullmatch(r"(\d{1,12})(?:[-–](\d{1,12}))?", part)
        if not ends:
            raise InputError(f"{part!r} is not a row number; write rows and ranges such as 3 7 10-20")
        first = int(ends[1])
        found = (rows >= first) & (rows <= int(ends[2] or first))
        if not found.any():
            raise InputError(f"{name} has no row {part}; its rows go from {int(rows.min())} to {int(rows.max())}")
        chosen |= found
    return chosen.nonzero().squeeze(1)


def _classes_with(word: str, samples: SampleSet) -> Tensor:
    """Return which classes have this word in their name or their superclass's name, bool, shape [C].

    Where the word equals the name of a class or superclass, only this name matches: "1" must not select "10".
    """
    uppers = [samples.superclasses[s] for s in samples.superclass_of] or [""] * len(samples.classes)
    names = [(name.lower(), upper.lower()) for name, upper in zip(samples.classes, uppers, strict=True)]
    whole = any(word in pair for pair in names)
    return torch.tensor([word in pair if whole else any(word in name for name in pair) for pair in names])

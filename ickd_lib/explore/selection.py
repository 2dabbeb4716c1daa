"""Selection of samples by a text: words about classes, predictions, confidence, rows and files."""

from __future__ import annotations

import csv
import io
import operator
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data import Images
from ickd_lib.explore.samples import SampleSet
from ickd_lib.runtime import InputError

WORD = re.compile(r'(?:[^\s"]|"[^"]*")+')  # quotes hold a name with spaces together
VERDICTS = ("wrong", "right")
CONFIDENCE = re.compile(r"conf(<=|>=|<|>)(\d*\.?\d+)(%?)")
COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
HELP = (
    "class or superclass · NAME:class, NAME:wrong or NAME:right for a network's prediction · NAME!=NAME or NAME=NAME "
    "for two networks · conf<0.5 or NAME:conf>0.9 · row:12 or row:10-20 · file:part-of-name. All words must hold."
)

Logits = Mapping[str, "Tensor | Callable[[], Tensor]"]


def search(text: str, images: Images | SampleSet, logits: Logits | None = None, *, of: str = "student") -> list[int]:
    """Return the positions of the samples that match all words of a search text, in ascending order.

    A word is matched against the names of classes and superclasses, in part or whole and in any case. With NAME for the
    name of a network, further words are:

    - NAME:word, the class that this network predicts; NAME:wrong and NAME:right, whether that is the label
    - NAME!=NAME and NAME=NAME, whether two networks predict different classes or the same one
    - NAME:conf<0.5, also with <=, > and >=: the probability of the predicted class at temperature 1
    - row:12 and row:10-20, the data-set row of the image
    - file:name, a part of the path of the image's file

    Names with spaces are written in quotes, as in teacher:"maple tree". So is a class or superclass that is named wrong
    or right: "right" and teacher:"right" then mean this class.

    Args:
        text: the search text. An empty one matches all samples.
        images: the N samples, or images that are one sample each.
        logits: by name of the network, its logits of all samples, shape [N, C], or a function that returns them. It is
            called if a word needs them.
        of: the network to which `wrong`, `right` and `conf` refer without a name.
    Raises:
        InputError: no sample matches, a word is not understood, names an unknown network, or needs logits or file
            names that are not given.
    """
    samples = images if isinstance(images, SampleSet) else SampleSet(images)
    find = _Finder(samples, logits or {}, of)
    match = torch.ones(len(samples), dtype=torch.bool)
    for word in WORD.findall(text):
        match &= find(word.lower())
    if not match.any():
        raise InputError(
            f"no {samples.task.sample[0]} matches {text!r}; use parts of class names, teacher:NAME, student:NAME, "
            "wrong, student!=teacher, conf<0.5, row:NUMBER or file:NAME"
        )
    return match.nonzero().squeeze(1).tolist()


class _Finder:
    """Finds the samples that match one word: call it for a mask, bool, shape [N]."""

    def __init__(self, samples: SampleSet, logits: Logits, of: str) -> None:
        self.samples, self.logits, self.of = (
            samples,
            {name.lower(): value for name, value in logits.items()},
            of.lower(),
        )
        self.labels = samples.labels.cpu()
        names = {name.lower() for name in (*samples.classes, *samples.superclasses)}
        self.quoted = tuple(f'"{verdict}"' for verdict in VERDICTS if verdict in names)  # these mean a class

    def __call__(self, written: str) -> Tensor:
        word = written.replace('"', "")
        first, differ, second = word.partition("!=")
        if not differ:
            first, _, second = word.partition("=")
        if second and self._known(first) and self._known(second):
            same = self._predicted(first, word) == self._predicted(second, word)
            return ~same if differ else same
        prefix, colon, rest = word.partition(":")
        if colon and prefix == "row":
            return self._in_rows(rest, word)
        if colon and prefix == "file":
            files = [self.samples.file(at).lower() for at in range(len(self.samples))]
            if not any(files):
                raise InputError(
                    f"{word!r} needs images that were read from files; {self.samples.name} has no file names"
                )
            return torch.tensor([rest in file for file in files])
        of_class = written.endswith(self.quoted)
        if colon and self._known(prefix):
            return self._predictions(prefix, rest, word, of_class)
        if (word in VERDICTS and not of_class) or CONFIDENCE.fullmatch(word):
            return self._predictions(self.of, word, word)
        classes = _classes_with(word, self.samples)
        if not classes.any():  # otherwise the signs are parts of a class's name
            pair = (first, second) if second and not re.search("[<>]", word) else ()
            for name in (prefix,) if colon else pair:
                if not self._known(name):
                    runtime.choose(name, self.logits or ("teacher", "student"), "network")
        return classes[self.labels] & (self.labels >= 0)

    def _known(self, name: str) -> bool:
        return name in self.logits or name in ("teacher", "student")

    def _logits(self, name: str, word: str) -> Tensor:
        found = self.logits.get(name)
        if found is None:
            given = f"use one of the networks given ({', '.join(self.logits)}), or give one named {name}"
            raise InputError(f"{word!r} needs a {name}; {given if self.logits else f'pass {name}=…'}")
        return (found if isinstance(found, Tensor) else found()).cpu()

    def _predicted(self, name: str, word: str) -> Tensor:
        return self._logits(name, word).argmax(1)

    def _predictions(self, name: str, word: str, whole: str, of_class: bool = False) -> Tensor:
        """Return where the prediction of a network has a property: wrong, right, a confidence, or a class.

        With `of_class`, wrong and right are classes.
        """
        if bound := CONFIDENCE.fullmatch(word):
            confidence = self._logits(name, whole).float().softmax(1).amax(1)
            return COMPARE[bound[1]](confidence, float(bound[2]) / (100 if bound[3] else 1))
        predicted = self._predicted(name, whole)
        if of_class or word not in VERDICTS:
            return _classes_with(word, self.samples)[predicted]
        known = self.labels >= 0  # without a label, a prediction is neither right nor wrong
        wrong = known & (predicted != self.labels)
        if word == "wrong" and not wrong.any():
            several = self.samples.task.sample[1]
            raise InputError(f"the {name} classifies all of these {several} correctly, so there is no mistake to show")
        return wrong if word == "wrong" else known & ~wrong

    def _in_rows(self, text: str, word: str) -> Tensor:
        ends = re.fullmatch(r"([0-9]+)(?:[-–]([0-9]+))?", text)
        if not ends:
            raise InputError(f"{word!r} is not a data-set row; write a number, such as row:12")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        return torch.tensor([first <= row <= last for row in self.samples.rows.tolist()])


def next_key(keys: Tensor, new: int, old: int) -> int:
    """Return the position in `keys` [N] of the number `new`, or else of the next one in the direction from `old`."""
    beyond = (keys >= new if new > old else keys <= new).nonzero().squeeze(1)
    return int(beyond[(keys[beyond] - new).abs().argmin()])


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


def selection_csv(samples: SampleSet, at: Tensor, logits: Mapping[str, Tensor]) -> str:
    """Return a selection as CSV: for each sample its row, file and label, and each network's prediction and confidence.

    Where a sample is a part of an image, the column "region" or "box" has its key.

    Args:
        samples: the N samples.
        at: positions of the selected samples, shape [n].
        logits: by name of the network, its logits of all samples, shape [N, C].
    """
    one, classes, buffer = samples.task.sample[0], samples.classes, io.StringIO()
    part = [] if one == "image" else [one]
    predicted = {name: [one.cpu() for one in of[at].float().softmax(1).max(1)] for name, of in logits.items()}
    columns = [f"{name} {what}" for name in logits for what in ("prediction", "confidence")]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["row", *part, "file", "label", *columns])
    for i, position in enumerate(at.tolist()):
        key = [int(samples.keys[position])] * len(part)
        line = [int(samples.rows[position]), *key, samples.file(position), classes[int(samples.labels[position])]]
        for confidence, best in predicted.values():
            line += [classes[int(best[i])], f"{float(confidence[i]):.4f}"]
        writer.writerow(line)
    return buffer.getvalue()


def _classes_with(word: str, samples: SampleSet) -> Tensor:
    """Return which classes have this word in their name or their superclass's name, bool, shape [C].

    Where the word equals the name of a class or superclass, only this name matches: "1" must not select "10".
    """
    uppers = [samples.superclasses[s] for s in samples.superclass_of] or [""] * len(samples.classes)
    names = [(name.lower(), upper.lower()) for name, upper in zip(samples.classes, uppers, strict=True)]
    whole = any(word in pair for pair in names)
    return torch.tensor([word in pair if whole else any(word in name for name in pair) for pair in names])

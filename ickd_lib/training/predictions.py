"""A black-box teacher: its predictions for the training images, from a file, without the network that made them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data import Images, Splits
from ickd_lib.data.split import positions_of
from ickd_lib.models import Network, Output
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import BelowOne, check, checked

SMOOTHING = 0.1  # probability of all other classes together where a file names a class without its probability
LEAST = 1e-6  # smallest probability, because the logit of 0 is infinite
ROUNDING = 0.01  # largest difference from 1 of the sum of rounded probabilities
EXAMPLE = "predictions.csv(smoothing=0.1)"


class Predictions(Network):
    """A teacher that is not a network: stored logits of images, which all views of an image share.

    Args:
        logits: shape [M, C].
        rows: the data-set row of each image, int64, shape [M].
        name: the name in error messages and run folders.
    """

    logits: Tensor
    place: Tensor

    def __init__(self, logits: Tensor, rows: Tensor, name: str) -> None:
        super().__init__(logits.shape[1], 0)
        self.name = name
        self.register_buffer("logits", logits)
        self.register_buffer("place", positions_of(rows))  # the place of a row in `logits`

    def forward(self, images: Tensor, *, maps: bool = False) -> Output:
        """Raise InputError, because new images cannot be evaluated."""
        raise InputError(
            f"{self.name} has predictions for training images alone, and no network; give a network instead"
        )

    def of(self, index: Tensor) -> Tensor:
        """Return the logits of images, shape [B, C], by their rows in the data set, shape [B]."""
        return self.logits[self.place[index]]

    def require(self, train: Images) -> None:
        """Raise InputError if an image of `train` has no prediction, or if images are mixed."""
        if train.augment.endswith(("mixup", "cutmix")):
            raise InputError(
                f"{self.name} has no predictions for mixed images; choose another augment than {train.augment}"
            )
        index = train.index.cpu()
        known = self.place.cpu()
        missing = (index >= len(known)) | (known[index.clamp(max=len(known) - 1)] < 0)
        if bool(missing.any()):
            first = int(index[missing][0])
            named = train.files[first] if train.files else f"row {first}"
            raise InputError(
                f"{self.name} has no prediction for {int(missing.sum())} of {len(index)} training images, such as "
                f"{named}; add them, or train on other images"
            )


@checked
def load_predictions(text: str, splits: Splits) -> Predictions:
    """Read the predictions of a black-box teacher from a CSV file.

    The first line names the columns. The first column is `file`, the path of an image relative to the folder of the
    data set, or `row`, its row number in the training split. The others are one of these:

        class                            the predicted class
        class1, prob1, class2, prob2, …  the most probable classes with their probabilities; cells may be empty
        a column for each class          named by the class; the probabilities of all or some classes

    The probability that is missing is divided evenly among the classes that are not named. A class without a
    probability is a smoothed label: all other classes together have the probability `smoothing`. Probabilities below
    1e-6 are raised to it. The logits are the logarithms of the probabilities, minus their mean over the classes.

    Args:
        text: the file, and `smoothing` in brackets if it is not 0.1, as in "predictions.csv(smoothing=0.2)".
        splits: the data. Predictions for validation and test images are left out.
    Raises:
        InputError: the file is missing, or a line of it is wrong; the message contains the number of the line.
    """
    plain, given = runtime.parse_call(text, "predictions", EXAMPLE)
    for option in given:
        runtime.choose(option, ["smoothing"], "option of predictions")
    smoothing = check("smoothing", given.get("smoothing", SMOOTHING), BelowOne, "predictions")
    path, train = Path(plain), splits.train
    if not path.is_file():
        raise InputError(f"{path} does not exist; name a CSV file of predictions")
    row_of = _rows(splits)
    found: dict[int, tuple[int, list[float]]] = {}
    lines = _lines(path)
    _, header = next(lines, (1, [""]))
    kind = header[0].strip().lower()
    if kind not in ("file", "row") or len(header) < 2:
        raise InputError(
            f"{path}, line 1: expected the names of columns that begin with file or row, not {','.join(header)}"
        )
    named = _named(path, header[1:], train.classes)
    for line, cells in lines:
        where = f"{path}, line {line}"
        if len(cells) > len(header):
            raise InputError(f"{where}: {len(cells)} cells, but line 1 names {len(header)} columns")
        row = row_of(kind, cells[0].strip(), where)
        if row in found:
            raise InputError(f"{where}: {cells[0]} has a prediction in line {found[row][0]} already")
        if row is not None:
            pairs = zip(named, cells[1:], strict=False) if named else _pairs(cells[1:], train.classes, where)
            found[row] = line, _probabilities(list(pairs), len(train.classes), smoothing, where)
    if not found:
        raise InputError(f"{path} has no prediction for an image of {train.name}")
    probabilities = torch.tensor([values for _, values in found.values()], dtype=torch.double).clamp(min=LEAST)
    logits = probabilities.log()
    made = Predictions((logits - logits.mean(1, keepdim=True)).float(), torch.tensor(list(found)), path.name)
    made.classes = train.classes
    made.trained_on = {"predictions": path.name}
    return made.eval()


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line that is not empty."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file in UTF-8 ({error}); export it again") from None


def _rows(splits: Splits) -> Any:
    """Return a function from a file or row of a line to a row of the training split, None for an image of another."""
    train = splits.train
    rows = {str(row): row for row in torch.cat([splits.val.index, train.index]).tolist()}
    files = {name: row for row, name in enumerate(train.files)}
    others = {name for one in (splits.val, splits.test) for name in one.files} - files.keys()

    def row_of(kind: str, name: str, where: str) -> int | None:
        if kind == "file" and not files:
            raise InputError(f"{where}: the images of {train.name} are no files; give row numbers in a column row")
        if kind == "file" and name.removeprefix("./") in others:
            return None
        row = rows.get(name) if kind == "row" else files.get(name.removeprefix("./"))
        if row is None:
            example = train.files[0] if kind == "file" else str(int(train.index[0]))
            raise InputError(f"{where}: {train.name} has no {kind} {name!r}; expected one such as {example!r}")
        return row

    return row_of


def _named(path: Path, columns: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the class of each column; an empty list if the columns are pairs of a class and its probability."""
    lower = [column.strip().lower() for column in columns]
    if all(name.startswith(("class", "prob")[i % 2]) for i, name in enumerate(lower)):
        return []
    for column in columns:
        if column.strip() not in classes:
            raise InputError(
                f"{path}, line 1: {column!r} is no class; expected class1,prob1,… or classes such as {classes[0]}"
            )
        if columns.count(column) > 1:
            raise InputError(f"{path}, line 1: {column!r} has two columns")
    return [list(classes).index(column.strip()) for column in columns]


def _pairs(cells: Sequence[str], classes: Sequence[str], where: str) -> Iterator[tuple[int, str]]:
    """Yield the classes that a line names, each with its probability as text."""
    place = {name: position for position, name in enumerate(classes)}
    for name, probability in zip(cells[::2], [*cells[1::2], ""], strict=False):
        if name.strip():
            if name.strip() not in place:
                raise InputError(f"{where}: unknown class {name!r}; expected one such as {classes[0]!r}")
            yield place[name.strip()], probability
        elif probability.strip():
            raise InputError(f"{where}: the probability {probability} has no class")


def _probabilities(pairs: list[tuple[int, str]], classes: int, smoothing: float, where: str) -> list[float]:
    """Return the probability of each class from those that a line names."""
    if len(pairs) == 1 and not pairs[0][1].strip():
        pairs = [(pairs[0][0], str(1 - smoothing))]
    given: dict[int, float] = {}
    for position, text in pairs:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 1:
            raise InputError(f"{where}: {text!r} is no probability; expected a number from 0 to 1 for each class")
        if position in given:
            raise InputError(f"{where}: a class is named twice")
        given[position] = value
    total, others = sum(given.values()), classes - len(given)
    if not given or total > 1 + ROUNDING or (not others and total < 1 - ROUNDING):
        raise InputError(f"{where}: the probabilities of {len(given)} of {classes} classes add up to {total:g}")
    rest = max(0.0, 1 - total) / others if others else 0.0
    scale = max(total, 1.0) if others else total
    return [given.get(position, rest * scale) / scale for position in range(classes)]

"""What published settings consist of, and the training protocols that several methods share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ickd_lib.training.recipe import Recipe

Key = tuple[str, str] | str  # teacher and student, or the student of a method without a teacher
SMALL = ("MobileNetV2", "ShuffleV1", "ShuffleV2")  # their learning rate is lower in all protocols on CIFAR-100


@dataclass(frozen=True)
class Settings:
    """The settings of a method on a data set, as its authors published them.

    source: where they come from, a short phrase without a full stop.
    recipe: the recipe.
    weights: arguments of the method for all pairs of networks.
    pairs: arguments by pair, which are added to `weights`; None if the settings are the same for all pairs.
    recipes: changes to the recipe by pair.
    small: learning rate of the networks in SMALL; 0 for that of the recipe.
    written: for a combination of methods, its name with the published arguments; those that depend on the pair are
        names in braces, such as {reviewkd}, with their values in `pairs`.
    augment: augmentation of the data.
    official: whether the settings are the authors' own. If these are unknown or cannot be expressed, `source` contains
        the reason.
    stand_ins: the reason by pair, if the settings of some pairs only are not the authors' own.
    """

    source: str
    recipe: Recipe
    weights: Mapping[str, Any] = field(default_factory=dict)
    pairs: Mapping[Key, Mapping[str, Any]] | None = None
    recipes: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)
    small: float = 0.0
    written: str = ""
    augment: str = "crop"
    official: bool = True
    stand_ins: Mapping[Key, str] = field(default_factory=dict)


def drops(epochs: int, *at: int) -> dict[str, Any]:
    """Return the arguments of a recipe whose learning rate drops after some numbers of epochs."""
    return {"epochs": epochs, "milestones": tuple(epoch / epochs for epoch in at)}


COMMON = Recipe()  # CIFAR-100, RepDistiller and mdistiller: 240 epochs, drops at 150, 180 and 210
COMMON_SMALL = 0.01
# CIFAR-100, 200 epochs: to a fifth at 60, 120 and 160 (Zagoruyko & Komodakis 2016, arXiv 1605.07146).
FIFTHS = Recipe(**drops(200, 60, 120, 160), schedule="fifths", batch_size=128, lr=0.1)
IMAGENET = Recipe(**drops(100, 30, 60, 90), batch_size=256, lr=0.1, weight_decay=1e-4)
IMAGENET_512 = Recipe(**drops(100, 30, 60, 90), batch_size=512, lr=0.2, weight_decay=1e-4)  # mdistiller's
IMAGENET_120 = Recipe(**drops(120, 30, 60, 90), batch_size=256, lr=0.1, weight_decay=1e-4)

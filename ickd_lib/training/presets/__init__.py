"""Settings with which methods were published, by data set, teacher and student, and the published accuracies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from ickd_lib import methods, models, runtime
from ickd_lib.methods.registry import split
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import checked
from ickd_lib.training.presets import accuracy, cifar100, coco, imagenet
from ickd_lib.training.presets.protocols import SMALL, Key, Settings
from ickd_lib.training.recipe import Recipe

_TABLES = {"cifar100": cifar100, "imagenet": imagenet, "coco": coco}
# Other names of a network on ImageNet, in a library or in lower case.
_SAME = {"mobilenetv1_100": "MobileNetV1", "mobilenetv1": "MobileNetV1"}
_TITLES = {"cifar100": "CIFAR-100", "imagenet": "ImageNet", "coco": "COCO"}


class Published(NamedTuple):
    """The settings of a method: its name with its weights, the recipe, and the `augment` of the data.

    source: where the settings come from, a short phrase without a full stop.
    official: whether the method's authors published them. If not, `source` names what stands in for them.
    """

    method: str
    recipe: Recipe
    augment: str
    source: str
    official: bool = True


@checked
def published(method: str, teacher: str, student: str, data: str = "cifar100") -> Published:
    """Return the settings with which the authors of a method published it for a pair of networks.

    Args:
        method: name of a method; arguments in the name take precedence over the published ones. Few combinations of
            methods have published settings. For the others the result is the protocol of `kd`, which is not official.
        teacher, student: names of networks. On ImageNet, the library and the tag do not matter, so that the pair
            torchvision/resnet34 and torchvision/resnet18 is the same as timm/resnet34.a1_in1k and timm/resnet18, and
            MobileNetV1 the same as timm/mobilenetv1_100. The teacher is ignored for a method that has none.
        data: "cifar100", "imagenet" or "coco" (detection).
    Raises:
        InputError: no method or data set has this name, or no settings are published for the method or the pair.
    """
    made, data = methods.create(method), runtime.choose(data, _TABLES, "data set")
    table, pair = _TABLES[data].SETTINGS, _pair(teacher, student, data)
    if isinstance(made, methods.Combined):
        names = [part.config["name"] for part in made.parts]
        name = next((key for key in table if sorted(key.split("+")) == sorted(names)), "+".join(names))
        if name not in table:
            like = published("kd", teacher, student, data)
            source = f"no settings of {name} are published for {_TITLES[data]}; the protocol is that of kd"
            return like._replace(method=methods.describe(made), source=source, official=False)
    else:
        name, given = made.config["name"], methods.parse(method)[1]
        if given.get("standardised") and name != "lskd":
            name = f"{name}(standardised=True)"
    if name not in table:
        message = f"no settings of {name} are published for {_TITLES[data]}"
        raise InputError(_TABLES[data].REFUSED.get(name, message))
    settings = table[name]
    key = _key(name, settings, pair, data)
    recipe = replace(settings.recipe, **settings.recipes.get(key, {}))
    if settings.small and pair[1] in SMALL and "lr" not in settings.recipes.get(key, {}):
        recipe = replace(recipe, lr=settings.small)
    if isinstance(made, methods.Combined):
        written = settings.written.format_map((settings.pairs or {}).get(key, {}))
        arguments = [methods.parse(part)[1] for part in split(method)]
        chosen = methods.create(_changed(written, dict(zip(names, arguments, strict=True))))
    else:
        weights = {**settings.weights, **(settings.pairs or {}).get(key, {}), **given}
        chosen = methods.create(made.config["name"], **weights)
    official = settings.official and key not in settings.stand_ins
    source = settings.stand_ins.get(key, settings.source)
    return Published(methods.describe(chosen), recipe, settings.augment, source, official)


def _changed(written: str, given: dict[str, dict[str, Any]]) -> str:
    """Return the name of a combination with other arguments of its parts, which are given by the names of these."""
    parts = []
    for name, arguments in map(methods.parse, split(written)):
        changed = ", ".join(f"{key}={value!r}" for key, value in {**arguments, **given[name]}.items())
        parts.append(f"{name}({changed})")
    return "+".join(parts)


def available(method: str) -> str:
    """Return the data sets for which official settings of a method are known, as "CIFAR-100, ImageNet" or ""."""
    name = methods.create(method).config["name"]
    found = [data for data, module in _TABLES.items() if name in module.SETTINGS and module.SETTINGS[name].official]
    return ", ".join(_TITLES[data] for data in found)


@checked
def published_accuracy(teacher: str, student: str, data: str = "cifar100") -> dict[tuple[str, int], float]:
    """Return the accuracies published for a pair of networks, by method and epochs.

    Methods of this library have the names that `published` gives them, with the arguments of the pair; others the names
    in their papers. "teacher" is the teacher and "ce" the student alone.

    Args:
        teacher, student, data: as for `published`.
    Returns:
        For each method and number of epochs, the top-1 test accuracy in percent; empty for an unknown pair.
    Raises:
        InputError: `data` is neither "cifar100" nor "imagenet".
    """
    data = runtime.choose(data, ("cifar100", "imagenet"), "data set")
    pair = _pair(teacher, student, data)
    pairs = {"cifar100": accuracy.CIFAR100_PAIRS, "imagenet": accuracy.IMAGENET_PAIRS}[data]
    rows = {"cifar100": accuracy.CIFAR100, "imagenet": accuracy.IMAGENET}[data]
    if pair not in pairs:
        return {}
    at, found = pairs.index(pair), {}
    for name, (epochs, row) in rows.items():
        if (value := row[at]) is not None:
            found[_named(name, epochs, teacher, student, data)] = value
    return found


def _named(name: str, epochs: int, teacher: str, student: str, data: str) -> tuple[str, int]:
    """Return the name of a method with its published arguments, and its number of epochs."""
    try:
        settings = published(name, teacher, student, data)
    except InputError:  # not a method of this library, or one whose arguments for this pair are not published
        return name, epochs
    return (settings.method, settings.recipe.epochs) if settings.official else (settings.method, epochs)


def _pair(teacher: str, student: str, data: str) -> tuple[str, str]:
    """Return the names of two networks as they stand in the tables of a data set, without arguments."""
    teacher, student = (name.partition("(")[0] for name in (teacher, student))
    if data == "imagenet":
        teacher, student = (name.rpartition("/")[2].partition(".")[0].lower() for name in (teacher, student))
        return teacher, _SAME.get(student, student)
    written = {name.lower(): name for name in (*models.names(), *models.names("detection"))}
    return written.get(teacher.lower(), teacher), written.get(student.lower(), student)


def _key(name: str, settings: Settings, pair: tuple[str, str], data: str) -> Key:
    """Return the key of a pair of networks in the settings of a method.

    Raises:
        InputError: the settings are for other pairs only.
    """
    if settings.pairs is None or pair in settings.pairs:
        return pair
    if pair[1] in settings.pairs:
        return pair[1]
    known = [key if isinstance(key, str) else " -> ".join(key) for key in settings.pairs]
    asked = pair[1] if isinstance(next(iter(settings.pairs)), str) else " -> ".join(pair)
    raise InputError(f"{name} is published on {_TITLES[data]} for {', '.join(known)} only, not for {asked}")

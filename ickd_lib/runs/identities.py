"""Fingerprints by which runs are separated that do not repeat each other, and the name of their method."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ickd_lib import methods, runtime
from ickd_lib.runtime import InputError
from ickd_lib.training.records import identities


def identities_of(config: dict[str, Any]) -> dict[str, str]:
    """Return the `identities` of a run, and a fingerprint of all "settings" that do not depend on its seeds.

    The fingerprints of the "architecture" and the "wrapping" (`models.wrapping`) of an own network, and of the "test
    images" and "validation images", are "" for a run that does not record them. Means and standard deviations of the
    data count to six digits, because machines round the last ones differently.
    """
    settings, evaluated = config["settings"], config.get("evaluated_on") or {}
    student = dict(settings.get("student", {}))
    student |= {key: [float(f"{x:.6g}") for x in student[key]] for key in ("mean", "std") if student.get(key)}
    architecture = student.pop("shapes", "")
    student.pop("parameters", None)
    own = {key: value for key, value in settings.items() if key != "peers"} | {"student": student}
    own["bank"] = {key: value for key, value in (settings.get("bank") or {}).items() if key not in ("data", "teacher")}
    if "labels" in own["bank"]:  # "60 given (…), the others predicted by the teacher", with a fingerprint of these
        own["bank"]["labels"] = re.sub(r"\(.*?\)", "", own["bank"]["labels"])
    if top := (config.get("numerics") or {}).get("teacher_cache_top"):
        own["teacher_cache_top"] = top  # the smaller logits of the teacher are left out of the targets
    of_seed = ("seed", "fingerprint", "index", "content", "initial", "peer_group", "circle")
    others = {key: value for key, value in runtime.flat(own).items() if not key.endswith(of_seed)}
    found = identities(settings | {"student": student}) | {"settings": runtime.fingerprint(others)}
    found["architecture"] = architecture
    found["wrapping"] = runtime.fingerprint(config["wrapped"]) if config.get("wrapped") else ""
    images = {"test images": evaluated.get("test") or "", "validation images": evaluated.get("val") or ""}
    return found | images


def repeated_seeds(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return a sentence for each group of runs that have equal settings and seeds, and other fingerprints `initial`.

    These are runs of a network of the user's own that began with other weights. Tables count each of them as a seed.

    Args:
        runs: the "place" and the "config" of each run.
    """
    alike: dict[str, dict[str, str]] = {}  # by the settings, a place for each fingerprint of initial weights
    for run in runs:
        settings = run["config"]["settings"]
        if (initial := dict(settings.get("student", {})).get("initial")) and "peers" not in settings:
            seeds = [settings.get("seed"), settings.get("data_seed")]
            key = runtime.fingerprint(identities_of(run["config"]), seeds)
            alike.setdefault(key, {}).setdefault(str(initial), run["place"])
    return [
        f"{', '.join(places.values())} have the same settings and seeds, and differ in the fingerprint of their "
        f"untrained network alone (`initial` in config.json); tables count them as {len(places)} seeds: give each "
        "Student its own seed"
        for places in alike.values()
        if len(places) > 1
    ]


def method_name(config: dict[str, Any], otherwise: str) -> str:
    """Return the name of a method from its configuration.

    If the definition of the method has changed since, the name is `otherwise` with the recorded version, as in "dkd
    (version 1)". If there is no such method any more, it is `otherwise`.
    """
    every = [config, *config.get("parts", ())]
    every += [one["wrapped"] for one in every if "wrapped" in one]
    older = {part.get("version", 1) for part in every if _version(part) != part.get("version", 1)}
    if older:
        return f"{otherwise} (version {min(older)})"
    try:
        return methods.describe(methods.recorded(config))
    except (InputError, TypeError):
        return otherwise


def _version(config: dict[str, Any]) -> int:
    """Return the present version of the method in a configuration; the recorded one if there is no such method."""
    try:
        if "parts" in config:  # the version of a combination depends on its parts
            return methods.recorded(config).version
        return type(methods.create(config["name"])).version
    except (InputError, TypeError):
        return config.get("version", 1)

"""The differences between two runs: settings, numerics, environment, and the first epoch with other results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ickd_lib import runtime
from ickd_lib.runtime.arguments import checked

SEEDS = ("seed", "fingerprint")  # ends of the keys of settings that do not describe a run
PARTS = ("settings", "evaluated_on", "wrapped", "sources", "numerics", "environment")  # of config.json
IGNORED = ("seconds", "waited_seconds")  # keys of a record that differ between any two runs


@checked
def diff(first: str | Path, second: str | Path) -> list[str]:
    """Compare two runs.

    Args:
        first, second: their folders.
    Returns:
        One line for each difference in the settings, in the fingerprints of the validation and test images
        (`evaluated_on`), in what an own network was wrapped with, in the fingerprints of own source, in the numerics
        and in the environment; then one line with the first epoch at which the fingerprints of the weights differ, and
        one with the first epoch at which the records differ.
    Raises:
        InputError: a folder is not a run.
    """
    one, other = runtime.Run(first), runtime.Run(second)
    for run in (one, other):
        with runtime.complete(run.folder):
            _check(run)
    lines = []
    for part in PARTS:
        first_values, second_values = runtime.flat(one.config.get(part, {})), runtime.flat(other.config.get(part, {}))
        for key in dict.fromkeys([*first_values, *second_values]):
            a, b = first_values.get(key, "absent"), second_values.get(key, "absent")
            if a != b:
                lines.append(f"{part}: {key} is {a} in {first}, {b} in {second}")
    pairs = list(zip(one.metrics, other.metrics, strict=False))
    lines.append(_first_difference(pairs, "weights", lambda record: record.get("weights")))
    lines.append(_first_difference(pairs, "records", _numbers))
    if len(one.metrics) != len(other.metrics):
        lines.append(f"epochs: {len(one.metrics)} in {first}, {len(other.metrics)} in {second}")
    return lines


def _check(run: runtime.Run) -> None:
    """Raise an error of some type if the configuration or the records of a run are not dictionaries."""
    for part in PARTS:
        runtime.flat(run.config.get(part, {}))
    for record in run.metrics:
        runtime.flat(record)
        int(record["epoch"])
        if not isinstance(record.get("weights", ""), str):
            raise TypeError("a fingerprint of weights is not a text")


def distinctions(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Describe by which settings each of some similar runs differs from the others, as "lr 0.05, weight_decay 0".

    Args:
        rows: rows of `overview`, of runs that are not damaged.
    Returns:
        One text for each row; "" for all if no setting differs but the seeds.
    """
    settings = [runtime.flat(runtime.Run(row["folder"]).settings) for row in rows]
    keys = dict.fromkeys(key for values in settings for key in values)
    differing = [
        key
        for key in keys
        if not key.endswith(SEEDS) and len({str(values.get(key, "absent")) for values in settings}) > 1
    ]
    return [
        ", ".join(f"{key.rpartition('.')[2]} {values.get(key, 'absent')}" for key in differing) for values in settings
    ]


def _first_difference(pairs: list[tuple[dict[str, Any], dict[str, Any]]], what: str, of: Any) -> str:
    """Describe the first epoch at which two runs differ in `of(record)`."""
    if not pairs:
        return f"{what}: no epoch in common"
    for first_record, second_record in pairs:
        a, b = of(first_record), of(second_record)
        if a is None or b is None:
            return f"{what}: not recorded"
        if a != b:
            names = f" ({', '.join(k for k in {**a, **b} if a.get(k) != b.get(k))})" if isinstance(a, dict) else ""
            return f"{what}: differ from epoch {first_record['epoch']} on{names}"
    return f"{what}: equal in {f'all {len(pairs)} epochs' if len(pairs) > 1 else 'the only epoch'}"


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a record that two equal runs have in common."""
    return {key: value for key, value in runtime.flat(record).items() if key not in (*IGNORED, "weights")}

"""Comparisons of methods over seeds as Markdown tables and as sentences, for a notebook to display.

Scores are test accuracies as fractions, one per seed for each method. Texts state them in percent and differences in
percentage points. A difference between two methods counts as established only if its 95% interval, paired by seed,
excludes 0.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from ickd_lib.runs.seeds import interval, mean_std

Scores = Mapping[str, Sequence[float]]


def markdown_table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format rows of cells as a Markdown table.

    Args:
        heading: titles of the columns.
        rows: for each row one cell per column.
    """
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def percent(values: Sequence[float], digits: int = 1) -> str:
    """Format fractions as "94.1 ± 0.5%", mean and standard deviation; a single one as "94.1%"."""
    mean, std = mean_std(values)
    return f"{100 * mean:.{digits}f}" + (f" ± {100 * std:.{digits}f}" if len(values) > 1 else "") + "%"


def points(value: float, digits: int = 1) -> str:
    """Format a difference of fractions in percentage points, with its sign: "+1.2"."""
    return f"{100 * value:+.{digits}f}".replace("-", "−")


def versus(scores: Scores, reference: str) -> dict[str, dict[str, float]]:
    """Compute the difference of every other method to a reference, paired by seed, as `interval` returns it.

    Args:
        scores: accuracies, among them those of the reference.
        reference: name of a method.
    Returns:
        An interval for each other method; empty if there are fewer than two seeds.
    """
    if len(scores[reference]) < 2:
        return {}
    return {name: interval(values, scores[reference]) for name, values in scores.items() if name != reference}


def contrast_table(scores: Scores, ours: str) -> str:
    """Format the differences of one method to each other method as a Markdown table.

    For a single seed the result is a sentence instead of a table.

    Args:
        scores: accuracies, among them those of `ours`.
        ours: name of the method whose lead is shown.
    """
    if len(scores[ours]) < 2:
        return "A single seed has no interval; set `seeds` to 2 or more."
    rows = []
    for name, values in scores.items():
        if name != ours:
            found = interval(scores[ours], values)
            rows.append(
                [f"`{name}`", points(found["mean"], 2), f"{points(found['low'], 2)} to {points(found['high'], 2)}"]
            )
    return markdown_table([f"`{ours}` minus", "difference, points", "95% interval"], rows)


def contrast(scores: Scores, ours: str, other: str) -> str:
    """State the difference between two methods in one sentence, with its interval and whether that excludes 0.

    Args:
        scores: accuracies, among them those of both methods.
        ours, other: names of the methods; the difference is `ours` minus `other`.
    """
    values, reference = scores[ours], scores[other]
    if len(values) < 2:
        gap = points(values[0] - reference[0])
        return f"`{ours}` minus `{other}`: {gap} points with a single seed, which gives no interval."
    found = interval(values, reference)
    verdict = "includes 0, so no difference is established"
    if found["low"] > 0 or found["high"] < 0:
        verdict = f"excludes 0, so `{ours}` is {'better' if found['low'] > 0 else 'worse'} with these seeds"
    mean, low, high = (points(found[key]) for key in ("mean", "low", "high"))
    return f"`{ours}` minus `{other}`: {mean} points. The 95% interval, {low} to {high}, {verdict}."


def summary(scores: Scores, reference: str, of: str = "accuracy") -> str:
    """Summarise a comparison in a Markdown list: the highest mean, and which intervals exclude 0.

    Args:
        scores: accuracies, among them those of the reference.
        reference: name of the method that all others are compared with.
        of: name of the scores.
    """
    best = max(scores, key=lambda name: statistics.fmean(scores[name]))
    seeds = len(scores[reference])
    line = f"The highest mean {of} is {percent(scores[best])}, that of `{best}`."
    if best != reference:
        line += f" `{reference}` reaches {percent(scores[reference])}."
    lines = [f"{line} (Mean ± standard deviation over {count(seeds, 'seed')}.)" if seeds > 1 else line]
    found = versus(scores, reference)
    if not found:
        lines.append("A single seed does not show how much the results vary. Set `seeds` to 2 or more for intervals.")
        return "\n".join(f"- {line}" for line in lines)
    above = [f"`{name}` ({points(each['mean'])})" for name, each in found.items() if each["low"] > 0]
    below = [f"`{name}` ({points(each['mean'])})" for name, each in found.items() if each["high"] < 0]
    undecided = len(found) - len(above) - len(below)
    for word, side, names in (("Better", "above", above), ("Worse", "below", below)):
        if names:
            lines.append(
                f"{word} than `{reference}`, the 95% interval of the difference is {side} 0: {', '.join(names)}."
            )
    lines.append(
        f"For {undecided} of {count(len(found), 'method')}, the interval of the difference to `{reference}` includes "
        f"0. If all methods were equal, {len(found) / 20:.1f} of {len(found)} intervals would exclude 0 on average."
    )
    if seeds == 2 and (above or below):
        lines.append(
            "An interval from two seeds is estimated from two differences, and can be narrow because these are almost "
            "equal by chance. Repeat the run with more seeds before you rely on it."
        )
    return "\n".join(f"- {line}" for line in lines)


def headline(scores: Scores, of: str = "accuracy") -> str:
    """State the mean score of every method in one line.

    Args:
        scores: accuracies, or other fractions.
        of: name of the scores.
    """
    seeds = len(next(iter(scores.values())))
    means = ", ".join(f"{name} {100 * statistics.fmean(values):.1f}" for name, values in scores.items())
    return f"{of} in percent, {count(seeds, 'seed')}: {means}"


def headline_against(scores: Scores, reference: str) -> str:
    """State the best method and those that are better than a reference in one line.

    Args:
        scores: accuracies, among them those of the reference.
        reference: name of a method.
    """
    means = {name: 100 * statistics.fmean(values) for name, values in scores.items()}
    best = max(means, key=means.__getitem__)
    found = versus(scores, reference)
    above = [name for name, each in found.items() if each["low"] > 0]
    shown = f"; interval above 0 for {', '.join(above) or 'none'}" if found else ""
    return (
        f"{count(len(scores[reference]), 'seed')}, {count(len(scores), 'method')}: best {best} {means[best]:.1f}%, "
        f"{reference} {means[reference]:.1f}%{shown}"
    )


def cost_table(scores: Scores, seconds: Mapping[str, float]) -> str:
    """Format accuracy and time of a training step as a Markdown table, the fastest method first.

    Args:
        scores: accuracies.
        seconds: for each method the time of a step (`training.step_seconds`).
    """
    least = min(seconds.values())
    rows = [
        [f"`{name}`", percent(scores[name], 2).rstrip("%"), f"{1000 * taken:.1f}", f"{taken / least:.2f}×"]
        for name, taken in sorted(seconds.items(), key=lambda pair: pair[1])
    ]
    return markdown_table(["method", "accuracy, %", "step, ms", "relative to the fastest"], rows)


def cost_summary(seconds: Mapping[str, float], *, alone: str = "ce", taught: str = "kd") -> str:
    """State in one or two sentences what the methods add to the time of a step.

    Args:
        seconds: for each method the time of a step.
        alone: the method without a teacher to which the others are compared.
        taught: a method that only adds the teacher's forward pass; it is left out if it was not measured.
    """
    slowest = max(seconds, key=seconds.__getitem__)
    text = (
        f"The longest step, that of `{slowest}`, takes {seconds[slowest] / seconds[alone]:.1f} times as long as a step "
    )
    text += f"of `{alone}`."
    if taught in seconds and taught != slowest:
        text += f" A step of `{taught}`, which adds the forward pass of the teacher, takes "
        text += f"{seconds[taught] / seconds[alone]:.1f} times as long."
    return text


def count(number: int, noun: str) -> str:
    """Write a number with its noun, in the plural unless the number is 1."""
    return f"{number} {noun}{'s' * (number != 1)}"

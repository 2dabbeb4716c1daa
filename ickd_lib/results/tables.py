"""Tables in Markdown and LaTeX, and the numbers beside published ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from ickd_lib.results.seeds import Setting, differences, grouped, mean_std, score
from ickd_lib.training.published import published_accuracy

COLUMNS = {  # of a table: heading, key of the summary, scale and format
    "held out, %": ("val_accuracy", 100, ".2f"),
    "last, %": ("accuracy", 100, ".2f"),
    "best, %": ("best_accuracy", 100, ".2f"),
    "NLL": ("nll", 1, ".3f"),
    "ECE, %": ("ece", 100, ".2f"),
    "agrees with teacher, %": ("agreement", 100, ".2f"),
    "images/s": ("images_per_second", 1, ".0f"),
}
_LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
}


def table(summaries: Sequence[dict[str, Any]], *, baseline: str = "", best_first: bool = False) -> str:
    """Markdown: for each setting (data, teacher, student, epochs) a table with a row a method, over its seeds.

    Students of one network that learned from each other count as one, with their mean. Runs that held images out of
    train are there to choose by: the table shows the accuracy on those, and nothing of the test images.

    Args:
        baseline: a method; a column then tells each other one's difference to it.
        best_first: methods by their accuracy, not in the order of the runs.
    """
    parts = []
    for setting, by_method in grouped(summaries).items():
        (title, rest), (head, *rows) = _caption(setting), _cells(by_method, baseline, best_first)
        lines = [head, ["---"] * len(head), *rows]
        marks = ["| " + " | ".join(line) + " |" if line[0] != "---" else "|" + "---|" * len(line) for line in lines]
        parts.append("\n".join([f"**{title}**{rest}", "", *marks]))
    return "\n\n".join(parts) + "\n"


def latex(summaries: Sequence[dict[str, Any]]) -> str:
    """`table` in LaTeX: for each setting a table environment, for a preamble with \\usepackage{booktabs}."""
    parts = ["% needs \\usepackage{booktabs}"]
    for setting, by_method in grouped(summaries).items():
        head, *rows = [" & ".join(map(escaped, line)) + r" \\" for line in _cells(by_method)]
        columns = "lr" + "c" * (head.count(" & ") - 1)
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    rf"\caption{{{escaped(''.join(_caption(setting)))}}}",
                    rf"\begin{{tabular}}{{{columns}}}",
                    r"\toprule",
                    head,
                    r"\midrule",
                    *rows,
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text as LaTeX sets it, letter by letter."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _caption(setting: Setting) -> tuple[str, str]:
    """The data set, and the rest of what is alike in a table."""
    dataset, images, teacher, network, epochs, batch_size, lr, schedule, augment, saw, held = setting
    arrow = f"{teacher}{f' of {saw}' if saw not in ('', dataset) else ''} → " if teacher else ""
    return dataset, (
        f", {images:,} training images: {arrow}{network}, {epochs} epochs at batch {batch_size}, "
        f"learning rate {lr:g} ({schedule})"
        + (f", {augment}" if augment != "crop" else "")
        + (", on images held out of train" if held else "")
    )


def beside_published(
    summaries: Sequence[dict[str, Any]],
) -> dict[str, tuple[dict[str, list[float]], dict[str, float]]]:
    """For each setting, under its caption, each method's accuracy a seed, and what was published for the pair.

    Published numbers stand beside trainings on all of CIFAR-100 only. One for another number of epochs than here has
    that in its name: "mlkd, 480 epochs". All are fractions.
    """
    found = {}
    for setting, by_method in grouped(summaries).items():
        dataset, images, teacher, network, epochs, *_ = setting
        ours = {method: [score(alike) for alike in seeds] for method, seeds in by_method.items()}
        known = published_accuracy(teacher, network) if (dataset, images) == ("cifar100", 50_000) else {}
        theirs = {
            method if trained == epochs else f"{method}, {trained} epochs": accuracy / 100
            for (method, trained), accuracy in known.items()
        }
        found["".join(_caption(setting))] = ours, theirs
    return found


def _cells(
    by_method: dict[str, list[list[dict[str, Any]]]], baseline: str = "", best_first: bool = False
) -> list[list[str]]:
    """A table's heading and rows: method, number of seeds, and mean ± std of whatever number some run has."""
    every = [summary for seeds in by_method.values() for alike in seeds for summary in alike]
    shown = {heading: column for heading, column in COLUMNS.items() if any(column[0] in one for one in every)}
    if "held out, %" in shown:
        shown = {heading: shown[heading] for heading in ("held out, %", "images/s") if heading in shown}
    apart = differences(by_method, baseline) if baseline else {}
    lines = [["method", "seeds", *shown, *([f"to {baseline}, points (95%)"] if baseline else [])]]
    ranked = sorted(by_method.items(), key=lambda pair: -statistics.fmean(map(score, pair[1])) if best_first else 0)
    for method, seeds in ranked:
        line = [method, str(len(seeds))]
        for key, scale, form in shown.values():
            found = ([scale * summary[key] for summary in alike if key in summary] for alike in seeds)
            values = [statistics.fmean(numbers) for numbers in found if numbers]
            mean, std = mean_std(values) if values else (math.nan, math.nan)
            spread = "" if math.isnan(std) else f" ± {std:{form}}"
            line.append(f"{mean:{form}}{spread}" if values else "")
        if baseline:
            points = {end: 100 * value for end, value in apart.get(method, {}).items()}
            line.append("{mean:+.2f} ({low:+.2f} to {high:+.2f})".format(**points) if points else "")
        lines.append(line)
    return lines

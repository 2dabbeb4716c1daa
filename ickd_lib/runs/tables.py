"""Tables in Markdown and LaTeX, and results beside published ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ickd_lib.runs.findings import markdown_table, percent
from ickd_lib.runs.seeds import Setting, chosen_baseline, differences, grouped, mean_std, score, task_of, words
from ickd_lib.tasks import Column
from ickd_lib.training.presets import published_accuracy

SPEED = Column("images/s", "images_per_second", 1, ".0f")
ByMethod = dict[str, list[list[dict[str, Any]]]]  # the runs of a setting, from `grouped`
IMAGENET = 1_281_167  # number of training images, by which a folder is recognised
_LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
}


def table(
    summaries: Sequence[dict[str, Any]],
    *,
    baseline: str = "",
    best_first: bool = False,
    diverged: Mapping[str, int] | None = None,
) -> str:
    """Format a Markdown table for each setting (data, teacher, student, epochs), with a row for each method.

    A cell is mean ± standard deviation over the seeds. Peers of the same network that were trained together count as
    one run, with their mean. Runs with images held out of train serve to choose settings: their table shows the results
    on these images only, and none on the test images.

    Args:
        summaries: summaries of finished runs.
        baseline: a method; a column then shows the difference of each other method to it.
        best_first: sort the methods by their result, instead of the order of the runs.
        diverged: for each method, the number of seeds with which it diverged; a second table shows these.
    """
    parts = []
    groups, baseline = grouped(summaries), chosen_baseline(summaries, baseline)
    for setting, by_method in groups.items():
        (title, rest), (head, *rows) = caption(setting, by_method), cells(by_method, baseline, best_first)
        lines = [[*map(marked, head)], ["---"] * len(head), *([*map(marked, row)] for row in rows)]
        marks = ["| " + " | ".join(line) + " |" if line[0] != "---" else "|" + "---|" * len(line) for line in lines]
        parts.append("\n".join([f"**{marked(title)}**{marked(rest)}", "", *marks]))
    if diverged:
        counts = [f"| {marked(method)} | {count} |" for method, count in diverged.items()]
        parts.append("\n".join(["| method | diverged, seeds |", "|---|---|", *counts]))
    return "\n\n".join(parts) + "\n"


def latex(summaries: Sequence[dict[str, Any]]) -> str:
    """Format `table` in LaTeX: a table environment for each setting, for a preamble with \\usepackage{booktabs}."""
    parts = ["% needs \\usepackage{booktabs}"]
    for setting, by_method in grouped(summaries).items():
        head, *rows = [" & ".join(map(escaped, line)) + r" \\" for line in cells(by_method)]
        columns = "lr" + "c" * (head.count(" & ") - 1)
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    rf"\caption{{{escaped(''.join(caption(setting, by_method)))}}}",
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
    """Return the text with every character escaped that is special in LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def marked(text: str) -> str:
    """Return the text with the characters escaped that would end a cell of a Markdown table or begin HTML."""
    return text.replace("|", r"\|").replace("<", "&lt;")


def caption(setting: Setting, by_method: ByMethod | None = None) -> tuple[str, str]:
    """Return the data set, and the other settings that all rows of a table share, as text.

    Args:
        setting: one setting of `grouped`.
        by_method: its runs; the text then contains the accuracy of the teacher on the test images, if runs recorded it
            and the table is about these images.
    """
    one = setting
    of_data = f" of {one.saw}" if one.saw not in ("", one.dataset) else ""
    every = [row for seeds in (by_method or {}).values() for alike in seeds for row in alike]
    known = [float(row["teacher_accuracy"]) for row in every if "teacher_accuracy" in row and not one.held_out]
    ends = dict.fromkeys(f"{end:.1%}" for end in (min(known), max(known))) if known else {}
    accuracy = f" (accuracy {' to '.join(ends)})" if ends else ""
    return one.dataset, (
        f", {one.train_images:,} training images: {f'{one.teacher}{of_data}{accuracy} → ' if one.teacher else ''}"
        f"{one.network}, "
        f"{one.epochs} epoch{'s' * (one.epochs != 1)} at batch {one.batch_size}, learning rate {one.lr:g} "
        f"({one.schedule})"
        + (f", {one.augment}" if one.augment != "crop" else "")
        + (f", {one.recipe}" if one.recipe else "")
        + (f", {one.origin}" if one.origin else "")
        + (", on images held out of train" if one.held_out else "")
    )


def beside_published(
    summaries: Sequence[dict[str, Any]],
) -> dict[str, tuple[dict[str, list[float]], dict[str, float]]]:
    """Return, for each setting by its caption, the accuracies of each method, and those published for the pair.

    Published numbers are returned only for trainings on all of CIFAR-100 or ImageNet. The name of one for another
    number of epochs contains that number: "mlkd, 480 epochs". All accuracies are fractions.
    """
    found = {}
    for setting, by_method in grouped(summaries).items():
        epochs = setting.epochs
        ours = {method: [score(alike) for alike in seeds] for method, seeds in by_method.items()}
        others = {
            method if trained == epochs else f"{method}, {trained} epochs": accuracy / 100
            for (method, trained), accuracy in _known(setting).items()
        }
        found["".join(caption(setting))] = ours, others
    return found


def published_table(summaries: Sequence[dict[str, Any]]) -> str:
    """Format the accuracy of each method beside the published one, in percent, as a Markdown table for each pair.

    Each row has its own epochs and batch size, because methods are published with different ones. Published numbers
    that no run stands beside are the last rows. Those with another number of epochs than a run are not beside it. Where
    a method was trained with several settings, epochs and batch sizes aside, its name is followed by those that differ.

    Args:
        summaries: summaries of finished runs. For published numbers see `beside_published`.
    """
    tables: dict[str, list[list[str]]] = {}
    others: dict[str, dict[tuple[str, int], float]] = {}
    groups = grouped(summaries)
    for setting, by_method in groups.items():
        arrow = f"{setting.teacher} → " if setting.teacher else ""
        title = f"**{setting.dataset}**, {setting.train_images:,} training images: {arrow}{setting.network}"
        title = marked(title) + (", on images held out of train" if setting.held_out else "")
        known, rest = _known(setting), others.setdefault(title, _known(setting))
        for method, seeds in by_method.items():
            accuracy = known.get((method, setting.epochs))
            rest.pop((method, setting.epochs), None)
            alike = [one for one in groups if one[:6] == setting[:6] and method in groups[one]]
            several = [w for i, w in enumerate(words(setting)) if len({words(one)[i] for one in alike}) > 1]
            measured = percent([score(alike) for alike in seeds], 2).rstrip("%")
            five = [statistics.fmean(one["top5"] for one in alike) for alike in seeds if "top5" in alike[0]]
            line = [
                ", ".join([f"`{method}`", *several]).replace("|", r"\|"),
                str(setting.epochs),
                str(setting.batch_size),
                str(len(seeds)),
                measured,
                _percent(accuracy),
            ]
            tables.setdefault(title, []).append([*line, percent(five, 2).rstrip("%") if five else ""])
    head = ["method", "epochs", "batch", "seeds", "measured, %", "published, %", "top-5, %"]
    parts = []
    for title, lines in tables.items():
        rest = others[title]
        left = [
            [f"`{method}`", f"{epochs}", "", "", "", _percent(value), ""] for (method, epochs), value in rest.items()
        ]
        parts.append(f"{title}\n\n{markdown_table(head, [*lines, *left])}\n")
    return "\n".join(parts)


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.2f}"


def _known(setting: Setting) -> dict[tuple[str, int], float]:
    """Return the accuracies published for a setting, as `published_accuracy` does; none for a part of a data set."""
    size = setting.train_images
    data = "imagenet" if size == IMAGENET else "cifar100" if (setting.dataset, size) == ("cifar100", 50_000) else ""
    return published_accuracy(setting.teacher or "", setting.network, data) if data else {}


def cells(by_method: ByMethod, baseline: str = "", best_first: bool = False) -> list[list[str]]:
    """Return heading and rows of a table: method, number of seeds, and mean ± std of each column that some run has."""
    every = [summary for seeds in by_method.values() for alike in seeds for summary in alike]
    task = task_of(every[0])
    held_out = Column("held out, %", f"val_{task.primary}")
    columns = [held_out, SPEED] if any(held_out.key in one for one in every) else [*task.columns, SPEED]
    shown = [column for column in columns if any(column.key in one for one in every)]
    apart = differences(by_method, baseline) if baseline in by_method else {}
    lines = [
        [
            "method",
            "seeds",
            *(column.heading for column in shown),
            *([f"to {baseline}, points (95%)"] if baseline else []),
        ]
    ]
    ranked = sorted(by_method.items(), key=lambda pair: -statistics.fmean(map(score, pair[1])) if best_first else 0)
    for method, seeds in ranked:
        line = [method, str(len(seeds))]
        for _heading, key, scale, form in shown:
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

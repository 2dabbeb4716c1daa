"""Tables and sentences about the results of this package, for a notebook to display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy import ndarray

from ickd_lib.theory.contexts import ContextShares, mean_interval

TITLES = {"uniform": "pᵀ − u", "label": "pᵀ − label", "class mean": "pᵀ − mean pᵀ of the class"}  # of the residuals


def share_panels(found: Mapping[str, ContextShares]) -> dict[str, dict[str, tuple[ndarray, ndarray]]]:
    """Prepare the results of `context_shares` for `plots.theory.context_shares`.

    Args:
        found: `ContextShares` of each residual.
    Returns:
        For the title of each residual and the name of each set of samples, the mean share over the queries and the
        half-width of its 95% interval, [N−1] each.
    """
    names = {"nearest": "nearest", "same classes": "same classes, random", "any": "any, random"}
    return {
        TITLES[residual]: {
            names[kind]: tuple(part.cpu().numpy() for part in mean_interval(running))  # type: ignore[misc]
            for kind, running in shares.running.items()
        }
        for residual, shares in found.items()
    }


def share_rows(view: str, found: Mapping[str, ContextShares], *, k: int) -> list[dict[str, Any]]:
    """Summarise the results of `context_shares` at one number of samples.

    Args:
        view: name of the row's student and temperature.
        found: `ContextShares` of each residual, among them "uniform".
        k: number of samples in a set.
    Returns:
        One row for each residual: `length` relative to that of "uniform"; the shares `own`, `nearest`, `same classes`
        and `any`, means over the queries; and `gain`, the paired difference nearest − same classes, with `half`, the
        half-width of its 95% interval.
    """
    rows = []
    for residual, shares in found.items():
        at_k = {kind: running[:, k - 1] for kind, running in shares.running.items()}
        gain, half = (part.item() for part in mean_interval(at_k["nearest"] - at_k["same classes"]))
        row = {"view": view, "residual": residual, "length": shares.length / found["uniform"].length}
        row |= {"own": shares.own, **{kind: part.mean().item() for kind, part in at_k.items()}}
        rows.append(row | {"gain": gain, "half": half})
    return rows


def share_table(rows: Sequence[Mapping[str, Any]], *, k: int) -> str:
    """Format rows of `share_rows` as a Markdown table.

    Args:
        rows: from `share_rows`.
        k: number of samples in a set.
    """
    lines = [
        f"| student | residual | length of R | own (j = i) | {k} nearest | same classes | any "
        "| nearest − same classes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['view']} | {TITLES[row['residual']]} | {row['length']:.2f} | {row['own']:.1%} "
            f"| {row['nearest']:.1%} | {row['same classes']:.1%} | {row['any']:.1%} | {_points(row)} points |"
        )
    return "\n".join(lines)


def share_findings(rows: Sequence[Mapping[str, Any]], *, k: int) -> str:
    """Describe each row of `share_rows` in one sentence, as a Markdown list.

    The nearest samples have a larger or smaller share than random samples of the same classes only if the 95% interval
    of the paired difference excludes 0.

    Args:
        rows: from `share_rows`.
        k: number of samples in a set.
    """
    lines = []
    for row in rows:
        found = "does not differ clearly from"
        if abs(row["gain"]) > row["half"]:
            found = "is **larger** than" if row["gain"] > 0 else "is **smaller** than"
        lines.append(
            f"- *{row['view']}, {TITLES[row['residual']]}:* the {k} nearest samples have a share of "
            f"{row['nearest']:.1%}. This share {found} that of random samples of the same classes, "
            f"{row['same classes']:.1%}. Random samples of any class have {row['any']:.1%}."
        )
    return "\n".join(lines)


def divergence_table(found: Mapping[str, Mapping[str, float]], *, k: int) -> str:
    """Format the result of `divergences` as a Markdown table with a caption.

    Args:
        found: from `divergences`.
        k: number of neighbours.
    """
    kinds = list(next(iter(found.values())))
    lines = [
        f"KL divergence from the Bayes posterior in nats, with k = {k} neighbours:",
        "",
        f"| teacher | {' | '.join(kinds)} |",
        f"|---|{'---|' * len(kinds)}",
    ]
    lines += [f"| {name} | {' | '.join(f'{row[kind]:.3f}' for kind in kinds)} |" for name, row in found.items()]
    return "\n".join(lines)


def smallest_errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Find the smallest measured error of each teacher and choice of neighbours.

    Args:
        rows: from `aggregation_errors`.
    Returns:
        By "teacher, neighbours", the error relative to that of the teacher's own target. Below 1, the aggregate is
        better.
    """
    smallest: dict[str, float] = {}
    for row in rows:
        key = f"{row['teacher']}, {row['neighbours']}"
        smallest[key] = min(row["measured"], smallest.get(key, row["measured"]))
    return smallest


def takeaways(
    identity: Mapping[str, float], rows: Sequence[Mapping[str, Any]], smallest: Mapping[str, float], *, k: int
) -> str:
    """Summarise all results in a few sentences, as a Markdown list.

    Args:
        identity: from `identity_gaps`.
        rows: from `share_rows`, of one view.
        smallest: from `smallest_errors`.
        k: number of samples in a set.
    """
    uniform, label, particular = ({row["residual"]: row for row in rows}[name] for name in TITLES)
    lines = [
        f"KD is learned label smoothing: the two losses differ by at most {identity['loss']:.0e}, and their gradients "
        f"by at most {identity['gradient']:.0e}. As τ grows, KD becomes the matching of *centred* logits.",
        f"KD changes the logits of a sample in another way than label smoothing does. To this difference, the sample's "
        f"own soft label contributes {uniform['own']:.1%}, and the soft labels of the {k} nearest other samples "
        f"contribute {uniform['nearest']:.1%}. As many random samples of the same classes contribute "
        f"{uniform['same classes']:.1%}, and random samples of any class {uniform['any']:.1%}. So similarity adds "
        f"{_points(uniform)} percentage points to what the labels explain.",
        f"If the label is subtracted from each soft label, the {k} nearest samples contribute {_points(label)} points "
        f"more than random samples of the same classes (a negative number means less). If the mean soft label of the "
        f"class is subtracted instead, they contribute {_points(particular)} points more, to an effect that is "
        f"{particular['length']:.0%} as large as the first one.",
        "The smallest error of an aggregate, relative to the error of the teacher's own target (below 1 the aggregate "
        "is better): " + "; ".join(f"{name} {error:.2f}" for name, error in smallest.items()) + ".",
    ]
    return "\n".join(f"- {line}" for line in lines)


def headline(rows: Sequence[Mapping[str, Any]], *, k: int, samples: int) -> str:
    """State the main result of `share_rows` in one line.

    Args:
        rows: from `share_rows`, of one view.
        k: number of samples in a set.
        samples: number of all samples.
    """
    (row,) = (row for row in rows if row["residual"] == "uniform")
    return (
        f"the {k} nearest of {samples} samples have a share of {row['nearest']:.1%} in what KD adds to label smoothing "
        f"on a sample, random ones of the same classes {row['same classes']:.1%}, any random ones {row['any']:.1%}"
    )


def _points(row: Mapping[str, Any]) -> str:
    """Format the gain of a row and its interval in percentage points."""
    return f"{100 * row['gain']:+.1f} ± {100 * row['half']:.1f}".replace("-", "−")

"""Tables and sentences about a memory bank, predictors and logit spaces, in Markdown, for a notebook to display."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def points(items: Sequence[str]) -> str:
    """Format sentences as a Markdown list."""
    return "\n".join(f"- {item}" for item in items)


def mean_std(values: Sequence[float], form: str = ".2f") -> str:
    """Format the mean of some values with this format, and their standard deviation if there are several."""
    mean = f"{statistics.fmean(values):{form}}"
    return mean + (f" ± {statistics.stdev(values):{form.lstrip('+')}}" if len(values) > 1 else "")


# ------------------------------------------------------------------------------------------- the memory bank


def similarity_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Format results of `memory.measurements.nearest_similarities` as a table.

    Args:
        rows: results by the kind of the queries.
    """
    lines = [
        "| queries | cosine to nearest row of own class | cosine to nearest row of another class "
        "| another class at least as near |",
        "|---|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(f"| {name} | {row['own']:.3f} | {row['other']:.3f} | {row['other_nearer']:.2%} |")
    return "\n".join(lines)


def precision_sentences(found: Mapping[str, float], *, k: int, chance: float, train: str, held_out: str) -> str:
    """Describe the precision of several searches, and the difference between training and held-out images.

    Args:
        found: precision@k of each search.
        k: number of neighbours.
        chance: precision of randomly drawn rows.
        train, held_out: names of the searches with training and with held-out images as queries.
    """
    gap = 100 * (found[train] - found[held_out])
    relation = "above" if gap >= 0 else "below"
    return (
        f"Precision@{k} is {', '.join(f'{value:.1%} ({name})' for name, value in found.items())}; randomly drawn "
        f"rows would have {chance:.1%}. The teacher's precision for its training images is {abs(gap):.1f} points "
        f"{relation} that for held-out images."
    )


def class_extremes(found: Mapping[str, float]) -> str:
    """Name the classes with the lowest and the highest precision; classes without a value (NaN) are left out."""
    known = {name: value for name, value in found.items() if value == value}
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    return (
        f"Class **{low}** has the lowest precision, {known[low]:.1%}, and class **{high}** has the highest, "
        f"{known[high]:.1%}."
    )


def effective_positives(k_eff: float, *, positives: int, temperature: float, spread: float) -> str:
    """Describe how many positives contribute to the aggregate.

    Args:
        k_eff: effective number of positives, median over the queries.
        positives: number of positives.
        temperature: aggregation temperature τ_a.
        spread: difference between the highest and the lowest cosine of a query's positives, median over the queries.
    """
    equal = ", so that the aggregate is almost the plain mean of their logits" if k_eff > 0.9 * positives else ""
    return (
        f"For the median query, the cosines of the {positives} positives span a range of {spread:.4f}. At "
        f"τₐ = {temperature:g} the effective number of positives is {k_eff:.1f} of {positives}{equal}."
    )


def bank_takeaways(
    bank: Mapping[str, Any],
    found: Mapping[str, float],
    seconds: Mapping[str, Sequence[float]],
    *,
    k: int,
    chance: float,
    train: str,
    held_out: str,
    pixels: str,
    other_nearer: float,
    largest: int,
) -> str:
    """Summarise a memory bank in a few sentences, as a Markdown list.

    Args:
        bank: its `rows`, `megabytes` and `build_seconds`.
        found: precision@k of each search.
        seconds: from `memory.measurements.retrieval_seconds`.
        k: number of neighbours.
        chance: precision of randomly drawn rows.
        train, held_out, pixels: names of three searches in `found`.
        other_nearer: share of held-out images to which a row of another class is nearest.
        largest: number of rows of the largest bank that was timed.
    """
    search, table = (
        1e3 * next(values[-1] for name, values in seconds.items() if name.startswith(kind) and "batch" in name)
        for kind in ("search", "table")
    )
    higher = "higher than" if found[train] > found[held_out] else "not higher than"
    return points(
        [
            f"**Cost of the bank.** The bank of {bank['rows']:,} rows takes {bank['megabytes']:.1f} MB and was built "
            f"in {bank['build_seconds']:.1f} s.",
            f"**Quality of the features.** Precision@{k} of held-out images is {found[held_out]:.1%}. Raw pixels have "
            f"{found[pixels]:.1%}, and randomly drawn rows {chance:.1%}. For {other_nearer:.2%} of the held-out images "
            "a row of another class is at least as near as the nearest row of the own class.",
            f"**Training images.** Precision@{k} of the images on which the teacher was trained is {found[train]:.1%}. "
            f"This is {higher} that of held-out images.",
            f"**Cost of a retrieval.** With {largest:,} rows, a search takes {search:.3f} ms per query in a batch; "
            f"reading the table takes {table:.4f} ms.",
        ]
    )


# ------------------------------------------------------------------------------------------------ predictors


def score_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Format the result of `explore.predictors.predictor_scores` as a table."""
    lines = ["| predictor | accuracy | mean probability of the true class |", "|---|---|---|"]
    lines += [f"| {name} | {of['accuracy']:.1%} | {of['true_class']:.3f} |" for name, of in scores.items()]
    return "\n".join(lines)


def change_table(found: Mapping[str, Any]) -> str:
    """Format the result of `explore.predictors.changes` as a table."""
    lines = [
        f"| predictor | correct, of the teacher's {found['errors']:,} errors "
        f"| wrong, of the teacher's {found['correct']:,} correct predictions |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {of['corrected']:,} | {of['broken']:,} |" for name, of in found.items() if isinstance(of, Mapping)
    ]
    return "\n".join(lines)


def query_sentence(
    description: str,
    probabilities: Mapping[str, Tensor],
    negatives: Tensor,
    classes: Sequence[str],
    *,
    row: int,
    label: int,
) -> str:
    """Describe the predictions for one query and the classes of its negatives.

    Args:
        description: why the query was chosen.
        probabilities: of each predictor, shape [C].
        negatives: class of each negative, shape [k].
        classes: C names.
        row: the query's row in the data set.
        label: its class.
    """
    predicted = ", ".join(f"{name} {classes[int(p.argmax())]} ({p.max():.2f})" for name, p in probabilities.items())
    counts = negatives.bincount(minlength=len(classes))
    most = int(counts.argmax())
    return (
        f"**{description}:** row {row} of class {classes[label]}. The predictions, with their probabilities, are: "
        f"{predicted}. Of its {len(negatives)} negatives, {int(counts[most])} are of class {classes[most]}."
    )


def negative_table(share: Tensor, classes: Sequence[str], *, most: int = 10) -> str:
    """Format the classes whose negatives come most from one other class as a table with a caption.

    Args:
        share: from `explore.predictors.negative_classes`, shape [C, C].
        classes: C names.
        most: number of classes that are shown.
    """
    top, source = share.max(1)
    shown = top.argsort(descending=True)[: min(most, int((top > 0).sum()))].tolist()
    lines = [
        f"The {len(shown)} classes with the largest shares are shown. If all other classes contributed equally, each "
        f"would contribute {_equal_share(share):.1%}.",
        "",
        "| class of the query | most frequent class of its negatives | share |",
        "|---|---|---|",
    ]
    lines += [f"| {classes[c]} | {classes[int(source[c])]} | {top[c]:.0%} |" for c in shown]
    return "\n".join(lines)


def prediction_takeaways(
    scores: Mapping[str, Mapping[str, float]],
    found: Mapping[str, Any],
    gain: Tensor,
    share: Tensor,
    *,
    same: str,
    free: str,
) -> str:
    """Summarise a comparison of teacher and aggregates in a few sentences, as a Markdown list.

    Args:
        scores: from `explore.predictors.predictor_scores`, with "teacher" and both aggregates.
        found: from `explore.predictors.changes`, relative to "teacher".
        gain: probability of the true class from the aggregate `same` minus that from the teacher, shape [N].
        share: from `explore.predictors.negative_classes`.
        same, free: names of the aggregates over rows of the query's class and over rows of any class.
    """
    by_label = 100 * (scores[same]["accuracy"] - scores[free]["accuracy"])
    by_average = 100 * (scores[free]["accuracy"] - scores["teacher"]["accuracy"])
    present = share.sum(1) > 0
    top, even = share[present].max(1).values.mean().item(), _equal_share(share)
    return points(
        [
            f"**The label is part of the aggregate.** The accuracy of the {same} differs from that of the {free} by "
            f"{by_label:+.1f} points. This difference comes from the labels and is no evidence for the quality of the "
            "neighbours.",
            f"**Averaging alone** changes the teacher's accuracy by {by_average:+.1f} points. The {free} is right on "
            f"{found[free]['corrected']:,} of the teacher's {found['errors']:,} errors and wrong on "
            f"{found[free]['broken']:,} of its {found['correct']:,} correct predictions.",
            f"**Probability of the true class.** The {same} raises it for {(gain > 0).double().mean():.0%} of the "
            f"queries. The largest decrease is {max(-gain.min().item(), 0):.2f}.",
            f"**Classes of the negatives.** On average over the classes, {top:.0%} of a class's negatives come from "
            f"one other class; with equal contributions it would be {even:.1%}.",
        ]
    )


def _equal_share(share: Tensor) -> float:
    """Return the share of each other class if all contributed equally; classes that do not occur, such as a detector's
    background, do not count."""
    occurring = int(((share.sum(0) + share.sum(1)) > 0).sum())
    return 1 / max(occurring - 1, 1)


# ----------------------------------------------------------------------------------------------- logit space


def separation_table(
    accuracy: Mapping[str, Sequence[float]],
    separation: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    methods: Sequence[str],
    baseline: str,
) -> str:
    """Format the difference of each method from a baseline, seed by seed, as a table with a caption.

    Args:
        accuracy: for each method, one value for each seed, as fractions.
        separation: for each method and each measure of `metrics.separation`, one value for each seed.
        methods: the methods, in the order of the rows.
        baseline: one of them.
    """
    measures = ("ratio", "silhouette", "margin")
    seeds = len(accuracy[baseline])
    spread = "mean ± standard deviation over the seeds" if seeds > 1 else "one seed"
    lines = [
        f"Difference of each method from `{baseline}` with the same seed ({spread}):",
        "",
        f"| method | accuracy, points | {' | '.join(measures)} |",
        f"|---|---|{'---|' * len(measures)}",
    ]
    for name in methods:
        if name == baseline:
            continue
        gaps = [_differences(accuracy[name], accuracy[baseline], 100)]
        gaps += [_differences(separation[name][key], separation[baseline][key]) for key in measures]
        cells = [mean_std(gap, form) for gap, form in zip(gaps, ("+.1f", "+.3f", "+.3f", "+.3f"), strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _differences(ours: Sequence[float], baseline: Sequence[float], scale: float = 1) -> list[float]:
    return [scale * (a - b) for a, b in zip(ours, baseline, strict=True)]


def separation_takeaways(
    accuracy: Mapping[str, Sequence[float]],
    separation: Mapping[str, Mapping[str, Sequence[float]]],
    correlation: Mapping[str, Mapping[str, float]],
    *,
    methods: Sequence[str],
) -> str:
    """Summarise the separation of classes in a few sentences, as a Markdown list.

    Args:
        accuracy: for each method, one value for each seed, as fractions.
        separation: for "teacher" and each method, and each measure of `metrics.separation`, one value for each seed.
        correlation: from `explore.class_structure.correlation_numbers`, for the first seed of each method.
        methods: the methods.
    """
    means = {name: {key: sum(values) / len(values) for key, values in separation[name].items()} for name in methods}
    widest = max(methods, key=lambda name: means[name]["ratio"])
    tightest = max(methods, key=lambda name: means[name]["silhouette"])
    best = max(methods, key=lambda name: sum(accuracy[name]) / len(accuracy[name]))
    nearest = min(methods, key=lambda name: correlation[name]["distance"])
    seeds = len(accuracy[best])
    ratio, silhouette = (
        f"{mean_std(separation[name][key])}; teacher {mean_std(separation['teacher'][key])}"
        for name, key in ((widest, "ratio"), (tightest, "silhouette"))
    )
    second = "It also" if tightest == widest else f"`{tightest}`"
    percent = mean_std([100 * value for value in accuracy[best]], ".1f")
    relation = {
        (True, True): "It also has the largest ratio and the largest silhouette.",
        (True, False): "It has the largest ratio, but not the largest silhouette.",
        (False, True): "It has the largest silhouette, but not the largest ratio.",
        (False, False): "It has neither the largest ratio nor the largest silhouette.",
    }[best == widest, best == tightest]
    if seeds > 1:
        caution = (
            f"Numbers are mean ± standard deviation over {seeds} seeds. A difference of the size of the standard "
            "deviation may be due to chance."
        )
    else:
        caution = (
            "Each method was trained with one seed. The differences are observations about single networks, not "
            "results about methods."
        )
    return points(
        [
            f"**Separation.** Of the students, `{widest}` has the largest ratio of between to within ({ratio}). "
            f"{second} has the largest silhouette ({silhouette}).",
            f"**Accuracy.** The most accurate student is `{best}` ({percent}%). {relation}",
            f"**Structure.** Of the students of the first seed, the class correlations of `{nearest}` are closest to "
            f"the teacher's (mean difference {correlation[nearest]['distance']:.3f}).",
            f"**Spread.** {caution}",
        ]
    )

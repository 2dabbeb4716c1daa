"""The model card of exported weights: Markdown with what the run's configuration and summary contain."""

from __future__ import annotations

from typing import Any

from ickd_lib import tasks
from ickd_lib.export.facts import Facts
from ickd_lib.runs.findings import markdown_table
from ickd_lib.runtime import Run

METRICS = {
    "accuracy": "accuracy, %",
    "top5": "accuracy of the five largest logits, %",
    "ece": "expected calibration error, %",
    "nll": "negative log-likelihood",
    "confidence": "mean of the largest probability, %",
    "agreement": "agrees with the teacher, %",
    "miou": "mean intersection over union, %",
    "pixel_accuracy": "correct pixels, %",
}
SHOWN = 20  # largest number of classes that the card lists by name


def model_card(run: Run, facts: Facts, file: str) -> str:
    """Return the model card of a finished run as Markdown.

    Every statement follows from the run's config.json and summary.json.

    Args:
        run: the run.
        facts: the facts about its network.
        file: name of the file of weights.
    """
    settings, summary = run.settings, run.summary or {}
    primary = tasks.create(facts.task).primary
    sections = {
        "Use": _use(facts),
        "Loading": _loading(settings["student"], facts, file),
        "Data": _data(settings, facts),
        "Method": _method(settings, facts),
        "Metrics": _metrics(summary),
        "Limits": _limits(settings, summary, primary),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"# {facts.network}, trained on {facts.data.split('/')[0]} with {facts.method}\n\n{body}\n"


def is_card(text: str) -> bool:
    """Return whether a text is a model card that this library wrote."""
    return text.startswith("# ") and "\n## Loading\n" in text and "from ickd_lib import models" in text


def _use(facts: Facts) -> str:
    what = "the class of an image" if facts.task == "classification" else "the class of each pixel of an image"
    names = ", ".join(facts.classes[:SHOWN]) + (", …" if len(facts.classes) > SHOWN else "")
    return (
        f"The network predicts {what}. The {len(facts.classes)} classes are: {names}. It is intended for images like "
        f"those of its data set, of {facts.size[0]}×{facts.size[1]} pixels. Input: float32 [B, 3, H, W], RGB, 0 to 1. "
        f"The network normalises the images itself, with mean {_numbers(facts.mean)} and standard deviation "
        f"{_numbers(facts.std)}."
    )


def _loading(student: dict[str, Any], facts: Facts, file: str) -> str:
    made = f"models.create({facts.network!r}, {len(facts.classes)}, mean={facts.mean}, std={facts.std})"
    if "reused" in student:
        made = f"models.Reused({made}, **{student['reused']})"
    return (
        f"```python\nfrom ickd_lib import models\n\nnetwork = models.load_weights(\n    {made},\n    {file!r},\n)"
        ".eval()\n```"
    )


def _data(settings: dict[str, Any], facts: Facts) -> str:
    data = settings["data"]
    text = f"{data['images']:,} training images of `{data['name']}`, with the augmentation `{data['augment']}`."
    saw = settings["teacher_saw"] or {}
    if saw:
        of = ", ".join(f"{key} {value}" for key, value in saw.items())
        text += f" The teacher was trained on: {of}."
    return text


def _method(settings: dict[str, Any], facts: Facts) -> str:
    recipe, teacher = settings["recipe"], settings["teacher"]
    arguments = {key: value for key, value in settings["method"].items() if key != "name"}
    beside = f" The teacher was {teacher['name']}." if teacher else " There was no pretrained teacher."
    return (
        f"`{facts.method}`, with the configuration `{arguments}`.{beside} The network has {facts.parameters:,} "
        f"parameters. Training: {', '.join(f'{key} {value}' for key, value in recipe.items())}; seed "
        f"{settings['seed']}, data seed {settings['data_seed']}."
    )


def _metrics(summary: dict[str, Any]) -> str:
    rows = [
        (title, f"{summary[key]:.3f}" if key == "nll" else f"{100 * summary[key]:.2f}")
        for key, title in METRICS.items()
        if summary.get(key) is not None
    ]
    return "On the test images, after the last epoch:\n\n" + markdown_table(("metric", "value"), rows)


def _limits(settings: dict[str, Any], summary: dict[str, Any], primary: str) -> str:
    parts = [
        f"* The metrics are of one run, with seed {settings['seed']}, on the test images of the same data set. Images "
        "of other kinds were not evaluated."
    ]
    if "confidence" in summary and primary in summary:
        gap = 100 * (summary["confidence"] - summary[primary])
        direction = "above" if gap > 0 else "below"
        parts.append(
            f"* The mean confidence is {abs(gap):.1f} points {direction} the accuracy. The probabilities are not "
            "scaled by a temperature."
        )
    return "\n".join(parts)


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"

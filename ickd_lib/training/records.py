"""The results of a student: its run folder, a record of each epoch, and a summary at the end."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ickd_lib import methods, metrics, models, runtime, tasks
from ickd_lib.data import Splits
from ickd_lib.memory import MemoryBank
from ickd_lib.models import Network
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Samples, Task
from ickd_lib.training.recipe import Recipe
from ickd_lib.training.state import TrainingState
from ickd_lib.training.students import Learner

NUMERICS = {"device": str, "precision": str, "threads": int, "teacher_cache": bool, "captured": bool}  # of config.json
NEAR_CHANCE = 0.9  # share of a loss term's value at chance above which a note is printed
SHOWN = ("epochs", "batch_size", "lr", "schedule")  # settings of the recipe that are entries of a summary
DRIFT_IMAGES = 2000  # number of images for which the rows of a bank in training are compared with rebuilt rows


@dataclass(repr=False)
class History:
    """The result of training one student.

    network: the trained network, in evaluation mode.
    method: its method, with the trained parameters of the method if it has some.
    epochs: the record of each epoch.
    summary: the content of summary.json.
    folder: the run folder, or None if none was requested.
    position: the student's position in the list that `distill` was given.
    """

    network: Network
    method: methods.Method
    epochs: list[dict[str, Any]]
    summary: dict[str, Any]
    folder: Path | None
    position: int = 0

    def __repr__(self) -> str:
        return f"History({self.summary['name']}, {len(self.epochs)} epochs, folder={self.folder})"


class RunRecord:
    """The records and the run folder of one student.

    Args:
        learner: the student.
    Attributes:
        run: the run folder, or None if none was requested.
        epochs: the records so far, one per epoch.
        summary: the summary of a finished student, else None.
        recall: measured recall of an approximate search for negatives, for the summary.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.run: runtime.Run | None = None
        self.epochs: list[dict[str, Any]] = []
        self.summary: dict[str, Any] | None = None
        self.recall: dict[str, float] = {}
        self.network: Network = learner.network  # the one that is evaluated and kept, once the student is finished

    @property
    def precision(self) -> str:
        """The precision of an existing run; "" for a new one."""
        run = self.run
        return str(run.config.get("numerics", {}).get("precision", "")) if run and run.exists() else ""

    @property
    def finished(self) -> bool:
        """Whether the student was trained completely, now or before."""
        return self.summary is not None

    def open(self, folder: Path, resume: bool, environment: dict[str, Any], splits: Splits) -> None:
        """Find the run in `folder`, which is new, unfinished or finished, and load the weights of a finished one.

        Each difference between the environment of an existing run and the present one is printed in a line. So is each
        method or network of the user's own whose source has changed.

        Raises:
            InputError: there is a run with other settings or with other validation or test images, or any run while
                `resume` is False. For a finished teacher, of which only the weights are used, other images are a note.
        """
        learner = self.learner
        self.run = runtime.Run.open(folder / learner.name, learner.settings, resume=resume)
        if not self.run.exists():
            return
        with runtime.complete(self.run.folder):
            config, summary = self.run.config, self.run.summary
            for split in differing(config.get("evaluated_on"), evaluated_on(splits)):
                what = {"val": "validation", "test": "test"}[split]
                if self.run.role == "student" or summary is None:
                    raise InputError(
                        f"{self.run.folder} is a run with other {what} images than those given, so its results are not "
                        "comparable with new ones; name another folder of runs, or delete this one to train it again"
                    )
                runtime.notice(
                    f"the {what} images were others when {self.run.folder} was trained; its weights are used, but its "
                    "recorded results are those on the earlier images"
                )
            for line in runtime.environment_differences(config.get("environment", {}), environment):
                runtime.notice(f"{self.run.folder} is from another environment: {line}")
            if config.get("environment", {}).get("python") == environment["python"]:  # otherwise marks differ anyway
                self._note_sources(config.get("sources", {}))
            if summary is None:
                for key, kind in NUMERICS.items():
                    if not isinstance(value := config["numerics"][key], kind):
                        raise TypeError(f"{key}={value!r} in config.json is not of type {kind.__name__}")
            elif not isinstance(summary["name"], str):
                raise TypeError("the name in summary.json is not a text")
        if summary is not None:
            models.load_weights(learner.network, self.run.folder / "student.safetensors")
            learner.network.eval()
            epochs = learner.settings["recipe"]["epochs"]
            self.summary, self.epochs = summary, self.run.readable_metrics(epochs)
            if len(self.epochs) < epochs:
                runtime.notice(f"{self.run.folder}/metrics.jsonl has the records of {len(self.epochs)} epochs only")

    def _note_sources(self, recorded: dict[str, str | None]) -> None:
        """Print a note for each method or network of the user's own of which a run recorded another source."""
        learner, now = self.learner, self.learner.recorded.get("sources", {})
        name = {
            "method": learner.method.config["name"] or type(learner.method).__name__,
            "network": learner.network.name,
            "teacher": (learner.settings["teacher"] or {}).get("name"),
        }
        advice = {"method": "raise the attribute version of its class, or "}
        for what, mark in now.items():
            if mark and recorded.get(what) not in (None, mark):
                runtime.notice(
                    f"{self.run and self.run.folder} is from another source of the {what} {name[what]!r}, which has "
                    f"been edited since; to train the present one, {advice.get(what, '')}name another folder of runs"
                )

    def create(self, numerics: dict[str, Any], group: str, environment: dict[str, Any], splits: Splits) -> None:
        """Write the configuration of a new run. A run that diverged before is trained again from its checkpoint."""
        if not self.run or runtime.rank():
            return
        self.run.clean()
        if not self.run.exists():
            crop = splits.train.evaluation_crop
            given = (self.learner.settings, numerics, group, environment, crop)
            others = self.learner.recorded
            self.run.create(*given, held_out=len(splits.val), evaluated_on=evaluated_on(splits), **others)
        (self.run.folder / "diverged.json").unlink(missing_ok=True)

    def fail(self, reason: str) -> None:
        """Record that the student diverged."""
        if self.run and runtime.rank() == 0:
            self.run.require()
            runtime.write_json(self.run.folder / "diverged.json", {"reason": reason})

    def rewind(self, epochs: int, kept: list[dict[str, Any]]) -> None:
        """Drop the records beyond the first `epochs` epochs, which are trained again.

        Args:
            epochs: number of epochs that are done.
            kept: the records in the checkpoint, from which metrics.jsonl is written anew if it lacks some.
        """
        if not (self.run and self.run.exists()):
            return
        found = self.run.readable_metrics(epochs)
        if len(found) < epochs:
            path = self.run.folder / "metrics.jsonl"
            found = kept if len(kept) > len(found) else found
            lost = f"; the records of {epochs - len(found)} epochs are lost" if len(found) < epochs else ""
            runtime.notice(f"{path} was damaged, and is written anew from the checkpoint{lost}")
        if runtime.rank() == 0:
            self.run.keep_metrics(found)
        self.epochs = found

    def end_epoch(self, state: TrainingState, splits: Splits, task: Task, precision: str, evaluate: bool) -> None:
        """Record the epoch that was just trained.

        Args:
            state: the student, after the last step of the epoch.
            splits, task, precision: the data, task and precision of the evaluation.
            evaluate: whether to evaluate the network on the validation and test images too.
        """
        meters = state.meters
        terms, seen = meters.losses.mean(0).tolist(), max(meters.seen.item(), 1)
        record = {
            "epoch": state.epoch + 1,
            "lr": state.lr(state.step - 1),
            "loss": sum(terms),
            "terms": dict(zip(meters.terms, terms, strict=True)),
            "train_accuracy": meters.correct.item() / seen,
        }
        if "peers" in self.learner.settings:
            record["peer_agreement"] = meters.agreed.item() / seen
        if state.memory:
            record |= metrics.freshness(state.memory, step=(state.epoch + 1) * state.step - 1)
        if evaluate:
            if state.memory and len(splits.train) > 1:
                record |= metrics.drift(state.memory, _rebuilt(state, splits, task, precision))
            for name, split in (("val", splits.val), ("test", splits.test)):
                if len(split):
                    numbers = task.metrics(state.network, split, precision=precision)
                    record[f"{name}_{task.primary}"] = numbers[task.primary]
        record["weights"] = runtime.fingerprint(state.network.state_dict())
        record["seconds"] = round(state.seconds, 3)
        if splits.train.streamed:
            record["waited_seconds"] = round(state.waited, 3)
        if state.replaced:
            record["replaced_images"] = state.replaced
        self.epochs.append(record)
        if self.run and runtime.rank() == 0:
            self.run.log(record)

    def finish(
        self, state: TrainingState, splits: Splits, task: Task, precision: str, teacher: Samples | None, together: int
    ) -> None:
        """Evaluate the trained network and write its weights and summary.

        Args:
            state: the student, after the last epoch.
            splits, task, precision: the data, task and precision of the evaluation.
            teacher: the teacher's samples of the test images, or None.
            together: number of students that were trained in the same pass.
        """
        network, settings, recipe = state.network.eval(), self.learner.settings, state.recipe
        self.network = network
        compared = None if self.learner.common else teacher
        numbers = task.metrics(network, splits.test, teacher=compared, precision=precision)
        evaluated = [r for r in self.epochs if f"test_{task.primary}" in r]
        last = {f"test_{task.primary}": numbers[task.primary], "epoch": recipe.epochs}  # if the records were lost
        best = max(evaluated, key=lambda r: r[f"test_{task.primary}"], default=last)
        self.summary = {
            "name": self.learner.name,
            **described(settings),
            "network": settings["student"]["network"],
            "method": methods.describe(self.learner.method),
            f"best_{task.primary}": best[f"test_{task.primary}"],
            "best_epoch": best["epoch"],
            **numbers,
        }
        if len(splits.val):
            held_out = evaluated[-1] if evaluated else {}
            known = held_out.get(f"val_{task.primary}")
            if known is None:
                known = task.metrics(network, splits.val, precision=precision)[task.primary]
            self.summary[f"val_{task.primary}"] = known
        images = recipe.epochs * len(splits.train)
        self.summary |= {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "seconds": round(state.seconds, 3),
            "images_per_second": round(images / max(state.seconds, 1e-9), 1),
            "trained_together": together,
            **self.recall,
        }
        if splits.train.streamed:
            self.summary["waited_share"] = round(state.waited / max(state.seconds, 1e-9), 4)
        self._warn_of_chance()
        if self.run and runtime.rank() == 0:
            self.run.require()
            save_weights(network, self.run.folder / "student.safetensors")
            runtime.write_json(self.run.folder / "summary.json", self.summary)

    def _warn_of_chance(self) -> None:
        """Print a note if the student has not reduced a loss term below its value at chance."""
        terms = self.epochs[-1].get("terms", {}) if self.epochs else {}
        for name, value in self.learner.method.chance.items():
            if terms.get(name, 0.0) > NEAR_CHANCE * value:
                runtime.notice(
                    f"{self.learner.name}: the loss term {name} ended at {terms[name]:.3g}. It is {value:.3g} if the "
                    f"student's logits are as similar to all compared samples, so this term was not learned; compare a "
                    f"lower weight, such as {name}=0"
                )

    def history(self) -> History:
        """Return the result of a finished student."""
        assert self.summary is not None
        data = self.learner.settings["data"]
        self.network.classes = self.learner.network.classes
        self.network.trained_on = {"data": data["name"], "labels": data["images"]}
        folder = self.run.folder if self.run else None
        return History(self.network, self.learner.method, self.epochs, self.summary, folder, self.learner.position)


def evaluated_on(splits: Splits) -> dict[str, str | None]:
    """Return the fingerprints of the validation and the test images; None for a split without images."""
    return {
        name: split.fingerprint if len(split) else None for name, split in splits._asdict().items() if name != "train"
    }


def differing(one: dict[str, str | None] | None, other: dict[str, str | None] | None) -> list[str]:
    """Return the splits, "val" or "test", of which two results of `evaluated_on` have different fingerprints.

    What a run of an earlier version does not record, and a split that is empty in one of them, does not differ.
    """
    one, other = one or {}, other or {}
    return [name for name in ("val", "test") if one.get(name) and other.get(name) and one[name] != other[name]]


def described(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run in the form in which summaries and tables of runs contain them."""
    recipe, data, teacher = settings["recipe"], settings["data"], settings["teacher"] or {}
    found = {
        "task": settings.get("task", "classification"),
        "method": settings["method"]["name"],
        "network": settings["student"]["network"],
        "seed": settings["seed"],
        "data_seed": settings["data_seed"],
        "dataset": data["name"].split("/")[0],
        "train_images": data["images"],
        "augment": data.get("augment", "crop"),
        **{key: recipe[key] for key in SHOWN},
        "recipe": recipe_changes(recipe, settings.get("task", "classification")),
        "identities": identities(settings),
        "teacher": teacher.get("name"),
        "teacher_saw": settings["teacher_saw"],
    }
    if "unlabelled" in data:
        found["unlabelled"] = data["unlabelled"]
    if "reused" in settings["student"]:
        found["classifier_of"] = settings["student"]["reused"]["teacher"]
    if "in_context" in settings:
        found["in_context"] = settings["in_context"]
    if isinstance(bank := settings.get("bank"), dict):
        found["bank_rows"] = bank["rows"]
    if "search" in settings:
        found["search"] = settings["search"]["name"]
    if "peers" in settings:
        found["peers"] = [peer["student"]["network"] for peer in settings["peers"]]
        found["peer_group"] = settings.get("peer_group", settings.get("circle"))
    return found


def identities(settings: dict[str, Any]) -> dict[str, str]:
    """Return fingerprints that tell runs with equal names apart: of the teacher, of the data set and of the images.

    That of the data set is the same for all choices of its images, and changes with the size of the images.
    """
    data, student = settings.get("data", {}), settings.get("student", {})
    of_set = [data.get("classes"), data.get("pad"), data.get("flip"), student.get("mean"), student.get("std")]
    return {
        "teacher": (settings.get("teacher") or {}).get("fingerprint", ""),
        "data": runtime.fingerprint(of_set),
        "images": data.get("fingerprint", ""),
    }


def recipe_changes(recipe: dict[str, Any], task: str) -> str:
    """Return the other settings of a recipe that differ from the task's defaults, as "momentum 0.5, nesterov"."""
    defaults = {one.name: one.default for one in fields(Recipe)} | dict(tasks.create(task).recipe)
    differing = {
        name.replace("_", " "): recipe[name]
        for name, default in defaults.items()
        if name not in SHOWN and name in recipe and _text(recipe[name]) != _text(default)
    }
    words = [
        f"{'no ' * (not value)}{name}" if isinstance(value, bool) else f"{name} {_text(value)}"
        for name, value in differing.items()
    ]
    return ", ".join(words)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):  # a tuple is a list in a file of a run
        return " ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def save_weights(network: Network, path: Path) -> None:
    """Write a network's weights as a safetensors file, completely or not at all."""
    runtime.save_tensors(path, network.state_dict())


def _rebuilt(state: TrainingState, splits: Splits, task: Task, precision: str) -> MemoryBank:
    """Build a bank of some training images with the present network."""
    train = splits.train
    some = train.subset(torch.randperm(len(train), generator=runtime.generator(0))[:DRIFT_IMAGES])
    return MemoryBank.build(state.network, some, task=task, precision=precision)

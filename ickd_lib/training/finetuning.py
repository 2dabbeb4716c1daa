"""Fine-tuning of a pretrained network to a teacher: the classifier first, then all layers; or the classifier alone."""

from __future__ import annotations

import contextlib
import copy
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import trange

from ickd_lib import models, runtime
from ickd_lib.data import Sampler, Splits
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import Count, Natural, NotNegative, Positive, Precision, checked
from ickd_lib.runtime.folders import default_name
from ickd_lib.tasks import Classification
from ickd_lib.training.distillation import check_options, check_precision, distill
from ickd_lib.training.recipe import Recipe
from ickd_lib.training.records import History, RunRecord
from ickd_lib.training.state import TrainingState
from ickd_lib.training.students import Learner, Student, learners

EXAMPLE = "torchvision/resnet18(pretrained=True)"


@checked
def teach(
    network: str,
    splits: Splits,
    *,
    epochs: Count = 20,
    head_epochs: Natural = 5,
    lr: Positive = 1e-4,
    lr_head: Positive = 1e-3,
    batch_size: Count = 64,
    weight_decay: NotNegative = 0.05,
    linear_probe: bool = False,
    seed: int = 0,
    data_seed: int = 0,
    name: str = "",
    runs: str | Path | None = "runs",
    device: str | torch.device = "auto",
    **options: Any,
) -> History:
    """Fine-tune a network on labelled images with AdamW; its run folder can then be a teacher.

    In the first epochs only the classifier is trained, then all layers; the cosine schedule begins anew. This is
    `distill` with the method `finetune`. With `linear_probe`, only the classifier is trained, on the features of the
    images without augmentation, which are computed once.

    Args:
        network: a model's name, such as "torchvision/resnet18(pretrained=True)". A note is printed if it does not ask
            for pretrained weights.
        splits: the data.
        epochs: epochs in which all layers are trained; with `linear_probe` all epochs.
        head_epochs: epochs before them, in which only the classifier is trained.
        lr: highest learning rate of all layers but the classifier.
        lr_head: highest learning rate of the classifier.
        batch_size, weight_decay: as in `Recipe`.
        seed, name: as in `Student`.
        data_seed, runs, device: as for `distill`.
        options: further arguments of `distill`; with `linear_probe` only `precision`, `progress` and `resume`.
    Returns:
        The result, with the network.
    Raises:
        InputError: as for `distill`; or with `linear_probe` there is another option, or the last layer of the network
            is not linear.
    """
    check_options(options, "teach", refused=("recipe", "teacher", "bank", "search"))
    runtime.runs_folder(runs)
    if not runtime.parse_call(network, "model", EXAMPLE)[1].get("pretrained"):
        runtime.notice(
            f"{network} has no pretrained weights, and the low rates of fine-tuning train random ones poorly; ask for "
            f"weights in its name, as in {EXAMPLE}, or train it from the beginning with training.pretrain (ickd train "
            "--method ce)"
        )
    recipe = Recipe(
        epochs=epochs if linear_probe else head_epochs + epochs,
        batch_size=batch_size,
        lr=lr_head,
        schedule="cosine",
        optimizer="adamw",
        weight_decay=weight_decay,
    )
    common: dict[str, Any] = {"recipe": recipe, "data_seed": data_seed, "device": device, "runs": runs}
    if linear_probe:
        if unknown := sorted(set(options) - {"precision", "progress", "resume"}):
            raise InputError(f"linear_probe=True does not use {', '.join(unknown)}; leave it out")
        return _probe(Student(network, "ce", seed, name), splits, **common, **options)
    share = head_epochs / recipe.epochs
    student = Student(network, f"finetune(head={share!r}, rate={lr / lr_head!r})", seed, name)
    return next(iter(distill([student], splits, **common, **options).values()))


@checked
def _probe(
    student: Student,
    splits: Splits,
    *,
    recipe: Recipe,
    data_seed: int,
    runs: str | Path | None,
    device: str | torch.device,
    precision: Precision = "auto",
    progress: bool | str = True,
    resume: bool = True,
) -> History:
    """Train the classifier of a network alone, and write a run.

    One that was stopped begins again, with the precision and the number of threads that it had.
    """
    device, task = runtime.device(device), Classification()
    task.check(splits.train)
    splits = splits.to(device)
    train = splits.train
    given: dict[str, Any] = {
        "teacher": None,
        "bank": None,
        "recipe": recipe,
        "data_seed": data_seed,
        "evaluate_every": recipe.epochs,
    }
    (learner,) = learners([student], train, task=task, device=device, **given)
    settings = {**learner.settings, "linear_probe": True}
    label = f"{learner.network.name}-linear-probe-seed{student.seed}"
    learner = replace(learner, settings=settings, name=student.name or default_name(label, settings))
    record, environment = RunRecord(learner), runtime.environment(device)
    if runs is not None:
        record.open(Path(runs), resume, environment, splits)
    if record.finished:
        return record.history()
    check_precision(record, precision)
    chosen = record.precision or runtime.precision(precision, device, min(train.size))
    numerics: dict[str, Any] = {"device": str(device), "precision": chosen, "threads": torch.get_num_threads()}
    numerics |= {"teacher_cache": False, "captured": False}
    if record.run and record.run.exists():
        numerics = record.run.config["numerics"]
        if (before := numerics["device"]).split(":")[0] != device.type:
            raise InputError(f"an unfinished run was started on {before}, not {device}; resume it there")
    folder = record.run and record.run.folder
    with contextlib.ExitStack() as stack:
        if folder and runtime.rank() == 0:
            stack.enter_context(runtime.locked(folder))
        stack.enter_context(runtime.same_threads(numerics["threads"]))
        record.create(numerics, uuid.uuid4().hex[:8], environment, splits)
        record.rewind(0, [])
        state = TrainingState(learner, recipe, Sampler(train).steps(recipe.batch_size), train.size)
        began = time.perf_counter()
        record.epochs = _train_classifier(learner, splits, recipe, data_seed, chosen, progress)
        state.seconds = time.perf_counter() - began
        network, last = learner.network.eval(), record.epochs[-1]
        for name, split in (("val", splits.val), ("test", splits.test)):
            if len(split):
                last[f"{name}_{task.primary}"] = task.metrics(network, split, precision=chosen)[task.primary]
        for one in record.epochs:
            if record.run and runtime.rank() == 0:
                record.run.log(one)
        record.finish(state, splits, task, chosen, None, 1)
    return record.history()


def _train_classifier(
    learner: Learner, splits: Splits, recipe: Recipe, data_seed: int, precision: str, progress: bool | str
) -> list[dict[str, float]]:
    """Train the classifier of a network in place, on features that are computed once; return the epochs' records."""
    train, network = splits.train, learner.network
    layer = models.classifier(network, size=train.size)[1]
    features = models.predict(network, train, precision=precision).features.float()
    if not isinstance(layer, nn.Linear) or layer.in_features != features.shape[1]:
        raise InputError(
            f"the last layer of {network.name} is {layer}; a linear probe needs a linear layer on features"
        )
    head = copy.deepcopy(layer).float()
    optimizer = torch.optim.AdamW(head.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    steps = Sampler(train).steps(recipe.batch_size)
    records = []
    for epoch in trange(recipe.epochs, desc=learner.name, disable=None if progress else True):
        began, sums = time.perf_counter(), torch.zeros(2, device=features.device)  # of the loss, and of what is correct
        order = torch.randperm(len(train), generator=runtime.generator(data_seed, "order", epoch)).to(features.device)
        for step, rows in enumerate(order.tensor_split(steps)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(epoch + step / steps)
            optimizer.zero_grad()
            logits, labels = head(features[rows]), train.labels[rows]
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                sums += torch.stack([loss * len(rows), (logits.argmax(1) == labels).sum()])
        lr = optimizer.param_groups[0]["lr"]
        loss_mean, correct = (sums / len(train)).tolist()
        seconds = round(time.perf_counter() - began, 3)
        records.append({"epoch": epoch + 1, "lr": lr, "loss": loss_mean, "train_accuracy": correct, "seconds": seconds})
    layer.load_state_dict(head.state_dict())
    return records

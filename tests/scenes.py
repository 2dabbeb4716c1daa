"""Small splits of the scenes, and trainings on them, for the tests of segmentation and detection."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ickd_lib import __main__ as cli
from ickd_lib import data, methods, tasks, training
from ickd_lib.data import RandomCrop, Sampler
from ickd_lib.training import Recipe, Student

RECIPE = Recipe(epochs=1, lr=0.02, schedule="cosine", batch_size=8)
TASKS = {"segmentation": ("masks", "resnet8-fcn"), "detection": ("boxes", "resnet8-fpn")}


def small(task: str, train: int = 24, empty: int = 0) -> data.Splits:
    """Return a few scenes without a validation split; every class has three or more samples in the training split.

    Crops for segmentation are small, so that a step is fast. `empty` is the number of the last images of the first
    epoch that have no samples; there are fewer test images then.
    """
    splits = data.load("scenes", annotations=TASKS[task][0])
    if task == "segmentation":
        splits = splits._replace(train=replace(splits.train, transform=RandomCrop((48, 48), (0.6, 1.0), flip=False)))
    least = int(task == "detection")  # class 0 is the background there, of which there are no samples
    for seed in range(100):
        images = splits.train.few(train, seed)
        order, _ = Sampler(images).plan(data_seed=0, epoch=0)
        images = emptied(images, order[train - empty :])
        if tasks.create(task).keys(images)[1].bincount(minlength=11)[least:].min() >= 3:
            return splits._replace(
                train=images, val=splits.val.subset(torch.arange(0)), test=splits.test.few(3 if empty else 6)
            )
    raise AssertionError("no seed draws enough scenes")


def emptied(images, positions: torch.Tensor):
    """Return the same images without samples in some of them: all their pixels are ignored, or they have no object."""
    if images.masks is not None:
        chosen = set(positions.tolist())
        masks = tuple(torch.full_like(one, 255) if i in chosen else one for i, one in enumerate(images.masks))
        return replace(images, masks=masks)
    counts, given = images.objects.counts.clone(), images.objects
    image = torch.arange(len(images)).repeat_interleave(counts)
    counts[positions] = 0
    flat = given.flat.select(~torch.isin(image, positions))
    return replace(images, objects=data.SplitObjects(flat, counts))


def distill(task: str, students, splits: data.Splits, teacher=None, **options) -> dict[str, training.History]:
    """Train students on the CPU in float32 without a progress bar."""
    given = {"task": tasks.create(task), "recipe": RECIPE, "device": "cpu", "precision": "fp32", "progress": False}
    return training.distill(students, splits, teacher=teacher, **(given | options))


def expert(task: str, splits: data.Splits):
    """Return a teacher of one epoch."""
    (history,) = distill(task, [Student(TASKS[task][1], "ce", 7)], splits).values()
    return history.network


def quick(name: str) -> str:
    """Return a method with few in-context samples, because the scenes have few samples of a class, and small queues."""
    if name == "cirkd":
        return "cirkd(pixel_memory=50, region_memory=10, pixel_contrast=100, region_contrast=50)"
    return f"{name}(positives=2, negatives=3)" if methods.create(name).retrievals else name


def group(task: str, name: str, seed: int = 0, constant: set[str] | None = None) -> list[Student]:
    """Return the students of a method in a peer group of their own: one, or two if it needs peers.

    The terms of the method that have no gradient are added to `constant`.
    """

    def check(method, given, terms):
        if constant is not None:
            constant.update(term for term, value in terms.items() if not value.requires_grad)

    students = []
    for i in range(1 + ("peers" in methods.create(name).needs)):
        method = methods.create(quick(name))
        method.register_forward_hook(check)
        students.append(Student(TASKS[task][1], method, seed + i, f"{name}-{i}", name))
    return students


def all_methods(task: str, refused, splits: data.Splits, teacher) -> dict[str, training.History]:
    """Train every other method in one pass, but for those with a second view of the images, which is drawn for all."""
    names = [name for name in methods.names() if name not in refused and "strong" not in methods.create(name).needs]
    constant: dict[str, set[str]] = {name: set() for name in names}
    students = [student for name in names for student in group(task, name, constant=constant[name])]
    histories = distill(task, students, splits, teacher)
    assert {name: terms for name, terms in constant.items() if terms} == {}  # each term teaches the student something
    return histories


def watched(task: str, method: str, splits: data.Splits, teacher=None, **options):
    """Train a student, and return every context that its method received with the terms that it returned."""
    seen = []
    made = methods.create(method)

    class Watching(type(made)):
        def forward(self, context):
            terms = super().forward(context)
            seen.append((context, {name: term.item() for name, term in terms.items()}))
            return terms

    made.__class__ = Watching
    history = distill(task, [Student(TASKS[task][1], made, name="watched")], splits, teacher, **options)["watched"]
    return seen, history


def same_weights(one, other) -> bool:
    """Return whether two histories have the same network and method, bit for bit."""
    return all(
        torch.equal(value, getattr(other, part).state_dict()[key])
        for part in ("network", "method")
        for key, value in getattr(one, part).state_dict().items()
    )


def interrupted(monkeypatch, steps: int, run) -> None:
    """Run a training that is stopped within an update, after this number of updates."""
    step, taken = training.optimizers.Optimizer.step, []

    def stopping(self):
        if len(taken) == steps:
            raise KeyboardInterrupt
        taken.append(1)
        step(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.optimizers.Optimizer, "step", stopping)
        run()


def exchanged(logits, label):
    """The logits [C] with that of the label and the largest one exchanged."""
    corrected, largest = logits.clone(), int(logits.argmax())
    corrected[label], corrected[largest] = logits[largest], logits[label]
    return corrected


def divergence(target, logits, tau=3):
    """τ² KL of each row."""
    own, other = (F.log_softmax(one / tau, -1) for one in (logits, target))
    return tau**2 * (other.exp() * (other - own)).sum(-1)


def in_context(bank, row, positives, negatives):
    """The nearest other rows of the same class and of other classes, by a loop over the bank."""
    similarity = [(bank.features[row].double() @ one.double()).item() for one in bank.features]
    order = sorted(range(len(bank)), key=lambda j: (-similarity[j], j))
    same = [j for j in order if bank.labels[j] == bank.labels[row] and j != row]
    return same[:positives], [j for j in order if bank.labels[j] != bank.labels[row]][:negatives], similarity


def command_line(folder, monkeypatch, capsys):
    """Return a function that runs a command in `folder`, on few scenes; teachers are trained on few too."""
    monkeypatch.chdir(folder)
    load = data.load

    def loaded(*given, **options):
        train, val, test = load(*given, **options)
        return data.Splits(train if len(train) < 60 else train.few(24), val.subset(torch.arange(0)), test.few(6))

    def call(line):
        status = cli.main(line.split())
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return printed.out

    monkeypatch.setattr(data, "load", loaded)
    return call

"""The two training loops that are compared: the usual loop of distillation code, and `training.distill`."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ickd_lib import data, models, runtime, training
from ickd_lib.memory import MemoryBank

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WORKERS = min(12, CORES)  # of the usual loop's DataLoader; it would be slower with fewer


class TransformedImages(Dataset):
    """PIL images and torchvision's transforms (random crop, flip, normalisation), as in common CIFAR loaders."""

    def __init__(self, images: data.Images) -> None:
        self.pixels = images.images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        self.labels = images.labels.tolist()
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(images.mean, images.std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[i])), self.labels[i]


class UsualLoop:
    """The usual KD loop: PIL transforms in a DataLoader with `WORKERS` workers, float32, the teacher in every step.

    Args:
        teacher: a network. Its weights are copied into a new network with PyTorch's default memory format.
        name: name of the student's network.
        images: the training images.
        device: the device of both networks.
        recipe: batch size, learning rates and optimiser.
        seed: seed of the student's initial weights, which equal those of `distill`, and of the order of the images.
    Attributes:
        done: number of steps so far.
    """

    def __init__(
        self,
        teacher: models.Network,
        name: str,
        images: data.Images,
        device: torch.device,
        recipe: training.Recipe,
        seed: int = 0,
    ) -> None:
        self.device, self.recipe, self.done = device, recipe, 0
        self.teacher = models.create(teacher.name, **images.spec).to(device)
        self.teacher.load_state_dict(teacher.state_dict())
        self.teacher.eval()
        with runtime.seeded(seed, "network"):
            self.student = models.create(name, **images.spec)
        self.student.to(device).train()
        for network in (self.teacher, self.student):  # the images are normalised by the transforms already
            network.set_normalisation((0.0,) * 3, (1.0,) * 3)
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.loader = DataLoader(
            TransformedImages(images),
            batch_size=recipe.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
            num_workers=WORKERS,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )

    def epoch(self) -> None:
        """Train for one epoch."""
        for pixels, labels in self.loader:
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.lr_at(self.done / len(self.loader))
            pixels, labels = pixels.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
            logits = self.student(pixels).logits
            with torch.no_grad():
                target = self.teacher(pixels).logits
            soft = F.kl_div((logits / 4).log_softmax(1), (target / 4).softmax(1), reduction="batchmean") * 16
            loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * soft
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()  # usual loops read the loss in every step, for a running average
            self.done += 1


def step_seconds(students: list[training.Student], splits: data.Splits, **given: Any) -> float:
    """Return the seconds that one step of `distill` takes for all students, from the second of two epochs.

    Args:
        students, splits: as for `distill`.
        given: further arguments of `distill`.
    """
    recipe = training.Recipe(epochs=2, schedule="cosine")
    options = {"recipe": recipe, "evaluate_every": 2, "progress": False} | given
    history = next(iter(training.distill(students, splits, **options).values()))
    first, second = (record["seconds"] for record in history.epochs)
    return (second - first) / data.Sampler(splits.train).steps(options["recipe"].batch_size)


def random_splits(count: int, test: int, classes: int = 100) -> data.Splits:
    """Return random images of CIFAR-100's shape.

    They serve for timing without the data set, because the time of a step does not depend on the pixels.

    Args:
        count: number of training images.
        test: number of test images.
        classes: number of classes.
    """
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8))
    names = tuple(str(c) for c in range(classes))
    rows = torch.arange(count)
    images = data.Images(pixels, rows % classes, rows, names, (0.5,) * 3, (0.25,) * 3, 4, True, "random/train")
    return data.Splits(images, images.subset(rows[:0]), images.subset(rows[:test]))


def untrained(name: str, splits: data.Splits, device: torch.device) -> tuple[models.Network, MemoryBank]:
    """Return a teacher with random weights and its memory bank of the training images."""
    with runtime.seeded(0):
        teacher = models.create(name, **splits.train.spec).to(device).eval()
    return teacher, MemoryBank.build(teacher, splits.train.to(device))

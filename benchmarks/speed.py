"""How fast a distillation step is, against the usual loop, in one run on one machine.

    python benchmarks/speed.py [--data-root DIR] [--rounds 5] [--out benchmarks/speed.json]

The usual loop: PIL transforms in a DataLoader with two workers, float32, the teacher's pass in every step. Ours is
`training.distill` as everyone calls it. Both train on the same images at batch 64; rounds of the loops alternate,
so that a machine whose speed drifts slows all of them alike, and ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ickd_lib import data, models, runtime, training
from ickd_lib.memory import MemoryBank

PAIRS = (("resnet56", "resnet20"), ("resnet32x4", "resnet8x4"))
BATCH = 64


class Pictures(Dataset):
    """PIL images through the usual transforms, as in the field's CIFAR loaders."""

    def __init__(self, images: data.Images) -> None:
        self.pixels = images.images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        self.labels = images.labels.tolist()
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(images.mean, images.std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[i])), self.labels[i]


def made_up(count: int) -> data.Splits:
    """Random images in CIFAR-100's shape, where the real ones are not at hand: time does not depend on pixels."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8))
    labels = torch.arange(count) % 100
    classes = tuple(str(c) for c in range(100))
    images = data.Images(pixels, labels, torch.arange(count), classes, (0.5,) * 3, (0.25,) * 3, 4, True, "random/train")
    return data.Splits(images, images.subset(torch.arange(0)), images.subset(torch.arange(64)))


def usual(teacher: models.Network, name: str, images: data.Images, device: torch.device) -> float:
    """Seconds a step of the usual KD loop, the first few steps left out."""
    teacher = models.create(teacher.name, 100).to(device).eval()  # contiguous, as the usual loop has it
    student = models.create(name, 100).to(device).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    workers = {"num_workers": 2, "persistent_workers": True, "pin_memory": device.type == "cuda"}
    loader = DataLoader(Pictures(images), batch_size=BATCH, shuffle=True, **workers)
    seconds = 0.0
    for _epoch in range(2):  # the second one counts
        start = time.perf_counter()
        for pixels, labels in loader:
            pixels, labels = pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            logits = student(pixels).logits
            with torch.no_grad():
                target = teacher(pixels).logits
            soft = F.kl_div((logits / 4).log_softmax(1), (target / 4).softmax(1), reduction="batchmean") * 16
            loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # the usual running average
        seconds = time.perf_counter() - start
    return seconds / len(loader)


def ours(
    method: str,
    teacher: models.Network,
    bank: MemoryBank,
    name: str,
    splits: data.Splits,
    device: str,
    memo: str | None = None,
) -> float:
    """Seconds a step of `distill`, measured on the second of two epochs; with a memo, filled by an earlier call."""
    students = [training.Student(name, method)]
    recipe = training.Recipe(epochs=2, batch_size=BATCH, schedule="cosine")
    (history,) = training.distill(
        students,
        splits,
        teacher=teacher,
        bank=bank,
        recipe=recipe,
        device=device,
        evaluate_every=2,
        progress=False,
        memo=memo,
    ).values()
    first, second = (record["seconds"] for record in history.epochs)
    return (second - first) / splits.train.steps(BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="", help="folder of cifar-100-python; without it, random images")
    parser.add_argument("--rounds", type=int, default=5, help="times each loop is measured")
    parser.add_argument("--steps", type=int, default=16, help="steps of a measurement")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", default="benchmarks/speed.json", help="file of the results")
    given = parser.parse_args()
    device = runtime.device(given.device)
    count = given.steps * BATCH
    splits = data.load("cifar100", given.data_root) if given.data_root else made_up(2 * count)
    splits = data.Splits(splits.train.few(count), splits.val, splits.test.subset(torch.arange(64)))
    results = {}
    for teacher_name, name in PAIRS:
        with runtime.seeded(0):
            teacher = models.create(teacher_name, **splits.train.spec).to(device).eval()
        bank = MemoryBank.build(teacher, splits.train.to(device))
        rounds: dict[str, list[float]] = {"usual": [], "kd": [], "ickd": [], "kd, full memo": []}
        with tempfile.TemporaryDirectory() as memo:
            ours("kd", teacher, bank, name, splits, given.device, memo)
            for _ in range(given.rounds):
                rounds["usual"].append(usual(teacher, name, splits.train, device))
                rounds["kd"].append(ours("kd", teacher, bank, name, splits, given.device))
                rounds["ickd"].append(ours("ickd", teacher, bank, name, splits, given.device))
                rounds["kd, full memo"].append(ours("kd", teacher, bank, name, splits, given.device, memo))
        rate = {key: BATCH / statistics.median(values) for key, values in rounds.items()}
        speedup = statistics.median(u / k for u, k in zip(rounds["usual"], rounds["kd"], strict=True))
        memoised = statistics.median(u / k for u, k in zip(rounds["usual"], rounds["kd, full memo"], strict=True))
        extra = statistics.median(i / k for i, k in zip(rounds["ickd"], rounds["kd"], strict=True)) - 1
        results[f"{teacher_name}→{name}"] = {
            "images_per_second": {key: round(value, 1) for key, value in rate.items()},
            "kd_speedup_over_usual": round(speedup, 3),
            "full_memo_speedup_over_usual": round(memoised, 3),
            "ickd_extra_over_kd": round(extra, 4),
            "seconds_per_step": rounds,
        }
        rates = ", ".join(f"{key} {value:.0f}" for key, value in rate.items())
        print(f"{teacher_name}→{name}: images/s {rates}; over the usual loop KD {speedup:.2f}×, ", end="")
        print(f"with a full memo {memoised:.2f}×; an IC-KD step {extra:+.1%} over KD")
    chosen = runtime.precision("auto", device, 32)
    facts = runtime.environment(device) | {"precision": chosen, "threads": torch.get_num_threads(), "batch": BATCH}
    runtime.write_json(given.out, {"machine": facts, "results": results})
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()

"""Do contributions predict what happens when a student is trained again without some samples?

    python benchmarks/attribution.py --data digits --out benchmarks/results/attribution-digits.json
    python benchmarks/attribution.py --data cifar100 --data-root DIR --out benchmarks/results/attribution-cifar100.json
    python benchmarks/attribution.py --print benchmarks/results/attribution-*.json

A student is trained with ICKD, and its contributions are computed for random test images, the queries. Then students
are trained again from the same seed:

- without the k training samples that raised the margin of a query's predicted class most, for some queries: how far
  do the margin and the logit of this class fall, compared with the k nearest samples of the class (teacher's
  features), k random ones of the class, and the first k of captum's TracInCP;
- on random halves of the training samples: the linear datamodelling score is the Spearman correlation, over the halves,
  of the query's margin with the sum of the contributions of the samples in the half.

Each training is written to the JSON file when it ends; the same call goes on from there. Scores of captum need
`pip install captum`.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor, nn

from ickd_lib import data, explore, models, runtime, training
from ickd_lib.data import Images, Splits
from ickd_lib.memory import MemoryBank
from ickd_lib.models import Network
from ickd_lib.runtime import InputError
from ickd_lib.training import KeepWeights, Recipe, Student

CLASSES = ["apple", "bear", "bicycle", "bus", "castle", "clock", "dolphin", "leopard", "maple_tree", "rocket"]
METHOD = "ickd(nicd=2.0, positives=4, negatives=32)"
CHOSEN = 16  # halves that were used to choose the damping among 0.01, 0.1 and 1
LEAST = 6  # samples of each class in a random half, so that each sample has four positives
DEFAULTS = {
    "digits": {"images": 200, "epochs": 20, "teacher": "resnet20", "teacher_epochs": 4, "k": 10, "pixels": 8},
    "cifar100": {"images": 300, "epochs": 10, "teacher": "resnet8", "teacher_epochs": 5, "k": 10, "pixels": 16},
}
SHOWN = {
    "contributions": "contributions",
    "with roles": "contributions, with those as in-context samples of others",
    "roles": "those as in-context samples of others alone",
    "positives": "of these, those as positives (PICD)",
    "negatives": "of these, those as negatives (NICD)",
    "last": "contributions at the final weights alone",
    "cross-entropy": "contributions of the cross-entropy alone",
    "undamped": "contributions without P, as in TracIn",
    "tracin": "captum's TracInCP",
    "nearest": "nearest of the class",
    "random": "random of the class",
}


def load(given: argparse.Namespace) -> tuple[Splits, Network]:
    """Return the student's data and a teacher that was trained on all images of the classes."""
    classes = CLASSES if given.data == "cifar100" else []
    full = data.load(given.data, given.data_root, classes=classes)
    few = data.load(given.data, given.data_root, classes=classes, labels=given.images)
    full, few = (Splits(*(resized(images, given.pixels) for images in splits)) for splits in (full, few))
    recipe = Recipe(epochs=given.teacher_epochs, lr=0.1, schedule="onecycle")
    return few, training.pretrain(given.teacher, full, recipe=recipe, runs=given.runs, progress=False, device="cpu")


def resized(images: Images, pixels: int) -> Images:
    """Return the images at a smaller size, by averages over squares, which takes fewer operations."""
    factor = images.size[0] // pixels
    small = nn.functional.avg_pool2d(images.images.float(), factor).round().to(torch.uint8)
    return replace(images, images=small) if len(images) else images


def train(
    given: argparse.Namespace,
    splits: Splits,
    teacher: Network,
    keep: bool = False,
    bank: MemoryBank | None = None,
) -> training.History:
    """Train a student from the seed; by default, its bank has the rows of its own training samples."""
    recipe = Recipe(epochs=given.epochs, lr=0.05, schedule="onecycle", batch_size=32)
    options: dict[str, Any] = {"runs": given.runs, "callbacks": [KeepWeights(given.keep)]} if keep else {}
    name = f"attribution-{given.data}-{given.epochs}{f'-{len(bank)}' if bank else ''}" if keep else ""
    student = Student("resnet8", METHOD, given.seed, name=name)
    (history,) = training.distill(
        [student],
        splits,
        teacher=teacher,
        bank=bank,
        recipe=recipe,
        device="cpu",
        precision="fp32",
        evaluate_every=given.epochs,
        progress=False,
        **options,
    ).values()
    return history


def scores(network: Network, queries: Images, labels: Tensor) -> dict[str, list[float]]:
    """Return margin and centred logit of a class for each query, rounded."""
    logits = models.predict(network, queries, precision="fp32").logits.double()
    own = logits.gather(1, labels[:, None]).squeeze(1)
    margin = own - logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    found = {"margin": margin, "logit": own - logits.mean(1)}
    return {name: [round(value, 4) for value in one.tolist()] for name, one in found.items()}


class Logits(nn.Module):
    """A network that returns its logits alone, as captum needs it."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels).logits


def tracin(attributor: explore.Attributor, train: Images, queries: Images, labels: Tensor) -> Tensor:
    """Return the influence scores of captum's TracInCP, [Q, N], of cross-entropy over all layers, same weights."""
    from captum.influence import TracInCP

    rates = {str(at): step.rate for at, step in enumerate(attributor.steps)}
    model = Logits(attributor.network).eval()

    def opened(module: nn.Module, at: str) -> float:
        attributor.load(int(at))
        return rates[at]

    pixels = [(image, label) for image, label in zip(train.images.float() / 255, train.labels, strict=True)]
    with torch.enable_grad():
        found = TracInCP(
            model,
            pixels,
            list(rates),
            checkpoints_load_func=opened,
            loss_fn=nn.CrossEntropyLoss(reduction="sum"),
            batch_size=50,
            sample_wise_grads_per_batch=True,
        ).influence((queries.images.float() / 255, labels))
    return found.detach()


def attributed(
    given: argparse.Namespace, base: training.History, splits: Splits, teacher: Network, queries: Images
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the predicted class of each query [Q], and the scores of all training samples by method, [Q, N] each."""
    assert base.folder
    train_images = splits.train
    bank = MemoryBank.build(teacher, train_images, precision="fp32")
    found: dict[str, Tensor] = {}
    options: dict[str, dict[str, Any]] = {
        "contributions": {},
        "last": {"checkpoints": "last"},
        "undamped": {"damping": None},
    }
    for name, option in options.items():
        attributor = explore.Attributor(base.folder, base.network, train_images, bank=bank, **option)
        outputs = attributor.outputs(queries)
        every = [attributor.attribute(outputs, at) for at in range(len(queries))]
        found[name] = torch.stack([one.total for one in every])
        if name == "contributions":
            labels = torch.tensor([one.label for one in every])
            found["with roles"] = torch.stack([one.with_roles() for one in every])
            found["roles"] = found["with roles"] - found["contributions"]
            rows = bank.rows(train_images.index)
            found["positives"] = torch.stack([one.roles["positive"][rows] for one in every])
            found["negatives"] = torch.stack([one.roles["negative"][rows] for one in every])
            found["cross-entropy"] = torch.stack([one.terms["ce"] for one in every])
            if "tracin" in given.selections:
                found["tracin"] = tracin(attributor, train_images, queries, labels)
    features = models.predict(teacher, queries, precision="fp32").features
    cosine = nn.functional.normalize(features, dim=1) @ bank.features[bank.rows(train_images.index)].T
    other = train_images.labels != labels[:, None]
    found["nearest"] = cosine.masked_fill(other, -2)
    chance = torch.rand(cosine.shape, generator=runtime.generator(given.seed, "random of the class"))
    found["random"] = chance.masked_fill(other, -2)
    return labels, found


def half(train_images: Images, number: int) -> Tensor:
    """Return the positions of a random half of the training samples, sorted; each class has LEAST of them or more."""
    generator = runtime.generator("half", number)
    while True:
        chosen = torch.randperm(len(train_images), generator=generator)[: len(train_images) // 2].sort().values
        if int(torch.bincount(train_images.labels[chosen], minlength=len(train_images.classes)).min()) >= LEAST:
            return chosen


def spearman(a: Tensor, b: Tensor) -> float:
    """Return the rank correlation of two vectors without ties."""
    ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])


def measure(given: argparse.Namespace) -> None:
    """Train what is missing in the file of results."""
    splits, teacher = load(given)
    if len(splits.train) < 2.5 * LEAST * len(splits.train.classes):
        raise InputError(f"--images {given.images} are too few for halves with {LEAST} of each class; give more")
    out, train_images = Path(given.out), splits.train
    base = train(given, splits, teacher, keep=True)
    chosen = torch.randperm(len(splits.test), generator=runtime.generator("queries"))[: given.queries]
    queries = splits.test.subset(chosen.sort().values)
    labels, ranked = attributed(given, base, splits, teacher, queries)
    protocol = {key: value for key, value in vars(given).items() if key not in ("print", "out", "runs", "data_root")}
    protocol |= {"method": METHOD, "accuracy": base.summary["accuracy"], "classes": len(train_images.classes)}
    known = runtime.read_json(out) if out.is_file() else {}
    result = {"protocol": protocol, "halves": {}, "removals": {}, **known}
    result |= {"protocol": protocol, "base": scores(base.network, queries, labels)}

    def again(kept: Tensor) -> dict[str, list[float]]:
        fewer = splits._replace(train=train_images.subset(kept), test=queries)  # evaluation on the queries is faster
        network = train(given, fewer, teacher).network
        return scores(network, queries, labels)

    def save() -> None:
        rest = {number: one for number, one in result["halves"].items() if int(number) >= CHOSEN}
        result["lds"] = linear_scores(result["halves"], ranked, train_images)
        result["lds_of_rest"] = linear_scores(rest, ranked, train_images)
        runtime.write_json(out, result)

    for number in range(given.subsets):
        if str(number) not in result["halves"]:
            result["halves"][str(number)] = again(half(train_images, number))
            save()
    for at in range(given.removed):
        for name in given.selections:
            key = f"{name}/{at}"
            if key not in result["removals"]:
                top = ranked[name][at].topk(given.k).indices
                kept = torch.ones(len(train_images), dtype=torch.bool).index_fill(0, top, False).nonzero().squeeze(1)
                found = again(kept)
                result["removals"][key] = {name: values[at] for name, values in found.items()}
                save()
    save()
    show([given.out])


def linear_scores(halves: dict[str, Any], ranked: dict[str, Tensor], train_images: Images) -> dict[str, list[float]]:
    """Return the linear datamodelling score of each query by method."""
    if len(halves) < 3:
        return {}
    kept = [half(train_images, int(number)) for number in halves]
    actual = torch.tensor([one["margin"] for one in halves.values()]).T
    found = {}
    for name, score in ranked.items():
        if name != "random":
            known = score.clamp(min=0) if name == "nearest" else score
            predicted = torch.stack([known[:, rows].sum(1) for rows in kept], 1)
            found[name] = [round(spearman(p, a), 4) for p, a in zip(predicted, actual, strict=True)]
    return found


def interval(values: Tensor) -> str:
    """Return the mean of some values and its standard error, if there are several."""
    error = f" ± {values.std() / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{error}"


def show(files: list[str]) -> None:
    """Print the table of some files of results."""
    for file in files:
        result = runtime.read_json(Path(file))
        protocol, base = result["protocol"], result["base"]
        print(
            f"\n{protocol['data']}: {protocol['images']} training images of {protocol['classes']} classes, "
            f"{protocol['epochs']} epochs, accuracy {protocol['accuracy']:.1%}; {len(result['halves'])} random halves, "
            f"{protocol['queries']} queries; {protocol['k']} samples removed\n"
        )
        rest = result["lds_of_rest"]
        print(f"| scores | the margin falls by | the logit falls by | LDS | LDS without the first {CHOSEN} halves |")
        print("|---|---|---|---|---|")
        for name, text in SHOWN.items():
            lost = {}
            for what in ("margin", "logit"):
                found = [
                    base[what][int(key.rpartition("/")[2])] - one[what]
                    for key, one in result["removals"].items()
                    if key.rpartition("/")[0] == name
                ]
                lost[what] = interval(torch.tensor(found)) if found else ""
            both = [interval(torch.tensor(found[name])) if name in found else "" for found in (result["lds"], rest)]
            print(f"| {text} | {lost['margin']} | {lost['logit']} | {' | '.join(both)} |")


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """Return the options, with the defaults of the data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(DEFAULTS), default="digits")
    parser.add_argument("--data-root", default="data", help="folder of cifar-100-python")
    parser.add_argument("--images", type=int, default=0, help="number of training images of the student")
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--pixels", type=int, default=0, help="side of an image, a divisor of its own")
    parser.add_argument("--keep", type=int, default=2, help="number of epochs between the kept weights")
    parser.add_argument("--teacher", default="")
    parser.add_argument("--teacher-epochs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--k", type=int, default=0, help="number of training samples that are removed")
    parser.add_argument(
        "--queries", type=int, default=40, help="number of test images with a linear datamodelling score"
    )
    parser.add_argument("--removed", type=int, default=6, help="number of these for which samples are removed")
    parser.add_argument("--subsets", type=int, default=50, help="number of random halves")
    selections = ["contributions", "with roles", "nearest", "random", "tracin", "undamped"]
    parser.add_argument("--selections", nargs="+", default=selections, help="scores by which samples are removed")
    parser.add_argument("--runs", default="runs/attribution")
    parser.add_argument("--out", default="runs/attribution/results.json")
    parser.add_argument("--print", nargs="+", default=[], metavar="FILE", help="only print the tables of these files")
    arguments = parser.parse_args(words)
    for option, value in DEFAULTS[arguments.data].items():
        setattr(arguments, option, getattr(arguments, option) or value)
    return arguments


if __name__ == "__main__":
    options = parsed()
    show(options.print) if options.print else measure(options)

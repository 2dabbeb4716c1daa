"""Do the contributions of in-context samples predict what happens when they are removed from the memory bank?

    python benchmarks/attribution_roles.py --data digits --out benchmarks/results/roles-digits.json
    python benchmarks/attribution_roles.py --data cifar100 --data-root DIR --out benchmarks/results/roles-cifar100.json
    python benchmarks/attribution_roles.py --print benchmarks/results/roles-*.json

The setting is that of attribution.py, except that the teacher's bank contains as many other images as the student has
training images. A student has no loss for these: they act as in-context samples only, as positives or as negatives.
Students are trained again with a random half of them in the bank. The linear datamodelling score is the Spearman
correlation, over the halves, of a query's margin with the sum of the contributions of the images in the half: as
positives, as negatives, and in both roles. For comparison, images are scored by their cosine to the query, where they
have the predicted class.

Each training is written to the JSON file when it ends; the same call goes on from there.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import attribution
import torch
from torch import Tensor, nn

from ickd_lib import data, explore, models, runtime
from ickd_lib.memory import MemoryBank

SHOWN = {
    "roles": "contributions as in-context samples",
    "positives": "of these, as positives (PICD)",
    "negatives": "of these, as negatives (NICD)",
    "nearest": "cosine to the query, in the predicted class",
}


def measure(given: argparse.Namespace) -> None:
    """Train what is missing in the file of results."""
    splits, teacher = attribution.load(given)
    classes = attribution.CLASSES if given.data == "cifar100" else []
    every = attribution.resized(data.load(given.data, given.data_root, classes=classes).train, given.pixels)
    images = data.selection.extended(splits.train, every, 2 * len(splits.train))
    bank = MemoryBank.build(teacher, images, labels="given", precision="fp32")
    base = attribution.train(given, splits, teacher, keep=True, bank=bank)
    assert base.folder
    chosen = torch.randperm(len(splits.test), generator=runtime.generator("queries"))[: given.queries]
    queries = splits.test.subset(chosen.sort().values)
    attributor = explore.Attributor(base.folder, base.network, splits.train, bank=bank)
    outputs = attributor.outputs(queries)
    found = [attributor.attribute(outputs, at) for at in range(len(queries))]
    labels = torch.tensor([one.label for one in found])

    others = (~torch.isin(images.index, splits.train.index)).nonzero().squeeze(1)
    rows = bank.rows(images.index[others])
    score = {name: torch.stack([one.roles[name[:-1]][rows] for one in found]) for name in ("positives", "negatives")}
    features = nn.functional.normalize(models.predict(teacher, queries, precision="fp32").features, dim=1)
    of_class = images.labels[others] == labels[:, None]
    score |= {"roles": score["positives"] + score["negatives"]}
    score |= {"nearest": (features @ bank.features[rows].T).clamp(min=0) * of_class}

    out = Path(given.out)
    known = runtime.read_json(out) if out.is_file() else {"halves": {}}
    protocol = {"data": given.data, "images": len(splits.train), "others": len(others), "queries": len(queries)}
    result: dict[str, Any] = known | {"protocol": protocol | {"accuracy": base.summary["accuracy"]}}
    for number in range(given.subsets):
        if str(number) not in result["halves"]:
            kept = torch.cat(
                [(~torch.isin(torch.arange(len(images)), others)).nonzero().squeeze(1), half(others, number)]
            )
            fewer = MemoryBank.build(teacher, images.subset(kept.sort().values), labels="given", precision="fp32")
            network = attribution.train(given, splits._replace(test=queries), teacher, bank=fewer).network
            result["halves"][str(number)] = attribution.scores(network, queries, labels)["margin"]
        if number >= 2:
            result["lds"] = {name: linear_scores(result["halves"], one, others) for name, one in score.items()}
        runtime.write_json(out, result)
    show([given.out])


def half(others: Tensor, number: int) -> Tensor:
    """Return a random half of some positions."""
    order = torch.randperm(len(others), generator=runtime.generator("half of the bank", number))
    return others[order[: len(others) // 2]]


def linear_scores(halves: dict[str, list[float]], score: Tensor, others: Tensor) -> list[float]:
    """Return the linear datamodelling score of each query."""
    actual = torch.tensor(list(halves.values())).T
    kept = [torch.isin(others, half(others, int(number))) for number in halves]
    predicted = torch.stack([score[:, one].sum(1) for one in kept], 1)
    return [round(attribution.spearman(p, a), 4) for p, a in zip(predicted, actual, strict=True)]


def show(files: list[str]) -> None:
    """Print the table of some files of results."""
    results = [runtime.read_json(Path(file)) for file in files]
    print(f"| scores of the other images in the bank | {' | '.join(one['protocol']['data'] for one in results)} |")
    print("|" + "---|" * (1 + len(results)))
    for name, text in SHOWN.items():
        print(f"| {text} | {' | '.join(attribution.interval(torch.tensor(one['lds'][name])) for one in results)} |")


if __name__ == "__main__":
    given = attribution.parsed()
    show(given.print) if given.print else measure(given)

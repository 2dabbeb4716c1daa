"""What each of several processes runs for test_several.py: a case by its name, whose result process 0 writes."""

import sys

import registered
import torch

from ickd_lib import data, methods, runtime, training
from ickd_lib.training import Callback, Recipe, Student

RECIPE = Recipe(epochs=2, batch_size=24, lr=0.02, schedule="cosine")


class Losses(Callback):
    """Keeps the losses of every epoch of each student."""

    def __init__(self):
        self.found = {}

    def step(self, loop):
        if loop.step == loop.steps:
            for state in loop.states:
                kept = self.found.setdefault(state.learner.name, {"terms": list(state.meters.terms), "losses": []})
                kept["losses"] += state.meters.losses.tolist()


def trained(names, splits, *, teacher=None, peer_groups=False, **options):
    """Train a student with each method; return losses, accuracies and a checksum of the weights."""
    students = [
        Student("resnet8", name, seed, f"{name}-{seed}", name if peer_groups else "")
        for name in names
        for seed in range(2 if peer_groups else 1)
    ]
    callback = Losses()
    given = {"recipe": RECIPE, "precision": "fp32", "progress": False, "sync_batchnorm": True} | options
    found = training.distill(students, splits, teacher=teacher, callbacks=[callback], **given)
    return {
        name: callback.found.get(name, {})
        | {
            "accuracies": [record["train_accuracy"] for record in history.epochs],
            "test": [record["test_accuracy"] for record in history.epochs],
            "nll": history.summary["nll"],
            "weights": sum(p.double().abs().sum().item() for p in history.network.parameters()),
            "same": len(set(runtime.distributed.gather_objects(runtime.fingerprint(history.network.state_dict())))),
        }
        for name, history in found.items()
    }


def main(case, weights, out):
    torch.set_num_threads(1)
    splits = data.load("digits", labels=90)
    teacher = training.pretrain("resnet8", splits, weights=weights, device="cpu")
    made = {name: methods.create(name) for name in registered.trained()}
    alone = [name for name, method in made.items() if "peers" not in method.needs]
    if case == "separable":
        found = trained([name for name in alone if made[name].separable], splits, teacher=teacher)
    elif case == "compared":
        found = trained([name for name in alone if not made[name].separable], splits, teacher=teacher)
    elif case == "peers":
        found = trained([n for n, method in made.items() if "peers" in method.needs], splits, peer_groups=True)
    if runtime.rank() == 0:
        runtime.write_json(out, found)


if __name__ == "__main__":
    with runtime.processes("cpu"):
        main(*sys.argv[1:])

"""What each of several processes runs for test_several.py: some trainings, whose results process 0 writes.

python -m torch.distributed.run --nproc-per-node N tests/several_worker.py CASE OUT [WEIGHTS]
"""

import sys

import registered
import scenes
import torch

from ickd_lib import data, methods, models, runtime, tasks, training
from ickd_lib.runtime.distributed import gather_objects
from ickd_lib.training import Callback, Recipe, Student

RECIPE = Recipe(epochs=1, batch_size=32, lr=0.02, schedule="cosine")
DENSE = {"segmentation": ["ce", "kd", "ckd", "ickd(positives=2, negatives=4)"], "detection": ["kd", "ckd(ckd=0.1)"]}


class Losses(Callback):
    """Keeps the losses of every epoch of each student."""

    def __init__(self):
        self.found = {}

    def step(self, loop):
        if loop.step == loop.steps:
            for state in loop.states:
                kept = self.found.setdefault(state.learner.name, {"terms": list(state.meters.terms), "losses": []})
                kept["losses"] += state.meters.losses.tolist()


def trained(names, splits, *, teacher=None, task="classification", network="resnet8", peers=False, **options):
    """Train a student with each method; return its losses and metrics, and whether it is the same in all processes."""
    students = [
        Student(network, name, seed, f"{seed}-{i}", name if peers else "")
        for i, name in enumerate(names)
        for seed in range(1 + peers)
    ]
    callback, primary = Losses(), tasks.create(task).primary
    given = {"recipe": RECIPE, "precision": "fp32", "progress": False, "sync_batchnorm": True, "device": "cpu"}
    given |= {"task": tasks.create(task)} | options
    found = training.distill(students, splits, teacher=teacher, callbacks=[callback], **given)
    results = {}
    for student, history in zip(students, found.values(), strict=True):
        weights = history.network.state_dict()
        results[f"{student.method} {student.seed}"] = callback.found[student.name] | {
            "train": history.epochs[-1]["train_accuracy"],
            "test": history.summary[primary],
            "weights": sum(one.double().abs().sum().item() for one in weights.values()),
            "different": len(set(gather_objects(runtime.fingerprint(weights)))),
        }
    return results


def classification(weights):
    splits = data.load("digits", labels=90)
    splits = splits._replace(test=splits.test.few(50))  # a share of it has 12 or 13 images in each of four processes
    teacher = training.pretrain("resnet8", splits, weights=weights, device="cpu")
    made = {name: methods.create(name) for name in registered.trained()}
    exchange = [name for name, method in made.items() if "peers" in method.needs]
    alone = [name for name in made if name not in exchange]
    alone.append("ctkd(of='ckd')")  # as separable as the method that it wraps
    made[alone[-1]] = methods.create(alone[-1])
    separable = [name for name in alone if made[name].separable]
    return (
        trained(separable, splits, teacher=teacher)
        | trained([name for name in alone if name not in separable], splits, teacher=teacher)
        | trained(exchange, splits, peers=True)
    )


def dense():
    found = {}
    for task, names in DENSE.items():
        splits = scenes.small(task)
        recipe, network = Recipe(**vars(RECIPE) | {"batch_size": 8}), scenes.TASKS[task][1]
        with runtime.seeded():  # an untrained teacher is the same in any number of processes
            teacher = models.create(network, **splits.train.spec)
        tasks.create(task).metrics(teacher, splits.test.subset(torch.arange(1)))  # all but one process have no image
        students = trained(names, splits, teacher=teacher, task=task, network=network, recipe=recipe)
        found |= {f"{task} {name}": result for name, result in students.items()}
    return found


def streamed(folder):
    splits = data.load(f"folder:{folder}", stream=True, crop="resized", views=2, image_size=16, workers=1)
    with runtime.seeded():
        teacher = models.create("resnet8", **splits.train.spec)
    return trained(["ckd", "mlkd"], splits, teacher=teacher, recipe=Recipe(**vars(RECIPE) | {"batch_size": 8}))


def main(case, out, *given):
    torch.set_num_threads(1)
    found = {"classification": classification, "dense": dense, "streamed": streamed}[case](*given)
    if runtime.rank() == 0:
        runtime.write_json(out, found)


if __name__ == "__main__":
    with runtime.processes("cpu"):
        main(*sys.argv[1:])

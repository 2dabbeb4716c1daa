"""Training on streamed images: the same weights as in memory, exact resume, processes that end, what is recorded."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import scenes
import torch
from streams import write_folder

from ickd_lib import __main__ as cli
from ickd_lib import data, methods, models, runtime, tasks, training
from ickd_lib.data import Loader, Sampler, loader
from ickd_lib.data.sequences import Decoded
from ickd_lib.runtime import InputError, threads
from ickd_lib.training import Recipe, Student, distillation, optimizers, stepper

pytestmark = pytest.mark.usefixtures("untouched_generator")
RECIPE = Recipe(epochs=2, batch_size=7, lr=0.02, schedule="cosine")
SECOND_VIEW = next(name for name in methods.names() if "strong" in methods.create(name).needs)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ICKD_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(runtime.errors, "_noticed", set())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("loader") / "data", train=7)


@pytest.fixture(scope="module")
def expert(folder):
    splits = data.load(f"folder:{folder}")
    return distill([Student("resnet8", "ce", 7, "t")], splits, recipe=RECIPE)["t"].network


def distill(students, splits, teacher=None, **options):
    given = {"recipe": RECIPE, "device": "cpu", "precision": "fp32", "progress": False} | options
    return training.distill(students, splits, teacher=teacher, **given)


def weights(history):
    return [record["weights"] for record in history.epochs]


@pytest.mark.parametrize(
    "method, augment",
    [("ickd(positives=2, negatives=5)", "crop"), (SECOND_VIEW, "crop"), ("cskd", "crop"), ("cskd", "mixup")],
)
def test_streamed_images_train_the_same_weights(folder, expert, method, augment):
    found = []
    for options in ({}, {"stream": True, "workers": 2}):
        splits = data.load(f"folder:{folder}", augment=augment, **options)
        (history,) = distill([Student("resnet8", method)], splits, expert).values()
        found.append(weights(history))
        assert ("waited_seconds" in history.epochs[0]) is ("waited_share" in history.summary) is bool(options)
    assert found[0] == found[1]
    assert not multiprocessing.active_children(), "the worker processes end with the training"


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("augment", ["crop", "randaugment+cutmix"])
def test_a_streamed_training_stopped_at_any_step_goes_on_exactly(folder, tmp_path, monkeypatch, count, augment):
    given = {"stream": True, "crop": "resized", "image_size": 16, "views": 0, "workers": 1}
    splits = data.load(f"folder:{folder}", augment=augment, **given)
    students = [Student("resnet8", "ce", 0, "a")]
    whole = distill(students, splits)["a"]
    taken, step = [], optimizers.Optimizer.step

    def counted(self, *args):
        if len(taken) == count:
            raise Interrupted
        taken.append(1)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(optimizers.Optimizer, "step", counted)
        with pytest.raises(Interrupted):
            distill(students, splits, runs=tmp_path, checkpoint_seconds=0)
    assert weights(distill(students, splits, runs=tmp_path)["a"]) == weights(whole)


def test_the_number_of_processes_and_the_first_step_change_nothing(folder):
    splits = data.load(f"folder:{folder}", stream=True, crop="resized", image_size=16)
    found = []
    for workers in (0, 1, 2):
        sampler = Sampler(replace(splits.train, workers=workers))
        for first in (0, 2):
            batches = list(sampler.batches(5, data_seed=1, epoch=3, first=first))
            found.append([batch.images for batch in batches[2 - first :]])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_loader_begins_a_new_epoch_before_the_last_one_was_finished(folder):
    images = data.load(f"folder:{folder}", stream=True, workers=1).train
    loader = Loader(images)
    order, view = Sampler(images).plan(data_seed=0, epoch=0)
    for first in (0, 3, 1):
        planned = [(i, order[i : i + 4], view[i : i + 4]) for i in range(first, 20)]
        steps = loader.steps(planned, data_seed=0, epoch=0)
        for i in range(first, first + 2):
            found = next(steps)
            assert found.step == i and torch.equal(found.batch.index, images.index[order[i : i + 4]])
            assert torch.equal(found.batch.images, images.batch(order[i : i + 4], view[i : i + 4]).images)
    assert loader.waited > 0
    loader.close()


def test_a_worker_that_is_killed_is_one_line(folder):
    loader = Loader(data.load(f"folder:{folder}", stream=True, workers=1).train)
    order, view = torch.arange(16), torch.zeros(16, dtype=torch.long)
    steps = loader.steps([(i, order, view) for i in range(50)], data_seed=0, epoch=0)
    next(steps)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(InputError, match=r"process that decodes images ended unexpectedly \(") as error:
        with data.loader.watched():
            list(steps)
    assert "\n" not in str(error.value) and "fewer workers" in str(error.value)


def test_too_little_shared_memory_is_one_line(folder):
    """The worker's error would otherwise come in a thread, and the training would wait for ever."""
    images = data.load(f"folder:{folder}", stream=True, workers=1).train
    loader, soft = Loader(images), resource.getrlimit(resource.RLIMIT_FSIZE)
    every = torch.arange(len(images))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, soft[1]))
    try:
        with pytest.raises(InputError, match=r"cannot pass them on \(.*\); provide more shared memory"):
            signal.alarm(60)
            list(loader.made([[(every, None)]]))
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
        loader.close()


def test_a_worker_that_is_killed_ends_the_command_with_one_line(folder, tmp_path, monkeypatch, capsys):
    """The run goes on from its last checkpoint when the same command is given again."""
    take = stepper.Stepper.take

    def killing(self, groups, step):
        take(self, groups, step)
        if groups[0].states[0].position == (1, 2):
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

    line = f"train --dataset folder:{folder} --stream --workers 1 --method ce --epochs 2 --batch-size 4 --name a"
    line += f" --checkpoint-seconds 0 --device cpu --precision fp32 --runs {tmp_path}"
    with monkeypatch.context() as patch:
        patch.setattr(stepper.Stepper, "take", killing)
        assert cli.main(line.split()) == 2
    printed = capsys.readouterr().err
    assert "error: a process that decodes images ended unexpectedly" in printed.splitlines()[-1]
    assert "Traceback" not in printed and not (tmp_path / "a/summary.json").exists()
    assert cli.main(line.split()) == 0
    assert json.loads((tmp_path / "a/summary.json").read_text())["epochs"] == 2


def test_a_job_that_is_preempted_writes_its_checkpoint(folder, tmp_path, monkeypatch, capsys):
    """Slurm sends SIGTERM to all processes of a job, and torchrun sends it once more."""
    take = stepper.Stepper.take

    def preempting(self, groups, step):
        take(self, groups, step)
        if groups[0].states[0].position == (0, 3):
            for process in [*(child.pid for child in multiprocessing.active_children()), os.getpid(), os.getpid()]:
                os.kill(process, signal.SIGTERM)

    line = f"train --dataset folder:{folder} --stream --workers 1 --method ce --epochs 2 --batch-size 4 --name a"
    line += f" --checkpoint-seconds 1000 --device cpu --precision fp32 --runs {tmp_path}"
    with monkeypatch.context() as patch:
        patch.setattr(stepper.Stepper, "take", preempting)
        assert cli.main(line.split()) == 130
    assert "stopped; the same call or command continues from here" in capsys.readouterr().err
    state = torch.load(tmp_path / "a/checkpoint.pt", weights_only=True)["a"]
    assert (state["epoch"], state["step"]) == (0, 3) and not multiprocessing.active_children()


def test_the_command_line_has_the_options(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = f"train --dataset folder:{folder} --stream --crop resized --image-size 16 --views 2 --workers 1"
    options = "--method ce --epochs 1 --batch-size 8 --device cpu --precision fp32 --corrupt skip --name a"
    assert cli.main(f"{line} {options}".split()) == 0
    printed = capsys.readouterr()
    assert 0 <= json.loads(printed.out.split("run folder")[0])["waited_share"] <= 1
    assert "waits for data=" in printed.err
    assert cli.main(f"{line} {options} --views -2".split()) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: argument --views: expected")
    assert cli.main("train --views 3 --method ce".split()) == 2
    assert "views=3 is not an option of digits" in capsys.readouterr().err


def test_steps_with_streamed_images_are_not_captured(folder, capsys):
    train = data.load(f"folder:{folder}", stream=True).train
    assert distillation._capture(True, [], [], train) is None
    assert "steps are not captured, because its images are streamed" in capsys.readouterr().err


def test_replaced_images_are_counted_in_the_records(folder, tmp_path):
    given = {"stream": True, "crop": "resized", "image_size": 16, "corrupt": "skip", "workers": 1}
    copy = write_folder(tmp_path / "data", train=4)
    splits = data.load(f"folder:{copy}", **given)
    path = copy / "train/class1/2.jpg"
    path.write_bytes(path.read_bytes()[:300])
    (history,) = distill([Student("resnet8", "ce")], splits).values()
    assert [record["replaced_images"] for record in history.epochs] == [1, 1]


def test_workers_share_the_cores_of_several_training_processes(folder, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    images = data.load(f"folder:{folder}", stream=True).train
    assert Loader(images).workers == 15
    for processes, workers in ((2, 7), (8, 1), (16, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert Loader(images).workers == workers
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(threads, "_sharing", [2])  # as in a job of `compare --jobs 2`
    assert Loader(images).workers == 7


# ------------------------------------------------------------------------------------ images with masks or boxes


def when_needed(images, workers):
    """Return scenes whose pixels are decoded when they are needed."""

    def made(tensors):
        return None if tensors is None else Decoded(tensors.__getitem__, tuple(range(len(tensors))))

    if not len(images):
        return images
    return replace(images, images=made(images.images), masks=made(images.masks), workers=workers)


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_dense_images_are_prefetched_and_train_the_same_weights(task):
    splits = scenes.small(task)
    students, found = [Student(scenes.TASKS[task][1], "ce", 0, "a")], []
    for workers in (0, 2):
        lazy = data.Splits(*(when_needed(images, workers) for images in splits))
        history = scenes.distill(task, students, lazy)["a"]
        kept = scenes.distill(task, students, splits)["a"] if not workers else None
        found.append((weights(history), {k: history.summary[k] for k in (tasks.create(task).primary, "epochs")}))
        if kept:
            assert weights(kept) == weights(history)
    assert found[0] == found[1]


def test_strong_views_of_dense_images_are_prefetched():
    images = when_needed(scenes.small("segmentation").train, 1)
    sampler, keys = Sampler(images), {"data_seed": 0, "epoch": 1}
    order, view = sampler.plan(**keys)
    planned = [(i, order[4 * i : 4 * i + 4], view[4 * i : 4 * i + 4]) for i in range(3)]
    for one in Loader(images).steps(planned, **keys, strong=True):
        rows, numbers = planned[one.step][1:]
        plain, strong = images.batch(rows, numbers), sampler.strong_view(rows, **keys, step=one.step)
        assert torch.equal(one.batch.images, plain.images) and torch.equal(one.batch.masks, plain.masks)
        assert torch.equal(one.strong.images, strong.images) and torch.equal(one.strong.masks, strong.masks)


def test_an_error_of_a_dense_image_is_one_line():
    images = scenes.small("detection").train
    sizes = images.sizes.clone()
    sizes[3] += 1
    lazy = replace(when_needed(images, 1), sizes=sizes)
    with pytest.raises(InputError, match=r"^3 has 96×96 pixels, but its annotation is of 97×97"):
        list(Sampler(lazy).batches(4, data_seed=0, epoch=0))


def test_predictions_leave_torchs_generator_where_it_was(folder):
    before = torch.get_rng_state()
    images = data.load(f"folder:{folder}", stream=True).train
    with runtime.seeded(0):
        network = models.create("resnet8", **images.spec)
    assert len(models.predict(network, images, batch_size=4).logits) == len(images)
    assert torch.equal(before, torch.get_rng_state())


def test_a_process_that_decodes_prints_no_connection_error_after_the_training_was_killed(monkeypatch):
    """Python's multiprocessing would print a traceback from a thread of it."""
    child = os.fork()
    if not child:
        loader._apart(0)
        os._exit(sys.excepthook is not loader._unless_abandoned)
    assert os.waitpid(child, 0)[1] == 0
    printed = []
    monkeypatch.setattr(sys, "__excepthook__", lambda *error: printed.append(error[0]))
    for error in (ConnectionResetError(), EOFError(), ValueError()):
        loader._unless_abandoned(type(error), error, None)
    assert printed == [ValueError]


def test_a_program_that_keeps_an_unfinished_iterator_ends_at_once(folder):
    """Otherwise its processes end by their alarm, after half a minute, and a traceback is printed."""
    code = (
        "from ickd_lib import data\n"
        f"images = data.load('folder:{folder}', stream=True, workers=2).train\n"
        "batches = data.Sampler(images).batches(4, data_seed=0, epoch=0)\n"
        "print(len(next(batches).labels))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stdout) == (0, "4\n") and "Traceback" not in ended.stderr

"""The teacher cache: it returns the teacher's outputs, computes each once, and later trainings read what it kept."""

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import registered
import torch

from ickd_lib import methods, models, runtime, training
from ickd_lib.training import Recipe, Student, TeacherCache, stepper
from ickd_lib.training.loop import AHEAD

HALF = 1e-3  # the rounding of half precision, relative
RECIPE = Recipe(epochs=3, batch_size=16, lr=0.02, schedule="cosine")


class Counting(torch.nn.Module):
    """A network that counts the images that it is given."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, 0

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.network, name)

    def forward(self, images, **given):
        self.seen += len(images)
        return self.network(images, **given)


@pytest.fixture
def frozen(teacher):
    return Counting(copy.deepcopy(teacher).eval().requires_grad_(False))


def views(images, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(images), (count,), generator=generator)
    return rows, torch.randint(images.views, (count,), generator=generator)


def check(cache, teacher, images, rows, view):
    """It returns the teacher's outputs for these views, up to the rounding."""
    expected = teacher.network(images.augmented(rows, view))
    logits, features = cache.take(images.index[rows], view)
    assert logits.dtype == torch.float32 and logits.shape == expected.logits.shape
    assert torch.allclose(logits, expected.logits, rtol=HALF, atol=HALF)
    if cache.width > cache.classes:
        assert torch.allclose(features, expected.features, rtol=HALF, atol=HALF)
    else:
        assert features.shape == (len(rows), 0)


@pytest.mark.parametrize("features", [False, True])
def test_it_gives_what_the_teacher_says_and_asks_once(digits, frozen, features):
    images = digits.train
    cache = TeacherCache(frozen, images, features=features)
    rows, view = views(images, 300)
    different = len((rows * images.views + view).unique())
    assert cache.fill(rows, view) == frozen.seen == cache.known == different < 300
    check(cache, frozen, images, rows, view)
    assert cache.fill(rows[:50], view[:50]) == 0 and frozen.seen == different
    more = views(images, 300, seed=1)
    cache.fill(*more)
    check(cache, frozen, images, *more)
    check(cache, frozen, images, rows, view)


@pytest.mark.parametrize("room", [0, 40, 120])
def test_beyond_its_room_it_computes_each_time_and_is_still_right(digits, frozen, room):
    images = digits.train
    cache = TeacherCache(frozen, images, gigabytes=room * 20 / 1e9)
    assert cache.capacity == room
    for seed in (0, 1, 0):
        rows, view = views(images, 100, seed)
        cache.fill(rows, view)
        check(cache, frozen, images, rows, view)
    assert cache.known == room


def test_the_next_one_reads_what_is_kept(digits, frozen, tmp_path):
    images, (rows, view) = digits.train, views(digits.train, 200)
    first = TeacherCache(frozen, images, folder=tmp_path)
    first.fill(rows, view)
    kept, asked = first.take(images.index[rows], view)[0], frozen.seen
    second = TeacherCache(frozen, images, folder=tmp_path)  # while the first may still write
    assert second.fill(rows, view) == 0 and frozen.seen == asked
    assert torch.equal(second.take(images.index[rows], view)[0], kept)
    more = views(images, 200, seed=1)
    second.fill(*more)  # is kept in memory alone
    check(second, frozen, images, *more)
    first.close()
    assert TeacherCache(frozen, images, folder=tmp_path).known == first.known


def test_other_data_another_teacher_or_features_are_another_cache(digits, frozen, tmp_path):
    with runtime.seeded(3):
        other = Counting(models.create("resnet8", **digits.train.spec).eval())
    rows, view = views(digits.train, 50)
    TeacherCache(frozen, digits.train, folder=tmp_path).fill(rows, view)
    for teacher, images, features in (
        (other, digits.train, False),
        (frozen, digits.train.few(60), False),
        (frozen, digits.train, True),
    ):
        assert TeacherCache(teacher, images, features=features, folder=tmp_path).known == 0
    assert len(list(tmp_path.iterdir())) == 4


def test_what_a_kill_cuts_short_is_cut_off(digits, frozen, tmp_path):
    images, (rows, view) = digits.train, views(digits.train, 200)
    cache = TeacherCache(frozen, images, folder=tmp_path)
    cache.fill(rows, view)
    cache.close()
    (folder,) = tmp_path.iterdir()
    with open(folder / "records.f16", "ab") as file:
        file.write(b"half a record")
    (folder / "keys.i64").write_bytes((folder / "keys.i64").read_bytes()[:-3])
    again = TeacherCache(frozen, images, folder=tmp_path)
    assert again.known == cache.known - 1
    again.fill(rows, view)
    more = views(images, 100, seed=1)
    again.fill(*more)
    again.close()
    last = TeacherCache(frozen, images, folder=tmp_path)
    check(last, frozen, images, rows, view)
    check(last, frozen, images, *more)
    assert last.known == again.known


def test_a_full_disk_costs_a_warning(digits, frozen, tmp_path):
    class Full:
        name = "full"

        def write(self, _):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    cache = TeacherCache(frozen, digits.train, folder=tmp_path)
    cache.close()
    cache._log._files = [Full(), Full()]
    rows, view = views(digits.train, 50)
    with pytest.warns(UserWarning, match="no longer written to .*No space left"):
        cache.fill(rows, view)
    check(cache, frozen, digits.train, rows, view)
    cache.fill(*views(digits.train, 50, seed=1))  # without another word


def train(names, digits, teacher, **given):
    few = digits._replace(train=digits.train.few(100), test=digits.test.subset(torch.arange(40)))
    students = [Student("resnet8", name, 1) for name in names]
    given = {"recipe": RECIPE, "device": "cpu", "progress": False, "evaluate_every": 3, "teacher": teacher, **given}
    return training.distill(students, few, **given)


def losses(history):
    return torch.tensor([[*record["terms"].values()] for record in history.epochs])


def test_no_method_sees_a_difference_beyond_the_rounding(digits, teacher, tmp_path):
    needs = {name: methods.create(name).needs for name in registered.trained()}
    names = [n for n, need in needs.items() if "teacher" in need and not need & {"maps", "strong"}]
    names = [n for n in names if n != "lwf"] + ["ickd(query='view')"]
    plain = train(names, digits, teacher, recipe=Recipe(epochs=1, batch_size=30, lr=0.02, schedule="cosine"))
    with_cache = train(
        names,
        digits,
        teacher,
        teacher_cache=tmp_path,
        recipe=Recipe(epochs=1, batch_size=30, lr=0.02, schedule="cosine"),
    )
    for ours, theirs in zip(with_cache.values(), plain.values(), strict=True):
        assert torch.allclose(losses(ours), losses(theirs), rtol=2e-2, atol=2e-3), ours.method


def test_a_second_training_asks_the_teacher_nothing(digits, teacher, tmp_path, monkeypatch):
    asked = []
    fill = TeacherCache.fill
    monkeypatch.setattr(TeacherCache, "fill", lambda self, *given: asked.append(fill(self, *given)) or asked[-1])
    first = train(["kd"], digits, teacher, teacher_cache=tmp_path)
    steps = -(-100 // RECIPE.batch_size)
    assert len(asked) == RECIPE.epochs * -(-steps // AHEAD["cpu"]) and 0 < sum(asked) <= 100 * RECIPE.epochs
    asked.clear()
    second = train(["kd", "dkd"], digits, teacher, teacher_cache=tmp_path)
    assert set(asked) == {0}
    (ours,), (theirs, _) = first.values(), second.values()
    assert all(torch.equal(a, b) for a, b in zip(ours.network.parameters(), theirs.network.parameters(), strict=True))


def test_a_resumed_training_equals_one_that_never_stopped(digits, teacher, tmp_path, monkeypatch):
    whole = train(["kd"], digits, teacher, teacher_cache=tmp_path / "a", runs=tmp_path / "whole")
    step, count = stepper.train_step, []

    def stopping(*given):
        if len(count) == 6:
            raise KeyboardInterrupt
        count.append(1)
        step(*given)

    with monkeypatch.context() as patched:
        patched.setattr(stepper, "train_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(["kd"], digits, teacher, teacher_cache=tmp_path / "b", runs=tmp_path / "cut", checkpoint_seconds=0)
    resumed = train(["kd"], digits, teacher, teacher_cache=tmp_path / "b", runs=tmp_path / "cut")
    (a,), (b,) = whole.values(), resumed.values()
    assert all(torch.equal(x, y) for x, y in zip(a.network.parameters(), b.network.parameters(), strict=True))
    config = runtime.Run(a.folder).config
    assert config["numerics"]["teacher_cache"] is True


def test_a_run_that_began_without_goes_on_without(digits, teacher, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stepper, "train_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(["kd"], digits, teacher, runs=tmp_path / "runs")
    monkeypatch.setattr(TeacherCache, "__init__", lambda *_, **__: pytest.fail("a cache was made"))
    train(["kd"], digits, teacher, runs=tmp_path / "runs", teacher_cache=tmp_path / "cache")


def test_maps_and_strong_augmentation_pass_through_the_teacher_and_are_recorded_so(
    digits, teacher, tmp_path, monkeypatch
):
    monkeypatch.setattr(TeacherCache, "__init__", lambda *_, **__: pytest.fail("a cache was made"))
    mixed = digits._replace(train=replace(digits.train, augment="mixup"))
    for names, splits in ((["at", "kd"], digits), (["kd"], mixed), (["ce"], digits)):
        for history in train(names, splits, teacher, teacher_cache=tmp_path / "cache", runs=tmp_path / "runs").values():
            numerics = runtime.Run(history.folder).config["numerics"]
            assert numerics["teacher_cache"] is False  # so that kd, resumed alone, has none either


def test_a_method_that_uses_the_maps_of_the_student_alone_keeps_the_cache(digits, teacher, tmp_path):
    unnamed = copy.deepcopy(teacher)
    unnamed.stages = ()
    found = train(["uskd", "kd"], digits, unnamed, teacher_cache=tmp_path / "cache", runs=tmp_path / "runs")
    for history in found.values():
        assert runtime.Run(history.folder).config["numerics"]["teacher_cache"] is True


def test_two_processes_do_not_mix_their_records(digits, frozen, tmp_path):
    """One writes; the other, which came second, reads what was there and keeps its own to itself."""
    cache = TeacherCache(frozen, digits.train, folder=tmp_path)
    cache.fill(*views(digits.train, 50))
    (folder,) = tmp_path.iterdir()
    program = f"""
from pathlib import Path
import torch
from ickd_lib.training.teacher_cache import _Log
log = _Log(Path({str(folder)!r}), 10)
keys, records = log.read(10**6)
log.append(torch.arange(3), torch.zeros(3, 10).half())
print(len(keys), len(log._files))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(cache.known), "0"]
    assert (folder / "keys.i64").stat().st_size == 8 * cache.known

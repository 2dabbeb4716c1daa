"""The teacher cache: it returns the teacher's outputs, computes each once, and later trainings read what it kept."""

import copy
import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import registered
import torch
from streams import write_folder

from ickd_lib import data, methods, models, runtime, training
from ickd_lib.data import Sampler
from ickd_lib.runtime import InputError
from ickd_lib.training import Recipe, StreamedTeacherCache, Student, TeacherCache, stepper, streamed_cache
from ickd_lib.training.stored_outputs import SPREAD, StoredOutputs
from ickd_lib.training.teacher_cache import AHEAD
from ickd_lib.training.teacher_choice import TeacherNeeds

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
        self.seen += 1 + sum(not torch.equal(*pair) for pair in itertools.pairwise(images))  # without repeated ones
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


def test_outputs_are_those_of_the_precision_in_half_precision(digits, teacher, tmp_path):
    images, (rows, view) = digits.train, views(digits.train, 40)
    frozen = models.frozen(teacher, "cpu")
    found = {}
    for precision in ("fp32", "bf16"):
        cache = TeacherCache(frozen, images, precision=precision, folder=tmp_path)
        assert cache.fill(rows, view) > 0, "the outputs of another precision are in another folder"
        cache.close()
        with torch.no_grad(), runtime.autocast(torch.device("cpu"), precision):
            expected = frozen(images.augmented(rows, view)).logits
        found[precision] = cache.take(images.index[rows], view)[0]
        assert (found[precision] - expected.float()).abs().max() < 1e-3 * expected.abs().max()
        assert torch.equal(found[precision], found[precision].half().float())
    assert (found["fp32"] - found["bf16"]).abs().max() > 2e-3 * found["fp32"].abs().max()


def test_a_training_gives_its_precision_to_the_cache(digits, teacher, monkeypatch, tmp_path):
    given, create = [], TeacherCache.__init__

    def spied(self, *parts, **options):
        given.append(options["precision"])
        create(self, *parts, **options)

    monkeypatch.setattr(TeacherCache, "__init__", spied)
    for precision in ("fp32", "bf16"):
        options = {"device": "cpu", "precision": precision, "progress": False, "teacher_cache": tmp_path}
        training.distill([Student("resnet8", "kd")], digits, teacher=teacher, recipe=Recipe(epochs=1), **options)
    assert given == ["fp32", "bf16"]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_outputs_do_not_depend_on_the_other_images_of_a_pass(digits, teacher, size):
    """After a stop in an epoch, the cache is filled in other groups."""
    rows, view = views(digits.train, 300)
    at_once, apart = (TeacherCache(models.frozen(teacher, "cpu"), digits.train, features=True) for _ in range(2))
    at_once.fill(rows, view)
    for some in torch.arange(len(rows)).split(size):
        apart.fill(rows[some], view[some])
    index = digits.train.index[rows]
    for first, second in zip(at_once.take(index, view), apart.take(index, view), strict=True):
        assert torch.equal(first, second)


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
    assert TeacherCache(frozen, digits.train, precision="bf16", folder=tmp_path).known == 0


def test_what_a_kill_cuts_short_is_cut_off(digits, frozen, tmp_path):
    images, (rows, view) = digits.train, views(digits.train, 200)
    cache = TeacherCache(frozen, images, folder=tmp_path)
    first = cache.fill(rows[:50], view[:50])
    cache.fill(rows, view)
    cache.close()
    (folder,) = tmp_path.iterdir()
    with open(folder / "records.f16", "ab") as file:
        file.write(b"half a record")
    (folder / "keys.i64").write_bytes((folder / "keys.i64").read_bytes()[:-3])
    again = TeacherCache(frozen, images, folder=tmp_path)
    assert again.known == first > 0
    again.fill(rows, view)
    more = views(images, 100, seed=1)
    again.fill(*more)
    again.close()
    last = TeacherCache(frozen, images, folder=tmp_path)
    check(last, frozen, images, rows, view)
    check(last, frozen, images, *more)
    assert last.known == again.known


@pytest.mark.parametrize("name", ["records.f16", "keys.i64", "checksums.u32"])
def test_what_follows_a_wrong_byte_is_computed_again(name, digits, frozen, tmp_path, capsys):
    images, (rows, view) = digits.train, views(digits.train, 200)
    cache = TeacherCache(frozen, images, folder=tmp_path)
    first = cache.fill(rows[:50], view[:50])
    cache.fill(rows, view)
    cache.close()
    (folder,) = tmp_path.iterdir()
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    again = TeacherCache(frozen, images, folder=tmp_path)
    assert again.known == first and "is damaged from record" in capsys.readouterr().err
    again.fill(rows, view)
    check(again, frozen, images, rows, view)
    again.close()
    assert TeacherCache(frozen, images, folder=tmp_path).known == cache.known


def test_a_cache_of_an_earlier_version_is_read_and_has_checksums_from_then_on(digits, frozen, tmp_path):
    cache = TeacherCache(frozen, digits.train, folder=tmp_path)
    cache.fill(*views(digits.train, 200))
    cache.close()
    (folder,) = tmp_path.iterdir()
    (folder / "checksums.u32").unlink()
    again = TeacherCache(frozen, digits.train, folder=tmp_path)
    assert again.known == cache.known and (folder / "checksums.u32").stat().st_size == 8
    again.close()


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


def test_a_run_that_began_without_goes_on_without(digits, teacher, tmp_path, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stepper, "train_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(["kd"], digits, teacher, runs=tmp_path / "runs")
    monkeypatch.setattr(TeacherCache, "__init__", lambda *_, **__: pytest.fail("a cache was made"))
    train(["kd"], digits, teacher, runs=tmp_path / "runs", teacher_cache=tmp_path / "cache")
    assert "an unfinished run was started without it" in capsys.readouterr().err


@pytest.mark.parametrize("other", ["mlkd", "fitnet"])
def test_a_run_that_began_with_a_cache_is_not_joined_by_one_that_cannot_use_it(
    other, digits, teacher, tmp_path, monkeypatch
):
    def stopped(*_):
        raise KeyboardInterrupt

    options = {"runs": tmp_path / "runs", "teacher_cache": tmp_path / "cache"}
    with monkeypatch.context() as patched:
        patched.setattr(stepper, "train_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(["kd"], digits, teacher, **options)
    with pytest.raises(InputError, match="started with a teacher cache, which another student cannot use"):
        train(["kd", other], digits, teacher, **options)
    train(["ce", "kd"], digits, teacher, **options)


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


# ---------------------------------------------------------------------------------------------- the largest logits


def test_all_logits_are_stored_as_before():
    logits, features = torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(0))
    stored = StoredOutputs(10, 10)
    assert stored.width == 20 and torch.equal(stored.pack(logits, features), torch.cat([logits, features], 1).half())
    assert all(map(torch.equal, stored.unpack(stored.pack(logits, features)), (logits.half(), features.half())))
    assert torch.equal(StoredOutputs(10, 0).pack(logits, features), logits.half())


@pytest.mark.parametrize("top", [1, 4, 11])
def test_of_the_other_logits_the_total_probability_is_stored(top):
    generator = torch.Generator().manual_seed(0)
    logits, features = 3 * torch.randn(50, 12, generator=generator), torch.randn(50, 6, generator=generator)
    stored = StoredOutputs(12, 6, top)
    assert stored.width == 2 * top + 1 + 6
    found, kept = stored.unpack(stored.pack(logits, features))
    assert torch.allclose(kept, features, rtol=HALF, atol=HALF) and found.shape == (50, 12)
    for ours, theirs in zip(found, logits, strict=True):
        best, others = theirs.sort(descending=True).indices.split([top, 12 - top])
        assert torch.allclose(ours[best], theirs[best], rtol=HALF, atol=HALF)
        assert len(ours[others].unique()) == 1 and ours[others].max() <= ours[best].min()
        totals = [(one[others] / SPREAD).exp().sum() for one in (ours, theirs)]
        assert torch.allclose(*totals, rtol=4 * HALF)


@pytest.mark.parametrize("top", [-1, 10, 40000])
def test_a_wrong_number_of_logits_is_one_line(top):
    with pytest.raises(InputError, match=rf"teacher_cache_top={top} is not a number of logits from 1 to 9"):
        StoredOutputs(10, 0, top)


def test_the_largest_logits_are_another_cache(digits, frozen, tmp_path):
    images, (rows, view) = digits.train, views(digits.train, 100)
    for top in (0, 3, 0, 3):
        cache = TeacherCache(frozen, images, folder=tmp_path, top=top)
        cache.fill(rows, view)
        logits, _ = cache.take(images.index[rows], view)
        expected = frozen.network(images.augmented(rows, view)).logits
        best = expected.argmax(1)
        assert torch.equal(logits.argmax(1), best)
        assert torch.allclose(logits.gather(1, best[:, None]), expected.gather(1, best[:, None]), rtol=HALF, atol=HALF)
        cache.close()
    assert len(list(tmp_path.iterdir())) == 2


# ------------------------------------------------------------------------------------------------- streamed images


@pytest.fixture
def streamed(tmp_path, monkeypatch):
    """A function that loads a small folder with numbered random resized crops."""
    monkeypatch.setenv("ICKD_CACHE", str(tmp_path / "scans"))
    monkeypatch.setattr(runtime.errors, "_noticed", set())
    folder = write_folder(tmp_path / "data", train=7)
    given = {"stream": True, "crop": "resized", "image_size": 16, "workers": 1}
    return lambda views=2: data.load(f"folder:{folder}", views=views, **given)


@pytest.fixture
def own(streamed):
    """A teacher with the classes of the folder."""
    with runtime.seeded(5):
        return Counting(models.create("resnet8", **streamed().train.spec).eval().requires_grad_(False))


def outputs(cache, images, epoch=0):
    """Go through an epoch, and return the largest difference to the teacher's outputs."""
    largest = 0.0
    for batch in Sampler(images).batches(8, data_seed=0, epoch=epoch):
        samples, expected = cache(batch), cache.teacher.network(batch.images)
        largest = max(largest, float((samples.logits - expected.logits).abs().max()))
        if samples.features.shape[1]:
            largest = max(largest, float((samples.features - expected.features).abs().max()))
        assert torch.equal(samples.key, batch.index) and torch.equal(samples.labels, batch.labels)
    return largest


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("features", [False, True])
def test_of_streamed_images_each_view_is_evaluated_once(streamed, own, tmp_path, kept, features):
    images = streamed().train
    part = images.subset(torch.tensor([20, 3, 5, 11, 2, 9, 17, 8, 1, 12]))
    cache = StreamedTeacherCache(own, part, folder=tmp_path / "cache" if kept else None, features=features)
    for epoch in range(6):
        assert outputs(cache, part, epoch) < 5e-3
    assert own.seen == cache.known and 10 < cache.known <= 20
    cache.close()
    if kept:
        again = StreamedTeacherCache(own, part, folder=tmp_path / "cache", features=features)
        assert again.known == own.seen and outputs(again, part) < 5e-3 and own.seen == again.known
        other = StreamedTeacherCache(own, streamed(3).train.subset(torch.arange(5)), folder=tmp_path / "cache")
        assert other.known == 0 and len(list((tmp_path / "cache").iterdir())) == 2


def test_of_streamed_images_a_damaged_output_is_computed_again(streamed, own, tmp_path):
    images = streamed().train.subset(torch.arange(10))
    cache = StreamedTeacherCache(own, images, folder=tmp_path / "cache")
    outputs(cache, images)
    cache.close()
    seen, (path,) = own.seen, (tmp_path / "cache").iterdir()
    content = np.fromfile(path, np.uint16).reshape(-1, cache.records.width + 1)
    content[content[:, -1].nonzero()[0][0], 0] ^= 0x4000
    content.tofile(path)
    again = StreamedTeacherCache(own, images, folder=tmp_path / "cache")
    assert outputs(again, images) < 5e-3 and own.seen == seen + 1


def test_views_beyond_the_capacity_are_evaluated_each_time(streamed, own, tmp_path, capsys):
    images = streamed().train
    cache = StreamedTeacherCache(own, images, folder=tmp_path / "cache", gigabytes=20 * 2 * 4 / 1e9)
    assert cache.capacity == 20 and "room for 20 of 42 views" in capsys.readouterr().err
    for _ in range(2):
        assert outputs(cache, images) < 5e-3
    assert cache.known < 20 and own.seen == cache.known + 2 * (21 - cache.known)


def test_a_full_disk_or_a_folder_that_cannot_be_made_costs_a_warning(streamed, own, tmp_path, monkeypatch):
    images = streamed().train

    def full(*_):
        raise OSError(28, "No space left on device")

    cache = StreamedTeacherCache(own, images, folder=tmp_path / "cache")
    monkeypatch.setattr(streamed_cache.os, "pwrite", full)
    with pytest.warns(UserWarning, match=r"no longer written to .*No space left"):
        assert outputs(cache, images) < 5e-3
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="no longer written to"):
        cache = StreamedTeacherCache(own, images, folder=tmp_path / "file")
    assert outputs(cache, images) < 5e-3 and cache.known == 0


def distilled(splits, teacher, **given):
    options = {"recipe": Recipe(epochs=3, batch_size=8, lr=0.02, schedule="cosine"), "device": "cpu", "progress": False}
    (history,) = training.distill([Student("resnet8", "kd", 1)], splits, teacher=teacher, **options, **given).values()
    return history


def test_a_streamed_training_reads_the_cache_and_resumes_exactly(streamed, own, tmp_path, monkeypatch, capsys):
    splits, cache = streamed(), tmp_path / "cache"
    plain = distilled(splits, own.network)
    whole = distilled(splits, own.network, teacher_cache=cache / "a", runs=tmp_path / "whole")
    assert runtime.Run(whole.folder).config["numerics"]["teacher_cache"] is True
    assert torch.allclose(losses(whole), losses(plain), rtol=2e-2, atol=2e-3)
    with monkeypatch.context() as patched:  # a later training evaluates the teacher on no training image
        evaluated = []
        write = streamed_cache._Slots.write
        patched.setattr(streamed_cache._Slots, "write", lambda *given: evaluated.append(given) or write(*given))
        again = distilled(splits, own.network, teacher_cache=cache / "a")
    assert not evaluated and again.epochs[-1]["weights"] == whole.epochs[-1]["weights"]
    step, count = stepper.train_step, []

    def stopping(*given):
        if len(count) == 4:
            raise KeyboardInterrupt
        count.append(1)
        step(*given)

    with monkeypatch.context() as patched:
        patched.setattr(stepper, "train_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            distilled(splits, own.network, teacher_cache=cache / "b", runs=tmp_path / "cut", checkpoint_seconds=0)
    resumed = distilled(splits, own.network, teacher_cache=cache / "b", runs=tmp_path / "cut")
    assert resumed.epochs[-1]["weights"] == whole.epochs[-1]["weights"]


def test_the_largest_logits_of_a_streamed_training_are_recorded(streamed, own, tmp_path):
    history = distilled(streamed(), own.network, teacher_cache=tmp_path / "cache", teacher_cache_top=2, runs=tmp_path)
    assert runtime.Run(history.folder).config["numerics"]["teacher_cache_top"] == 2
    with pytest.raises(InputError, match="teacher_cache_top=3 is not a number of logits from 1 to 2"):
        distilled(streamed(), own.network, teacher_cache=tmp_path / "cache", teacher_cache_top=3)


@pytest.mark.parametrize(
    ("needs", "augment", "reason"),
    [
        ({"maps": True}, {}, "a method needs the teacher's feature maps"),
        ({"strong": True}, {}, "strongly augmented views"),
        ({}, {"augment": "mixup"}, "these are augmented by mixup"),
        ({}, {}, ""),
    ],
)
def test_a_note_states_why_a_cache_is_not_used(needs, augment, reason, digits, notes):
    found = TeacherNeeds(**{"outputs": True, "features": False, "maps": False, "strong": False} | needs)
    assert found.cacheable(replace(digits.train, **augment)) is (not reason)
    printed = notes()
    assert len(printed) == bool(reason) and all(reason in line for line in printed)


def test_views_that_each_epoch_draws_anew_have_no_cache(streamed, own, tmp_path, capsys):
    history = distilled(streamed(0), own.network, teacher_cache=tmp_path / "cache", runs=tmp_path / "runs")
    assert runtime.Run(history.folder).config["numerics"]["teacher_cache"] is False
    assert "the teacher cache is not used, because each epoch draws new views" in capsys.readouterr().err


@pytest.mark.parametrize("top", [0, 3])
def test_outputs_that_half_precision_cannot_store_are_refused(top):
    stored, features = StoredOutputs(10, 2, top), torch.zeros(2, 2)
    logits = torch.arange(20.0).view(2, 10)
    logits[1, 4] = 70_000
    with pytest.raises(InputError, match="reach 70,000, and a teacher cache stores numbers up to 65,504"):
        stored.pack(logits, features)
    logits[1, 4] = torch.inf  # the training names a teacher whose outputs are not finite
    assert stored.pack(logits, features).isinf().any()

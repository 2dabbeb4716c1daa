"""A task decides what a sample is: classification, and a second task with two samples an image that keeps it honest."""

from dataclasses import replace

import pytest
import registered
import torch

from ickd_lib import data, explore, losses, methods, models, runs, runtime, tasks, training
from ickd_lib.memory import MemoryBank, require_fit
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Classification, Column, Samples, Task
from ickd_lib.training import Recipe, Student

RECIPE = Recipe(epochs=2, lr=0.05, schedule="cosine", batch_size=25)


@tasks.register("halves")
class Halves(Task):
    """An image is two samples, its left and its right half beside black, with the keys 2 row and 2 row + 1."""

    primary = "half_accuracy"
    columns = (Column("halves, %", "half_accuracy"), Column("best, %", "best_half_accuracy"))

    def _both(self, images):
        middle = images.shape[3] // 2
        left, right = images.clone(), images.clone()
        left[..., middle:], right[..., :middle] = 0, 0
        return torch.cat([left, right])

    def samples(self, network, batch, *, like=None, maps=False, precision="fp32"):
        with runtime.autocast(batch.labels.device, precision):
            output = network(self._both(batch.images), maps=maps)
        key, labels = self.places(batch)
        image = torch.arange(len(batch.labels)).repeat(2)
        soft = None if batch.soft is None else batch.soft.repeat(2, 1)
        found = tuple(one.float() for one in output.maps)
        samples = Samples(output.logits.float(), output.features.float(), labels, key, image, found, soft)
        return samples, losses.cross_entropy(samples.logits, samples.targets) if network.training else None

    def places(self, batch):
        return torch.cat([2 * batch.index, 2 * batch.index + 1]), batch.labels.repeat(2)

    def keys(self, images):
        return torch.cat([2 * images.index, 2 * images.index + 1]), images.labels.repeat(2)

    def bank_samples(self, network, images, *, keys=None, precision="auto"):
        mode = network.training
        with torch.no_grad():
            output = network.eval()(self._both(images.pixels()))
        network.train(mode)
        key, labels = self.keys(images)
        chosen = slice(None)
        if keys is not None:
            chosen = (keys[:, None] == key).nonzero()[:, 1]
        every = torch.arange(len(images)).repeat(2)
        return Samples(*(x[chosen] for x in (output.logits, output.features, labels, key, every)))

    def metrics(self, network, images, *, teacher=None, precision="auto"):
        samples = self.bank_samples(network, images)
        found = {"half_accuracy": (samples.logits.argmax(1) == samples.labels).double().mean().item()}
        if teacher is not None:
            found["agreement"] = (samples.logits.argmax(1) == teacher.logits.argmax(1)).double().mean().item()
        return found

    def pictures(self, images, keys):
        rows = tasks.base.positions(images, keys // 2)
        return self._both(images.images[rows])[torch.arange(len(keys)) + len(keys) * (keys % 2)]


@pytest.fixture(scope="module")
def few():
    splits = data.load("digits", labels=60)
    return splits._replace(test=splits.test.few(40))


@pytest.fixture(scope="module")
def expert(few):
    (history,) = training.distill(
        [Student("resnet8", "ce", 7)], few, task=Halves(), recipe=RECIPE, device="cpu", progress=False
    ).values()
    return history.network


def distill(students, splits, teacher=None, **options):
    options = {"task": Halves(), "recipe": RECIPE, "device": "cpu", "progress": False} | options
    return training.distill(students, splits, teacher=teacher, **options)


@pytest.mark.parametrize("method", registered.trained())
def test_every_method_trains_on_two_samples_an_image(method, few, expert):
    students = training.peer_group("resnet8", method)
    for history in distill(students, few, expert).values():
        assert all(torch.isfinite(p).all() for p in history.network.parameters())
        summary = history.summary
        assert summary["task"] == "halves" and 0 <= summary["half_accuracy"] <= 1 and "accuracy" not in summary
        assert summary["best_half_accuracy"] == max(r["test_half_accuracy"] for r in history.epochs)
        assert all(0 <= r["train_accuracy"] <= 1 for r in history.epochs)


def test_methods_see_samples_and_their_keys(few, expert):
    seen = []

    class Watching(methods.ICKD):
        def forward(self, context):
            seen.append(context)
            return super().forward(context)

    distill([Student("resnet8", Watching(positives=2, negatives=3), name="a")], few, expert)
    bank = MemoryBank.build(expert, few.train, task=Halves(), precision="fp32")
    assert len(bank) == 2 * len(few.train)
    for context in seen:
        keys = context.student.key
        assert len(keys) == 2 * len(context.batch.index) and torch.equal(keys // 2, context.batch.index.repeat(2))
        near, far = bank.retrieve(
            bank.features[bank.rows(keys)], context.student.labels, keys, positives=2, negatives=3
        )
        assert torch.equal(context.positives.index, near.index) and torch.equal(context.negatives.index, far.index)
        assert not (context.positives.index == keys[:, None]).any()
        assert context.supervised.item() == pytest.approx(
            losses.cross_entropy(context.student.logits, context.student.labels).item()
        )


def test_a_dynamic_bank_of_the_samples_of_more_images(few, expert):
    seen = []

    class Watching(methods.ICKD):
        def forward(self, context):
            seen.append(context)
            return super().forward(context)

    images = data.selection.extended(few.train, data.load("digits").train, 150)
    known = Halves().keys(few.train)[0]
    bank = MemoryBank.build(expert, images, labels=known, task=Halves(), precision="fp32")
    assert len(bank) == 300 and bank.source["labels"].startswith("120 given")
    hand = MemoryBank.build(expert, images, labels=known, task=Halves(), precision="fp32")
    method = Watching(positives=2, negatives=3, dynamic=True, residual=0.5)
    distill([Student("resnet8", method, name="a")], few, expert, bank=bank)
    for context in seen:
        keys, near = context.student.key, context.positives
        assert torch.equal(near.own, hand.logits[hand.rows(keys)])
        assert torch.equal(near.logits, hand.logits[hand.rows(near.index)])
        hand.update(keys, context.student.features.new_zeros(len(keys), hand.features.shape[1]), context.teacher.logits)
    assert any((~torch.isin(context.positives.index, known)).any() for context in seen)


def test_a_run_of_another_task_stops_resumes_and_is_reported(few, expert, tmp_path, monkeypatch):
    whole = distill([Student("resnet8", "ickd_self(positives=2, negatives=3)", name="a")], few)["a"]
    step, taken = training.optimizers.Optimizer.step, []

    def stopping(self):
        if len(taken) == 4:
            raise KeyboardInterrupt
        taken.append(1)
        step(self)

    students = [Student("resnet8", "ickd_self(positives=2, negatives=3)", name="a")]
    with monkeypatch.context() as patch:
        patch.setattr(training.optimizers.Optimizer, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            distill(students, few, runs=tmp_path, checkpoint_seconds=0)
    (row,) = runs.overview(tmp_path)
    assert (row["state"], row["task"]) == ("unfinished", "halves") and "half_accuracy" in row
    again = distill(students, few, runs=tmp_path)["a"]
    state = again.network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.network.state_dict().items())
    text = runs.table(runs.finished([tmp_path]))
    assert "| method | seeds | halves, % | best, % | images/s |" in text and "NLL" not in text
    assert runtime.Run(tmp_path / "a").settings["task"] == "halves"
    assert runs.seeds.score([again.summary]) == again.summary["half_accuracy"]


def test_tasks_do_not_share_tables(few):
    halves = distill([Student("resnet8", "ce")], few, task=Halves())
    images = distill([Student("resnet8", "ce")], few, task=Classification())
    assert halves.keys() != images.keys(), "another task is another run"
    text = runs.table([h.summary for h in (*halves.values(), *images.values())])
    assert text.count("| ce |") == 2 and text.count("| method |") == 2


def test_explorers_address_samples_of_any_task(few, expert):
    samples = explore.SampleSet(few.train, Halves())
    assert len(samples) == 120 and samples.labels.shape == (120,)
    at = torch.tensor([3, 119, 64])
    assert torch.equal(samples.positions(samples.keys[at]), at)
    output = samples.outputs(expert, at)
    assert torch.allclose(output.logits, samples.outputs(expert).logits[at], atol=1e-5)
    pictures = samples.thumbnails(at)
    middle = pictures.shape[3] // 2
    assert [bool(half.any()) for picture in pictures for half in (picture[..., :middle], picture[..., middle:])] == [
        key % 2 == side for key in samples.keys[at].tolist() for side in (0, 1)
    ]
    bank = MemoryBank.build(expert, few.train, task=Halves())
    explore.require_fit(bank, few.train, teacher=expert, task=Halves())
    with pytest.raises(InputError, match="another data set"):
        require_fit(bank, replace(few.train, index=few.train.index + 5000), expert, Halves())
    with pytest.raises(InputError):
        explore.require_fit(bank, few.train, teacher=expert)


def test_a_task_that_lets_students_choose_places_has_the_teacher_evaluated_there(few, expert):
    """As a detector does with its proposals: each student's samples, here every second image, are the teacher's."""

    class Chosen(Classification):
        shares_teacher = False

        def samples(self, network, batch, *, like=None, maps=False, precision="fp32"):
            rows = torch.arange(len(batch.labels))[len(batch.labels) % 2 :: 2] if like is None else like.image
            some = data.Batch(batch.images[rows], batch.labels[rows], batch.index[rows], batch.view[rows])
            samples, loss = super().samples(network, some, maps=maps, precision=precision)
            return replace(samples, image=rows), loss

    seen = []

    class Watching(methods.ICKD):
        def forward(self, context):
            seen.append(context)
            return super().forward(context)

    with runtime.seeded(0):
        teacher = models.create("resnet8", **few.train.spec)
    method = Watching(positives=2, negatives=3, query="view")
    students = [Student("resnet8", method, name="a"), Student("resnet8", "kd", 1, "b")]
    distill(students, few, teacher, task=Chosen())
    for context in seen:
        assert torch.equal(context.teacher.key, context.student.key) and len(context.student.key) <= 13
        assert context.positives.index.shape == (len(context.student.key), 2)


def test_an_unknown_task_and_one_that_is_taken():
    with pytest.raises(InputError, match="unknown task 'clasification'; did you mean 'classification'"):
        tasks.create("clasification")
    with pytest.raises(InputError, match="task 'classification' is already"):
        tasks.register("classification")(type("Other", (Task,), {}))


def test_what_a_task_cannot_supply_is_refused(few):
    class Alone(Classification):
        unsupported = frozenset({"partner"})

    with pytest.raises(InputError, match="method 'cskd' needs partner, which classification does not have"):
        distill([Student("resnet8", "cskd")], few, task=Alone())

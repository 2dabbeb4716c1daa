"""A step that is captured once and replayed trains like one that runs each time; a tape stands in for a CUDA graph."""

import gc
import warnings
from dataclasses import replace

import pytest
import registered
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ickd_lib import methods, tasks, training
from ickd_lib.memory import MemoryBank
from ickd_lib.training import Recipe, Student, distillation
from ickd_lib.training.capture import HostReads
from ickd_lib.training.in_context import TeacherBank
from ickd_lib.training.stepper import Stepper

RECIPE = Recipe(epochs=3, batch_size=16, lr=0.05, schedule="cosine")  # 8 steps an epoch, the last of 8 images
# Their steps read on the host which rows of a bank in training are filled, or draw partners or second views there.
UNFIT = {"ickd_online", "ickd_self", "pskd", "cskd", "mlkd"}
DRAWN = {"crd", "crd_bank"}  # at random in each step, on a GPU from another place of the generator
WRITTEN = [  # the teacher's rows are written in each step
    "ickd(dynamic=True, residual=0.5, gate=0.5, form='relational')",
    "ickd(dynamic=True, order='class')",
    "ickd(dynamic=True, order='random', redraw=True)+nicd",
]


class Tape(TorchDispatchMode):
    """What a CUDA graph does: the same operations on the same memory. Decisions of the host are fixed."""

    made = 0

    def __init__(self):
        super().__init__()
        self.calls, self.before = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in written(func, args):
            self.before.append((tensor, tensor.clone()))
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out

    @torch.no_grad()
    def undo(self):
        for tensor, value in self.before[::-1]:
            tensor.copy_(value)

    @torch.no_grad()
    def __call__(self):
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for one in value for t in tensors(one)] if isinstance(value, (list, tuple)) else []


def written(func, args):
    """The tensors that an operation changes in place; batch normalisation does not say so."""
    marked = [a for a, described in zip(args, func._schema.arguments, strict=False) if is_written(described)]
    return tensors(marked) + (tensors(args[3:5]) if func.overloadpacket.__name__ == "native_batch_norm" else [])


def is_written(argument):
    return argument.alias_info is not None and argument.alias_info.is_write


def on_tape(work):
    Tape.made += 1
    with Tape() as tape:
        work()
    tape.undo()  # capturing computes nothing yet
    return tape


@pytest.fixture
def replaying(monkeypatch):
    """Training captures its steps, as on a GPU."""

    def start(capture=on_tape):
        Tape.made = 0
        make = lambda *args, **given: Stepper(*args, **given | {"capture": capture})  # noqa: E731
        monkeypatch.setattr(distillation, "Stepper", make)

    return start


def train(students, splits, teacher, bank=None, recipe=RECIPE, **given):
    options = {"teacher": teacher, "bank": bank, "recipe": recipe, "device": "cpu", "progress": False} | given
    return training.distill(students, splits, **options)


def same(first, second, exact=True):
    """The same weights and records, bit for bit or up to rounding."""
    for name, history in first.items():
        other = second[name]
        for key, value in history.network.state_dict().items():
            found = other.network.state_dict()[key]
            assert torch.equal(value, found) if exact else torch.allclose(value, found, atol=1e-4), f"{name}: {key}"
        for ours, theirs in zip(history.epochs, other.epochs, strict=True):
            ours, theirs = {**ours, "seconds": 0}, {**theirs, "seconds": 0}
            assert ours == theirs if exact else ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def two(method):
    peers = "peers" in methods.create(method).needs
    return [Student("resnet8", method, seed, name=str(seed)) for seed in range(1 + peers)]


@pytest.mark.parametrize("method", [*sorted(set(registered.trained()) - DRAWN), *WRITTEN])
def test_a_replayed_step_trains_as_one_that_is_run(method, digits, teacher, bank, replaying):
    plain = train(two(method), digits, teacher, bank)
    replaying()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        # The gradient of a 1x1 convolution of a 1x1 map has an arbitrary layout; on the tape it rounds otherwise.
        same(plain, train(two(method), digits, teacher, bank), exact=method != "reviewkd")
    # Once for the training, and no more: nothing that changes from step to step is fixed in a captured step.
    assert Tape.made == (2 if method == "finetune" else method not in UNFIT)  # finetune has two phases
    reads = method == "refilled"  # in its first phase, which on a GPU does not
    assert [f"{method}: its step reads values on the host" in str(one.message) for one in warned] == [True] * reads


@pytest.mark.parametrize("method", ["kd", "ickd", "at", "refilled", "dml"])
def test_nothing_of_a_step_is_alive_after_it(method, digits, teacher, bank):
    """Without the help of Python's garbage collection; what is left would keep memory, and fail a capture."""
    alive = []

    def count():
        return sum(isinstance(one, tasks.Samples) for one in gc.get_objects())

    class Watch(training.Callback):
        def step(self, loop):
            alive.append(count())

    gc.collect()
    before = count()  # of other tests
    gc.disable()
    try:
        train(two(method), digits, teacher, bank, callbacks=[Watch()])
    finally:
        gc.enable()
    assert alive and max(alive) <= before


def test_draws_differ_from_step_to_step(digits, teacher, bank, replaying):
    replaying()
    drawn = []

    class Drawing(methods.Method):
        def forward(self, context):
            drawn.append(torch.rand(4))
            return {"ce": 0 * context.student.logits.sum() + drawn[-1].sum()}

    (history,) = train([Student("resnet8", Drawing(), name="a")], digits, teacher).values()
    assert Tape.made == 1
    each = [record["loss"] for record in history.epochs]
    assert len(set(each)) == 3 and all(1 < loss < 3 for loss in each)
    train([Student("resnet8", "crd", name="b")], digits, teacher, bank)
    assert Tape.made == 2


def test_many_students_are_one_captured_step(digits, teacher, bank, replaying):
    students = [Student("resnet8", m, name=m) for m in ("kd", "ickd", "dkd", "ckd", "ce")]
    plain = train(students, digits, teacher, bank)
    replaying()
    same(plain, train(students, digits, teacher, bank))
    assert Tape.made == 1


@pytest.mark.filterwarnings("ignore:refilled")  # its first phase reads the number of tuples; not on a GPU
def test_another_phase_is_another_captured_step(digits, teacher, bank, replaying):
    students = [Student("resnet8", "refilled", name="a"), Student("resnet8", "ickd(warmup=0.4)", name="b")]
    for student, captures in zip(students, (1, 2), strict=True):
        plain = train([student], digits, teacher, bank, recipe=Recipe(epochs=4, batch_size=16, lr=0.05))
        replaying()
        same(plain, train([student], digits, teacher, bank, recipe=Recipe(epochs=4, batch_size=16, lr=0.05)))
        assert Tape.made == captures


@pytest.mark.parametrize("gigabytes", [4.0, 3e-6])
def test_with_a_teacher_cache(digits, teacher, replaying, tmp_path, gigabytes):
    students = [Student("resnet8", "kd", name="a")]
    plain = train(students, digits, teacher, teacher_cache=tmp_path / "plain", teacher_cache_gigabytes=gigabytes)
    replaying()
    same(
        plain, train(students, digits, teacher, teacher_cache=tmp_path / "replayed", teacher_cache_gigabytes=gigabytes)
    )
    assert Tape.made == 1


def test_the_decay_of_an_average_differs_from_step_to_step(digits, replaying):
    students, recipe = [Student("resnet8", name="a")], replace(RECIPE, ema=0.999)
    plain = train(students, digits, None, recipe=recipe)
    replaying()
    same(plain, train(students, digits, None, recipe=recipe))
    assert Tape.made == 1


def test_resumed_in_the_middle(digits, teacher, bank, replaying, tmp_path, monkeypatch):
    students = [Student("resnet8", "dkd(warmup=2)+ickd", name="a")]
    plain = train(students, digits, teacher, bank)
    replaying()
    take = Stepper.take

    def stopped(self, groups, step):
        take(self, groups, step)
        if self.keys["epoch"] == 1 and step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "take", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(students, digits, teacher, bank, runs=tmp_path, checkpoint_seconds=0)
    same(plain, train(students, digits, teacher, bank, runs=tmp_path))


def test_a_step_that_cannot_be_captured_runs_eagerly_and_the_cause_is_named(digits, teacher, replaying):
    plain = train([Student("resnet8", "kd", name="a")], digits, teacher)

    def refuse(work):
        try:
            raise RuntimeError("no graph\nfor this")
        finally:
            raise RuntimeError("the capture was invalidated before")  # as torch reports at its end

    replaying(refuse)
    with pytest.warns(
        UserWarning, match=r"kd: its capture failed \(no graph; --no-capture .*\), so it .* runs eagerly"
    ):
        same(plain, train([Student("resnet8", "kd", name="a")], digits, teacher))


def test_what_students_share_is_made_before_they_step_side_by_side(digits, teacher):
    bank = MemoryBank.build(teacher, digits.train, precision="fp32")
    assert bank._means is None
    TeacherBank(bank, [], bank.index)
    assert bank._means is not None and bank._sums is not None


def test_stronger_augmentation_is_drawn_on_the_host(digits, teacher, replaying):
    replaying()
    mixed = digits._replace(train=replace(digits.train, augment="mixup"))
    train([Student("resnet8", "kd", name="a")], mixed, teacher)
    assert Tape.made == 0


@pytest.mark.parametrize(
    "read",
    [
        lambda t: t.sum().item(),
        lambda t: bool((t > 0).any()),
        lambda t: t[t > 0],
        lambda t: t.nonzero(),
        lambda t: t.masked_select(t > 0),
        lambda t: t.unique(),
        lambda t: t.clone().index_put_((t > 0,), torch.tensor(1.0)),
        lambda t: t.to("meta"),
        lambda t: torch.empty(3, device="meta") * t[0],
    ],
)
def test_reading_from_the_device_is_noticed(read):
    with HostReads() as watch:
        read(torch.arange(4.0))
    assert watch.found


def test_work_on_the_device_is_not():
    with HostReads() as watch:
        t = torch.arange(6.0).view(2, 3)
        torch.where(t > 1, t, -1)[:, t.argmax(1)].topk(2).values.masked_fill_(t[:, :2] > 3, 0).softmax(1)
        t.clone().index_copy_(0, torch.tensor([1]), t[:1]) @ t.T
        (t > 0)[torch.tensor([0])] = torch.tensor([True, False, True])
        2 * torch.empty(3, device="meta") + 1
    assert not watch.found

"""Training images without labels: which are chosen, how batches mix them, and what each method does with them."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ickd_lib import __main__ as cli
from ickd_lib import data, losses, methods, runs, tasks, training
from ickd_lib.memory import MemoryBank
from ickd_lib.methods import Retrieval
from ickd_lib.runtime import InputError
from ickd_lib.training import Recipe, Student
from ickd_lib.training.in_context import TeacherBank
from ickd_lib.widgets import LogitSpaceExplorer, NeighbourExplorer

QUICK = Recipe(epochs=2, batch_size=30, lr=0.01, schedule="cosine")
SMALL = "ickd(positives=2, negatives=5)"
ABLE = [name for name in methods.names() if methods.create(name).unlabelled]


@pytest.fixture(scope="module")
def mixed():
    """40 labelled digits and 80 without labels."""
    return data.load("digits", labels=40, unlabelled=80)


@pytest.fixture(scope="module")
def teacher():
    recipe = Recipe(epochs=3, lr=0.05, schedule="cosine")
    splits = data.load("digits", labels=300)
    made = training.distill([Student("resnet8", "ce")], splits, recipe=recipe, device="cpu", progress=False)
    return next(iter(made.values())).network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    for split, count in (("train", 6), ("test", 2)):
        for number, name in enumerate(("ant", "bee")):
            (path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (120 * number, 20 * i, 9)).save(path / split / name / f"{i}.png")
    (path / "unlabelled" / "deep").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.png", "deep/c.png"]):
        Image.new("RGB", (8, 8), (60, 10 * i, 200)).save(path / "unlabelled" / name)
    return path


def distill(splits, *names, **options):
    made = [Student("resnet8", name) for name in names]
    options = {"recipe": QUICK, "device": "cpu", "progress": False} | options
    return list(training.distill(made, splits, **options).values())


def test_images_beyond_the_labels_lose_theirs(mixed):
    train, every = mixed.train, data.load("digits").train
    known = train.labels >= 0
    assert (len(train), train.unlabelled, int(known.sum())) == (120, 80, 40)
    assert torch.equal(train.index[known], data.load("digits", labels=40).train.index)
    assert torch.equal(train.labels[known], every.labels[train.index[known]])
    rest = data.load("digits", labels=40, val=0.1, unlabelled="all")
    assert len(rest.train) + len(rest.val) == len(every)
    assert not set(rest.train.index.tolist()) & set(rest.val.index.tolist())
    for options in ({"unlabelled": 5}, {"labels": 40, "unlabelled": 5000}, {"labels": 40, "unlabelled_share": 0.5}):
        with pytest.raises(InputError) as error:
            data.load("digits", **options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("stream", [False, True])
def test_files_without_labels(folder, stream, monkeypatch, tmp_path):
    monkeypatch.setenv("ICKD_CACHE", str(tmp_path))
    plain = data.load(f"folder:{folder}", stream=stream, workers=0)
    found = data.load(f"folder:{folder}", stream=stream, workers=0, unlabelled="all")
    assert len(plain.train) == 12 and plain.train.unlabelled == 0
    assert len(found.train) == 15 and found.train.labels[-3:].tolist() == [-1, -1, -1]
    assert found.train.files[-3:] == ("unlabelled/a.png", "unlabelled/b.png", "unlabelled/deep/c.png")
    assert found.train.shown(torch.tensor([14]))[0, :, 0, 0].tolist() == [60, 20, 200]
    few = data.load(f"folder:{folder}", stream=stream, workers=0, labels=4, unlabelled="all")
    assert few.train.unlabelled == 11


def test_a_folder_is_written_from_a_data_set(tmp_path):
    digits = data.load("digits", labels=60)
    path = data.write_folder(digits, tmp_path / "set", labels=20)
    found = data.load(f"folder:{path}", unlabelled="all")
    assert (len(found.train), found.train.unlabelled, len(found.test)) == (60, 40, 797)
    assert found.train.classes == digits.train.classes and "train/0/00" in found.train.files[0]
    rows = torch.tensor([int(name[-9:-4]) for name in found.train.files])
    at = (digits.train.index[None] == rows[:, None]).nonzero()[:, 1]
    assert torch.equal(found.train.images, digits.train.images[at])
    labelled = found.train.labels >= 0
    assert torch.equal(found.train.labels[labelled], digits.train.labels[at][labelled])
    assert data.write_folder(data.load("digits"), path) == path and len(data.load(f"folder:{path}").train) == 20
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_the_share_of_a_batch(share):
    train = data.load("digits", labels=40, unlabelled=80, unlabelled_share=share).train
    order, view = data.Sampler(train).plan(data_seed=0, epoch=1)
    counts = [int((train.labels[rows] < 0).sum()) for rows in order.split(30)]
    if share:
        assert all(abs(count - 30 * share) <= 1 for count in counts)
        drawn = order[train.labels[order] >= 0]
        times = torch.bincount(drawn)[drawn.unique()]
        assert times.max() - times.min() <= 1, "images of a kind return equally often"
    else:
        assert sum(counts) == 80 and order.sort().values.tolist() == list(range(120))
    again = data.Sampler(train).plan(data_seed=0, epoch=1)
    assert torch.equal(order, again[0]) and torch.equal(view, again[1])


def test_cross_entropy_is_the_mean_over_the_labelled_samples():
    logits, labels = torch.randn(6, 4, dtype=torch.double, requires_grad=True), torch.tensor([1, -1, 3, -1, 0, -1])
    naive = sum(-logits[i].log_softmax(0)[labels[i]] for i in (0, 2, 4)) / 3
    torch.testing.assert_close(losses.cross_entropy(logits, labels), naive)
    none = losses.cross_entropy(logits, torch.full((6,), -1))
    none.backward()
    assert none == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_able_methods_are_trained_on_both_kinds(mixed, teacher):
    assert {"ce", "kd", "ckd", "ickd"} <= set(ABLE)
    histories = distill(
        mixed, *ABLE, SMALL, "kd+ckd", "ickd(order='random', positives=2, negatives=5)", teacher=teacher
    )
    for history in histories:
        assert history.summary["train_images"] == 40 and 0 < history.epochs[-1]["train_accuracy"] <= 1
    assert "| kd with 80 unlabelled images | 1 |" in runs.table([history.summary for history in histories])
    (alone,) = distill(mixed, "ickd(positives=2, negatives=5)", teacher=teacher)
    assert alone.epochs[-1]["weights"] == histories[len(ABLE)].epochs[-1]["weights"]


def test_other_methods_and_data_are_refused(mixed, teacher, folder):
    for name in set(methods.names()) - set(ABLE):
        with pytest.raises(InputError) as error:
            distill(mixed, name, teacher=teacher)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="needs a label for each image"):
        distill(mixed, "ickd(dynamic=True)", teacher=teacher)
    with pytest.raises(InputError, match="method 'dkd' needs a label for each image; without some, use ce"):
        distill(mixed, "dkd", teacher=teacher)
    with pytest.raises(InputError, match="80 unlabelled images, which only a teacher can use"):
        distill(mixed, "ce")
    cut = mixed._replace(train=dataclasses.replace(mixed.train, augment="cutmix"))
    with pytest.raises(InputError, match="augment=cutmix mixes labels"):
        distill(cut, "kd", teacher=teacher)
    with pytest.raises(InputError, match="its unlabelled images may be of others"):
        data.load(f"folder:{folder}", classes=["ant", "bee"], unlabelled="all")


def test_rows_of_the_bank_have_predicted_labels_above_the_threshold(mixed, teacher):
    train = mixed.train
    bank = MemoryBank.build(teacher, train, precision="fp32")
    known, predicted = train.labels >= 0, bank.logits.argmax(1)
    assert torch.equal(bank.labels, torch.where(known, train.labels, predicted)) and bool(bank.filled.all())
    sure = MemoryBank.build(teacher, train, precision="fp32", threshold=0.6)
    assert torch.equal(sure.filled, known | (bank.logits.softmax(1).max(1).values >= 0.6))
    assert not bool(sure.filled.all()) and sure.source["threshold"] == "0.6" and "threshold" not in bank.source
    with pytest.raises(InputError, match="threshold=2 is a probability"):
        MemoryBank.build(teacher, train, threshold=2)


class Requesting:
    """A stand-in for the state of a student whose method requests in-context samples."""

    teacher_rows = None

    def __init__(self, spec):
        self.retrieves = (spec,)
        self.learner = SimpleNamespace(method=SimpleNamespace(retrievals=(spec,)), seed=0)


@pytest.mark.parametrize(
    "spec",
    [
        Retrieval(2, 5),
        Retrieval(2, 5, query="view"),
        Retrieval(2, 5, order="random", negatives_order="random", redraw=True),
        Retrieval(1, 5, order="class", negatives_order="class"),
    ],
    ids=["row", "view", "random", "class"],
)
def test_a_sample_below_the_threshold_has_no_in_context_terms(mixed, teacher, spec):
    train = mixed.train
    bank = MemoryBank.build(teacher, train, precision="fp32", threshold=0.6)
    state = Requesting(spec)
    source = TeacherBank(bank, [state], train.index, unlabelled=True)
    source.begin_epoch(1)
    samples = tasks.create("classification").bank_samples(teacher, train, precision="fp32")
    near, far = source.retrieve([state], train.index, train.labels, samples)[state][spec]
    filled = bank.filled
    assert not bool(near.mask[~filled].any()) and not bool(far.mask[~filled].any())
    assert bool(near.mask[filled].any()) and bool(far.mask[filled].any())
    if spec.order != "class":
        for found, same in ((near, True), (far, False)):
            rows = bank.rows(found.index.clamp(min=0))
            assert bool((filled[rows] | ~found.mask).all()), "an empty row is no in-context sample"
            assert bool((((bank.labels[rows] == bank.labels[:, None]) == same) | ~found.mask).all())


def test_a_threshold_is_a_setting_and_a_stopped_run_goes_on(mixed, teacher, tmp_path):
    bank = MemoryBank.build(teacher, mixed.train, precision="fp32", threshold=0.6)
    (plain,), (sure,) = distill(mixed, SMALL, teacher=teacher), distill(mixed, SMALL, teacher=teacher, bank=bank)
    assert plain.epochs[-1]["loss"] != sure.epochs[-1]["loss"]

    class Stop(training.Callback):
        def step(self, loop):
            if loop.states[0].epoch == 1:
                raise KeyboardInterrupt

    options = {"teacher": teacher, "bank": bank, "runs": tmp_path, "checkpoint_seconds": 0}
    with pytest.raises(KeyboardInterrupt):
        distill(mixed, SMALL, callbacks=[Stop()], **options)
    (again,) = distill(mixed, SMALL, **options)
    assert again.epochs[-1]["weights"] == sure.epochs[-1]["weights"]


def test_the_command_line(tmp_path, monkeypatch, capsys, folder):
    monkeypatch.chdir(tmp_path)
    line = "--labels 40 --epochs 1 --batch-size 30 --device cpu --teacher resnet8 --teacher-epochs 1"
    extra = "--unlabelled 80 --unlabelled-share 0.5 --threshold 0.1"
    call = ["compare", "--methods", "ce", "kd", SMALL, "--seeds", "1", *line.split(), *extra.split()]
    assert cli.main(call) == 0
    assert capsys.readouterr().out.count("| ") > 10
    wrong = {
        "--unlabelled many": "neither a number nor all",
        "--threshold 0.5": "--threshold is for --unlabelled images",
        "--unlabelled 80 --threshold 0.5": "--threshold needs a method with a memory bank",
        "--unlabelled 80 --teacher=": "only be used with a teacher",
    }
    for options, message in wrong.items():
        assert cli.main(["train", "--method", "kd", *line.split(), *options.split()]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_predictions_may_cover_files_without_labels(tmp_path, monkeypatch, capsys, folder):
    monkeypatch.chdir(tmp_path)
    names = data.load(f"folder:{folder}", unlabelled="all").train.files
    (tmp_path / "predictions.csv").write_text("file,class\n" + "".join(f"{name},ant\n" for name in names))
    line = f"train --dataset folder:{folder} --method kd --epochs 1 --device cpu --teacher predictions.csv"
    assert cli.main([*line.split(), "--unlabelled", "all"]) == 0
    assert cli.main([*line.split()]) == 0, "lines of unlabelled images need not be used"
    (tmp_path / "predictions.csv").write_text("file,class\n" + "".join(f"{name},ant\n" for name in names[:-1]))
    assert cli.main([*line.split(), "--unlabelled", "all"]) == 2
    assert "no prediction for 1 of 15 training images" in capsys.readouterr().err.splitlines()[-1]


def test_a_choice_of_classes_leaves_out_images_without_a_label():
    train = data.load("digits", labels=100, unlabelled=300).train
    labelled = train.labels[train.labels >= 0]
    assert len(train.only([9])) == (labelled == 9).sum()
    found = train.restricted([0, 9])
    assert len(found) == ((labelled == 0) | (labelled == 9)).sum() and set(found.labels.tolist()) == {0, 1}
    with pytest.raises(InputError, match="have no label"):
        train.few(50)


def test_explorers_that_need_labels_refuse_images_without(mixed, teacher):
    bank = MemoryBank.build(teacher, mixed.train, precision="fp32")
    for made in (
        lambda: NeighbourExplorer(bank, mixed.train, teacher=teacher),
        lambda: LogitSpaceExplorer({"teacher": teacher}, mixed.train),
    ):
        with pytest.raises(InputError, match=r"80 of the 120 images of .* have no label; give the labelled ones"):
            made()

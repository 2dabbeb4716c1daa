"""A black-box teacher: predictions in a CSV file."""

import dataclasses

import pytest
import torch
from PIL import Image

from ickd_lib import __main__ as cli
from ickd_lib import data, losses, methods, training
from ickd_lib.runtime import InputError
from ickd_lib.training import Recipe, Student, load_predictions

QUICK = Recipe(epochs=2, batch_size=4, lr=0.01, schedule="cosine")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nine training images of three classes, and three test images."""
    path = tmp_path_factory.mktemp("images")
    for split, count in (("train", 3), ("test", 1)):
        for number, name in enumerate(("ant", "bee", "cat")):
            (path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (80 * number, 20 * i, 9)).save(path / split / name / f"{i}.png")
    return path


@pytest.fixture(params=[False, True], ids=["resident", "streamed"])
def splits(folder, request, monkeypatch, tmp_path):
    monkeypatch.setenv("ICKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return data.load(f"folder:{folder}", stream=request.param, workers=0)


@pytest.fixture
def resident(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return data.load(f"folder:{folder}")


def written(*lines):
    with open("predictions.csv", "w") as file:
        file.write("\n".join(lines) + "\n")
    return "predictions.csv"


FILES = [f"train/{name}/{i}.png" for name in ("ant", "bee", "cat") for i in range(3)]


def probabilities(teacher, row):
    return teacher.logits[teacher.place[row]].softmax(0).tolist()


def test_files_and_each_form_of_a_line(splits):
    assert splits.train.files == tuple(FILES) and splits.test.files[0] == "test/ant/0.png"
    pairs = load_predictions(
        written("file,class1,prob1,class2,prob2", f"{FILES[4]},bee,0.6,cat,0.3", f"{FILES[0]},ant,,,"), splits
    )
    assert probabilities(pairs, 4) == pytest.approx([0.1, 0.6, 0.3])
    assert probabilities(pairs, 0) == pytest.approx([0.9, 0.05, 0.05])
    columns = load_predictions(written("file,cat,ant", f"{FILES[8]},0.5,0.1", "test/ant/0.png,0,1"), splits)
    assert probabilities(columns, 8) == pytest.approx([0.1, 0.4, 0.5])
    top = load_predictions(written("row,class", "5,cat") + "(smoothing=0.2)", splits)
    assert probabilities(top, 5) == pytest.approx([0.1, 0.1, 0.8])
    assert torch.allclose(top.logits.mean(1), torch.zeros(1), atol=1e-6), "the logits of a row have the mean 0"
    sure = load_predictions(written("row,ant,bee,cat", "5,0,0,1"), splits)
    assert probabilities(sure, 5) == pytest.approx([1e-6, 1e-6, 1], abs=1e-5)


def test_students_learn_from_the_row_of_each_image(splits):
    lines = [f"{name},{('ant', 'bee', 'cat')[i // 3]},0.8" for i, name in enumerate(FILES)]
    teacher = training.pretrain(written("file,class1,prob1", *lines), splits)
    found = {}

    class Watch(training.Callback):
        def epoch(self, loop):
            batch = next(data.Sampler(splits.train).batches(4, data_seed=0, epoch=0))
            found["samples"] = loop.stepper.teacher(batch, None), batch

    options = {"recipe": QUICK, "device": "cpu", "progress": False, "teacher": teacher}
    names = ["kd", "dkd", "ckd", "dist", "kd+ckd"]
    made = [Student("resnet8", name) for name in names]
    histories = training.distill(made, splits, callbacks=[Watch()], **options)
    summary = next(iter(histories.values())).summary
    assert summary["teacher"] == "predictions.csv" and "agreement" not in summary
    samples, batch = found["samples"]
    assert torch.equal(samples.logits.argmax(1), batch.index // 3)
    assert losses.kd(samples.logits, samples.logits) == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="has no prediction for 1 of 9 training images, such as train/ant/1"):
        few = training.pretrain(written("file,class1,prob1", *lines[:1], *lines[2:]), splits)
        training.distill(made, splits, **options | {"teacher": few})
    assert few.identity != teacher.identity


def test_methods_that_need_more_than_logits_are_refused(resident):
    teacher = training.pretrain(written("row,class", *(f"{i},ant" for i in range(9))), resident)
    options = {"recipe": QUICK, "device": "cpu", "progress": False, "teacher": teacher}
    unsuited = {"features", "pooled features", "bank", "maps", "pixels", "classifiers", "peers"}
    for name in methods.names():
        method = methods.create(name)
        if "teacher" in method.needs and (method.needs & unsuited or method.needs_bank):
            with pytest.raises(InputError) as error:
                training.distill([Student("resnet8", name)], resident, **options)
            assert "\n" not in str(error.value)
    mixed = resident._replace(train=dataclasses.replace(resident.train, augment="mixup"))
    with pytest.raises(InputError, match="no predictions for mixed images"):
        training.distill([Student("resnet8", "kd")], mixed, **options)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["name,class", "0,ant"], "line 1: expected the names of columns"),
        (["file,class", "train/ant/9.png,ant"], "line 2: .* has no file 'train/ant/9.png'; expected one such as"),
        (["row,ant,bee", "0,0.6,0.4,0.9"], "line 2: 4 cells, but line 1 names 3 columns"),
        (["row,class", "9,ant"], "line 2: .* has no row '9'"),
        (["row,class", "0,ant", "0,bee"], "line 3: 0 has a prediction in line 2 already"),
        (["row,class", "0,dog"], "line 2: unknown class 'dog'"),
        (["row,ant,dog", "0,1,0"], "line 1: 'dog' is no class"),
        (["row,ant,ant", "0,1,0"], "line 1: 'ant' has two columns"),
        (["row,class1,prob1", "0,ant,1.5"], "line 2: '1.5' is no probability"),
        (["row,class1,prob1", "0,ant,much"], "line 2: 'much' is no probability"),
        (["row,class1,prob1,class2,prob2", "0,ant,0.5,ant,0.2"], "line 2: a class is named twice"),
        (["row,class1,prob1,class2,prob2", "0,ant,0.8,bee,0.5"], "line 2: .* 2 of 3 classes add up to 1.3"),
        (["row,class1,prob1,class2,prob2", "0,ant,0.8,bee,"], "line 2: '' is no probability"),
        (["row,class1,prob1", "0,,0.5"], "line 2: the probability 0.5 has no class"),
        (["row,ant,bee,cat", "0,0.1,0.1,0.1"], "line 2: .* 3 of 3 classes add up to 0.3"),
        (["row,class"], "has no prediction for an image"),
    ],
)
def test_what_is_refused(resident, lines, message):
    with pytest.raises(InputError, match=message) as error:
        load_predictions(written(*lines), resident)
    assert "\n" not in str(error.value)


def test_the_command_line(resident, folder, capsys):
    written("file,class", *(f"{name},bee" for name in FILES))
    line = f"train --dataset folder:{folder} --epochs 1 --device cpu --teacher predictions.csv".split()
    assert cli.main([*line, "--method", "kd"]) == 0
    for other, message in ((["--method", "ickd"], "has logits alone"), (["--teacher-weights", "x"], "has no weights")):
        assert cli.main([*line, *other]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]

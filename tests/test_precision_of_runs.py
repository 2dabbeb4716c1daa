"""The precision of runs that exist already: another one is refused, and auto goes on in it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from ickd_lib import training
from ickd_lib.memory import MemoryBank
from ickd_lib.runtime import InputError
from ickd_lib.training import Recipe, Student, precision_benchmark

OPTIONS = {"recipe": Recipe(epochs=1, lr=0.05, batch_size=60), "device": "cpu", "progress": False}


def test_a_run_goes_on_in_its_precision_or_not_at_all(digits, tmp_path):
    call = OPTIONS | {"runs": tmp_path}
    training.distill([Student("resnet8", "ce", 0, "a")], digits, precision="fp32", **call)
    with pytest.raises(InputError, match=r"/a was trained in fp32, not bf16; give precision fp32 or auto"):
        training.distill([Student("resnet8", "ce", 0, "a")], digits, precision="bf16", **call)
    assert training.distill([Student("resnet8", "ce", 0, "a")], digits, **call)


def test_a_comparison_goes_on_in_its_precision_with_its_bank_and_new_seeds(digits, teacher, tmp_path, monkeypatch):
    built, build = [], MemoryBank.build.__func__

    def noted(cls, *args, **given):
        built.append(given["precision"])
        return build(cls, *args, **given)

    call = OPTIONS | {"teacher": teacher, "runs": tmp_path}
    names = ["ickd(positives=3, negatives=5)"]
    training.compare(names, digits, seeds=1, precision="bf16", **call)
    monkeypatch.setattr(MemoryBank, "build", classmethod(noted))
    with pytest.raises(InputError, match=r"in bf16.*, not fp32"):
        training.compare(names, digits, seeds=2, precision="fp32", **call)
    training.compare(names, digits, seeds=2, **call)
    recorded = [json.loads(Path(p).read_text())["numerics"]["precision"] for p in tmp_path.glob("*/config.json")]
    assert recorded == ["bf16", "bf16"] and set(built) == {"bf16"}


def test_a_teacher_of_another_precision_is_used_after_a_note(digits, tmp_path, capsys):
    call = {"recipe": OPTIONS["recipe"], "runs": tmp_path, "device": "cpu", "progress": False}
    first = training.pretrain("resnet8", digits, precision="fp32", **call)
    again = training.pretrain("resnet8", digits, precision="bf16", **call)
    assert first.identity == again.identity and "was trained in fp32" in capsys.readouterr().err


IN_CONTEXT = "ickd(positives=3, negatives=5)"


@pytest.fixture
def measured(monkeypatch):
    """Measurements for trainings of any length, which find another precision each time: bf16 first."""
    taken = []

    def seconds(*given):
        taken.append(given)
        return {"fp32": 1.0, "bf16": 0.1 if len(taken) % 2 else 10.0}

    monkeypatch.setattr(precision_benchmark, "STEPS", 1)
    monkeypatch.setattr(precision_benchmark, "seconds", seconds)
    return taken


def large(splits):
    """The splits with images of 16 pixels a side, for which the precision is measured."""
    parts = [
        dataclasses.replace(part, images=torch.nn.functional.pad(part.images, (4, 4, 4, 4))) if len(part) else part
        for part in (splits.train, splits.test)
    ]
    return splits._replace(train=parts[0], test=parts[1])


def recorded(folder):
    return sorted(json.loads(p.read_text())["numerics"]["precision"] for p in folder.glob("*/config.json"))


def test_all_seeds_of_a_comparison_and_its_bank_have_the_precision_that_was_measured_once(
    digits, teacher, tmp_path, measured, monkeypatch
):
    built, build = [], MemoryBank.build.__func__

    def noted(cls, *args, **given):
        built.append(given["precision"])
        return build(cls, *args, **given)

    monkeypatch.setattr(MemoryBank, "build", classmethod(noted))
    call = OPTIONS | {"teacher": teacher, "runs": tmp_path}
    training.compare([IN_CONTEXT], large(digits), seeds=2, **call)
    training.compare([IN_CONTEXT], large(digits), seeds=3, **call)
    assert recorded(tmp_path) == ["bf16"] * 3 and built == ["bf16"] * 2 and len(measured) == 1


def test_a_run_takes_the_precision_of_its_bank_and_is_resumed_with_such_a_bank_alone(
    digits, teacher, tmp_path, measured
):
    splits = large(digits)
    banks = {p: MemoryBank.build(teacher, splits.train, precision=p).to("cpu") for p in ("bf16", "fp32")}
    call = OPTIONS | {"teacher": teacher, "runs": tmp_path}
    students = [Student("resnet8", IN_CONTEXT, 0, "a")]
    training.distill(students, splits, bank=banks["bf16"], **call)
    assert recorded(tmp_path) == ["bf16"] and not measured
    (tmp_path / "a" / "summary.json").unlink()  # the run is unfinished again
    with pytest.raises(InputError, match="bank that was computed in bf16, not fp32; give the precision bf16"):
        training.distill(students, splits, bank=banks["fp32"], **call)
    assert training.distill(students, splits, bank=banks["bf16"], **call)

"""The precision of runs that exist already: another one is refused, and auto goes on in it."""

import json
from pathlib import Path

import pytest

from ickd_lib import training
from ickd_lib.memory import MemoryBank
from ickd_lib.runtime import InputError
from ickd_lib.training import Recipe, Student

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

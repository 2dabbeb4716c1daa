"""Files and run folders on a full disk, after a kill or a power cut, with damage, and removed while they are used."""

import json
import os
import shutil
import stat
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from ickd_lib import models, runtime, training
from ickd_lib.memory import MemoryBank
from ickd_lib.runtime import InputError, Run, locks
from ickd_lib.training import Callback, Recipe, Student, TeacherCache, checkpoints

RECIPE = Recipe(epochs=3, lr=0.05, schedule="cosine", batch_size=30)


@pytest.fixture(scope="module")
def few(digits):
    return digits._replace(train=digits.train.few(60), test=digits.test.few(40))


def distill(few, runs, **options):
    return training.distill(
        [Student("resnet8", "ce", 0, "a")], few, runs=runs, recipe=RECIPE, device="cpu", progress=False, **options
    )["a"]


class Stop(Callback):
    """Ends the training after some epochs, as a kill would."""

    def __init__(self, epochs=2):
        self.epochs = epochs

    def epoch(self, training):
        if training.epoch == self.epochs:
            training.save()
            raise RuntimeError("killed")


def stopped(few, runs, **options):
    with pytest.raises(RuntimeError, match="killed"):
        distill(few, runs, callbacks=[Stop()], **options)
    return runs / "a"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("a small disk is mounted, for which the test must be run by root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder, leave=0):
    """Fill a disk up to some bytes."""
    with open(folder / "other", "wb") as file:
        file.write(b"0" * (shutil.disk_usage(folder).free - leave))


# ------------------------------------------------------------------------------------------------------ a full disk


@pytest.mark.parametrize("leave", [0, 4096, 100_000])
def test_a_full_disk_keeps_the_last_checkpoint_whole(leave, few, small_disk):
    folder = stopped(few, small_disk)
    before = (folder / "checkpoint.pt").read_bytes()
    fill(small_disk, leave)
    with pytest.raises(OSError, match=r"no space left while writing .*") as caught:
        distill(few, small_disk)
    assert "\n" not in str(caught.value) and str(small_disk) in str(caught.value)
    assert (folder / "checkpoint.pt").read_bytes() == before and not list(folder.glob(".*.part"))
    (small_disk / "other").unlink()
    assert len(distill(few, small_disk).epochs) == 3


def test_a_full_disk_is_named_where_a_bank_or_weights_are_written(bank, small_disk):
    path = small_disk / "b.safetensors"
    bank.save(path)
    before = path.read_bytes()
    fill(small_disk, 4096)
    with pytest.raises(OSError, match=r"no space left while writing .*b\.safetensors"):
        bank.save(path)
    assert path.read_bytes() == before and [p.name for p in small_disk.glob("*.part")] == []


def test_a_full_disk_is_named_where_records_and_locks_are_written(small_disk):
    run = Run(small_disk / "a")
    run.create({}, {}, "g", {})
    fill(small_disk)
    with pytest.raises(OSError, match=r"no space left while writing .*metrics\.jsonl"):
        run.log({"epoch": 1})
    with pytest.raises(OSError, match="no space left while writing") as caught, locks.locked(small_disk / "b"):
        pass
    assert str(small_disk / "b") in str(caught.value) and not (small_disk / "b").exists()


def test_a_full_cache_folder_costs_a_warning(teacher, few, small_disk, tmp_path):
    whole = training.distill([Student("resnet8", "kd", 0, "a")], few, teacher=teacher, recipe=RECIPE, progress=False)
    fill(small_disk, 4096)
    with pytest.warns(UserWarning, match=r"no longer written to .*No space left"):
        found = training.distill(
            [Student("resnet8", "kd", 0, "a")],
            few,
            teacher=teacher,
            recipe=RECIPE,
            progress=False,
            teacher_cache=small_disk,
        )
    assert found["a"].summary.keys() == whole["a"].summary.keys()


def test_a_file_that_cannot_be_closed_costs_no_training(teacher, few, tmp_path):
    cache = TeacherCache(models.frozen(teacher, "cpu"), few.train, folder=tmp_path)
    cache.close()
    cache._log._files = [open("/dev/full", "ab"), open("/dev/full", "ab")]
    with pytest.warns(UserWarning, match="no longer written to"):
        cache.fill(torch.arange(20), torch.zeros(20, dtype=torch.long))
    cache.close()


def test_an_error_of_the_system_is_named_whatever_torch_makes_of_it(few, tmp_path, monkeypatch):
    real = torch.save

    def limited(value, file):
        if isinstance(file, (str, os.PathLike)):
            raise RuntimeError("unexpected pos 768 vs 662")  # what torch makes of any error
        monkeypatch.setattr(file, "file", open("/dev/full", "wb", buffering=0))
        real(value, file)

    monkeypatch.setattr(torch, "save", limited)
    with pytest.raises(OSError, match=r"no space left while writing .*checkpoint\.pt"):
        distill(few, tmp_path)


def test_an_error_of_torch_is_not_taken_for_one_that_is_being_handled(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("from torch")

    monkeypatch.setattr(torch, "save", fails)
    try:
        raise ValueError("another one")
    except ValueError:
        with pytest.raises(RuntimeError, match="from torch"):
            runtime.save_object(tmp_path / "checkpoint.pt", {})
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed(few, tmp_path):
    folder = stopped(few, tmp_path)
    (folder / ".checkpoint.pt.elsewhere-77.part").write_bytes(b"half")
    distill(few, tmp_path)
    assert not list(folder.glob(".*.part"))
    host, ended = os.uname().nodename, 2**22 + 1
    for process in (ended, 1):
        (tmp_path / f".b.json.{host}-{process}.part").write_text("half")
    (tmp_path / f".c.json.{host}-{ended}.part").write_text("half")
    runtime.write_json(tmp_path / "b.json", {})
    kept = sorted(p.name for p in tmp_path.glob(".*.part"))
    assert kept == [f".b.json.{host}-1.part", f".c.json.{host}-{ended}.part"]


# ------------------------------------------------------------------------------------- removed, and after a power cut


def test_a_run_that_was_removed_while_it_was_trained_is_an_error(few, tmp_path):
    class Remove(Callback):
        def step(self, training):
            if (training.epoch, training.step) == (1, 1):
                shutil.rmtree(tmp_path / "a")

    for seconds in (60, 0):
        with pytest.raises(InputError, match=r"/a was removed while it was trained; start again"):
            distill(few, tmp_path, callbacks=[Remove()], checkpoint_seconds=seconds)
        assert not (tmp_path / "a").exists()


class RemoveLast(Callback):
    """Removes a run after its last epoch."""

    def __init__(self, folder):
        self.folder = folder

    def end(self, training):
        shutil.rmtree(self.folder)


def test_a_run_that_was_removed_at_the_end_is_an_error(few, tmp_path):
    with pytest.raises(InputError, match=r"/a was removed while it was trained"):
        distill(few, tmp_path, callbacks=[RemoveLast(tmp_path / "a")])
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("content", [None, b"", b"\0" * 300, b"[]\n", b"\xff\xfe\x00", "first line", "second line"])
def test_lost_records_are_taken_from_the_checkpoint(content, few, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runtime.errors, "_noticed", set())
    whole = distill(few, None)
    path = stopped(few, tmp_path) / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    content = {"first line": lines[0], "second line": lines[1]}.get(content, content)
    path.unlink() if content is None else path.write_bytes(content)
    found = distill(few, tmp_path)
    assert [line for line in capsys.readouterr().err.splitlines() if "metrics.jsonl" in line] == [
        f"note: {path} was damaged, and is written anew from the checkpoint"
    ]
    assert [record["loss"] for record in found.epochs] == [record["loss"] for record in whole.epochs]
    assert [record["loss"] for record in Run(path.parent).metrics] == [record["loss"] for record in whole.epochs]
    assert found.summary["best_accuracy"] == whole.summary["best_accuracy"]


@pytest.mark.parametrize("content", [None, b"", b"[]\n"])
def test_lost_records_of_a_finished_run_are_taken_from_the_checkpoint(content, few, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runtime.errors, "_noticed", set())
    whole = distill(few, tmp_path)
    path = tmp_path / "a" / "metrics.jsonl"
    path.unlink() if content is None else path.write_bytes(content)
    found = distill(few, tmp_path)
    assert f"{path} is written anew from the checkpoint" in capsys.readouterr().err
    assert found.epochs == Run(path.parent).metrics == whole.epochs
    (tmp_path / "a" / "checkpoint.pt").write_bytes(b"damaged")
    path.write_bytes(b"")
    assert distill(few, tmp_path).summary == whole.summary  # without them, the run is complete all the same


def test_a_run_of_an_earlier_version_whose_records_are_lost_is_finished(few, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runtime.errors, "_noticed", set())
    splits = few._replace(val=few.test)
    with pytest.raises(RuntimeError, match="killed"):
        distill(splits, tmp_path, callbacks=[Stop(3)])
    path = tmp_path / "a" / "checkpoint.pt"
    states = torch.load(path, weights_only=True)
    states["a"].pop("records", None)
    torch.save(states, path)
    (tmp_path / "a" / "metrics.jsonl").unlink()
    found = distill(splits, tmp_path)
    assert "the records of 3 epochs are lost" in capsys.readouterr().err and found.epochs == []
    assert found.summary["best_accuracy"] == found.summary["accuracy"] == found.summary["val_accuracy"]


def test_records_reach_the_disk_before_the_checkpoint_and_the_checkpoint_before_its_name(few, tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda n: (done.append(("fsync", os.readlink(f"/proc/self/fd/{n}"))), fsync(n)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(("named", str(b))), replace(a, b)))
    stopped(few, tmp_path)
    folder = str(tmp_path / "a")
    at = done.index(("named", f"{folder}/checkpoint.pt"))
    assert done[at - 2] == ("fsync", f"{folder}/metrics.jsonl")
    assert done[at - 1][1].startswith(f"{folder}/.checkpoint.pt.") and done[at + 1] == ("fsync", folder)


# ---------------------------------------------------------------------------------------------------------- one byte


def flip(path, position):
    """Change one bit of a byte of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.7, 0.95])
def test_one_wrong_byte_in_a_checkpoint_is_noticed(share, few, tmp_path):
    path = stopped(few, tmp_path) / "checkpoint.pt"
    whole = path.read_bytes()
    flip(path, int(share * len(whole)))
    with pytest.raises(InputError, match=r"checkpoint\.pt is damaged: the checksum of .* is wrong; remove") as caught:
        distill(few, tmp_path)
    assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    assert len(distill(few, tmp_path).epochs) == 3


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_one_wrong_byte_in_weights_is_noticed(share, few, tmp_path):
    distill(few, tmp_path)
    path = tmp_path / "a" / "student.safetensors"
    assert load_file(path).keys() == models.create("resnet8", 10).state_dict().keys(), "any reader reads it"
    flip(path, int(share * path.stat().st_size))
    with pytest.raises(InputError, match=r"student\.safetensors is damaged: its checksum is wrong; download or save"):
        training.load(tmp_path / "a", device="cpu")
    torch.save({"a": torch.rand(100)}, tmp_path / "w.pth")
    flip(tmp_path / "w.pth", 600)
    with pytest.raises(InputError, match=r"w\.pth is damaged: the checksum of"):
        models.load_weights(models.create("resnet8", 10), tmp_path / "w.pth")


@pytest.mark.parametrize("half", [True, False])
def test_one_wrong_byte_in_a_bank_is_noticed(half, teacher, digits, bank, tmp_path):
    path = tmp_path / "b.safetensors"
    if half:
        MemoryBank.build(teacher, digits.train, half=True, path=path)
    else:
        bank.save(path)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in (whole.index(b'"classes"') + 14, start, (start + len(whole)) // 2, len(whole) - 1):
        path.write_bytes(whole)
        flip(path, position)
        for mapped in (True, False):
            with pytest.raises(InputError, match=r"b\.safetensors is .*damaged.*; build it again"):
                MemoryBank.load(path, mapped=mapped)
    path.write_bytes(whole)
    assert len(MemoryBank.load(path, mapped=True)) == len(load_file(path)["labels"]) == 120


def test_files_without_a_checksum_are_read(few, bank, tmp_path):
    network = distill(few, tmp_path).network
    path = tmp_path / "a" / "student.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    loaded = training.load(tmp_path / "a", device="cpu").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in network.state_dict().items())
    bank.save(tmp_path / "b")
    metadata = {"classes": json.dumps(bank.classes), "source": "{}"}
    save_file({name: tensor.contiguous() for name, tensor in bank.tensors.items()}, tmp_path / "old", metadata)
    for mapped in (True, False):
        old, new = (MemoryBank.load(tmp_path / name, mapped=mapped) for name in ("old", "b"))
        assert all(torch.equal(tensor, new.tensors[name]) for name, tensor in old.tensors.items())


def test_every_type_and_shape_is_written_as_safetensors_does(tmp_path):
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    tensors = {str(kind): (10 * torch.rand(3, 4)).to(kind) for kind in (*kinds, torch.int8, torch.uint8, torch.bool)}
    tensors |= {"one": torch.tensor(3.0), "none": torch.empty(0, 4), "turned": torch.rand(3, 5).T, "é": torch.ones(1)}
    runtime.save_tensors(tmp_path / "a", tensors, {"checksums": "é"})
    runtime.check_tensors(tmp_path / "a")
    found = load_file(tmp_path / "a")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    with pytest.raises(InputError, match=r"which is of type torch\.complex64"):
        runtime.save_tensors(tmp_path / "b", {"a": torch.ones(1, dtype=torch.complex64)})
    assert not (tmp_path / "b").exists()


# -------------------------------------------------------------------------------------------------------- permissions


def test_files_have_the_permissions_that_the_user_chose(few, bank, tmp_path):
    before = os.umask(0o027)
    try:
        distill(few, tmp_path)
        bank.save(tmp_path / "a" / "b.safetensors")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a").iterdir()}
    assert len(modes) == 6 and set(modes.values()) == {0o640}


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(few, tmp_path, monkeypatch):
    path = stopped(few, tmp_path) / "checkpoint.pt"
    errors = (
        PermissionError(13, "Permission denied"),
        MemoryError(),
        OSError(5, "Input/output error"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    )
    for error in errors:

        def fail(*_, error=error, **__):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints.torch, "load", fail)
            with pytest.raises(InputError, match=r"checkpoint\.pt cannot be read \(.+\); keep it") as caught:
                distill(few, tmp_path)
        assert "damaged" not in str(caught.value) and "remove" not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert path.is_file() and len(distill(few, tmp_path).epochs) == 3


def test_weights_and_banks_that_cannot_be_read_are_not_called_damaged(bank, tmp_path, monkeypatch):
    (tmp_path / "w.safetensors").write_bytes(b"")
    bank.save(tmp_path / "b")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(InputError, match=r"w\.safetensors cannot be read: Permission denied"):
        models.load_weights(models.create("resnet8", 10), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="b cannot be read: Permission denied"):
        MemoryBank.load(tmp_path / "b")

"""Locks on run folders: one training at a time, released however a process ends."""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from ickd_lib import runtime, training
from ickd_lib.runtime import InputError, locks
from ickd_lib.training import Recipe, Student


@pytest.fixture
def held(tmp_path):
    """A folder that another process holds, and the number of that process."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with locks.locked(tmp_path / "a"):
            os.write(writing, b"locked")
            time.sleep(60)
            os._exit(0)
    assert os.read(reading, 6) == b"locked"
    yield tmp_path / "a", child
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_second_training_is_refused_and_a_killed_process_releases_its_lock(held, digits):
    folder, child = held
    students = [Student("resnet8", "ce", name="a")]
    options = {"recipe": Recipe(epochs=1, batch_size=60), "runs": folder.parent, "device": "cpu", "progress": False}
    with pytest.raises(InputError, match=rf"a is being trained by process {child} on .* since 20\d\d-") as caught:
        training.distill(students, digits, **options)
    assert "\n" not in str(caught.value)
    assert runtime.owner(folder)["process"] == child
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert runtime.owner(folder) is None and (folder / "training.lock").is_file()
    training.distill(students, digits, **options)
    assert (folder / "summary.json").is_file() and not (folder / "training.lock").exists()
    training.distill(students, digits, **options)  # only read


def test_the_lock_file_that_a_kill_left_in_a_finished_run_is_removed(held, digits):
    """The process was killed when the run was complete, but its lock file was not removed yet."""
    folder, child = held
    options = {"recipe": Recipe(epochs=1, batch_size=60), "runs": folder.parent, "device": "cpu", "progress": False}
    training.distill([Student("resnet8", "ce", name="b")], digits, **options)
    finished = folder.with_name("b")
    shutil.copy(folder / "training.lock", finished)
    training.distill([Student("resnet8", "ce", name="b")], digits, **options)
    assert not (finished / "training.lock").exists()
    locks.remove_leftover(folder)
    assert runtime.owner(folder)["process"] == child  # what another process has locked is left


def test_the_lock_is_released_after_an_error_and_an_empty_folder_is_removed(tmp_path):
    folder = tmp_path / "runs" / "a"
    with pytest.raises(ZeroDivisionError), locks.locked(folder):
        assert runtime.owner(folder) == json.loads((folder / "training.lock").read_text())
        with pytest.raises(InputError, match=f"being trained by process {os.getpid()} on "), locks.locked(folder):
            pass
        raise ZeroDivisionError
    assert not folder.exists()
    with locks.locked(folder):
        (folder / "config.json").touch()
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_asking_for_the_owner_never_stops_a_training(tmp_path):
    """`owner` locks the file for an instant, so that `locked` tries again."""
    path = tmp_path / "training.lock"
    path.touch()
    with open(path) as reading:
        assert locks.lock(reading, shared=True)
        before = time.monotonic()
        with pytest.raises(InputError, match="being trained by another process"), locks.locked(tmp_path):
            pass
        assert time.monotonic() - before >= locks.PATIENCE
    with locks.locked(tmp_path):
        assert runtime.owner(tmp_path)["process"] == os.getpid()


def test_a_forked_process_does_not_keep_the_lock(tmp_path):
    with locks.locked(tmp_path / "a"):
        child = os.fork()
        if not child:
            time.sleep(5)
            os._exit(0)
    try:
        with locks.locked(tmp_path / "a"):
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the child still runs"
            assert runtime.owner(tmp_path / "a")["process"] == os.getpid()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_training_goes_on_where_the_file_system_has_no_locks(tmp_path, monkeypatch, capsys):
    def unsupported(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with locks.locked(tmp_path):
        assert "is not locked against a second training" in capsys.readouterr().err
        assert runtime.owner(tmp_path)["process"] == os.getpid(), "the process exists"
    tmp_path.mkdir()  # the folder was empty, and so it was removed
    path = tmp_path / "training.lock"
    for host, process, trained in (("elsewhere", 1, True), (os.uname().nodename, 2**22 + 1, False)):
        path.write_text(json.dumps({"process": process, "host": host, "since": ""}))
        assert (runtime.owner(tmp_path) is not None) == trained
    path.write_text("{")
    assert runtime.owner(tmp_path) is None


def test_a_system_without_locks_trains(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with locks.locked(tmp_path / "a"), locks.locked(tmp_path / "a"):
        assert not list(Path(tmp_path / "a").iterdir()) and runtime.owner(tmp_path / "a") is None


def test_a_full_disk_is_named_whatever_type_of_error_it_raises(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4096))
    for error in (RuntimeError("PytorchStreamWriter failed"), Exception("No space left on device (os error 28)")):
        with pytest.raises(OSError, match=r"no space left while writing .*a\.pt"), runtime.replacing(tmp_path / "a.pt"):
            raise error
    monkeypatch.undo()
    with pytest.raises(RuntimeError), runtime.replacing(tmp_path / "a.pt"):
        raise RuntimeError("another error")

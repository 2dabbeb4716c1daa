"""Several processes train one model: the same losses as one process, whatever their number, and no lost runs."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import scenes
import several_worker
import torch
import torch.distributed as dist
from PIL import Image

from ickd_lib import methods, models, runtime, tasks, training
from ickd_lib.runtime import InputError, distributed
from ickd_lib.training import data_parallel, students
from ickd_lib.training.records import save_weights

WORKER = str(Path(several_worker.__file__))
STORES = []  # each is kept until the tests end, because processes read it
TRAIN = ["-m", "ickd_lib", "train", "--dataset", "digits", "--labels", "128", "--student", "resnet8", "--method", "ckd"]
TRAIN += ["--teacher", "resnet8", "--batch-size", "32", "--lr", "0.01", "--device", "cpu", "--precision", "fp32"]


def start(world, arguments, session=False, **environment):
    """Start the processes of a training as torchrun does, without its agent, so that each can be killed."""
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)  # that of torchrun's agent
    STORES.append(store)
    tests = os.path.dirname(WORKER)
    given = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([os.path.dirname(tests), tests]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        **environment,
    }
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=given | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=session,
        )
        for rank in range(world)
    ]


def finished(processes):
    """Wait for the processes, and return exit status, output and errors of each."""
    try:
        return [(process.wait(500), *process.communicate()) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def weights(teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_weights(teacher, path)
    return str(path)


def results(case, worlds, folder, *given):
    """Run a case with several numbers of processes, all at the same time, and return the results of each."""
    out = [folder / f"{case}-{world}.json" for world in worlds]
    started = [start(world, [WORKER, case, str(path), *given]) for world, path in zip(worlds, out, strict=True)]
    for processes in started:
        for status, _, errors in finished(processes):
            assert status == 0, errors
    return [json.loads(path.read_text()) for path in out]


@pytest.fixture(scope="module")
def of_each_number(weights, tmp_path_factory):
    """The results of one, two and four processes for every registered method."""
    found = results("classification", (1, 2, 4), tmp_path_factory.mktemp("several"), weights)
    return dict(zip((1, 2, 4), found, strict=True))


@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_give_the_losses_of_one(of_each_number, world):
    one, found = of_each_number[1], of_each_number[world]
    assert one.keys() == found.keys() and len(one) >= 40
    for name, expected in one.items():
        result = found[name]
        assert result["terms"] == expected["terms"] and result["different"] == 1, name
        first, *later = zip(result["losses"], expected["losses"], strict=True)
        assert first[0] == pytest.approx(first[1], rel=2e-4, abs=1e-6), name
        for own, other in later:  # after an update, rounding errors grow
            assert own == pytest.approx(other, rel=1e-2, abs=1e-4), name
        assert result["train"] == pytest.approx(expected["train"], abs=0.03), name
        assert result["test"] == pytest.approx(expected["test"], abs=0.045), name
        assert result["weights"] == pytest.approx(expected["weights"], rel=1e-4), name


def test_regions_and_proposals(tmp_path):
    one, two = results("dense", (1, 2), tmp_path)
    for name, expected in one.items():
        assert two[name]["different"] == 1
        if name.startswith("segmentation"):
            for own, other in zip(two[name]["losses"], expected["losses"], strict=True):
                assert own == pytest.approx(other, rel=1e-3, abs=1e-4), name
            assert two[name]["test"] == pytest.approx(expected["test"], abs=1e-3)
        else:  # a detector draws its proposals at random, so that only the loss of the first step is nearly equal
            assert two[name]["losses"][0] == pytest.approx(expected["losses"][0], rel=0.25)


SLOW = """
import time
from ickd_lib.runtime import distributed

with distributed.processes("cpu"):
    time.sleep(9 * distributed.rank())  # reads its data from a slow disk
    distributed.wait_for_all()
    assert distributed.from_main(lambda: time.sleep(9) or 7) == 7
    assert len(distributed.gather_objects(1)) == 2
    print("started", flush=True)
    time.sleep(9 * distributed.rank())  # does not respond in a training step
    distributed.any_process(False)
"""


def test_a_slow_start_is_waited_for_and_a_process_that_stops_responding_in_a_step_is_not():
    (status, out, errors), _ = finished(start(2, ["-c", SLOW], ICKD_TIMEOUT="6"))
    assert out == "started\n" and status != 0
    assert "another process of this training ended, or did not answer for 6 s or more" in errors


def write_images(folder, train):
    """Write class folders with this number of training images, and four test images, for each of two classes."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", train), ("test", 4)):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(256, (20, 24, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / split / name / f"{i}.jpg")


def test_streamed_images(tmp_path):
    write_images(tmp_path / "images", train=11)  # batches of 8, 8 and 6
    one, two = results("streamed", (1, 2), tmp_path, str(tmp_path / "images"))
    for name, expected in one.items():  # mlkd has a second view, which each process makes for the whole batch
        assert two[name]["different"] == 1
        for own, other in zip(two[name]["losses"], expected["losses"], strict=True):
            assert own == pytest.approx(other, rel=5e-3, abs=1e-4), name


def record(folder):
    """The lines of metrics.jsonl of the student, none before it exists."""
    found = [path for path in folder.glob("*/metrics.jsonl") if path.parent.name != "teachers"]
    return found[0].read_text().splitlines() if found else []


def wait_for(epochs, folder, processes):
    until = time.monotonic() + 200
    while len(record(folder)) < epochs:
        assert time.monotonic() < until and all(process.poll() is None for process in processes), finished(processes)
        time.sleep(0.05)


def test_a_killed_process_ends_the_others_and_any_number_resumes(weights, tmp_path):
    options = ["--teacher-weights", weights, "--runs", str(tmp_path / "a"), "--checkpoint-seconds", "0"]
    command = [*TRAIN, *options, "--epochs", "12"]
    processes = start(2, command)
    wait_for(3, tmp_path / "a", processes)
    processes[1].kill()
    killed = time.monotonic()
    (status, _, errors), _ = finished(processes)
    assert time.monotonic() - killed < 30 and status == 3
    (line,) = [line for line in errors.splitlines() if line.startswith("error:")]
    assert "another process of this training ended" in line and "Traceback" not in errors
    kept = record(tmp_path / "a")
    assert 3 <= len(kept) < 12
    processes = start(4, command)
    wait_for(len(kept) + 1, tmp_path / "a", processes)
    for process in processes:
        process.send_signal(signal.SIGTERM)  # as for a job that is preempted
    done = finished(processes)
    assert {status for status, _, _ in done} == {130} and "the same call or command continues from here" in done[0][2]
    ((status, _, errors),) = finished(start(1, command))
    assert status == 0 and "world size: 2 then, 1 now" in errors
    lines = [json.loads(line) for line in record(tmp_path / "a")]
    assert [line["epoch"] for line in lines] == list(range(1, 13))
    assert [json.loads(line) for line in kept[:-1]] == lines[: len(kept) - 1]


def test_a_signal_to_all_processes_of_a_job_leaves_a_checkpoint(tmp_path):
    """torchrun and Slurm send SIGTERM to the processes that decode images too."""
    write_images(tmp_path / "images", train=30)
    command = ["-m", "ickd_lib", "train", "--dataset", f"folder:{tmp_path / 'images'}", "--stream", "--workers", "1"]
    command += ["--student", "resnet8", "--method", "ce", "--batch-size", "10", "--epochs", "200", "--device", "cpu"]
    command += ["--precision", "fp32", "--image-size", "16", "--crop", "resized", "--runs", str(tmp_path / "runs")]
    (process,) = start(1, command, session=True)
    wait_for(2, tmp_path / "runs", [process])
    os.killpg(process.pid, signal.SIGTERM)
    ((status, _, errors),) = finished([process])
    assert status == 130 and "the same call or command continues from here" in errors
    assert list((tmp_path / "runs").glob("*/checkpoint.pt"))


def test_bad_input_is_one_line(tmp_path):
    command = [*TRAIN, "--teacher-epochs", "1", "--runs", str(tmp_path), "--epochs", "1"]
    done = finished(start(2, [*command, "--batch-size", "31"]))
    assert [status for status, _, _ in done] == [2, 2]
    assert done[0][2].count("\n") == 1 and "not divisible by the 2 processes" in done[0][2] and not done[1][2]


def test_parts_of_a_batch(monkeypatch):
    monkeypatch.setattr(data_parallel, "world", lambda: 4)
    data_parallel.check_parts(100, 5, 20)
    data_parallel.check_parts(50, 1, 64)
    data_parallel.check_parts(101, 5, 20)  # a single image is joined to the batch before it
    with pytest.raises(InputError, match="batch_size=30 is not divisible by the 4 processes; choose a multiple of 4"):
        data_parallel.check_parts(100, 4, 30)
    for images, steps, size in ((103, 6, 20), (7, 1, 64), (8, 2, 4)):
        with pytest.raises(InputError, match=f"last batch of {images} images has .* each of the 4 processes needs 2"):
            data_parallel.check_parts(images, steps, size)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 10])
def test_shares_cover_everything_once(monkeypatch, count):
    monkeypatch.setattr(distributed, "world", lambda: 4)
    found = []
    for rank in range(4):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        found += range(count)[distributed.share(count)]
    assert found == list(range(count)) and max(distributed.shares(count)) - min(distributed.shares(count)) <= 1


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (("1.0", "code", ("a", (0, 0))), "process 1 has another version of torch"),
        ((None, "code 2", ("a", (0, 0))), "process 1 has another source of ickd_lib"),
        ((None, None, ("b", (0, 0))), "process 1 has other settings or data than process 0"),
        ((None, None, ("a", (3, 0))), "process 1 does not find the run folders of process 0"),
    ],
)
def test_processes_must_agree(monkeypatch, other, message):
    def gathered(own):
        return [own, tuple(mine if theirs is None else theirs for mine, theirs in zip(own, other, strict=True))]

    monkeypatch.setattr(data_parallel, "gather_objects", gathered)
    with pytest.raises(InputError, match=message):
        data_parallel.check_equal([("a", (0, 0))])


def test_layers_of_batch_normalisation_can_be_pickled(monkeypatch):
    network = models.create("resnet8", 10)
    assert models.synchronised(network) is network and type(network.bn1) is torch.nn.BatchNorm2d  # with one process
    monkeypatch.setattr(models.batchnorm, "world", lambda: 2)
    assert "forward" in vars(models.synchronised(network).bn1)
    assert vars(pickle.loads(pickle.dumps(network)).bn1)["forward"].args[0] is not network.bn1


def test_maps_of_detectors_are_refused_with_several_processes(monkeypatch):
    splits = scenes.small("detection")
    monkeypatch.setattr(students.runtime, "world", lambda: 2)
    network = models.create("resnet8-fpn", **splits.train.spec)
    with pytest.raises(InputError, match="needs maps, which detection does not have with several processes"):
        students._check(network, methods.create("reviewkd"), splits.train, tasks.create("detection"), network)


def test_one_process_exchanges_nothing():
    assert (runtime.world(), runtime.rank(), runtime.broadcast(3)) == (1, 0, 3)
    assert distributed.gather_objects("x") == ["x"] and distributed.any_process(True, False) == (True, False)
    with runtime.processes("cpu") as device:
        assert device.type == "cpu"
    assert training.Student("resnet8").seed == 0

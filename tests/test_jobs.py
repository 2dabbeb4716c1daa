"""The jobs of a comparison: equal results on every executor, jobs that die, Ctrl-C, and options in one line."""

import functools
import io
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from ickd_lib import __main__ as cli
from ickd_lib import methods, runs, runtime, training
from ickd_lib.data.loader import usual_workers
from ickd_lib.memory import MemoryBank
from ickd_lib.runtime import Diverged, InputError
from ickd_lib.training import Callback, JobsDied, Processes, Recipe, Slurm, processes, slurm
from ickd_lib.training.jobs import Job

RECIPE = Recipe(epochs=2, batch_size=30, lr=0.05, schedule="cosine")
METHODS = ["ce", "ickd(positives=3,negatives=5)"]
TIMES = {"seconds", "images_per_second"}


class Shortest(Executor):
    """Makes each call at once."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Loads:
    """Returns splits when it is called; it can be pickled."""

    def __init__(self, splits):
        self.splits = splits

    def __call__(self):
        return self.splits


class Kills(Callback):
    """Kills the process of a seed in the second epoch, as often as told."""

    def __init__(self, folder, seed, times=1):
        self.folder, self.seed, self.times = folder, seed, times

    def step(self, training):
        if training.data_seed == self.seed and (training.epoch, training.step) >= (1, 2):
            killed = len(list(self.folder.glob(f"killed-{self.seed}-*")))
            if killed < self.times:
                (self.folder / f"killed-{self.seed}-{killed}").touch()
                os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def few(digits):
    return digits._replace(test=digits.test.few(60))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes, as of the tests: results depend on the number


@pytest.fixture(scope="module")
def call(few, teacher):
    options = {"seeds": 2, "recipe": RECIPE, "device": "cpu", "precision": "fp32", "progress": False}
    return functools.partial(training.compare, METHODS, few, teacher=teacher, **options)


@pytest.fixture(scope="module")
def expected(call):
    return results(call())


def results(found):
    """Everything of a comparison that does not depend on time."""
    return {
        method: [
            (
                [{k: v for k, v in record.items() if k not in TIMES} for record in history.epochs],
                {k: v for k, v in history.summary.items() if k not in TIMES},
                runtime.fingerprint(history.network.state_dict()),
                history.position,
            )
            for history in histories
        ]
        for method, histories in found.items()
    }


def test_the_shortest_executor_and_several_jobs_for_a_seed(call, expected, few):
    assert results(call(executor=Shortest())) == expected
    found = training.compare(METHODS, Loads(few), executor=Shortest(), methods_per_job=1, **call.keywords)
    for position, histories in enumerate(found.values()):
        for history in histories:
            history.summary["trained_together"], history.position = 2, position
    assert results(found) == expected


def test_jobs_map_the_file_of_a_mapped_bank(call, teacher, few, tmp_path):
    MemoryBank.build(teacher, few.train, precision="fp32").save(tmp_path / "bank")
    options = call.keywords | {"bank": MemoryBank.load(tmp_path / "bank", mapped=True), "seeds": 1}
    alone = training.compare(METHODS, few, **options)
    with Processes(1) as executor:
        assert results(training.compare(METHODS, few, executor=executor, **options)) == results(alone)


def test_executors_in_which_trainings_fail_or_hang_are_refused(call, monkeypatch):
    with ThreadPoolExecutor(1) as threads, pytest.raises(InputError, match="threads of one process share random"):
        call(executor=threads)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, context) as pool, pytest.raises(InputError, match="a process pool that forks"):
        call(executor=pool)


def test_a_killed_job_continues_from_its_checkpoint_and_one_that_keeps_dying_is_named(call, expected, tmp_path, capfd):
    """The results are those of one process, bit for bit."""
    kills = [Kills(tmp_path, seed=0, times=1), Kills(tmp_path, seed=1, times=5)]
    options = {"callbacks": kills, "checkpoint_seconds": 0, "runs": tmp_path / "runs", "progress": True}
    with Processes(2) as executor, pytest.raises(JobsDied) as caught:
        call(executor=executor, retries=1, **options)
    assert results(caught.value.histories) == {method: alike[:1] for method, alike in expected.items()}
    assert str(caught.value).startswith("seed 1 died 2 times (Died: killed by SIGKILL), see ")
    assert "\n" not in str(caught.value) and isinstance(caught.value, Diverged)
    err = capfd.readouterr().err
    assert err.count("is run again (Died: killed by SIGKILL)") == 2
    assert "seed 0: done after " in err and "seed 1: failed after " in err and "1 of 2 jobs done in " in err
    (folder,) = (tmp_path / "runs" / "jobs").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["seed0.log", "seed1.log"], "the inputs were removed"
    log = (folder / "seed0.log").read_text()
    assert log.startswith("seed 0, started 20") and log.count("seed 0, started") == 2
    assert log.count("epoch 1/2: ") == log.count("epoch 2/2: ") == 2, "the first epoch was trained once"
    rows, _ = runs.progress(tmp_path / "runs")
    assert sorted(row["state"] for row in rows) == ["done", "done", "stopped", "stopped"]
    assert len(runs.finished([tmp_path / "runs"])) == 2, "a report leaves out what is not finished"


def test_a_process_pool_that_breaks_is_replaced(call, expected, tmp_path, capfd):
    options = {"callbacks": [Kills(tmp_path, seed=1)], "checkpoint_seconds": 0, "runs": tmp_path / "runs"}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        assert results(call(executor=executor, seeds=[1], **options)) == {m: e[1:] for m, e in expected.items()}
    assert "the process pool is broken" in capfd.readouterr().err


def test_submitit_runs_the_jobs(call, expected, tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed (extra slurm)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the jobs import this file, and this library
    options = {"callbacks": [Kills(tmp_path, seed=1)], "checkpoint_seconds": 0, "runs": tmp_path / "runs"}
    with Slurm(tmp_path / "slurm", "cluster=local,time=10") as executor:
        assert results(call(executor=executor, seeds=[1], **options)) == {m: e[1:] for m, e in expected.items()}
    assert not list((tmp_path / "slurm").glob("*.pkl"))


def test_diverging_students_and_wrong_inputs_come_back_from_the_jobs(call, few, tmp_path):
    kept = call(seeds=1, runs=tmp_path)
    with pytest.raises(Diverged, match="became nan at epoch 1, step 2") as caught:
        training.compare(["ce", "kd(kd=1e30)"], few, executor=Shortest(), **call.keywords)
    assert [len(histories) for histories in caught.value.histories.values()] == [2, 0] and type(
        caught.value
    ) is Diverged
    with pytest.raises(InputError, match="already contains a run"):
        call(executor=Shortest(), runs=tmp_path, resume=False)
    again = call(executor=Shortest(), runs=tmp_path, seeds=1)
    assert results(again) == results(kept)
    with pytest.raises(InputError, match="the inputs of the jobs cannot be pickled"):
        call(executor=Shortest(), callbacks=[type("Local", (Callback,), {})()])
    with pytest.raises(InputError, match="retries=-1: expected a whole number of 0 or more"):
        call(retries=-1)


def test_a_job_that_is_told_to_stop_trains_nothing(tmp_path):
    (tmp_path / "stop").touch()
    job = Job("seed 0", tmp_path, (), 0, caller="another process")
    outcome = torch.load(io.BytesIO(job()), weights_only=False)
    assert outcome.stopped and not outcome.histories


COMPARE = "compare --methods ce kd --teacher resnet8 --teacher-epochs 1 --labels 60 --batch-size 30 --device cpu"


def test_the_command_line_trains_in_processes_and_ctrl_c_stops_them(tmp_path):
    line = [sys.executable, "-m", "ickd_lib", *COMPARE.split(), *"--seeds 2 --jobs 2 --epochs 3".split()]
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    open_ = functools.partial(subprocess.Popen, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    child = open_([*line, "--epochs", "100000"], stdout=subprocess.PIPE)
    until = time.monotonic() + 120
    while len(list((tmp_path / "runs").glob("*/metrics.jsonl"))) < 4 and time.monotonic() < until:
        time.sleep(0.2)
    rows, _ = runs.progress(tmp_path / "runs")
    assert [row["state"] for row in rows if row["role"] == "student"] == ["running"] * 4
    assert {row["process"] for row in rows if row["role"] == "student"} & {child.pid} == set()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and err.splitlines()[-1] == "stopped; the same call or command continues from here"
    assert len(list((tmp_path / "runs").glob("*/checkpoint.pt"))) == 4
    rows, left_out = runs.progress(tmp_path / "runs")
    assert [row["state"] for row in rows if row["role"] == "student"] == ["stopped"] * 4 and not left_out


@pytest.fixture
def parametrized(own_methods):
    """A method that cannot be pickled, because of its parametrization and because its class is local."""

    @methods.register("parametrized")
    class Parametrized(methods.Method):
        needs = frozenset({"teacher", "features"})

        def setup(self, student_dim, teacher_dim, num_classes, rows):
            self.project = nn.utils.parametrizations.orthogonal(nn.Linear(student_dim, teacher_dim, bias=False))

        def forward(self, context):
            found = self.project(context.student.features)
            return {"ce": context.supervised, "mse": nn.functional.mse_loss(found, context.teacher.features)}

    return "parametrized"


def test_a_method_that_cannot_be_pickled_comes_back_from_a_job(parametrized, call, few, tmp_path):
    methods_ = [*METHODS, parametrized]
    alone = training.compare(methods_, few, **call.keywords, runs=tmp_path / "one")
    for folder in (None, tmp_path / "two"):
        found = training.compare(methods_, few, executor=Shortest(), **call.keywords, runs=folder)
        assert results(found) == results(alone)
        for method, histories in found.items():
            for history, other in zip(histories, alone[method], strict=True):
                assert history.folder == (folder and folder / history.summary["name"])
                assert (history.network.classes, history.network.training) == (other.network.classes, False)
                assert history.network.trained_on == other.network.trained_on
                kept, expected = (runtime.fingerprint(one.method.state_dict()) for one in (history, other))
                assert kept == expected


def test_the_log_of_a_failed_job_has_the_traceback(tmp_path, capfd):
    for error in (ValueError("mine"), InputError("mine"), OSError("mine")):
        job = Job(type(error).__name__, tmp_path, (), 0, caller="another process")
        with pytest.MonkeyPatch.context() as patch, capfd.disabled():
            patch.setattr(Job, "_train", lambda self, error=error: (_ for _ in ()).throw(error))
            outcome = torch.load(io.BytesIO(job()), weights_only=False)
        assert outcome.died or outcome.wrong
        assert "Traceback (most recent call last)" in job.log.read_text() and "mine" in job.log.read_text()


def test_a_method_of_ones_own_is_known_in_the_jobs(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from ickd_lib import methods\n\n\n@methods.register('mine')\nclass Mine(methods.Method):\n"
        "    def forward(self, context):\n        return {'ce': 2.0 * context.supervised}\n"
    )
    call = "import sys, mine; from ickd_lib.__main__ import main; sys.exit(main())"
    line = "compare --methods ce mine --labels 60 --epochs 1 --batch-size 30 --device cpu --seeds 2 --jobs 2".split()
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", call, *line], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "| mine | 2 |" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--jobs 0", "argument --jobs: expected a whole number of 1 or more"),
        ("--jobs 2 --slurm gpus=1", "--jobs and --slurm exclude each other"),
        ("--slurm partion=gpu", "unknown key of --slurm 'partion'; did you mean 'partition'?"),
        ("--slurm gpus", "--slurm gpus has no value; write it like partition=gpu,"),
        ("--slurm gpus=one", "--slurm gpus=one is not a whole number"),
        ("--slurm time=soon", "--slurm time=soon is no time"),
        ("--slurm time=0", "--slurm time=0 must be above 0"),
        ("--retries -1", "argument --retries: expected a whole number of 0 or more"),
        ("--methods-per-job -1", "argument --methods-per-job: expected"),
    ],
)
def test_mistakes_are_one_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(f"compare --methods ce --labels 60 {options}".split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_slurm_and_submitit_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"submitit is not installed; run pip install submitit"):
        Slurm(tmp_path, "gpus=1")
    monkeypatch.undo()
    pytest.importorskip("submitit", reason="submitit is not installed (extra slurm)")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="the command sbatch of Slurm is not found"):
        Slurm(tmp_path, "gpus=1")
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(InputError, match="--slurm gpus=1 has no time limit; add time="):
        Slurm(tmp_path, "gpus=1")
    executor = Slurm(tmp_path, "gpus=1,partition=long,time=2-0:30,mem=32G")._executor
    text = executor._executor._make_submission_file_text("command", "1")
    for line in ("gpus-per-node=1", "partition=long", "time=2910", "mem=32G", "job-name=ickd"):
        assert f"#SBATCH --{line}\n" in text


def test_time_limits_are_read_as_slurm_reads_them():
    times = {"90": 90, "90:30": 91, "1:30:00": 90, "2-0": 2880, "2-12:30": 3630, "2-0:0:1": 2881}
    assert {text: slurm._minutes(text) for text in times} == times


def test_each_process_has_a_gpu_by_its_number(monkeypatch):
    chosen = []
    monkeypatch.setattr(os, "setpgid", lambda *_: None)
    monkeypatch.setattr(runtime, "dealt_threads", lambda count, sharing: None)
    for name, value in (("is_available", lambda: True), ("device_count", lambda: 2), ("set_device", chosen.append)):
        monkeypatch.setattr(torch.cuda, name, value)
    for number in range(3):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        processes._child(sender, number, 1, 3, pickle.dumps((len, [(1, 2)], {})))
        assert pickle.loads(receiver.recv_bytes()) == (True, 2)
    assert chosen == [0, 1, 0]


def test_the_cores_are_divided_among_the_processes(monkeypatch):
    monkeypatch.setattr(runtime, "free_threads", lambda: 8)
    assert [Processes(jobs).threads for jobs in (1, 3, 16)] == [8, 2, 1]
    monkeypatch.undo()
    with Processes(1, threads=3) as executor:
        assert executor.submit(runtime.free_threads).result() == 3
        everything = executor.submit(runtime.own_cores).result()
    with Processes(2) as executor:
        assert executor.submit(runtime.own_cores).result() == max(1, everything // 2)
        assert executor.submit(usual_workers).result() == max(1, everything // 2 - 1)
        with pytest.raises(AttributeError):
            executor.submit(lambda: None).result()

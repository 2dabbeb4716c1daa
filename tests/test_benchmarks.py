"""Tests of the benchmark scripts, at a small scale."""

import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.autograd import DeviceType

from ickd_lib import data, methods, models, runtime, training
from ickd_lib.memory import MemoryBank
from ickd_lib.runs import finished, table
from ickd_lib.training import Recipe, Student

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import accuracy
import attribution
import attribution_roles
import cifar100
import contention
import imagenet
import imagenet_cost
import loading
import loops
import machine
import retrieval
import retrieval_large
import shipping
import speed
import tables
import teachers
import unlabelled

RECIPE = Recipe(epochs=2, batch_size=16, schedule="cosine")


@pytest.fixture(scope="module")
def splits():
    return loops.random_splits(100, 16, classes=10)


def test_the_usual_loop_has_the_initial_student_and_the_images_of_distill(splits):
    teacher, _ = loops.untrained("resnet8", splits, torch.device("cpu"))
    loop = loops.UsualLoop(teacher, "resnet8", splits.train, torch.device("cpu"), RECIPE, seed=3)
    with runtime.seeded(3, "network"):
        initial = models.create("resnet8", **splits.train.spec)
    assert all(torch.equal(a, b) for a, b in zip(initial.parameters(), loop.student.parameters(), strict=True))
    pixels, labels = next(iter(loop.loader))
    target = loop.teacher(pixels).logits
    # An image whose centre was neither cropped nor mirrored equals the network's own normalisation of the original.
    plain = (splits.train.pixels() - teacher.mean) / teacher.std
    pairs = (plain[:, None, :, 8:24, 8:24] == pixels[None, :, :, 8:24, 8:24]).flatten(2).all(2).nonzero()
    for original, transformed in pairs.tolist():
        assert splits.train.labels[original] == labels[transformed]
    loop.epoch()
    assert loop.done == len(loop.loader) == data.Sampler(splits.train).steps(16)
    assert target.shape == (16, 10)
    assert not any(torch.equal(a, b) for a, b in zip(initial.parameters(), loop.student.parameters(), strict=True))


def test_the_usual_loop_has_a_worker_for_each_core_up_to_twelve(splits):
    assert loops.WORKERS == min(12, loops.CORES)
    teacher, _ = loops.untrained("resnet8", splits, torch.device("cpu"))
    loop = loops.UsualLoop(teacher, "resnet8", splits.train, torch.device("cpu"), RECIPE)
    assert loop.loader.num_workers == loops.WORKERS


def test_a_step_is_timed_with_and_without_a_teacher_cache(splits, tmp_path):
    teacher, bank = loops.untrained("resnet8", splits, torch.device("cpu"))
    given = {"teacher": teacher, "bank": bank, "device": "cpu", "recipe": RECIPE}
    few = [Student("resnet8", "kd"), Student("resnet8", "ickd(positives=2, negatives=4)")]
    assert loops.step_seconds(few, splits, **given) > 0
    assert loops.step_seconds(few[:1], splits, teacher_cache=tmp_path, **given) > 0


def test_the_floor_counts_operations_and_bytes():
    network = models.create("resnet8", 10)
    convolution = sum(
        m.weight.numel() * side * side
        for m, side in zip((network.conv1, network.layer1[0].conv1, network.layer1[0].conv2), (32, 32, 32), strict=True)
    )
    forward, moved = machine.work(network, (32, 32), training=False, bytes_each=4)
    both, back = machine.work(network, (32, 32), training=True, bytes_each=4)
    assert forward > 2 * convolution and 2.5 * forward < both < 3 * forward  # the images need no gradient
    assert back == 3 * moved > 0
    slow = {"operations_per_second": 1e9, "bytes_per_second": 1e3}
    assert machine.floor(network, None, (32, 32), slow, "fp32") == pytest.approx(back / 1e3)
    fast = {"operations_per_second": 1e9, "bytes_per_second": 1e15}
    assert machine.floor(network, network, (32, 32), fast, "fp32") == pytest.approx((both + forward) / 1e9)


def test_a_profile_counts_the_time_of_each_gpu_kernel_once(monkeypatch):
    """A profile of a GPU also has the operators that launched the kernels, and annotations around them."""

    def event(key, device, microseconds, annotation=False):
        return SimpleNamespace(
            key=key,
            device_type=device,
            is_user_annotation=annotation,
            self_device_time_total=microseconds,
            self_cpu_time_total=1000.0,
        )

    events = [
        event("aten::cudnn_convolution", DeviceType.CPU, 60.0),
        event("sm90_xmma_fprop_implicit_gemm_bf16", DeviceType.CUDA, 60.0),
        event("cudnn::bn_fw_tr_1C11_kernel_NCHW", DeviceType.CUDA, 30.0),
        event("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add>", DeviceType.CUDA, 10.0),
        event("Optimizer.step#SGD.step", DeviceType.CUDA, 100.0, annotation=True),
    ]

    class Profile:
        def __init__(self, activities):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def key_averages(self):
            return events

    monkeypatch.setattr(machine, "profile", Profile)
    shares = machine.shares(lambda: None, torch.device("cuda"))
    assert shares == {"convolution": 0.6, "batch normalisation": 0.3, "activations and additions": 0.1}
    assert machine.shares(lambda: None, torch.device("cpu"))["convolution"] == 0.4


def test_gpu_times_begin_and_end_with_a_synchronised_device(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("synchronise"))
    assert machine.seconds(lambda: calls.append("work"), torch.device("cuda")) > 0
    assert calls == ["synchronise", "work", "synchronise"]
    machine.fastest(lambda: calls.append("work"), torch.device("cpu"), rounds=2)
    assert calls[3:] == ["work", "work"]


def test_retrieval_is_timed_on_the_device_that_is_given(monkeypatch):
    monkeypatch.setattr(retrieval.importlib.util, "find_spec", lambda name: None)
    result = retrieval.measure(rows=3000, features=16, rounds=2, device="cpu")
    assert result["device"] == "cpu" and list(result["seconds_of"]) == ["ickd_lib"]
    assert len(result["seconds_of"]["ickd_lib"]) == 2 and min(result["seconds_of"]["ickd_lib"]) > 0
    with pytest.raises(runtime.InputError, match="unknown device"):
        retrieval.measure(rows=3000, features=16, device="abacus")


def test_retrieval_is_compared_with_faiss_if_it_is_installed():
    pytest.importorskip("faiss", reason="pip install faiss-cpu for the comparison with faiss")
    result = retrieval.measure(rows=3000, features=16)
    assert set(result["seconds_of"]) == {"ickd_lib", "faiss, same constraints", "faiss, no constraints"}
    assert min(result["agreement_with_faiss"]) > 0.999  # faiss orders near ties by its own rounding


def test_a_large_bank_is_searched_in_its_file(monkeypatch, tmp_path):
    pytest.importorskip("faiss", reason="needs faiss-cpu (the extra faiss)")
    monkeypatch.setattr(retrieval_large, "CLASSES", 12)
    found = retrieval_large.measure(3000, 16, queries=200, folder=str(tmp_path))
    assert found["queries"] == 200 and not list(tmp_path.iterdir())
    assert found["recall@128_of_faiss"] > 0.9 and found["share_of_equal_positives"] == 1
    assert set(found["gigabytes_resident"]) == {"writing", "loading, class means", "index of faiss", "exact", "faiss"}
    retrieval_large.write_bank(tmp_path / "half", 1000, 16, 12)
    single = MemoryBank.load(tmp_path / "half")
    MemoryBank(single.features.float(), single.logits, single.labels, single.index, single.classes).save(tmp_path / "b")
    lost = retrieval_large.losses(tmp_path / "b", queries=50)
    assert lost["half: recall@128 of negatives"] > 0.9 and lost["half: largest change of a cosine"] < 1e-3
    estimate = found["estimate_for_a_gpu"]
    assert estimate["operations"] == "2 · 3,000² · 16 = 2.88e+08" and "not measured" in estimate["note"]


def test_contention_measures_each_case_in_its_own_process(monkeypatch):
    """The process of a case starts with the threads and the wait policy in its environment."""
    environments, run = [], contention.subprocess.run

    def spied(call, **options):
        environments.append(options["env"])
        return run(call, **options)

    monkeypatch.setattr(contention.subprocess, "run", spied)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    (case,) = contention.measure(threads=[1], busy=[1], policies=["active"], seconds=0.1)
    assert case["images_per_second"] > 0 and case["busy_before"] >= 0
    assert {key: case[key] for key in ("threads", "wait_policy", "busy_cores")} == {
        "threads": 1,
        "wait_policy": "active",
        "busy_cores": 1,
    }
    (environment,) = environments
    assert environment["OMP_NUM_THREADS"] == "1" and environment["OMP_WAIT_POLICY"] == "active"
    header, line = contention.table([case]).splitlines()
    assert header.startswith("threads  wait policy") and line.split()[:3] == ["1", "active", "1"]


def test_busy_processes_end_with_their_context(monkeypatch):
    started, start = [], contention.subprocess.Popen

    def spied(*given, **options):
        started.append(start(*given, **options))
        return started[-1]

    monkeypatch.setattr(contention.subprocess, "Popen", spied)
    with pytest.raises(ZeroDivisionError), contention.busy_processes(2):
        assert [process.poll() for process in started] == [None, None]
        raise ZeroDivisionError
    assert None not in [process.poll() for process in started]


@pytest.mark.parametrize("plan", cifar100.PLANS)
@pytest.mark.parametrize("stage", ["table", "tune"])
def test_every_run_of_the_table_can_be_made(plan, stage):
    for teacher, student, _ in cifar100.PLANS[plan].pairs:
        assert {teacher, student} <= set(models.names())
        for method in cifar100.of_stage(stage, cifar100.PLANS[plan], (teacher, student)):
            assert methods.create(method)


def test_a_method_that_cannot_be_captured_is_trained_in_a_pass_of_its_own():
    every = ["kd", "ickd(query='view')", "ickd", "ckd"]
    assert cifar100.passes(every, 2) == [["kd", "ickd"], ["ckd"], ["ickd(query='view')"]]


@pytest.fixture
def tiny(monkeypatch, cifar_root, tmp_path):
    """A function that runs the script with further arguments and returns its exit status.

    The plan has one epoch on a few of the real images.
    """
    brief = Recipe(epochs=1, batch_size=50, lr=0.01, schedule="cosine")
    plan = cifar100.Plan(
        pairs=(("resnet8", "resnet8", 2),),
        **dict.fromkeys(("teacher", "student", "tuner", "short"), brief),
        labels=100,
        others=("ce", "kd"),
    )
    whole = cifar100.data.load

    def few(*given, **options):
        return whole(*given, **options | {"labels": 100, "classes": ["fish"]})

    def call(*further):
        argv = ["cifar100.py", "--data-root", str(cifar_root), "--plan", "tiny", "--device", "cpu", "--together", "2"]
        monkeypatch.setattr(sys, "argv", [*argv, "--runs", str(tmp_path / "runs"), *further])
        return cifar100.main()

    monkeypatch.setitem(cifar100.PLANS, "tiny", plan)
    monkeypatch.setattr(cifar100.data, "load", few)
    return call


def test_the_table_trains_its_teacher_and_students_once(tiny, monkeypatch, tmp_path, capsys):
    """A second call trains nothing, even when only the JSON files are left."""
    assert tiny() == 0
    out = tmp_path / "runs/tiny/json"
    # ce, kd, ickd with retrieved and with random samples, dkd+kd and dkd+ickd, with two seeds each
    assert len(list((out / "table").iterdir())) == 2 * 6
    (teacher,) = (out / "teachers").iterdir()
    assert runtime.read_json(teacher)["summary"]["accuracy"] > 0
    assert capsys.readouterr().out.count(" seed 1: ") == 6
    (tmp_path / "runs/teachers").rename(tmp_path / "lost")
    monkeypatch.setattr(cifar100.training.distillation, "Stepper", None)  # any training fails from here on
    assert tiny() == 0
    assert capsys.readouterr().out == ""
    text = table(finished([out / "table"]), baseline="kd")
    assert text.count("| 2 |") == 6 and text.count(" to +") + text.count(" to -") == 5


def test_tuning_shows_the_accuracy_on_held_out_images(tiny, tmp_path):
    assert tiny("--stage", "tune", "--methods", "kd", "--seeds", "0", "--out", str(tmp_path / "out")) == 0
    assert "on images held out of train" in table(finished([tmp_path / "out/tune"]))


def test_a_student_that_diverges_is_named_and_the_others_are_trained_to_the_end_in_one_pass(
    tiny, monkeypatch, tmp_path, capsys
):
    passes, distill = [], cifar100.training.distill

    def spied(students, *given, **options):
        passes.append([student.method for student in students])
        return distill(students, *given, **options)

    monkeypatch.setattr(cifar100.training, "distill", spied)
    assert tiny("--methods", "kd(kd=1e30)", "ce", "--seeds", "0") == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("ce seed 0: ") and printed.err.count("resnet8-kd-kd=1e+30") >= 1
    assert [one["method"] for one in finished([tmp_path / "runs/tiny/json/table"])] == ["ce"]
    assert passes == [["kd(kd=1e+30)", "ce"]]


def test_students_that_are_finished_when_a_stop_comes_are_written(tiny, monkeypatch, tmp_path):
    assert tiny("--methods", "ce", "--seeds", "0") == 0  # trains the teacher too
    record = cifar100.training.records.RunRecord
    finish = record.finish

    def interrupted(*given):
        signal.raise_signal(signal.SIGINT)
        finish(*given)

    monkeypatch.setattr(record, "finish", interrupted)
    assert tiny("--methods", "kd", "--seeds", "0") == tables.UNFINISHED
    assert {one["method"] for one in finished([tmp_path / "runs/tiny/json/table"])} == {"ce", "kd"}


def test_a_call_whose_minutes_are_over_exits_with_75_and_the_next_one_resumes(tiny, tmp_path, capsys):
    assert tiny("--methods", "ce", "--seeds", "0", "--minutes", "0.0001") == tables.UNFINISHED
    assert "the same call or command continues from here" in capsys.readouterr().err
    assert tiny("--methods", "ce", "--seeds", "0") == 0
    assert [one["method"] for one in finished([tmp_path / "runs/tiny/json/table"])] == ["ce"]


def test_accuracy_compares_the_loops_and_trains_nothing_twice(cifar_root, monkeypatch, tmp_path):
    load = data.load

    def few(*given, **options):
        return load(*given, **options | {"labels": 100, "classes": ["fish"]})

    monkeypatch.setattr(accuracy.data, "load", few)
    options = {"images": 50, "epochs": 1, "seeds": 1, "pair": ("resnet8", "resnet8"), "device": "cpu"}
    first = accuracy.measure(str(cifar_root), folder=str(tmp_path), **options)
    assert set(first["seeds"]) == {"usual", "ickd_lib", "ickd_lib, teacher cache"}
    assert all(0 <= values[0] <= 1 for values in first["seeds"].values())
    monkeypatch.setattr(accuracy, "UsualLoop", None)  # any training fails from here on
    monkeypatch.setattr(accuracy.training.distillation, "Stepper", None)
    assert accuracy.measure(str(cifar_root), folder=str(tmp_path), **options) == first


def test_speed_measures_each_part_once_and_continues_after_an_interruption(monkeypatch, tmp_path):
    calls = []
    rates = {"operations_per_second": 1e9, "bytes_per_second": 1e9}

    def interrupted_once():
        calls.append("start")
        if len(calls) == 1:
            raise KeyboardInterrupt
        return {"seconds": 1}

    monkeypatch.setattr(speed, "random_splits", partial(loops.random_splits, classes=10))
    monkeypatch.setattr(speed, "PAIRS", (("resnet8", "resnet8"),))
    monkeypatch.setattr(speed.machine, "rates", lambda *_: rates)
    monkeypatch.setattr(speed.retrieval, "measure", lambda **_: {})
    monkeypatch.setattr(speed.start, "measure", interrupted_once)
    out = tmp_path / "speed.json"
    call = ["speed.py", "--rounds", "1", "--steps", "3", "--together", "2", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", call)
    with pytest.raises(KeyboardInterrupt):
        speed.main()
    first = runtime.read_json(out)["resnet8→resnet8"]
    assert all(seconds[0] > 0 for seconds in first["seconds_per_step"].values())
    assert {"kd", "ickd", "three in one pass", "kd, full cache", "many, full cache"} < set(first["seconds_per_step"])
    assert first["usual_loop_workers"] == loops.WORKERS
    assert first["2_students_times_one"] > 0
    monkeypatch.setattr(speed, "measure_pair", None)
    speed.main()
    again = runtime.read_json(out)
    assert list(again)[-1] == "profile of resnet8→resnet8" and 0.99 < sum(again[list(again)[-1]]["kd"].values()) < 1.01
    assert again["resnet8→resnet8"] == first and len(calls) == 2
    speed.main()
    assert len(calls) == 2


def test_the_table_of_imagenet_trains_each_method_as_published():
    given = SimpleNamespace(
        pairs=list(imagenet.PAIRS),
        methods=list(imagenet.METHODS),
        seeds=[0, 1],
        together=2,
        epochs=0,
        batch_size=0,
        teacher_weights="pretrained",
    )
    planned = list(imagenet.planned(given))
    assert [one.seed for one in planned] == sorted(one.seed for one in planned)
    assert {(one.teacher, one.student) for one in planned} == {
        ("torchvision/resnet34(pretrained='IMAGENET1K_V1')", "torchvision/resnet18"),
        ("torchvision/resnet50(pretrained='IMAGENET1K_V1')", "MobileNetV1"),
    }
    assert sum(len(one.methods) for one in planned) == 2 * 2 * len(imagenet.METHODS)
    assert max(len(one.methods) for one in planned) == 2
    for one in planned:
        for method in one.methods:
            found = training.published(method, one.teacher, one.student, "imagenet")
            assert (found.recipe, found.augment) == (one.recipe, one.augment)
    given.batch_size, given.epochs, given.teacher_weights = 1024, 2, "none"
    for one in imagenet.planned(given):
        assert one.recipe.lr == pytest.approx(0.4) and one.recipe.epochs == 2 and "(" not in one.teacher


def test_of_several_processes_the_first_one_has_the_exit_status(monkeypatch, capsys):
    """torchrun ends all processes when one fails, and the first one may still write a checkpoint."""

    def interrupted():
        raise KeyboardInterrupt

    for rank, status in (("0", tables.UNFINISHED), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert tables.limited(interrupted, 0) == status
        assert tables.limited(lambda: ["a diverged"], 0) == bool(status)
        assert tables.limited(list, 0) == 0
        assert capsys.readouterr().err.count("\n") == (2 if status else 0)


@pytest.fixture
def photographs(tmp_path):
    """A folder of JPEG files with the names of ImageNet's."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    pixels = torch.randint(256, (24, 24, 36, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    for i in range(24):
        Image.fromarray(pixels[i]).save(folder / f"n{i:08}_thing.JPEG")
    return folder


def test_a_sample_has_the_layout_of_imagenet(photographs, tmp_path):
    assert (
        imagenet.sample(photographs, tmp_path / "set", classes=2, held_out=4, repeats=3) == f"imagenet:{tmp_path}/set"
    )
    train, val = (sorted((tmp_path / "set" / split).glob("*/*.JPEG")) for split in ("train", "val"))
    assert (len(train), len(val)) == (2 * 8 * 3, 2 * 4)
    assert {path.parent.name for path in (*train, *val)} == {"n00000000", "n00000012"}
    assert not {path.resolve() for path in train} & {path.resolve() for path in val}
    imagenet.sample(photographs, tmp_path / "set", classes=2, held_out=4, repeats=3)  # again, over what exists
    with pytest.raises(runtime.InputError, match=r"contains 24 .JPEG files; expected 60 or more"):
        imagenet.sample(photographs, tmp_path / "other")


def test_the_table_of_imagenet_is_trained_once_and_printed(photographs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(imagenet, "sample", partial(imagenet.sample, classes=2, held_out=4, repeats=2))
    call = ["imagenet.py", "--sample", str(photographs), "--teacher-weights", "none", "--image-size", "32"]
    call += ["--epochs", "1", "--batch-size", "16", "--pairs", "mobilenet", "--methods", "kd", "ce", "--device", "cpu"]
    call += ["--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", [*call, "--minutes", "0.00001"])
    assert imagenet.main() == tables.UNFINISHED
    assert "the same call or command continues from here" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", call)
    assert imagenet.main() == 0
    printed = capsys.readouterr().out
    assert printed.count(" seed 0: ") == 2 and "32 training images: torchvision/resnet50 → MobileNetV1" in printed
    assert len(list((tmp_path / "runs/json/table").iterdir())) == 2
    monkeypatch.setattr(imagenet.training, "distill", None)  # any training fails from here on
    assert imagenet.main() == 0
    monkeypatch.setattr(sys, "argv", ["imagenet.py", "--report", "--runs", str(tmp_path / "runs")])
    assert imagenet.main() == 0
    table = "| `ce` | 1 | 16 | 1 |"
    assert capsys.readouterr().out.count(table) == 2
    monkeypatch.setattr(sys, "argv", ["imagenet.py", "--data", "imagenett:none", "--runs", str(tmp_path / "other")])
    assert imagenet.main() == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_backward_pass_is_counted_as_twice_the_forward_pass():
    """FlopCounterMode agrees for a network without depthwise convolutions."""
    network = models.create("torchvision/resnet18", 1000)
    forward, _ = machine.work(network, imagenet_cost.SIZE, training=False, bytes_each=2)
    both, _ = machine.work(network, imagenet_cost.SIZE, training=True, bytes_each=2)
    assert imagenet_cost.backward(network) == pytest.approx(both - forward, rel=1e-3)


def test_the_memory_of_a_pass_is_that_of_what_it_keeps(monkeypatch):
    class Two(models.Network):
        def __init__(self):
            super().__init__(5, 4)
            self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
            self.head = torch.nn.Linear(4, 5)

        def forward_normalised(self, x):
            x = self.conv(x).relu()
            features = x.mean((2, 3))
            return models.Output(self.head(features), features)

    monkeypatch.setattr(imagenet_cost, "SIZE", (16, 16))
    images, maps, features = 3 * 16 * 16, 4 * 16 * 16, 4  # in bf16: of the convolution, the ReLU and the linear layer
    assert imagenet_cost.saved_bytes(Two()) == 2 * (images + maps + features)


def test_loading_compares_both_loops_on_the_same_files(tmp_path, monkeypatch):
    sources = []
    for i in range(4):
        sources.append(tmp_path / f"{i}.JPEG")
        Image.new("RGB", (40 + i, 30), (40 * i, 0, 0)).save(sources[-1])
    monkeypatch.setenv("ICKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "BATCH", 4)
    found = loading.speed(sources, 24, rounds=1, workers=1)
    assert (
        set(found["images_per_second"]) == set(found["processor_milliseconds_per_image"]) == {"reference", "ickd_lib"}
    )
    assert all(values[0] > 0 for values in found["images_per_second"].values()) and found["ratio"] > 0
    loading.link(sources, tmp_path / "linked", 24)
    (first, second) = (next(loop(tmp_path / "linked", 0)) for loop in (loading.reference, loading.streamed))
    assert first.shape == second.shape == (4, 3, 224, 224) and first.dtype == second.dtype == torch.float32


def test_contributions_are_checked_by_retraining_and_go_on_where_they_stopped(tmp_path, capsys):
    words = ["--images", "160", "--epochs", "2", "--keep", "1", "--teacher", "resnet8", "--teacher-epochs", "1"]
    words += ["--queries", "5", "--subsets", "3", "--k", "2", "--selections", "contributions", "nearest"]
    words += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "found.json")]
    attribution.measure(attribution.parsed([*words, "--removed", "1"]))
    found = runtime.read_json(tmp_path / "found.json")
    assert list(found["removals"]) == ["contributions/0", "nearest/0"] and list(found["halves"]) == ["0", "1", "2"]
    assert all(len(one["margin"]) == 5 for one in found["halves"].values())
    assert all(abs(score) <= 1 for scores in found["lds"].values() for score in scores)
    assert {"contributions", "undamped", "last", "nearest"} <= found["lds"].keys()
    attribution.measure(attribution.parsed([*words, "--removed", "2"]))
    again = runtime.read_json(tmp_path / "found.json")
    assert again["halves"] == found["halves"] and again["lds"] == found["lds"] and len(again["removals"]) == 4
    assert capsys.readouterr().out.count("| nearest of the class |") == 2


def test_a_linear_score_is_a_rank_correlation():
    values = torch.tensor([0.3, 2.0, -1.0, 0.5])
    assert attribution.spearman(values, values.exp()) == pytest.approx(1)
    assert attribution.spearman(values, -values) == pytest.approx(-1)
    train = data.load("digits", labels=200).train
    rows = attribution.half(train, 4)
    assert len(rows) == 100 and torch.equal(rows, attribution.half(train, 4))
    assert int(torch.bincount(train.labels[rows]).min()) >= attribution.LEAST


def test_the_page_about_contributions_has_the_committed_tables(capsys):
    root = Path(__file__).parents[1]
    files = sorted((root / "benchmarks/results").glob("attribution-*.json"))
    assert [file.stem.rpartition("-")[2] for file in files] == ["cifar100", "digits"]
    attribution.show([str(file) for file in files])
    page = (root / "docs/attribution.md").read_text()
    for line in filter(None, capsys.readouterr().out.splitlines()):
        assert line in page


def test_roles_are_checked_by_halves_of_the_bank(tmp_path, capsys):
    words = ["--images", "160", "--epochs", "2", "--keep", "1", "--teacher", "resnet8", "--teacher-epochs", "1"]
    words += [
        "--queries",
        "4",
        "--subsets",
        "3",
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path / "found.json"),
    ]
    attribution_roles.measure(attribution.parsed(words))
    found = runtime.read_json(tmp_path / "found.json")
    assert list(found["halves"]) == ["0", "1", "2"] and found["protocol"]["others"] == 160
    assert all(len(one) == 4 and max(map(abs, one)) <= 1 for one in found["lds"].values())
    assert "as negatives (NICD)" in capsys.readouterr().out
    assert len(attribution_roles.half(torch.arange(100, 140), 3).unique()) == 20


def test_the_pages_have_the_committed_tables_of_roles_and_of_exported_files(capsys):
    root = Path(__file__).parents[1]
    results = root / "benchmarks/results"
    attribution_roles.show([str(results / f"roles-{name}.json") for name in ("digits", "cifar100")])
    assert capsys.readouterr().out in (root / "docs/attribution.md").read_text()
    shipping.show(str(results / "shipping-cpu.json"))
    page = (root / "docs/export.md").read_text()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 5 + 6 + 5 and all(line in page for line in rows)


def test_photographs_are_written_enlarged_and_the_teacher_has_their_classes(tmp_path, monkeypatch):
    names = (*reversed(shipping.CLASSES), "wolf")
    images = torch.randint(0, 256, (11, 3, 32, 32), dtype=torch.uint8, generator=runtime.generator("images"))
    splits = data.load("digits", labels=100)
    train = splits.train
    train = train.__class__(
        **{**vars(train), "images": images, "labels": torch.arange(11), "classes": names} | {"index": torch.arange(11)}
    )
    monkeypatch.setattr(data, "load", lambda *_: splits._replace(train=train, test=train))
    kept = shipping.write("", tmp_path / "set", shipping.SPLITS, shipping.SIZE)
    assert kept == list(range(9, -1, -1)), "in the order of the names of the folders"
    assert Image.open(tmp_path / "set/test/apple/0.png").size == (64, 64)
    torch.save(models.create("resnet56", 100).state_dict(), tmp_path / "weights.pth")
    text = shipping.TEACHER.format(weights=str(tmp_path / "weights.pth"), kept=kept)
    (tmp_path / "teacher.py").write_text(text)
    teacher = models.from_file(f"{tmp_path}/teacher.py:Teacher(size=32)", num_classes=10, image_size=(64, 64))
    assert teacher(torch.rand(2, 3, 64, 64)).logits.shape == (2, 10) and teacher.features_dim == 64


def test_unlabelled_images_are_reported_beside_labels_alone(monkeypatch, capsys):
    rows = [
        {"method": method, "seed": seed, "accuracy": 0.3 + 0.1 * bool(more) + 0.01 * seed, "unlabelled": more}
        for method, more in (("ce", 0), ("kd", 9000))
        for seed in range(2)
    ]
    monkeypatch.setattr(unlabelled.runs, "finished", lambda folders: rows)
    unlabelled.report("folder")
    printed = capsys.readouterr().out
    assert "| `ce` | 0 | 2 | 30.50 ± 0.71 |  |" in printed
    assert "| `kd` | 9,000 | 2 | 40.50 ± 0.71 | +10.00 (+10.00 to +10.00) |" in printed


def test_what_a_cache_of_the_largest_logits_changes():
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0]])
    found = teachers.stored(logits, 1)
    assert found["bytes"] == 6  # the position, the logit and the common one of the others, 16 bits each
    common = 2 * (torch.logsumexp(logits[0, 1:] / 2, 0) - torch.log(torch.tensor(3.0)))
    restored = torch.cat([logits[0, :1], common.expand(3)]).log_softmax(0)
    expected = (logits[0].softmax(0) * (logits[0].log_softmax(0) - restored)).sum()
    assert found["kl"]["1"] == pytest.approx(expected.item(), rel=1e-3)

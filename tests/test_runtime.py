import errno
import json

import pytest
import torch

from ickd_lib import notebook, runtime
from ickd_lib.runtime import InputError, Run, threads
from ickd_lib.runtime.folders import default_name


def test_choose_finds_any_case_and_names_the_nearest():
    assert runtime.choose("ResNET20", ["resnet8", "resnet20"], "model") == "resnet20"
    with pytest.raises(InputError, match=r"unknown model 'resnet2O'; did you mean 'resnet20'\?"):
        runtime.choose("resnet2O", ["vgg8", "resnet20"], "model")


@pytest.mark.parametrize(
    ("namespace", "message"),
    [
        ({"epochs": 3, "lr": 0.1, "epohcs": 3}, r"unknown parameter 'epohcs'; did you mean 'epochs'"),
        ({"epochs": 3}, r"parameter 'lr' is missing"),
        ({"epochs": "3", "lr": 0.1}, r"epochs='3': expected a whole number"),
        ({"epochs": True, "lr": 0.1}, r"epochs=True: expected a whole number"),
        ({"epochs": 0, "lr": 0.1}, r"epochs=0: expected a whole number of 1 or more"),
        ({"epochs": 3, "lr": 0.1, "EPOCHS": 3}, r"parameter 'EPOCHS' is spelt 'epochs'"),
    ],
)
def test_wrong_parameters_are_errors(namespace, message):
    with pytest.raises(InputError, match=message):
        notebook.check_parameters(namespace, "epochs lr")


def test_right_parameters_pass_beside_what_a_kernel_has():
    namespace = {"In": [""], "Out": {}, "_": "", "exit": print, "epochs": 3, "lr": 1, "runtime": runtime}
    assert notebook.check_parameters(namespace, "epochs lr") == {"epochs": 3, "lr": 1.0}


def test_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises(InputError, match=r"torch finds \d+ CUDA GPUs"):
        runtime.device("cuda:99")
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        runtime.device("gpu")


def test_generators_are_functions_of_their_keys():
    draw = [torch.rand(3, generator=runtime.generator(*keys)) for keys in [(0, "a", 1), (0, "a", 1), (0, "a", 2)]]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])
    with runtime.seeded(3):
        inside = torch.rand(2)
    with runtime.seeded(3):
        assert torch.equal(inside, torch.rand(2))


def test_generators_of_several_gpus_are_kept_without_a_warning(monkeypatch, recwarn):
    states = {0: torch.zeros(1), 1: torch.ones(1)}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[int(device)])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({int(device): state}))
    monkeypatch.setattr(torch.random, "_fork_rng_warned_already", False, raising=False)
    before = dict(states)
    with runtime.kept_generators():
        states[1] = torch.zeros(1)
    assert states == before and not recwarn.list


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    runtime.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), runtime.replacing(path) as part:
        part.write_text("half of")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"no space left while writing .*a\.json"), runtime.replacing(tmp_path / "a.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_fingerprints_see_every_change():
    x = torch.arange(6.0)
    marks = [
        runtime.fingerprint(x),
        runtime.fingerprint(x.view(2, 3)),
        runtime.fingerprint(x.double()),
        runtime.fingerprint(x + torch.eye(6)[5] * 1e-6),
        runtime.fingerprint({"a": x}),
        runtime.fingerprint({"b": x}),
        runtime.fingerprint("a", 1),
        runtime.fingerprint("a", 2),
    ]
    assert len(set(marks)) == len(marks)
    assert runtime.fingerprint(x) == runtime.fingerprint(x.clone())


def test_a_run_is_resumed_or_refused(tmp_path):
    run = Run.open(tmp_path / "r", {"lr": 0.1})
    run.create({"lr": 0.1}, {}, "g", runtime.environment(torch.device("cpu")))
    assert Run.open(tmp_path / "r", {"lr": 0.1}).config["settings"] == {"lr": 0.1}
    with pytest.raises(InputError, match=r"contains a run with lr=0.1, not 0.2"):
        Run.open(tmp_path / "r", {"lr": 0.2})
    with pytest.raises(InputError, match="already contains a run"):
        Run.open(tmp_path / "r", {"lr": 0.1}, resume=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="contains files but no run"):
        Run.open(tmp_path / "other", {})


def test_metrics_survive_a_cut_line(tmp_path):
    run = Run(tmp_path)
    run.create({}, {}, "g", {})
    for epoch in (1, 2, 3):
        run.log({"epoch": epoch})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "lo')
    assert [r["epoch"] for r in run.metrics] == [1, 2, 3]
    run.keep_metrics(run.metrics[:2])
    assert [r["epoch"] for r in run.metrics] == [1, 2]


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "-",
        "",
        "///",
        "a/b",
        "../a",
        "/etc",
        "~",
        "a b",
        "a" * 200,
        "é" * 140,
        ".hidden",
        "a\0b",
        "a\n",
        "jobs",
    ],
)
def test_a_name_that_is_no_path_component_is_refused(name):
    with pytest.raises(InputError, match="cannot be the name of a run folder") as caught:
        runtime.run_name(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["teachers", "a/Teachers", "jobs/", "teachers/x/..", "."])
def test_a_folder_of_other_content_is_no_folder_of_all_runs(tmp_path, monkeypatch, folder):
    (tmp_path / "teachers").mkdir()
    monkeypatch.chdir(tmp_path / "teachers")
    with pytest.raises(InputError, match=r"cannot be the folder of all runs, as .* has other content") as caught:
        runtime.runs_folder(folder)
    assert "\n" not in str(caught.value)
    for other in ("runs", "..", "teachers/x", None):
        runtime.runs_folder(other)


def test_default_names_are_path_components_of_limited_length():
    for label in ("resnet8-ickd(nicd=2.0)-seed0", "../..", "a/b", "x" * 500, "é" * 500, "網" * 100, "_a"):
        name = default_name(label, {"a": 1})
        assert runtime.run_name(name) == name
    assert default_name("a", {"a": 1}) != default_name("a", {"a": 2})


def test_long_names_are_cut_and_end_with_a_fingerprint():
    assert runtime.shortened("a" * 150) == "a" * 150
    names = [runtime.shortened(name) for name in ("a" * 151, "a" * 152, "網" * 151)]
    assert len({*names}) == 3 and all(len(name.encode()) <= 150 for name in names)
    assert names[0] == runtime.shortened("a" * 151)


def test_a_file_in_place_of_a_run_folder_is_refused(tmp_path):
    (tmp_path / "r").write_text("")
    with pytest.raises(InputError, match="is a file, not a folder"):
        Run.open(tmp_path / "r", {})


def test_a_config_of_something_else_is_not_a_run(tmp_path):
    (tmp_path / "config.json").write_text('{"theme": "dark"}')
    with pytest.raises(InputError, match="is not the configuration of a run"):
        Run.open(tmp_path, {})
    assert json.loads((tmp_path / "config.json").read_text()) == {"theme": "dark"}


def test_a_notice_is_printed_once(capsys):
    for _ in range(2):
        runtime.notice("only once, please")
    assert capsys.readouterr().err == "note: only once, please\n"


def test_threads_leave_busy_cores_to_others(monkeypatch):
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 8)
    with runtime.same_threads(8):
        for busy, expected in ((0.0, 8), (0.4, 8), (1.0, 7), (6.2, 2), (8.0, 1), (20.0, 1)):
            threads._free_threads.cache_clear()
            monkeypatch.setattr(threads, "busy_cores", lambda busy=busy: busy)
            assert runtime.free_threads() == expected
        monkeypatch.setattr(threads, "busy_cores", lambda: pytest.fail("measured once in a process"))
        assert runtime.free_threads() == 1
    threads._free_threads.cache_clear()
    with runtime.same_threads(1):
        monkeypatch.setattr(threads, "busy_cores", lambda: pytest.fail("one thread needs no measurement"))
        assert runtime.free_threads() == 1


def test_busy_cores_are_those_of_other_processes(monkeypatch, tmp_path):
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 4)
    reads = iter([[100, 50, 20, 800, 0, 0, 0, 0, 0, 0], [160, 90, 40, 980, 0, 0, 0, 0, 0, 0]])
    stat = tmp_path / "stat"

    class Stat:
        def read_text(self):
            return "cpu  " + " ".join(map(str, next(reads))) + "\ncpu0 1 2 3\n"

    monkeypatch.setattr(threads, "STAT", Stat())
    assert threads.busy_cores(0.0) == pytest.approx(4 * (60 + 20) / (60 + 40 + 20 + 180))  # those of nice do not count
    monkeypatch.setattr(threads, "STAT", stat)  # a system without the file
    assert threads.busy_cores(0.0) == 0.0

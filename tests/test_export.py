"""Exported networks: they compute what the run's network computes, say what they take, and are compared with it."""

import csv
import itertools
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ickd_lib import __main__ as cli
from ickd_lib import data, export, metrics, models, runtime, tasks, training
from ickd_lib.export import predictions, writing
from ickd_lib.memory import MemoryBank
from ickd_lib.runtime import InputError
from ickd_lib.training import Recipe, Student

RECIPE = Recipe(epochs=4, lr=0.05, schedule="cosine", batch_size=30)


@pytest.fixture(scope="module")
def folder(digits, teacher, tmp_path_factory):
    """A folder with the finished run "student", and its teacher in "teachers"."""
    folder = tmp_path_factory.mktemp("runs")
    options = {"recipe": RECIPE, "device": "cpu", "progress": False}
    training.distill([Student("resnet8", "ce", 7, "teacher")], digits, runs=folder / "teachers", **options)
    training.distill([Student("resnet8", "kd", 1, "student")], digits, teacher=teacher, runs=folder, **options)
    return folder


@pytest.fixture(scope="module")
def graph(folder, digits, tmp_path_factory):
    """An int8 ONNX file with its preprocessing, and what `write` returned."""
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    path = tmp_path_factory.mktemp("graph") / "student.onnx"
    given = {"format": "onnx", "preprocess": True, "int8": True}  # of 120 training images, fewer than the usual 200
    return path, export.write(folder / "student", path, digits, **given)


@pytest.fixture
def image_folder(digits, tmp_path):
    (tmp_path / "images").mkdir()
    for row in range(3):
        _save(digits.test.images[row], tmp_path / "images" / f"{row}.png")
    return tmp_path / "images"


def _save(pixels, path, size=None):
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    (image.resize(size) if size else image).save(path)


def _run(line, capsys):
    status = cli.main(line.split())
    printed = capsys.readouterr()
    return status, printed.out, printed.err


# ----------------------------------------------------------------------------------------------- files


def test_an_onnx_graph_computes_the_probabilities_of_the_run(folder, digits, graph):
    path, written = graph
    network, pixels = training.load(folder / "student", device="cpu"), digits.test.images[:40]
    with torch.no_grad():
        expected = network(pixels / 255).logits.softmax(1)
    fp32 = written.models["onnx fp32"].run(pixels)
    assert torch.allclose(fp32, expected, atol=1e-5) and written.difference < 1e-5 and written.images == 64
    assert fp32.dtype == torch.float32 and torch.allclose(fp32.sum(1), torch.ones(40))
    int8 = export.open_model(path)
    assert int8.bytes < written.models["onnx fp32"].bytes
    agree = (
        (int8.run(digits.test.images).argmax(1) == network(digits.test.images / 255).logits.argmax(1)).float().mean()
    )
    assert agree > 0.9
    assert len(int8.run(pixels[:1])) == 1, "the batch size is free"


def test_the_metadata_say_what_goes_in_and_comes_out(graph, digits):
    import onnxruntime

    path, _ = graph
    found = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert json.loads(found["classes"]) == list(digits.test.classes)
    assert found["input"] == "uint8 [B, 3, 8, 8], RGB, 0 to 255"
    assert found["output"] == "float32 [B, 10], probabilities"
    assert (found["run"], found["data"], found["method"]) == ("student", "digits/train", "kd")


def test_a_pt2_graph_takes_images_and_gives_logits(folder, digits, tmp_path):
    written = export.write(folder / "student", tmp_path / "a.pt2", digits, format="pt2")
    model, pixels = export.open_model(tmp_path / "a.pt2"), digits.test.images[:5]
    network = training.load(folder / "student", device="cpu")
    with torch.no_grad():
        assert torch.allclose(model.run(pixels / 255), network(pixels / 255).logits, atol=1e-5)
    assert written.difference < 1e-5 and model.facts == written.models["a.pt2"].facts
    assert model.facts.input == "float32 [B, 3, 8, 8], RGB, 0 to 1, not normalised"
    unsafe = tmp_path / "unsafe.pt2"
    with zipfile.ZipFile(tmp_path / "a.pt2") as source, zipfile.ZipFile(unsafe, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b'"use_pickle": false', b'"use_pickle": true'))
    with pytest.raises(InputError, match="pickled objects"):
        export.open_model(unsafe)


def test_safetensors_have_a_card_of_the_run(folder, digits, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_text("old")
    export.write(folder / "student", path, digits, format="safetensors")
    card = (tmp_path / "w.md").read_text()
    network, summary = training.load(folder / "student", device="cpu"), runtime.Run(folder / "student").summary
    network.classes, space = (), {}
    code = card.split("```python\n")[1].split("```")[0].replace("'w.safetensors'", repr(str(path)))
    exec(code, space)
    assert space["network"].identity == network.identity, "the code of the card loads the weights"
    assert f"| accuracy, % | {100 * summary['accuracy']:.2f} |" in card
    assert "120 training images of `digits/train`" in card and "The teacher was resnet8." in card
    assert {p.name for p in tmp_path.iterdir()} == {"w.safetensors", "w.md"}
    assert path.stat().st_mode == (tmp_path / "w.md").stat().st_mode, "others may read both or none"
    export.write(folder / "student", path, digits, format="safetensors")  # replaces its own card
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(InputError, match=r"README\.md, where the model card is written, has other content"):
        export.write(folder / "student", tmp_path / "README.safetensors", digits, format="safetensors")
    assert (tmp_path / "README.md").read_text() == "mine" and not (tmp_path / "README.safetensors").exists()


def test_a_segmentation_network_is_exported_at_every_pixel(tmp_path):
    splits = data.load("scenes", annotations="masks")
    few = data.Splits(splits.train.few(8), splits.val, splits.test.subset(torch.arange(4)))
    options = {"recipe": Recipe(epochs=1, batch_size=4), "task": tasks.create("segmentation"), "progress": False}
    training.distill([Student("resnet8-fcn", "ce", 0, "s")], few, runs=tmp_path, device="cpu", **options)
    written = export.write(tmp_path / "s", tmp_path / "s.pt2", few, format="pt2", preprocess=True)
    pixels = few.test.images[0][None]
    small = training.load(tmp_path / "s", device="cpu").eval()(pixels / 255).logits
    assert small.shape[2:] != (96, 96)
    expected = F.interpolate(small, (96, 96), mode="bilinear", align_corners=False).softmax(1)
    assert torch.allclose(torch.as_tensor(written.models["s.pt2"].run(pixels)), expected, atol=1e-4)
    rows = export.compare_models(written.models, few, rounds=1)
    expected = runtime.Run(tmp_path / "s").summary["miou"]
    assert [row["miou"] for row in rows] == pytest.approx([expected] * 2, abs=1e-4)
    assert "mIoU, %" in export.table(rows)
    with pytest.raises(InputError, match="predict needs a classifier"):
        export.predict(written.models["s.pt2"], ["a.png"])


def test_a_table_of_some_sizes_says_of_which_images_it_is(tmp_path, capsys):
    sizes = [(40, 32), (32, 40), (32, 40), (32, 40), (40, 32)]  # width and height; the file takes the first one
    for split, (n, (width, height)) in itertools.product(("train", "test"), enumerate(sizes)):
        mask = torch.arange(width * height).view(height, width) % width >= width // 2
        noise = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(n + 9 * (split == "test")))
        for name, values in (("images", (255 * noise).byte()), ("masks", mask.byte())):
            (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.numpy()).save(tmp_path / split / name / f"{split}{n}.png")
    splits = data.load(f"masks:{tmp_path}")
    options = {"recipe": Recipe(epochs=1, batch_size=5), "task": tasks.create("segmentation"), "progress": False}
    training.distill([Student("resnet8-fcn", "ce", 0, "s")], splits, runs=tmp_path, device="cpu", **options)
    line = f"export {tmp_path}/s --dataset masks:{tmp_path} --format pt2 --out {tmp_path}/s.pt2"
    status, out, _ = _run(line, capsys)
    assert status == 0 and out.count("mIoU is that of 2 of 5 test images, those of 40×32 pixels.") == 1
    status, out, _ = _run(f"{line} --test-images 1 --json {tmp_path}/rows.json", capsys)
    assert status == 0 and "mIoU is that" not in out
    assert [row["images"] for row in json.loads((tmp_path / "rows.json").read_text())] == [1, 1]
    model = export.open_model(tmp_path / "s.pt2")
    last = splits._replace(test=splits.test.subset(torch.tensor([1, 2, 3, 4])))  # the first one has another size
    (row,) = export.compare_models({"s": model}, last, rounds=1)
    assert row["images"] == 1 and row["only"] == "1 of 4 test images, those of 40×32 pixels"
    with pytest.raises(InputError, match="no test image has 40×32 pixels, the size that s takes"):
        export.compare_models({"s": model}, splits._replace(test=splits.test.subset(torch.tensor([1, 2]))))


def test_what_cannot_be_exported_is_one_line(folder, digits, tmp_path, monkeypatch):
    student, target = folder / "student", tmp_path / "a.pt2"
    target.write_text("old")

    def refused(message, run=student, path=target, splits=digits, format="pt2", **given):
        with pytest.raises(InputError, match=message) as caught:
            export.write(run, path, splits, format=format, **given)
        assert "\n" not in str(caught.value)
        assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.pt2"]

    refused("config.json does not exist", run=tmp_path)
    refused("did you mean 'onnx'", format="onx")
    refused(r"does not end in .onnx, .*; give --format pt2 \(in Python, format='pt2'\), or rename it", format="onnx")
    refused("cannot be written", path=target / "b.pt2")
    refused(
        "preprocess is an option of a graph", path=tmp_path / "a.safetensors", format="safetensors", preprocess=True
    )
    refused("int8 is an option of onnx", int8=True)
    refused("calibration=0 is not", path=tmp_path / "a.onnx", format="onnx", int8=True, calibration=0)
    refused("has other classes", splits=data.load("digits", classes=["1", "2"]))
    monkeypatch.setattr(writing, "TOLERANCE", -1.0)
    refused("more than")
    monkeypatch.setattr(writing, "traced", lambda *_: 1 / 0)
    refused("resnet8 cannot be exported to pt2")


def test_unfinished_runs_and_detectors_are_refused(folder, tmp_path):
    settings = runtime.Run(folder / "student").config
    runtime.write_json(tmp_path / "a/config.json", settings)
    with pytest.raises(InputError, match="not finished"):
        export.finished_run(tmp_path / "a")
    settings["settings"]["task"] = "detection"
    runtime.write_json(tmp_path / "b/config.json", settings)
    with pytest.raises(InputError, match="the task detection, which cannot be exported"):
        export.finished_run(tmp_path / "b")


# ----------------------------------------------------------------------------------------------- table


def test_the_temperature_has_the_lowest_negative_log_likelihood(seeded):
    logits, labels = 4 * torch.randn(500, 5), torch.randint(5, (500,))
    logits[torch.arange(500), labels] += 3
    found = metrics.best_temperature(logits, labels)
    loss = [F.cross_entropy(logits / temperature, labels).item() for temperature in (found / 1.05, found, found * 1.05)]
    assert loss[1] == min(loss) and found > 1
    assert metrics.best_temperature(2 * logits, labels) == pytest.approx(2 * found, rel=1e-4)
    for margin in (1, 2, 10, 20, 50, 100, 1e6):  # up to a softmax that is exactly 0 and 1
        assert metrics.best_temperature(margin * (torch.eye(3) - 0.5), torch.arange(3)) == pytest.approx(0.05)


def test_the_comparison_measures_the_networks(folder, digits, teacher):
    run = export.finished_run(folder / "student")
    network = training.load(run.folder, device="cpu")
    found = export.teacher_of(run)
    assert found is not None and found.identity == teacher.identity
    listed = {
        name: export.NetworkModel(one, export.facts_of(run, one, (8, 8), "fit"))
        for name, one in (("teacher", found), ("student", network))
    }
    rows = export.compare_models(listed, digits, rounds=2)
    for row, one in zip(rows, listed.values(), strict=True):
        expected = training.evaluate(one.network, digits.test)["accuracy"]
        assert row["accuracy"] == pytest.approx(expected) and row["parameters"] == one.facts.parameters
        assert row["ms_1"] == sorted(row["ms_1"]) and row["bytes"] >= 4 * row["parameters"]
    text = export.table(rows)
    assert "| teacher |" in text and "random half of the test images" in text
    held_out = digits._replace(val=digits.train)
    (row,) = export.compare_models({"student": listed["student"]}, held_out, rounds=1)
    logits = models.predict(network, digits.train).logits
    assert row["temperature"] == pytest.approx(metrics.best_temperature(logits, digits.train.labels), rel=1e-3)
    tested, labels = models.predict(network, digits.test).logits, digits.test.labels
    for name, temperature in (("ece", 1.0), ("ece_scaled", row["temperature"])):
        assert row[name] == pytest.approx(metrics.calibration_error(tested / temperature, labels), abs=1e-3)
    order = torch.randperm(len(labels), generator=runtime.generator("half of test"))
    first, second = order.tensor_split([len(order) // 2])
    temperature = metrics.best_temperature(tested[first], labels[first])
    assert rows[1]["temperature"] == pytest.approx(temperature, rel=1e-3)
    for name, divisor in (("ece", 1.0), ("ece_scaled", temperature)):
        expected = metrics.calibration_error(tested[second] / divisor, labels[second])
        assert rows[1][name] == pytest.approx(expected, abs=1e-3)
    assert "fitted to the validation images" in export.table([row])
    (row,) = export.compare_models({"student": listed["student"]}, held_out, seen=["student"], rounds=1)
    assert row["fitted_on"] == "half of test" and row["temperature"] == pytest.approx(rows[1]["temperature"])
    with pytest.raises(InputError, match="both must be 1 or more"):
        export.compare_models({}, digits)


def test_the_command_exports_and_prints_the_table(folder, tmp_path, capsys):
    line = f"export {folder}/student --format pt2 --out {tmp_path}/a.pt2 --preprocess --test-images 50"
    status, out, err = _run(line, capsys)
    rows = [line.split(" | ")[0] for line in out.splitlines() if line.startswith("| ")]
    assert status == 0 and rows == ["| network", "| ---", "| teacher resnet8", "| student resnet8", "| a.pt2"]
    assert "tolerance 1e-04" in err and "input uint8 [B, 3, 8, 8]" in err
    assert "labels" not in err and runtime.Run(folder / "student").settings["data"]["images"] == 120
    status, _, err = _run(f"export nowhere --format pt2 --out {tmp_path}/b.pt2", capsys)
    assert status == 2 and err.count("\n") == 1 and "is this a run folder?" in err


def test_a_teacher_is_named_by_its_file_or_its_weights(folder, tmp_path, capsys):
    runtime.write_json(tmp_path / "s/config.json", runtime.Run(folder / "student").config)
    for name in ("summary.json", "student.safetensors"):
        (tmp_path / "s" / name).write_bytes((folder / "student" / name).read_bytes())
    line = f"export {tmp_path}/s --format pt2 --out {tmp_path}/a.pt2 --test-images 20 --json {tmp_path}/a.json"
    status, out, err = _run(line, capsys)
    assert status == 0 and "name it with --teacher" in err and "| teacher" not in out
    weights = folder / "teachers/teacher/student.safetensors"
    status, out, _ = _run(f"{line} --teacher resnet8 --teacher-weights {weights}", capsys)
    assert status == 0 and "| teacher resnet8 |" in out
    assert export.table(json.loads((tmp_path / "a.json").read_text())) == out
    code = "from ickd_lib import models\ndef build(num_classes):\n    return models.create('resnet8', num_classes)\n"
    (tmp_path / "mine.py").write_text(code)
    status, out, _ = _run(f"{line} --teacher {tmp_path}/mine.py:build", capsys)
    assert status == 0 and "| teacher mine.py:build |" in out


def test_slow_networks_are_timed_in_fewer_passes(folder, digits, monkeypatch):
    monkeypatch.setattr(export.comparison, "SECONDS", 0.0)
    network, ran = training.load(folder / "student", device="cpu"), []
    model = export.NetworkModel(network, export.facts_of(runtime.Run(folder / "student"), network, (8, 8), "fit"))
    plain = model.run
    monkeypatch.setattr(model, "run", lambda images: ran.append(len(images)) or plain(images))
    export.comparison._latency({"one": model}, digits, 1, 20)
    assert ran == [1] * 8
    assert export.comparison._time([900.0, 1234.4, 5678.0]) == "1,234 (900 to 5,678)"


def test_the_path_of_a_folder_must_be_given(folder, tmp_path, capsys):
    config = runtime.Run(folder / "student").config
    config["settings"]["data"]["name"] = "folder:mine/train"
    runtime.write_json(tmp_path / "s/config.json", config)
    runtime.write_json(tmp_path / "s/summary.json", {})
    status, _, err = _run(f"export {tmp_path}/s --out {tmp_path}/a.onnx", capsys)
    assert status == 2 and "give --dataset folder:PATH" in err


# ----------------------------------------------------------------------------------------- predictions


def test_predict_names_what_it_cannot_read_and_goes_on(folder, digits, image_folder, capsys):
    (image_folder / "broken.png").write_text("no image")
    _save(digits.test.images[3], image_folder / "large.png", (40, 60))
    target = image_folder.parent / "p.csv"
    status, out, err = _run(f"predict {folder}/student {image_folder} missing.png --top 2 --csv {target}", capsys)
    assert status == 1 and err.count("error: ") == 2 and "broken.png cannot be read" in err and "missing.png" in err
    rows = list(csv.DictReader(target.open()))
    network = training.load(folder / "student", device="cpu")
    with torch.no_grad():
        p, label = network(digits.test.images[:3] / 255).logits.softmax(1).max(1)
    assert [row["class_1"] for row in rows[:3]] == [digits.test.classes[c] for c in label.tolist()]
    assert [float(row["probability_1"]) for row in rows[:3]] == pytest.approx(p.tolist(), abs=1e-5)
    assert [Path(row["image"]).name for row in rows] == [
        "0.png",
        "1.png",
        "2.png",
        "broken.png",
        "large.png",
        "missing.png",
    ]
    assert [bool(row["problem"]) for row in rows] == [False, False, False, True, False, True]
    assert out.count("\n") == 6


@pytest.mark.parametrize(("crop", "facts"), [("pad", "fit"), ("resized", "resized")])
def test_a_run_records_how_images_are_resized(crop, facts, digits, tmp_path, capsys):
    for split, label in itertools.product(("train", "test"), range(2)):
        (tmp_path / "data" / split / "ab"[label]).mkdir(parents=True)
        for row, pixels in enumerate(digits.train.images[digits.train.labels == label][:4]):
            _save(pixels, tmp_path / "data" / split / "ab"[label] / f"{row}.png", (20, 16))
    splits = data.load(f"folder:{tmp_path}/data", image_size=12, crop=crop)
    options = {"recipe": replace(RECIPE, epochs=1), "device": "cpu", "progress": False, "runs": tmp_path}
    (history,) = training.distill([Student("resnet8", "ce", 0, "own")], splits, **options).values()
    assert runtime.Run(history.folder).config["evaluation_crop"] == {"size": [12, 12], "crop": facts}
    file = tmp_path / "data/test/b/2.png"
    capsys.readouterr()
    status, out, err = _run(f"predict {history.folder} {file}", capsys)
    model = export.open_model(history.folder)
    expected = history.network.cpu()(splits.test.shown(torch.tensor([6])) / 255).logits.softmax(1).max().item()
    assert status == 0 and err == "" and f" {100 * expected:.1f} |" in out
    assert (model.facts.size, model.facts.crop) == ((12, 12), facts)
    other = "resized" if crop == "pad" else "pad"
    for given in ("--image-size 16", f"--crop {other}"):
        status, _, err = _run(f"predict {history.folder} {file} {given}", capsys)
        assert status == 2 and "records how images are resized; leave out --image-size and --crop" in err
    assert _run(f"predict {history.folder} {file} --image-size 12 --crop {crop}", capsys)[1] == out
    status, out, err = _run(f"evaluate {history.folder} --dataset folder:{tmp_path}/data --device cpu", capsys)
    assert status == 0 and json.loads(out)["accuracy"] == history.summary["accuracy"]
    assert "images are not those" not in err
    file.unlink()
    _, _, err = _run(f"evaluate {history.folder} --dataset folder:{tmp_path}/data --device cpu", capsys)
    assert "the test images are not those of" in err


def test_predict_takes_a_file(graph, image_folder, capsys):
    status, out, _ = _run(f"predict {graph[0]} {image_folder}", capsys)
    assert status == 0 and out.count("| ") > 3
    for model, message in (
        ("none.onnx", "none.onnx does not exist"),
        (str(image_folder / "0.png"), "neither a run folder"),
    ):
        status, _, err = _run(f"predict {model} {image_folder}", capsys)
        assert status == 2 and message in err and err.count("\n") == 1
    status, _, err = _run(f"predict {graph[0]} {image_folder} --image-size 64", capsys)
    assert status == 2 and "records how images are resized; leave out --image-size and --crop" in err


def test_in_context_samples_are_the_nearest_rows(folder, digits, teacher, image_folder):
    files = sorted(image_folder.iterdir())
    bank = MemoryBank.build(teacher, digits.train, precision="fp32")
    own = export.open_model(folder / "teachers/teacher", size=(8, 8))
    assert export.by_features(own, bank)
    found = export.predict(own, files, bank=bank, top=4)
    with torch.no_grad():
        features = teacher(digits.test.images[:3] / 255).features
    nearest = bank.nearest(features, k=4)
    assert [[name for name, _, _ in one.similar] for one in found] == [
        [f"row {row}" for row in rows] for rows in nearest.index.tolist()
    ]
    other = export.open_model(folder / "student", size=(8, 8))
    assert not export.by_features(other, bank)
    (first, *_) = export.predict(other, files, bank=bank, top=1)
    logits, rows = other.logits(digits.test.images[:1]), bank.logits
    cosine = F.cosine_similarity(logits - logits.mean(), rows - rows.mean(1, keepdim=True))
    assert first.similar[0][0] == f"row {int(bank.index[cosine.argmax()])}"
    assert first.similar[0][2] == pytest.approx(cosine.max().item(), abs=1e-5)
    other_bank = MemoryBank(bank.features, bank.logits, bank.labels, bank.index, tuple("abcdefghij"))
    with pytest.raises(InputError, match="bank has other classes"):
        export.predict(other, files, bank=other_bank)
    with pytest.raises(InputError, match="nowhere is not a folder; name the data set that the bank was built from"):
        export.predict(other, files, bank=bank, dataset="folder:nowhere")
    resized = export.open_model(folder / "student", size=(8, 8), crop="resized")
    (missing,) = export.predict(resized, ["missing.png"])
    assert missing.problem == "missing.png does not exist"


def test_rows_of_a_bank_are_named_by_their_files(tmp_path, bank):
    for folder in ("train/a", "train/b", "test/a"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (4, 4)).save(tmp_path / folder / f"{number}.png")
    small = bank.subset(torch.arange(4))
    small.index = torch.arange(4)
    assert predictions._row_names(small, f"folder:{tmp_path}") == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    (tmp_path / "unlabelled" / "new").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "unlabelled" / "new" / "0.png")
    five = bank.subset(torch.arange(5))
    five.index = torch.arange(5)
    files = data.load(f"folder:{tmp_path}", unlabelled="all").train.files
    names = predictions._row_names(five, f"folder:{tmp_path}")
    assert [name.removeprefix("train/") for name in files] == names and names[4] == "unlabelled/new/0.png"
    with pytest.raises(InputError, match="has 5 images, but the bank has row"):
        predictions._row_names(bank, f"folder:{tmp_path}")


def test_images_are_prepared_as_by_the_data_set(tmp_path, digits, seeded):
    for split, count in (("train", 4), ("test", 2)):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 256, (3, 20, 30 + number), dtype=torch.uint8)
                _save(pixels, tmp_path / split / name / f"{number}.png")
    file = tmp_path / "test/a/1.png"
    for given in ({"image_size": 16}, {"image_size": 16, "crop": "resized"}):
        splits = data.load(f"folder:{tmp_path}", **given)
        size, crop = export.shape_of(splits.test)
        facts = replace(_facts(), size=size, crop=crop)
        assert torch.equal(predictions.prepared(file, facts), splits.test.shown(torch.tensor([1]))[0])


def _facts():
    names = ("a", "b")
    return export.Facts(
        "classification", "", 0, names, (1, 1), "", False, "", "", "", "", "", (0.0,) * 3, (1.0,) * 3, ""
    )

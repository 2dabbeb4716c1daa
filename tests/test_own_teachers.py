"""Teachers from files: Python code, TorchScript, torch.export; what each can give a method, and what is refused."""

import pickle

import pytest
import torch
from torch import nn

from ickd_lib import __main__ as cli
from ickd_lib import models, training
from ickd_lib.memory import MemoryBank
from ickd_lib.runtime import InputError
from ickd_lib.training import Recipe, Student

CODE = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(6, num_classes)

    def forward(self, images):
        return self.head(self.body(images))

class Both(Small):
    def forward(self, images):
        features = self.body(images)
        return self.head(features), 2 * features

class Named(Both):
    def forward(self, images):
        logits, features = super().forward(images)
        return {"logits": logits, "features": features}

def build(num_classes):
    return Small(num_classes)

def ten():
    return Small(10)

def nothing():
    return 3
"""
QUICK = Recipe(epochs=1, batch_size=60, lr=0.01, schedule="cosine")


def one_line(error):
    assert "\n" not in str(error.value)


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(CODE)
    return "model.py"


@pytest.fixture
def module(code):
    space = {"__name__": "code"}
    exec(CODE, space)
    torch.manual_seed(0)
    return space


def saved(module, name):
    images = torch.zeros(2, 3, 8, 8)
    if name.endswith(".pt2"):
        shapes = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(module.eval(), (images,), dynamic_shapes=shapes), name)
    else:
        torch.jit.save(torch.jit.trace(module.eval(), images, strict=False), name)
    return name


@pytest.mark.parametrize("name", ["build", "ten", "Small"])
def test_a_function_or_class_in_a_file(code, name):
    network = models.from_file(f"{code}:{name}", num_classes=10, image_size=(8, 8))
    same = models.from_file(f"{code}:{name}", num_classes=10, image_size=(8, 8))
    assert network.name == f"model.py:{name}" and not network.training and network.features_dim == 6
    assert network.identity == same.identity, "weights that the code draws are the same each time"


@pytest.mark.parametrize("compiled", ["script", "trace", "export"])
def test_a_compiled_program_in_memory_can_be_a_teacher(compiled):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)
    network, images = nn.Sequential(*layers).eval(), torch.rand(5, 3, 8, 8)
    shapes = ({0: torch.export.Dim("batch")},)
    program = {
        "script": lambda: torch.jit.script(network),
        "trace": lambda: torch.jit.trace(network, images),
        "export": lambda: torch.export.export(network, (images,), dynamic_shapes=shapes).module(),
    }[compiled]()
    frozen = models.frozen(models.wrap(program, size=8), torch.device("cpu"))
    assert torch.allclose(frozen(images).logits, network(images), atol=1e-6) and frozen.features_dim == 0
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize("compiled", ["script", "trace", "export"])
@pytest.mark.parametrize("statistics", [True, False])
def test_a_program_that_was_compiled_in_training_mode_is_refused(compiled, statistics, tmp_path):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6, track_running_stats=statistics)
    layers = nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)
    network, images = nn.Sequential(*layers).train(), torch.rand(5, 3, 8, 8)
    file, shapes = str(tmp_path / "model.pt2"), ({0: torch.export.Dim("batch")},)
    if compiled == "export":
        exported = torch.export.export(network, (images,), dynamic_shapes=shapes)
        torch.export.save(exported, file)
        program = exported.module()
    else:
        program = torch.jit.script(network) if compiled == "script" else torch.jit.trace(network, images)
        torch.jit.save(program, file := str(tmp_path / "model.ts"))
    before = {key: buffer.clone() for key, buffer in program.named_buffers()}
    calls = lambda: models.wrap(program, size=8), lambda: models.from_file(file, num_classes=10, image_size=(8, 8))
    for call in calls:
        if compiled == "script" and statistics:
            assert call().num_classes == 10, "a script has both modes"
        else:
            with pytest.raises(InputError, match=r"in training mode; call model.eval\(\) before") as error:
                call()
            one_line(error)
    assert all(torch.equal(buffer, before[key]) for key, buffer in program.named_buffers())


@pytest.mark.parametrize(("made", "name"), [("Both", ""), ("Named", ""), ("Both", "model.pt"), ("Named", "model.pt2")])
def test_a_module_that_returns_its_features_gives_both(module, made, name):
    network, images = module[made](10).eval(), torch.rand(5, 3, 8, 8)
    logits, features = network(images) if made == "Both" else network(images).values()
    found = models.wrap(network)
    if name:
        found = models.from_file(saved(network, name), num_classes=10, image_size=(8, 8))
    torch.testing.assert_close(found(images).logits, logits)
    torch.testing.assert_close(found(images).features, features)
    assert found.features_dim == 6


@pytest.mark.parametrize("name", ["model.pt", "model.pt2"])
def test_a_program_with_logits_alone_teaches_by_them(module, digits, name):
    saved(module["Small"](10), name)
    teacher = training.pretrain(name, digits)
    assert teacher.features_dim == 0 and teacher.classes == digits.train.classes
    options = {"recipe": QUICK, "device": "cpu", "progress": False, "teacher": teacher}
    (history,) = training.distill([Student("resnet8", "kd")], digits, **options).values()
    assert history.summary["teacher"] == name and history.summary["teacher_saw"] == {"file": name}
    for method in ("ickd", "refilled", "pkt", "wkd_l"):
        with pytest.raises(InputError, match="has logits alone") as error:
            training.distill([Student("resnet8", method)], digits, **options)
        one_line(error)
    with pytest.raises(InputError, match="at' uses maps") as error:
        training.distill([Student("resnet8", "at")], digits, **options)
    with pytest.raises(InputError, match="no features, which a memory bank needs") as error:
        MemoryBank.build(teacher, digits.train)
    one_line(error)


def test_features_of_a_file_are_enough_for_a_bank(module, digits):
    teacher = training.pretrain(saved(module["Both"](10), "model.pt2"), digits)
    options = {"recipe": QUICK, "device": "cpu", "progress": False, "teacher": teacher}
    training.distill([Student("resnet8", "ickd(positives=2, negatives=5)")], digits, **options)
    with pytest.raises(InputError, match="wkd_l needs the weights of the teacher's linear classifier") as error:
        training.distill([Student("resnet8", "wkd_l")], digits, **options)
    one_line(error)


def test_the_identity_follows_the_weights_and_the_file(module, code):
    first = models.from_file(f"{code}:build", num_classes=10).identity
    torch.save(module["Small"](10).state_dict(), "weights.pth")
    network = models.load_weights(models.from_file(f"{code}:build", num_classes=10), "weights.pth")
    assert network.identity != first
    with open(code, "a") as file:
        file.write("\n# another line\n")
    assert models.from_file(f"{code}:build", num_classes=10).identity != first
    one = models.from_file(saved(module["Small"](10), "model.pt2"), num_classes=10, image_size=(8, 8)).identity
    other = models.from_file(saved(module["Small"](10), "model.pt2"), num_classes=10, image_size=(8, 8)).identity
    assert one != other


@pytest.mark.parametrize("name", ["model.py:build", "model.pt", "model.pt2"])
def test_copies_and_pickles_are_the_same_network(module, code, name):
    if not name.startswith("model.py"):
        saved(module["Small"](10), name)
    network = models.from_file(name, num_classes=10, image_size=(8, 8))
    network.set_normalisation((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    network.eval()
    images, twin = torch.rand(3, 3, 8, 8), models.frozen(network, torch.device("cpu"))
    again = pickle.loads(pickle.dumps(twin))
    assert network.identity == twin.identity == again.identity
    assert torch.equal(again.mean, network.mean) and again.name == network.name
    assert not again.training and not any(one.requires_grad for one in again.parameters())
    torch.testing.assert_close(again(images).logits, network(images).logits)
    torch.testing.assert_close(twin(images).logits, network(images).logits)


def test_a_file_may_contain_dataclasses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\nimport torch\n\n"
    text += "@dataclass\nclass Width:\n"
    text += "    value: int = 4\n\ndef build(num_classes):\n"
    text += "    layers = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, num_classes)\n"
    (tmp_path / "wide.py").write_text(text + "    return torch.nn.Sequential(*layers)\n")
    assert models.from_file("wide.py:build", num_classes=5).num_classes == 5


def test_options_in_brackets(module, code):
    plain = models.from_file(f"{code}:build", num_classes=10)
    moved = models.from_file(f"{code}:build(mean=(0.5, 0.5, 0.5), features='body', size=16)", num_classes=10)
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(moved(images).logits, plain(images - 0.5).logits)
    assert moved.size == (16, 16) and moved.layer == "body"
    program = models.from_file(saved(module["Small"](10), "model.pt2") + "(size=8)", num_classes=10)
    assert program(torch.rand(2, 3, 30, 30)).logits.shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other.py:build", "other.py does not exist"),
        ("model.py", "write model.py:NAME"),
        ("model.py:missing", "no function or class 'missing'"),
        ("model.py:nothing", "returned a int"),
        ("model.py:build(depth=3)", "unknown option of a network from a file 'depth'"),
        ("model.py:build(size=2)", "cannot run on black images"),
        ("model.py:ten", "has 10 classes, but the data has 7"),
        ("pickled.pt", "pickled module is refused, because it could run code"),
        ("state.pt", "as weights of a network"),
        ("pickled.pt2", "pickled.pt2 cannot be created"),
        ("text.pt", "no file of torch.jit.save"),
        ("fixed.pt2(size=8)", "does not take batches of any size"),
        ("broken.py:build", "broken.py cannot be created: ZeroDivisionError"),
    ],
)
def test_what_is_refused(module, tmp_path, name, message):
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "text.pt").write_text("no archive")
    torch.save(nn.Linear(2, 2), "pickled.pt")
    torch.save(nn.Linear(2, 2), "pickled.pt2")
    torch.save(nn.Linear(2, 2).state_dict(), "state.pt")
    if name.startswith("fixed"):
        program = torch.export.export(module["Small"](10).eval(), (torch.zeros(2, 3, 8, 8),))
        torch.export.save(program, "fixed.pt2")
    classes = 7 if name.endswith("ten") else 10
    with pytest.raises(InputError, match=message) as error:
        models.from_file(name, num_classes=classes)
    one_line(error)


def test_the_command_line_takes_files(code, capsys):
    line = "--labels 60 --epochs 1 --batch-size 30 --device cpu --teacher model.py:build"
    assert cli.main(f"train --method kd {line}".split()) == 0
    assert '"teacher": "model.py:build"' in capsys.readouterr().out
    assert cli.main(f"compare --methods ce ickd(positives=2,negatives=5) --seeds 1 --jobs 1 {line}".split()) == 0
    assert cli.main(["train", "--method", "kd", *line.replace(":build", ":missing").split()]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: model.py has no function or class 'missing'")

"""The statements of SECURITY.md that no other test holds."""

import ast
import functools
import inspect
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ickd_lib import models
from ickd_lib.data.sets import voc
from ickd_lib.runtime import InputError
from ickd_lib.widgets.view import Explorer, View

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*sorted((ROOT / "ickd_lib").rglob("*.py")), *sorted((ROOT / "notebooks").glob("*.py"))]
WEIGHTS = "resnet18-f37072fd.pth"  # the name under which torch keeps the download

BOMB = """<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY a0 "lol">{}]>
<annotation><object><name>&a{};</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
</annotation>"""


class Attack:
    """Unpickling this creates a file."""

    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return Path.touch, (self.trap,)


@functools.cache
def every_call():
    """Return each call in the library: the file, the name of the function or method, and the call."""
    nodes = [(path, node) for path in SOURCES for node in ast.walk(ast.parse(path.read_text()))]
    return [
        (str(path.relative_to(ROOT)), ast.unparse(node.func), ast.unparse(node))
        for path, node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute))
    ]


def calls(name):
    """Return each call of a function or method of this name in the library: the file and the call."""
    return [(path, call) for path, called, call in every_call() if called == name]


# -------------------------------------------------------------------------------------------------------- pickles


def test_only_the_jobs_of_a_training_are_unpickled_without_a_limit():
    loads = calls("torch.load")
    limited = [path for path, call in loads if "weights_only=True" in call]
    others = [path for path, call in loads if "weights_only=True" not in call]
    assert set(others) == {"ickd_lib/training/jobs.py"} and len(limited) >= 2
    assert {path for path, _ in calls("pickle.loads")} == {"ickd_lib/training/processes.py"}
    assert not [path for name in ("pickle.load", "exec", "yaml.load") for path, _ in calls(name)]
    assert {path for path, _ in calls("eval")} == {"ickd_lib/runtime/arguments.py"}  # of the library's own annotations
    assert not [path for path, call in calls("np.load") if "allow_pickle" in call]


@pytest.mark.parametrize("network", ["torchvision/resnet18(pretrained=True)", "resnet18-fpn(pretrained='backbone')"])
@pytest.mark.parametrize("forced", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_no_code_in_a_downloaded_file_of_weights_is_run(forced, network, tmp_path, monkeypatch):
    """torchvision reads its downloads without a limit, and compares hashes only when it downloads."""
    pytest.importorskip("torchvision")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    if forced:
        monkeypatch.setenv(forced, "1")
    folder, trap = tmp_path / "hub" / "checkpoints", tmp_path / "trap"
    folder.mkdir(parents=True)
    torch.save({"fc.weight": Attack(trap)}, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"resnet18(-fpn)? cannot be created"):
        models.create(network, 1000)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Attack(trap)))
    assert trap.exists()  # an ordinary unpickling does run the code


# ------------------------------------------------------------------------------------------------------------ XML


@pytest.mark.parametrize("kind", ["many", "file", "empty"])
def test_a_document_type_is_refused_before_its_entities_are_expanded(kind, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("precious")
    levels = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
    texts = {
        "many": BOMB.format(levels, 9),
        "file": BOMB.format(f'<!ENTITY a1 SYSTEM "file://{secret}">', 1),
        "empty": "<!DOCTYPE annotation><annotation></annotation>",
    }
    path = tmp_path / "a.xml"
    path.write_text(texts[kind])
    with pytest.raises(InputError, match=r"a\.xml declares a document type") as error:
        voc._annotated(path)
    assert "\n" not in str(error.value) and "precious" not in str(error.value)


# ----------------------------------------------------------------------------------------------------------- HTML

HOSTILE = "<img src=x onerror=alert(1)>&\"'"


def test_names_and_errors_are_shown_as_text():
    explorer = Explorer([], View())
    with explorer.guarded():
        raise InputError(HOSTILE)
    assert "<img" not in explorer.message.value and "&lt;img" in explorer.message.value


def test_scripts_of_pages_set_texts_and_no_html():
    scripts = sorted((ROOT / "ickd_lib" / "widgets").glob("*.js"))
    assert scripts
    for path in scripts:
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", path.read_text()), path


# -------------------------------------------------------------------------------------------------- what is needed


def test_downloads_of_torchvision_are_checked_by_hash():
    torchvision = pytest.importorskip("torchvision")
    assert torchvision.datasets.CIFAR100.tgz_md5
    assert "check_hash=True" in inspect.getsource(sys.modules["torchvision.models.resnet"])
    for _, call in calls("models.get_model_weights(name).DEFAULT.get_state_dict"):
        assert "check_hash=True" in call


@pytest.mark.parametrize(
    ("package", "least"),
    [("torch", (2, 6)), ("pillow", (10, 3)), ("tqdm", (4, 66, 3)), ("scikit-learn", (1, 5)), ("jupyterlab", (4, 4, 8))],
)
def test_requirements_are_not_older_than_known_corrections(package, least):
    bound = re.search(rf'"{package}>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()).group(1)
    assert tuple(map(int, bound.split("."))) >= least


def test_a_module_that_is_pickled_whole_is_no_weights(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(InputError, match="refused"):
        models.load_weights(models.create("resnet8"), tmp_path / "a.pth")

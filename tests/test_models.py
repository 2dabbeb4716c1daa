"""Networks: the zoo against published facts, checkpoints, torchvision, timm and wrapped modules."""

from __future__ import annotations

import argparse
import copy
import json
import os
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ickd_lib import models

FACTS = json.loads((Path(__file__).parent / "zoo.json").read_text())["models"]
REFERENCES = [name for name, facts in FACTS.items() if "logits" in facts]
FAMILIES = [
    "resnet8",
    "resnet8x4",
    "ResNet18",
    "wrn_16_2",
    "vgg11",
    "MobileNetV1",
    "MobileNetV2",
    "ShuffleV1",
    "ShuffleV2",
]
CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


pytestmark = pytest.mark.usefixtures("seeded")


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message and message
    return message


def layout(lines: list[str]) -> list[tuple[str, list[int]]]:
    """Names and shapes of a state dict, from the lines of zoo.json; `bn1 norm 16` is a batch norm's five tensors."""
    entries = []
    for line in lines:
        key, *kind, shape = line.split()
        if kind:
            entries += [(f"{key}.{part}", [int(shape)]) for part in ("weight", "bias")]
            entries += [(f"{key}.running_{part}", [int(shape)]) for part in ("mean", "var")]
            entries += [(f"{key}.num_batches_tracked", [])]
        else:
            entries.append((key, [int(n) for n in shape.split("x")]))
    return entries


def fill_by_recipe(network: nn.Module) -> None:
    """Set the weights by the recipe that zoo.json's reference outputs were computed with."""
    for t, (name, tensor) in enumerate(network.state_dict().items()):
        if not tensor.is_floating_point():
            continue
        r = np.random.RandomState(t).standard_normal(tuple(tensor.shape))
        if name.endswith("running_var"):
            r = 1 + 0.2 * abs(r)
        elif name.endswith("running_mean"):
            r = 0.1 * r
        elif tensor.ndim == 1:
            r = 0.5 + 0.1 * r if name.endswith("weight") else 0.1 * r
        else:
            r = r / np.sqrt(tensor[0].numel())
        tensor.copy_(torch.from_numpy(np.asarray(r, dtype=np.float32)))


def last_linear(network: nn.Module) -> nn.Linear:
    """The linear layer that is defined last."""
    return [part for part in network.modules() if isinstance(part, nn.Linear)][-1]


# ------------------------------------------------------------------------------------------------ the zoo


def test_names_are_those_of_the_zoo():
    assert sorted(models.names()) == sorted(FACTS)


@pytest.mark.parametrize("name", FACTS)
def test_state_dict_is_the_published_one(name):
    network = models.create(name)
    assert [(k, list(v.shape)) for k, v in network.state_dict().items()] == layout(FACTS[name]["state"])
    assert sum(p.numel() for p in network.parameters()) == FACTS[name]["parameters"]
    assert network.features_dim == FACTS[name]["features"]
    assert network.name == name and network.num_classes == 100 and network.training


@pytest.mark.parametrize("name", REFERENCES)
def test_outputs_equal_the_published_code(name):
    network = models.create(name).eval()
    fill_by_recipe(network)
    images = np.random.RandomState(12345).standard_normal((2, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        logits, features, *_ = network(torch.from_numpy(images))
    torch.testing.assert_close(logits[:, :5], torch.tensor(FACTS[name]["logits"]), atol=1e-4, rtol=0)
    norms = torch.tensor(FACTS[name]["features_norm"])
    torch.testing.assert_close(features.norm(dim=1), norms, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FACTS)
def test_any_image_size_one_image_and_gradients(name):
    network = models.create(name, num_classes=7)
    logits, features, *_ = network(torch.rand(4, 3, 8, 8))
    F.cross_entropy(logits, torch.arange(4)).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert any(p.grad.abs().max() > 0 for p in network.parameters())

    network.eval()
    head = last_linear(network)
    for size in ((8, 8), (64, 64), (40, 24)):
        with torch.no_grad():
            logits, features, *_ = network(torch.rand(1, 3, *size))
        assert logits.shape == (1, 7) and features.shape == (1, network.features_dim)
        assert logits.isfinite().all()
        torch.testing.assert_close(logits, F.linear(features, head.weight, head.bias))


@pytest.mark.parametrize("name", FAMILIES)
def test_channels_last_and_bfloat16(name):
    network = models.create(name).eval()
    fill_by_recipe(network)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = network(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            lower = network(images)
        network.to(memory_format=torch.channels_last)
        other = network(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(other.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(other.features, expected.features, atol=1e-4, rtol=1e-4)
    assert lower.logits.dtype == torch.bfloat16
    assert F.cosine_similarity(lower.features.float(), expected.features).min() > 0.99


def test_tiny_images_and_the_fourth_pooling_of_vgg():
    vgg = models.create("vgg8").eval()
    for size in ((4, 4), (2, 16)):
        assert vgg(torch.rand(1, 3, *size)).logits.shape == (1, 100)
    sides = []
    vgg.block4.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[2]))
    for side in (32, 64, 128):
        vgg(torch.rand(1, 3, side, side))
    assert sides == [4, 4, 8]


def test_mobilenet_v1_on_images_of_imagenet():
    """Howard et al. 2017, tables 1 and 8: 4.2 million parameters and 569 million multiplications and additions."""
    network = models.create("MobileNetV1", 1000).eval()
    assert sum(p.numel() for p in network.parameters()) == 4_231_976 and network.features_dim == 1024
    assert models.map_shapes(network, (224, 224)) == [(128, 56, 56), (256, 28, 28), (512, 14, 14), (1024, 7, 7)]
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        assert network(torch.rand(1, 3, 224, 224)).logits.shape == (1, 1000)
    assert counted.get_total_flops() / 2 == pytest.approx(569e6, rel=0.01)


def test_names_in_any_case():
    assert models.create("RESNET20").name == "resnet20"
    assert models.create("resnet50", 10).name == "ResNet50"
    assert models.create("mobilenetv2", 10).name == "MobileNetV2"
    assert models.create("TorchVision/SqueezeNet1_1", 10).name == "torchvision/squeezenet1_1"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet5", "resnet56"),
        ("ShufleV2", "ShuffleV2"),
        ("wrn-16-2", "wrn_16_2"),
        ("torchvision/resnet1", "resnet18"),
        ("torchvison/resnet18", "torchvision"),
    ],
)
def test_an_unknown_name_names_the_nearest(name, nearest):
    with pytest.raises(ValueError) as error:
        models.create(name)
    message = one_line(error)
    assert repr(name.split("/")[0]) in message or repr(name.split("/")[-1]) in message
    assert f"did you mean {nearest!r}" in message


def test_zoo_networks_have_no_pretrained_weights():
    with pytest.raises(ValueError, match="load_weights") as error:
        models.create("resnet20", pretrained=True)
    one_line(error)


def test_initialisation_is_the_published_one_and_follows_the_seed():
    def weights(name, seed):
        torch.manual_seed(seed)
        return models.create(name).state_dict()

    for name in ("resnet8x4", "ResNet18", "wrn_16_2", "vgg8", "MobileNetV2"):
        state = weights(name, 1)
        # He: variance 2 / (out * k * k), with the largest convolution as the sample.
        key = max((k for k, v in state.items() if v.ndim == 4 and v.shape[2] == 3), key=lambda k: state[k].numel())
        weight = state[key]
        expected = (2 / (weight.shape[0] * weight[0, 0].numel())) ** 0.5
        assert weight.std().item() == pytest.approx(expected, rel=0.05), (name, key)
    for name in ("vgg8", "MobileNetV2"):
        head = last_linear(models.create(name))
        assert head.weight.std().item() == pytest.approx(0.01, rel=0.05) and not head.bias.any()

    first, again, other = weights("ShuffleV1", 1), weights("ShuffleV1", 1), weights("ShuffleV1", 2)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_importing_models_imports_neither_torchvision_nor_timm():
    code = "import sys, ickd_lib.models; sys.exit(any(m in sys.modules for m in ('torchvision', 'timm')))"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


# ------------------------------------------------------------------------------------------- normalisation


def test_a_network_normalises_its_own_images():
    plain = models.create("resnet8").eval()
    own = models.create("resnet8", mean=CIFAR_MEAN, std=CIFAR_STD).eval()
    own.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 32, 32)
    by_hand = torch.stack(
        [(images[:, c] - CIFAR_MEAN[c]) / CIFAR_STD[c] for c in range(3)], dim=1
    )  # each channel apart
    torch.testing.assert_close(own(images).logits, plain(by_hand).logits)
    assert not torch.allclose(own(images).logits, plain(images).logits, atol=1e-3)
    assert own.double()(images.double()).logits.dtype == torch.float64


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8), torch.zeros(3, 8, 8)],
    ids=["uint8", "one channel", "no batch"],
)
def test_images_of_another_type_or_shape_are_refused(images):
    with pytest.raises(ValueError, match="floats in") as error:
        models.create("resnet8")(images)
    one_line(error)


@pytest.mark.parametrize("given", [{"mean": (0.5,)}, {"std": (1, 1, 0)}, {"num_classes": 0}])
def test_impossible_arguments_are_refused(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))}=") as error:
        models.create("resnet8", **given)
    one_line(error)


# -------------------------------------------------------------------------------------------------- weights


def train_a_step(network: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network.train()(torch.rand(4, 3, 16, 16)).logits.square().mean().backward()
    optimizer.step()
    return optimizer


def write_checkpoint(kind: str, network: nn.Module, folder: Path) -> Path:
    """Write a checkpoint as RepDistiller, mdistiller or this project does."""
    optimizer = train_a_step(network)
    state = network.state_dict()
    accuracy = torch.tensor(72.5)
    content = {
        "plain": state,
        "state_dict": {"state_dict": state},
        "parallel": {"model": nn.DataParallel(network).state_dict()},
        "parallel plain": {f"module.{k}": v for k, v in state.items()},
        "before 0.4.1": {k: v for k, v in state.items() if "num_batches" not in k},
        # RepDistiller's train_teacher.py writes {model}_best.pth, ckpt_epoch_240.pth and {model}_last.pth.
        "RepDistiller best": {
            "epoch": 240,
            "model": state,
            "best_acc": accuracy,
            "optimizer": optimizer.state_dict(),
        },
        "RepDistiller last": {
            "opt": argparse.Namespace(model="resnet8", lr_decay_epochs=[150, 180], learning_rate=0.05),
            "model": state,
            "optimizer": optimizer.state_dict(),
        },
        # mdistiller's trainer.py writes student_best, which has no suffix.
        "mdistiller": {"model": state},
        "legacy format": {"epoch": 240, "model": state, "accuracy": accuracy},
    }
    if kind == "safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_file(state, folder / "student.safetensors")
        return folder / "student.safetensors"
    path = folder / ("student_best" if kind == "mdistiller" else "ckpt_epoch_240.pth")
    torch.save(content[kind], path, _use_new_zipfile_serialization=kind != "legacy format")
    return path


KINDS = ["safetensors", "plain", "state_dict", "parallel", "parallel plain", "before 0.4.1"]
KINDS += ["RepDistiller best", "RepDistiller last", "mdistiller", "legacy format"]


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_load(kind, tmp_path):
    saved, network = models.create("resnet8", 10), models.create("resnet8", 10)
    path = write_checkpoint(kind, saved, tmp_path)
    images = torch.rand(2, 3, 32, 32)
    assert not torch.allclose(network.eval()(images).logits, saved.eval()(images).logits, atol=1e-3)
    assert models.load_weights(network, str(path)) is network
    assert torch.equal(network(images).logits, saved(images).logits)


def test_a_network_that_does_not_normalise_its_images_is_named(tmp_path, notes):
    path = write_checkpoint("plain", models.create("resnet8", 10), tmp_path)
    models.load_weights(models.create("resnet8", 10, mean=(0.5,) * 3, std=(0.2,) * 3), path)
    assert notes() == []
    models.load_weights(models.create("resnet8", 10), path)
    (note,) = notes()
    assert note.startswith(
        "note: resnet8 does not normalise its images; if ckpt_epoch_240.pth was trained on normalised"
    )


def test_the_normalisation_of_images_in_0_to_255_is_refused():
    scaled = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
    for make in (lambda: models.create("resnet8", **scaled), lambda: models.wrap(Small(), **scaled)):
        with pytest.raises(ValueError, match="divide mean and std by 255") as error:
            make()
        one_line(error)
    models.create("resnet8", mean=(0.5,) * 3, std=(1 / 255,) * 3)  # for a network that takes values of up to 128


def test_the_same_note_for_a_network_of_a_library_but_not_for_a_module_of_your_own(tmp_path, notes):
    given = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    network = models.create("torchvision/resnet18", 10, **given)
    torch.save(network.module.state_dict(), path := tmp_path / "published.pth")
    models.load_weights(network, path)
    models.load_weights(models.wrap(network.module, name="mine"), path)
    assert notes() == []
    models.load_weights(models.create("torchvision/resnet18", 10), path)
    (note,) = notes()
    assert note.startswith("note: torchvision/resnet18 does not normalise its images; if published.pth was trained on")


@pytest.mark.parametrize(
    ("saved", "classes", "expected"),
    [
        ("resnet8", 100, ["fc.weight [100, 64], not [10, 64]", "num_classes=100"]),
        ("resnet14", 10, ["has in addition layer1.1.conv1.weight", "create the network that the file was saved from"]),
        ("resnet8x4", 10, ["conv1.weight [32, 3, 3, 3], not [16, 3, 3, 3]", "more"]),
        ("vgg8", 10, ["lacks conv1.weight", "has in addition block0.0.weight"]),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(saved, classes, expected, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"model": models.create(saved, classes).state_dict()}, path)
    network = models.create("resnet8", 10)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError) as error:
        models.load_weights(network, path)
    message = one_line(error)
    for part in (str(path), "resnet8 with 10 classes", *expected):
        assert part in message
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut short", "garbage", "a web page"])
def test_a_damaged_file_is_refused_by_its_name(suffix, damage, tmp_path):
    network, path = models.create("resnet8", 10), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        pytest.importorskip("safetensors.torch").save_file(network.state_dict(), path)
    whole = path.read_bytes()
    garbage = np.random.RandomState(0).bytes(4096)
    content = {"empty": b"", "cut short": whole[: len(whole) // 2], "garbage": garbage, "a web page": b"<html>"}
    path.write_bytes(content.get(damage, b""))
    if damage == "missing":
        path.unlink()
    with pytest.raises(ValueError, match="does not exist" if damage == "missing" else "cannot be read") as error:
        models.load_weights(network, path)
    assert str(path) in one_line(error)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, {"model": {"weight": 1.0}}])
def test_a_file_without_a_state_dict_is_refused(content, tmp_path):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match="state dict") as error:
        models.load_weights(models.create("resnet8", 10), path)
    assert str(path) in one_line(error)


class Malicious:
    """Unpickling this calls a function: the attack that weights_only prevents."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("writer", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("function", [os.mkdir, exec], ids=["os.mkdir", "exec"])
def test_pickled_code_is_refused_and_does_not_run(writer, function, tmp_path):
    path, trap = tmp_path / "evil.pth", tmp_path / "trap"
    argument = str(trap) if function is os.mkdir else f"import os; os.mkdir({str(trap)!r})"
    content = {"model": {"conv1.weight": Malicious(function, argument)}}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "zip")
    with pytest.raises(ValueError) as error:
        models.load_weights(models.create("resnet8", 10), path)
    message = one_line(error)
    assert str(path) in message and ("refused" in message or writer == "pickle")
    assert not trap.exists()
    pickle.loads(pickle.dumps(content))
    assert trap.exists()  # an ordinary unpickling does run the code


def test_a_whole_pickled_network_is_refused(tmp_path):
    path = tmp_path / "network.pth"
    torch.save(models.create("resnet8", 10), path)
    with pytest.raises(ValueError, match=r"refused.*state_dict") as error:
        models.load_weights(models.create("resnet8", 10), path)
    one_line(error)


# --------------------------------------------------------------------------------------- torchvision and timm


def test_torchvision_networks_equal_those_of_the_library():
    torchvision = pytest.importorskip("torchvision")
    network = models.create("torchvision/resnet18", 5, mean=CIFAR_MEAN, std=CIFAR_STD).eval()
    expected = torchvision.models.resnet18(num_classes=5).eval()
    expected.load_state_dict(network.module.state_dict())
    images = torch.rand(2, 3, 48, 48)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (CIFAR_MEAN, CIFAR_STD))
    out = network(images)
    torch.testing.assert_close(out.logits, expected((images - mean) / std))
    torch.testing.assert_close(out.logits, expected.fc(out.features))
    assert (network.num_classes, network.features_dim, network.name) == (5, 512, "torchvision/resnet18")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "features", "side"), [("squeezenet1_1", 512, 64), ("googlenet", 1024, 64), ("vit_b_32", 768, 32)]
)
def test_torchvision_networks_of_other_shapes(name, features, side, monkeypatch):
    """One network ends in a convolution, one has auxiliary heads, and one accepts a single image size."""
    transformers = pytest.importorskip("torchvision.models.vision_transformer")
    whole = transformers.VisionTransformer
    monkeypatch.setattr(transformers, "VisionTransformer", lambda **given: whole(**{**given, "num_layers": 1}))
    network = models.create(f"torchvision/{name}", 5)
    assert network.training
    out = network(torch.rand(2, 3, side, side))
    assert out.logits.shape == (2, 5) and out.features.shape == (2, features) == (2, network.features_dim)
    out.logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())  # no layer is unused


def test_pretrained_torchvision_networks_have_their_preprocessing_and_accept_other_classes(monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    source = torchvision.models.mobilenet_v3_small()
    weights = torchvision.models.MobileNet_V3_Small_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, *_, **__: source.state_dict())  # no download
    same = models.create("torchvision/mobilenet_v3_small", 1000, pretrained=True)
    assert torch.equal(same.module.classifier[3].weight, source.classifier[3].weight)
    torch.testing.assert_close(same.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(same.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))

    other = models.create("torchvision/mobilenet_v3_small", 7, pretrained=True, mean=(0, 0, 0))
    assert torch.equal(other.module.classifier[0].weight, source.classifier[0].weight)
    assert other.num_classes == 7 and other(torch.rand(2, 3, 32, 32)).logits.shape == (2, 7)
    assert not other.mean.any() and other.std.flatten()[0] == pytest.approx(0.229)
    assert same.trained_on == {"weights": "torchvision IMAGENET1K_V1"} and not other.trained_on
    assert torch.equal(models.create("torchvision/mobilenet_v3_small").mean, torch.zeros(1, 3, 1, 1))


def test_pretrained_torchvision_networks_by_the_name_of_their_weights(monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    loaded = []

    def named(weights, *_, **__):
        loaded.append(weights.name)
        return torchvision.models.resnet50().state_dict()

    monkeypatch.setattr(torchvision.models.ResNet50_Weights, "get_state_dict", named)  # no download
    network = models.create("torchvision/resnet50(pretrained='imagenet1k_v1')", 1000, mean=(0, 0, 0))
    models.create("torchvision/resnet50", 1000, pretrained=True)
    assert loaded == ["IMAGENET1K_V1", "IMAGENET1K_V2"]
    assert network.trained_on == {"weights": "torchvision IMAGENET1K_V1"}
    assert network.name == "torchvision/resnet50(pretrained='imagenet1k_v1')" and network.stages
    torch.testing.assert_close(network.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    for name in ("torchvision/resnet18", "torchvision/fcn_resnet50", "timm/resnet10t"):
        with pytest.raises(ValueError, match="IMAGENET1K_V9") as error:
            models.create(name, 1000, pretrained="IMAGENET1K_V9")
        one_line(error)


def test_a_failed_download_is_one_line(monkeypatch):
    torchvision = pytest.importorskip("torchvision")

    def offline(*_, **__):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(
        ValueError, match=r"torchvision/resnet18 .*no route to host; .* save https://.*pth in /"
    ) as error:
        models.create("torchvision/resnet18", pretrained=True)
    one_line(error)


def test_timm_networks(monkeypatch):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    network = models.create("timm/ResNet10t", 5).eval()
    expected = timm.create_model("resnet10t", num_classes=5).eval()
    expected.load_state_dict(network.module.state_dict())
    images = torch.rand(2, 3, 40, 40)
    out = network(images)
    torch.testing.assert_close(out.logits, expected(images))
    torch.testing.assert_close(out.features, expected.forward_head(expected.forward_features(images), pre_logits=True))

    vit = models.create("timm/vit_tiny_patch16_224", 5).eval()  # accepts one size only
    large = F.interpolate(images, (224, 224), mode="bilinear", antialias=True)
    torch.testing.assert_close(vit(images).logits, vit.module(large))

    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *_, **__: None)  # no download
    pretrained = models.create("timm/resnet10t.c3_in1k", 5, pretrained=True)
    torch.testing.assert_close(pretrained.mean.flatten(), torch.tensor(expected.pretrained_cfg["mean"]))
    with pytest.raises(ValueError, match="unknown timm model 'resnet10x'") as error:
        models.create("timm/resnet10x")
    one_line(error)


def test_the_error_of_a_missing_library_contains_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="pip install timm") as error:
        models.create("timm/resnet18")
    one_line(error)


# ------------------------------------------------------------------------------------------- wrapped modules


class Small(nn.Module):
    """A user's network with a map, batch norm, dropout, an in-place ReLU after a linear layer, and an unused layer."""

    def __init__(self, output=lambda logits: logits):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.squeeze = nn.Linear(6, 4)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)
        self.unused = nn.Linear(4, 9)
        self.output = output

    def forward(self, x: Tensor):
        x = self.norm(self.conv(x)).mean((2, 3))
        return self.output(self.head(self.drop(self.relu(self.squeeze(x)))))


def test_wrap_equals_the_computation_by_hand():
    module = Small().eval()
    network = models.wrap(module, features="norm", mean=CIFAR_MEAN, std=CIFAR_STD, size=(12, 20), name="mine")
    images = torch.rand(3, 3, 8, 8)
    x = F.interpolate(images, (12, 20), mode="bilinear", antialias=True)
    x = (x - torch.tensor(CIFAR_MEAN).view(1, 3, 1, 1)) / torch.tensor(CIFAR_STD).view(1, 3, 1, 1)
    out = network(images)
    assert isinstance(out, models.Output)
    torch.testing.assert_close(out.logits, module(x))
    torch.testing.assert_close(out.features, module.norm(module.conv(x)).mean((2, 3)))
    assert (network.num_classes, network.features_dim, network.name) == (5, 6, "mine")
    assert models.wrap(module, size=12)(images).logits.shape == (3, 5)


def test_features_are_the_named_layers_output_or_the_classifiers_input():
    module = Small().eval()
    images = torch.rand(3, 3, 8, 8)
    squeezed = module.squeeze(module.norm(module.conv(images)).mean((2, 3)))
    assert squeezed.min() < 0  # so that the in-place ReLU after it would change the result
    torch.testing.assert_close(models.wrap(module, features="squeeze")(images).features, squeezed)
    torch.testing.assert_close(models.wrap(module, features=None)(images).features, squeezed.relu())
    assert models.wrap(module, features="SQUEEZE").features_dim == 4


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.mix(self.embed(x).flatten(2).transpose(1, 2))[:, 0])


def test_tokens_are_averaged():
    module, images = Tokens(), torch.rand(2, 3, 16, 16)
    tokens = module.mix(module.embed(images).flatten(2).transpose(1, 2))
    assert tokens.shape == (2, 16, 8)
    torch.testing.assert_close(models.wrap(module, features="mix")(images).features, tokens.mean(1))
    torch.testing.assert_close(models.wrap(module)(images).features, tokens[:, 0])


def test_features_and_logits_have_the_images_first():
    class TokensFirst(Tokens):
        def __init__(self, mean):
            super().__init__()
            self.mean = mean

        def forward(self, x):
            tokens = self.mix(self.embed(x).flatten(2).permute(2, 0, 1))
            if self.mean == "tokens":
                return self.head(tokens.mean(0))
            return self.head(tokens).mean(0) if self.mean == "logits" else self.head(tokens)[:, 0]

    module = TokensFirst("tokens")
    assert models.wrap(module, size=16).features_dim == 8
    features = r"computes features \[16, 2, 8\] for 2 images; the images must come first, as in \[B, D\]"
    with pytest.raises(ValueError, match=f"layer 'mix' {features}") as error:
        models.wrap(module, features="mix", size=16)
    one_line(error)
    with pytest.raises(ValueError, match=f"layer 'head' {features}"):
        models.wrap(TokensFirst("logits"), size=16)
    with pytest.raises(ValueError, match=r"returned logits \[16, 5\] for 2 images; expected \[B, C\]") as error:
        models.wrap(TokensFirst("neither"), size=16)
    one_line(error)


def test_a_map_with_channels_last_is_averaged_over_space_too():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 5)

        def forward(self, x):
            return self.head(x.permute(0, 2, 3, 1)).mean((1, 2))

    module, images = Last(), torch.rand(2, 3, 8, 6)
    torch.testing.assert_close(models.wrap(module)(images).features, images.mean((2, 3)))
    named = models.wrap(module, features="head")(images)
    torch.testing.assert_close(named.features, named.logits)


@pytest.mark.parametrize(
    "output",
    [
        lambda logits: (logits, None),
        lambda logits: [logits],
        lambda logits: SimpleNamespace(logits=logits),
        lambda logits: {"loss": None, "logits": logits},
    ],
    ids=["tuple", "list", "object", "dict"],
)
def test_what_a_wrapped_module_may_return(output):
    module, images = Small(output).eval(), torch.rand(2, 3, 8, 8)
    expected = copy.deepcopy(module)
    expected.output = lambda logits: logits
    torch.testing.assert_close(models.wrap(module)(images).logits, expected(images))


def test_wrap_keeps_statistics_modes_and_the_random_state():
    module = Small().train()
    module.norm.eval()
    before, random = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    network = models.wrap(module)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert module.training and module.drop.training and not module.norm.training and network.training
    assert not models.wrap(Small().eval()).training
    network.train()(torch.rand(4, 3, 8, 8))
    assert not torch.equal(before["norm.running_mean"], module.norm.running_mean)  # training does change them


def test_no_hooks_and_tensors_remain_after_a_pass():
    module = Small()
    network = models.wrap(module, features="squeeze")

    def hooks():
        return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())

    features = network(torch.rand(2, 3, 8, 8)).features
    alive = weakref.ref(features)
    assert alive() is not None
    del features
    assert alive() is None and hooks() == 0
    module.output = lambda _: 1 / 0
    with pytest.raises(ZeroDivisionError):
        network(torch.rand(2, 3, 8, 8))
    assert hooks() == 0


def test_a_copy_computes_its_own_features():
    network = models.wrap(Small().eval(), features="squeeze")
    twin, images = copy.deepcopy(network), torch.rand(2, 3, 8, 8)
    before = network(images).features
    torch.testing.assert_close(twin(images).features, before)
    with torch.no_grad():
        twin.module.squeeze.bias.add_(1)
    torch.testing.assert_close(twin(images).features, before + 1)
    torch.testing.assert_close(network(images).features, before)


def test_gradients_flow_through_a_wrapped_module_unless_forbidden():
    network = models.wrap(Small().eval(), features="squeeze")
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    network(images).features.sum().backward()
    assert network.module.conv.weight.grad.abs().max() > 0 and images.grad.abs().max() > 0
    assert network.module.head.weight.grad is None
    network(images).logits.sum().backward()
    assert network.module.head.weight.grad is not None
    with torch.no_grad():
        assert not network(images).features.requires_grad
        with torch.enable_grad():
            assert network(images).features.requires_grad


def test_wrapped_modules_load_weights_by_either_name(tmp_path):
    saved = models.wrap(Small())
    train_a_step(saved)
    images, expected = torch.rand(2, 3, 8, 8), None
    for file, state in {
        "own.pth": saved.state_dict(),  # module.conv.weight
        "inner.pth": saved.module.state_dict(),  # conv.weight
        "parallel.pth": nn.DataParallel(saved).state_dict(),  # module.module.conv.weight
    }.items():
        torch.save(state, tmp_path / file)
        network = models.load_weights(models.wrap(Small()), tmp_path / file).eval()
        expected = saved.eval()(images).logits
        assert torch.equal(network(images).logits, expected), file


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"features": "squeze"}, "unknown layer of Small 'squeze'; did you mean 'squeeze'"),
        ({"features": "unused"}, "'unused' does not run"),
        ({"num_classes": 9}, "5 classes, not num_classes=9"),
    ],
)
def test_wrap_refuses_what_does_not_fit(given, message):
    with pytest.raises(ValueError, match=message) as error:
        models.wrap(Small(), **given)
    one_line(error)


def test_wrap_refuses_modules_that_it_cannot_run_or_read():
    with pytest.raises(ValueError, match="pass the size it takes") as error:
        models.wrap(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)))
    one_line(error)
    fixed = models.wrap(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)), size=8)
    assert fixed(torch.rand(2, 3, 30, 30)).features.shape == (2, 192)
    with pytest.raises(ValueError, match=r"returned shape \[2, 4, 32, 32\]") as error:
        models.wrap(nn.Conv2d(3, 4, 1))
    one_line(error)
    with pytest.raises(ValueError, match="no linear layer") as error:
        models.wrap(nn.Flatten())
    one_line(error)
    with pytest.raises(ValueError, match="the outputs of Sequential are probabilities, not logits") as error:
        models.wrap(nn.Sequential(Small(), nn.Softmax(1)))
    one_line(error)
    assert models.wrap(nn.Sequential(Small(), nn.LogSoftmax(1))).num_classes == 5, "logarithms are logits"
    with pytest.raises(ValueError, match=r"Small has weights in bfloat16; give module.float\(\)") as error:
        models.wrap(Small().bfloat16())
    one_line(error)

"""The networks of torchvision and timm. Each library is imported only when one of its models is created."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from ..runtime import InputError, choose
from .inspection import first_line
from .network import Network
from .torchvision_dense import IMAGENET_NORMALISATION, detection_names, detector, segmentation_names, segmenter
from .wrapped import Wrapped, wrap

IDENTITY = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")
_loading: ContextVar[bool] = ContextVar("loading", default=True)
_patching = threading.RLock()


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Let torch read files of weights only, so that no code in a downloaded file runs.

    The functions of the libraries ask torch for more, which this overrides; their weights need no more.
    """
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        del os.environ[names[0]]
        os.environ.update(before)


class _LeftOut(dict[str, Any]):
    """Stands for the pretrained weights that `without_weights` leaves out."""


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Let `create` build pretrained networks without their weights, so that nothing is downloaded.

    It is for weights that a checkpoint replaces. Architecture and preprocessing are those of the pretrained network,
    which torchvision builds in another way than a new one: a backbone then has frozen batch normalisation, for example.
    Therefore torchvision builds it as usual, and only its two functions that read and load the weights do nothing.

    Raises:
        InputError: torchvision is not installed.
    """
    weights = _import("torchvision", "torchvision.models._api").WeightsEnum

    def load_unless_left_out(module: nn.Module, state: Any, *args: Any, **options: Any) -> Any:
        return None if isinstance(state, _LeftOut) else load(module, state, *args, **options)

    with _patching:  # two threads could otherwise restore each other's functions
        read, load = weights.get_state_dict, nn.Module.load_state_dict
        token = _loading.set(False)
        weights.get_state_dict = lambda *_, **__: _LeftOut()
        nn.Module.load_state_dict = load_unless_left_out  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            weights.get_state_dict, nn.Module.load_state_dict = read, load  # type: ignore[method-assign]
            _loading.reset(token)


@weights_only()
def from_torchvision(
    name: str,
    num_classes: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    pretrained: bool | str,
    options: dict[str, Any],
) -> Network:
    """Create torchvision's model `name` without auxiliary heads; see `models.create`."""
    models = _import("torchvision", "torchvision.models")
    for_segmentation, for_detection = segmentation_names(models), detection_names(models)
    name = choose(
        name, [*models.list_models(module=models), *for_segmentation, *for_detection], what="torchvision model"
    )
    full = f"torchvision/{name}"
    own_mean, own_std = IMAGENET_NORMALISATION if pretrained else IDENTITY
    if name in for_segmentation or name in for_detection:
        known_weights(pretrained)
    if name in for_detection:
        network = build(full, lambda: detector(models, name, num_classes, pretrained, options))
    else:
        no_options(full, options)
        if name in for_segmentation:
            network = build(full, lambda: segmenter(models, name, num_classes, pretrained))
        else:
            network, own_mean, own_std = _classifier(models, name, num_classes, pretrained)
    network.name = full
    network.set_normalisation(own_mean if mean is None else mean, own_std if std is None else std)
    return network


def _classifier(models: Any, name: str, num_classes: int, pretrained: bool | str) -> tuple[Network, Any, Any]:
    """Create torchvision's classifier `name`; also return mean and std of its weights."""
    mean, std = IDENTITY
    advice = ""
    options: dict[str, Any] = {"num_classes": num_classes}
    if pretrained:
        weights = _weights(models, name, pretrained)
        mean, std = weights.transforms().mean, weights.transforms().std
        options = {"weights": weights}
        advice = f"; if this machine has no connection, save {weights.url} in {torch.hub.get_dir()}/checkpoints"
    elif name in ("googlenet", "inception_v3"):
        options["init_weights"] = True  # the default, which torchvision warns about if it is not given

    module = build(f"torchvision/{name}", lambda: models.get_model(name, **options), advice)
    if getattr(module, "aux_logits", False):
        module.aux_logits = False
        for head in ("aux1", "aux2", "AuxLogits"):
            if hasattr(module, head):
                setattr(module, head, None)

    fixed = getattr(module, "image_size", 224 if name.startswith("maxvit") else None)
    network = wrap(module, size=fixed, name=f"torchvision/{name}", maps=_stages(module))
    _name_maps(network)
    if network.num_classes != num_classes:
        _replace_classifier(network, num_classes)
    elif pretrained:
        network.trained_on = {"weights": f"torchvision {weights.name}"}
    return network, mean, std


def _weights(models: Any, name: str, pretrained: bool | str) -> Any:
    """Return torchvision's weights of a classifier: the default ones for True, or those of a name."""
    if pretrained == "backbone":
        whole_only(f"torchvision/{name}", pretrained)
    weights = models.get_model_weights(name)
    wanted = "DEFAULT" if pretrained is True else str(pretrained)
    return weights[choose(wanted, list(weights.__members__), what=f"weights of torchvision/{name}")]


@weights_only()
def from_timm(
    name: str,
    num_classes: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    pretrained: bool | str,
    options: dict[str, Any],
) -> Network:
    """Create timm's model `name`, which may include the tag of its weights (resnet18.a1_in1k); see `models.create`."""
    no_options(f"timm/{name}", options)
    whole_only(f"timm/{name}", pretrained)
    timm = _import("timm", "timm")
    model, dot, tag = name.partition(".")
    name = choose(model, timm.list_models(), what="timm model") + dot + tag
    loaded = bool(pretrained) and _loading.get()
    module = build(f"timm/{name}", lambda: timm.create_model(name, pretrained=loaded, num_classes=num_classes))
    config = module.pretrained_cfg
    own_mean, own_std = (config["mean"], config["std"]) if pretrained else IDENTITY
    fixed = config["input_size"][1:] if config.get("fixed_input_size") else None
    network = wrap(
        module,
        num_classes=num_classes,
        mean=own_mean if mean is None else mean,
        std=own_std if std is None else std,
        size=fixed,
        name=f"timm/{name}",
        maps=_stages(module),
    )
    _name_maps(network)
    if pretrained and config["num_classes"] == num_classes:
        network.trained_on = {"weights": f"timm {config.get('tag') or 'default'}"}
    return network


LIBRARIES = {"torchvision": from_torchvision, "timm": from_timm}


def _stages(module: nn.Module) -> tuple[str, ...]:
    """Return the names of a ResNet's four stages, or none if the module has no layers of these names."""
    children = dict(module.named_children())
    return RESNET_STAGES if all(stage in children for stage in RESNET_STAGES) else ()


def _name_maps(network: Network) -> None:
    """Name the activations of a ResNet's stages, and the map that it averages to its features."""
    if not network.stages:
        return
    network.pooled = network.stages[-1]
    # torchvision's blocks use one ReLU for all activations, of which the last input is kept; timm numbers them.
    activations = []
    for stage in network.stages:
        position, block = list(network.get_submodule(stage).named_children())[-1]
        name = next((name for name in ("act3", "act2", "relu") if hasattr(block, name)), None)
        if name:
            activations.append(f"{stage}.{position}.{name}")
    network.activations = tuple(activations) if len(activations) == len(network.stages) else ()


def _import(package: str, module: str) -> Any:
    """Import a module of a library that need not be installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{package}/… models need the library {package}; run pip install {package}") from None


def build(name: str, make: Callable[[], Any], advice: str = "") -> Any:
    """Run `make`; any of its errors becomes an InputError in one line, which ends with the advice."""
    try:
        return make()
    except InputError:
        raise
    except Exception as error:  # no internet connection, no such weights, a damaged download
        raise InputError(f"{name} cannot be created: {type(error).__name__}: {first_line(error)}{advice}") from error


def no_options(name: str, options: dict[str, Any]) -> None:
    """Raise an InputError if there are options, which only detectors have."""
    for option in options:
        raise InputError(
            f"{name} has no option {option}; only detectors (such as torchvision/fasterrcnn_… and …-fpn) have options"
        )


def whole_only(name: str, pretrained: bool | str) -> None:
    """Raise an InputError if the weights of a backbone are wanted for a classifier."""
    if pretrained not in (True, False):
        raise InputError(
            f"{name} with pretrained={pretrained!r}; a classifier takes True or False, and one of torchvision the name "
            "of its weights, such as IMAGENET1K_V1"
        )


def known_weights(pretrained: bool | str) -> None:
    """Raise an InputError if `pretrained` is the name of weights, which only torchvision's classifiers have."""
    if pretrained not in (True, False, "backbone"):
        raise InputError(f"pretrained={pretrained!r}; it is True, False or 'backbone'")


def _replace_classifier(network: Network, num_classes: int) -> None:
    """Replace the pretrained classifier by a newly initialised one of `num_classes` outputs."""
    assert isinstance(network, Wrapped)
    old = network.module.get_submodule(network.layer)
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d):
        new = nn.Conv2d(old.in_channels, num_classes, old.kernel_size[0], bias=old.bias is not None)
    parent, _, child = network.layer.rpartition(".")
    setattr(network.module.get_submodule(parent), child, new)
    network.num_classes = num_classes

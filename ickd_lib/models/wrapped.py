"""Any user's module as a Network: its logits, and the features and maps of named layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime import InputError, choose
from ..runtime.arguments import refuse_probabilities
from .inspection import require_precision, run_on_black_images, undisturbed
from .network import Network, Output


class Source(NamedTuple):
    """The file that a network was loaded from, and the arguments of `from_file`; `mark` is a hash of its content."""

    text: str
    num_classes: int
    image_size: tuple[int, int] | None
    mark: str


class Program(nn.Module):
    """A compiled program, which keeps the mode in which it was compiled."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def train(self, mode: bool = True) -> Program:
        self.training = mode  # an exported program raises an error when its mode is changed
        return self

    def forward(self, images: Tensor) -> Any:
        return self.program(images)


class Wrapped(Network):
    """The network that `wrap` returns.

    Attributes:
        module: the wrapped module; its parameters are the network's, with `module.` before their names.
        layer: name of the layer that the features are taken from, in the wrapped module; "" for the features that the
            module returns itself, or for none.
        before: whether the features are the input of that layer instead of its output.
        size: (H, W) that images are resized to, or None.
        stages: names of the layers whose outputs are the maps, with `module.` before each. Maps are copies of these
            outputs, since the next layer of a user's module may work in place.
        source: the file that the module was loaded from, if it was. Another process loads it from there, because it
            does not have the module's class.
    """

    source: Source | None = None

    def __init__(
        self,
        module: nn.Module,
        layer: str,
        before: bool,
        size: tuple[int, int] | None,
        num_classes: int,
        features_dim: int,
        maps: Sequence[str] = (),
    ) -> None:
        super().__init__(num_classes, features_dim)
        self.module = module
        self.layer = layer
        self.before = before
        self.size = size
        self.stages = tuple(f"module.{part}" for part in maps)

    def _facts(self) -> list[Any]:
        return super()._facts() + ([self.source.mark] if self.source else [])

    def __deepcopy__(self, memo: dict[int, Any]) -> Wrapped:
        twin = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.source is None:
            return super().__reduce_ex__(protocol)
        modes = [part.training for part in self.modules()], [one.requires_grad for one in self.parameters()]
        facts = {name: getattr(self, name) for name in ("name", "classes", "trained_on", "mean", "std")}
        return _loaded_again, (self.source, facts, modes, self.state_dict())

    def forward_normalised(self, x: Tensor) -> Output:
        return _logits_and_features(self.module, self.layer, self.before, self._resized(x))

    def _resized(self, x: Tensor) -> Tensor:
        if self.size is None or x.shape[2:] == self.size:
            return x
        # Interpolation weights sum to one, so resizing after normalising equals resizing before.
        return F.interpolate(x, self.size, mode="bilinear", antialias=True)

    def _as_map(self, stage: str, value: Any) -> Tensor:
        if isinstance(value, (tuple, list)) and value:
            value = value[0]
        return super()._as_map(stage, value).clone()


def _loaded_again(
    source: Source, facts: dict[str, Any], modes: tuple[list[bool], list[bool]], state: dict[str, Tensor]
) -> Network:
    """Load a pickled network from its file. Raise InputError if the file has changed."""
    from .own import from_file

    network = from_file(source.text, num_classes=source.num_classes, image_size=source.image_size)
    assert isinstance(network, Wrapped)
    if network.source != source:
        raise InputError(f"the file of {network.name} was changed while it was used; start again")
    for key, value in facts.items():
        setattr(network, key, value)
    network.load_state_dict(state)
    for part, training in zip(network.modules(), modes[0], strict=True):
        part.training = training
    for parameter, trained in zip(network.parameters(), modes[1], strict=True):
        parameter.requires_grad_(trained)
    return network


def wrap(
    module: nn.Module,
    *,
    features: str | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] = (0, 0, 0),
    std: Sequence[float] = (1, 1, 1),
    size: int | tuple[int, int] | None = None,
    name: str | None = None,
    maps: Sequence[str] = (),
) -> Network:
    """Make a Network of any image classifier, so that it can be a teacher or a student.

    The Network contains the module itself, not a copy. The module is evaluated on two black images, in eval mode and
    without gradients, to find C and D; its modes, its batch-norm statistics and the random state stay as they are. It
    may return a tensor [B, C], a tuple or list whose first item is that tensor, an object with `.logits`, or a
    dict with "logits". A dict may also have "features", and a pair may be (logits, features).

    Args:
        module: an image classifier that takes normalised images [B, 3, H, W].
        features: name, in `module.named_modules()`, of the submodule whose output is the features. An output [B, D]
            is used as it is; a map [B, D, H, W] is averaged over space (that of a linear layer or a LayerNorm has its
            channels last); tokens [B, T, D] are averaged over all T, including a class token. With None, they are the
            features that the module returns, or else the input of the layer that `models.classifier` finds; in a vision
            transformer that is the class token. The layers of a compiled program (`torch.jit.ScriptModule`) cannot be
            observed: without features of its own it has none, [B, 0]. The same holds for `ExportedProgram.module()`.
        num_classes: C, compared with the number of logits; None accepts any number.
        mean: [3], subtracted from images in [0, 1].
        std: [3], by which the difference is divided.
        size: side, or (H, W), in pixels to which images are resized (bilinear, antialiased); None leaves their size.
        name: the network's name in error messages and run folders; by default the module's class.
        maps: names of submodules, shallow to deep, whose outputs [B, C_i, H_i, W_i] are the maps, in this order.
    Returns:
        A Network: images [B, 3, H, W] in [0, 1] to logits [B, C], features [B, D] and, if requested, maps.
    Raises:
        InputError: a name is not that of a layer, or the layer does not run in a forward pass; a layer of `maps` does
            not compute a map (but tokens [B, T, D], for example); the logits or features do not have one row for each
            image, or maps and features seem to have their channels last; the module cannot be evaluated on images of
            `size` (with None, of 32x32 or 224x224); C is not `num_classes`; no linear layer or convolution runs
            and `features` is None; the module has weights in float16 or bfloat16; it returns probabilities instead of
            logits; a compiled program was compiled in training mode.
    """
    name = name or type(module).__name__
    require_precision(module, name)
    if isinstance(module, torch.fx.GraphModule) and "train" in vars(module):  # what torch.export makes
        module = Program(module)
    layers = [layer for layer, _ in module.named_modules() if layer]
    if features is not None and features not in layers:
        features = choose(features, layers, what=f"layer of {name}")
    maps = [maps] if isinstance(maps, str) else maps
    maps = [part if part in layers else choose(part, layers, what=f"layer of {name}") for part in maps]
    pixels = None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1])

    buffers = {key: buffer.clone() for key, buffer in module.named_buffers()} if is_program(module) else {}
    images, last = run_on_black_images(module, name, pixels)
    if is_program(module):
        _require_evaluation_mode(module, name, images, buffers)
    layer = last if features is None else features
    with undisturbed(module):
        if features is None and (is_program(module) or returned_features(module(images)) is not None):
            layer = ""
        if layer is None:
            raise InputError(
                f"{name} has no linear layer whose input could be its features; name a layer in features=…"
            )
        logits, found, *_ = _logits_and_features(module, layer, features is None, images, first=True)
        refuse_probabilities(f"the outputs of {name}", logits)
        if num_classes not in (None, logits.shape[1]):
            raise InputError(f"{name} has {logits.shape[1]} classes, not num_classes={num_classes}")
        network = Wrapped(module, layer, features is None, pixels, logits.shape[1], found.shape[1], maps)
        network.name = name
        if maps:  # raises the error of a layer without a map now, not in training
            for part, found in zip(maps, network._forward_with_maps(images).maps, strict=True):
                if _channels_seem_last(found.shape, images):
                    raise InputError(
                        f"layer {part!r} of {name} returns {list(found.shape)}, whose channels seem to come last; name "
                        "one whose map is [B, C, H, W]"
                    )

    network.training = module.training
    network.set_normalisation(mean, std)
    network.mean, network.std = network.mean.to(images), network.std.to(images)
    return network


def wrapping(network: Network) -> dict[str, Any]:
    """Return what the outputs of a network depend on beside its weights and its code, in a form for JSON.

    Returns:
        "mean" and "std" to six digits, and "maps", the names of the layers. For a network that `wrap` made also "size",
        (H, W) or None, and "features", the layer that they are taken from, "" if the module returns them.
    """
    found: dict[str, Any] = {
        key: [float(f"{x:.6g}") for x in getattr(network, key).flatten().tolist()] for key in ("mean", "std")
    }
    found["maps"] = [stage.removeprefix("module.") for stage in network.stages]
    if isinstance(network, Wrapped):
        found["size"] = network.size
        found["features"] = f"input of {network.layer}" if network.before and network.layer else network.layer
    return found


def _logits_and_features(module: nn.Module, layer: str, before: bool, images: Tensor, first: bool = False) -> Output:
    """Run the module once; the features are the pooled input (`before`) or output of `layer`.

    The hook is removed after the pass, so that the module keeps no tensors and a copy of it computes its own features.
    In the `first` pass, the layouts of the logits and features are compared with the images.
    """
    if not layer:
        value = module(images)
        logits, features = _logits(value), _first(returned_features(value))
        pooled = logits.new_empty(len(logits), 0) if features is None else _pool(features, "features")
        if first:
            _require_layouts(logits, pooled.shape if features is None else features.shape, "features", None, images)
        return Output(logits, pooled)
    collected: list[tuple[torch.Size, Tensor]] = []
    part = module.get_submodule(layer)

    def collect(value: Any) -> None:
        value = _first(value)
        pooled = _pool(value, layer, part)
        collected.append((value.shape, pooled))

    if before:
        handle = part.register_forward_pre_hook(lambda _, inputs: collect(inputs))
    else:
        handle = part.register_forward_hook(lambda _, __, output: collect(output))
    try:
        logits = _logits(module(images))
    finally:
        handle.remove()
    if not collected:
        raise InputError(f"layer {layer!r} does not run in a forward pass; name another in features=…")
    shape, pooled = collected[-1]
    if first:
        _require_layouts(logits, shape, layer, part, images)
    return Output(logits, pooled)


def _require_layouts(logits: Tensor, shape: torch.Size, layer: str, part: nn.Module | None, images: Tensor) -> None:
    """Raise InputError unless logits, and features of this shape before they are pooled, fit the images."""
    if len(logits) != len(images):
        raise InputError(
            f"the wrapped module returned logits {list(logits.shape)} for {len(images)} images; expected [B, C], one "
            "row for each image"
        )
    given = f"layer {layer!r} computes features {list(shape)}"
    if shape[0] != len(images):
        raise InputError(
            f"{given} for {len(images)} images; the images must come first, as in [B, D], [B, D, H, W] or [B, T, D], "
            "such as with batch_first=True: name another layer in features=…"
        )
    if _channels_seem_last(shape, images) and not _has_channels_last(part):
        raise InputError(
            f"{given}, whose channels seem to come last; name one whose features are [B, D, H, W], a linear layer or a "
            "LayerNorm"
        )


def _channels_seem_last(shape: torch.Size, images: Tensor) -> bool:
    """Return whether the shape is that of a map [B, H, W, C], as far as it shows: with square images, H is W."""
    return len(shape) == 4 and shape[1] == shape[2] != shape[3] and images.shape[2] == images.shape[3]


def is_program(module: nn.Module) -> bool:
    """Return whether a module is a compiled program, whose layers cannot be observed while it runs."""
    programs = (torch.jit.ScriptModule, torch.fx.GraphModule)
    return any(isinstance(part, programs) for part in (module, *module.children()))


def _require_evaluation_mode(module: nn.Module, name: str, images: Tensor, buffers: Mapping[str, Tensor]) -> None:
    """Raise InputError if a program was compiled in training mode; its buffers are set to `buffers` again.

    Such a program updates its batch-norm statistics, or its output for an image depends on the rest of the batch.
    """
    noise = torch.rand(images[:1].shape, generator=torch.Generator().manual_seed(0)).to(images)
    black, white = torch.zeros_like(noise), torch.ones_like(noise)
    with undisturbed(module):
        first, second = (_logits(module(torch.cat([noise, other])))[0] for other in (black, white))
        changed = [(one, buffers[key]) for key, one in module.named_buffers() if not torch.equal(one, buffers[key])]
        for buffer, before in changed:
            buffer.copy_(before)
    if changed or bool((first - second).abs().max() > 1e-2 * first.abs().max()):
        raise InputError(
            f"{name} changes its batch-norm statistics, or its output for an image depends on the other images of the "
            "batch, as in training mode; call model.eval() before torch.export.export or torch.jit.trace"
        )


def returned_features(value: Any) -> Tensor | None:
    """Return the features in the value that a module returned, of shape [B, ...]; None if there are none."""
    if isinstance(value, Mapping):
        return value.get("features")
    if isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[1], Tensor) and value[1].ndim > 1:
        return value[1]
    return None


def _pool(value: Any, layer: str, part: nn.Module | None = None) -> Tensor:
    """Average [B, D, H, W] (of a linear layer or a LayerNorm [B, H, W, D]) or [B, T, D] to features [B, D]."""
    if isinstance(value, Tensor) and value.ndim == 4:
        return value.mean((1, 2) if _has_channels_last(part) else (2, 3))
    if isinstance(value, Tensor) and value.ndim == 3:
        return value.mean(1)
    if isinstance(value, Tensor) and value.ndim == 2:
        return value.clone()  # the next layer may work in place
    given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise InputError(f"layer {layer!r} returns {given}; features must be [B, D], [B, D, H, W] or [B, T, D]")


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (tuple, list)) and value else value


def _has_channels_last(part: nn.Module | None) -> bool:
    return isinstance(part, nn.Linear) or type(part) is nn.LayerNorm


def _logits(value: Any) -> Tensor:
    """Find the logits [B, C] in the value that a module returned."""
    if isinstance(value, Mapping):
        value = value.get("logits", value)
    elif hasattr(value, "logits"):
        value = value.logits
    else:
        value = _first(value)
    if isinstance(value, Tensor) and value.ndim == 2:
        return value
    given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise InputError(f"the wrapped module returned {given}; expected logits [B, C], alone, first or as .logits")

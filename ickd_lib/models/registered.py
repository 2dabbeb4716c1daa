"""Networks of your own that are created by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

from ..runtime import InputError
from ..runtime.registry import enter
from .external import IDENTITY, build
from .network import Network
from .wrapped import wrap

REGISTRY: dict[str, Callable[..., nn.Module]] = {}
F = TypeVar("F", bound=Callable[..., nn.Module])


def register(name: str) -> Callable[[F], F]:
    """Decorator for a class of modules, or a function that makes one: `models.create(name)` then makes the network.

    So it can be used wherever a model is named: as `Student(name, …)`, in `training.compare` with several methods and
    seeds, as a teacher, and on the command line. The runs of such a network can be loaded and exported.

    >>> from torch import nn
    >>> from ickd_lib import models
    >>> @models.register("tiny")
    ... class Tiny(nn.Sequential):
    ...     def __init__(self, num_classes, width=16):
    ...         pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ...         super().__init__(nn.Conv2d(3, width, 3), nn.ReLU(), *pool, nn.Linear(width, num_classes))
    >>> models.create("tiny(width=8)", 10).features_dim
    8

    Args:
        name: the name. The class or function is called with `num_classes`, and with the arguments in brackets after the
            name. It returns a module that `wrap` takes, which is then wrapped with the normalisation of the data, or a
            Network. A Network without a normalisation gets that of the data.
    Raises:
        InputError: another network has the name, or the name is empty or contains one of the characters "/:.()-".
    """

    from . import ZOO  # the package imports this file

    if not name or set(name) & set("/:.()-") or name.lower() in map(str.lower, ZOO):
        problem = f"name {name!r} of a network is empty, that of another network, or contains one of / : . ( ) -"
        raise InputError(f"{problem}; choose another name")

    def add(make: F) -> F:
        enter(REGISTRY, name, make, "network")
        return make

    return add


def create_registered(
    name: str,
    num_classes: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    options: dict[str, Any],
) -> Network:
    """Create a registered network; the arguments are those of `models.create`."""
    made = build(name, lambda: REGISTRY[name](num_classes=num_classes, **options))
    if not isinstance(made, nn.Module):
        raise InputError(f"{name} returned a {type(made).__name__}; expected a torch.nn.Module")
    network = made if isinstance(made, Network) else wrap(made, name=name)
    if network.num_classes != num_classes:
        raise InputError(f"{name} has {network.num_classes} classes, but {num_classes} were requested")
    if not network.mean.any() and bool((network.std == 1).all()):
        network.set_normalisation(IDENTITY[0] if mean is None else mean, IDENTITY[1] if std is None else std)
    network.name = name
    return network.train()

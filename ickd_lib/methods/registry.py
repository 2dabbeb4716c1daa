"""The names by which methods are created, alone or combined."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ickd_lib import runtime
from ickd_lib.methods.base import LABEL_SPACES, NEEDS, Method, defaults, require_initialised
from ickd_lib.methods.combined import Combined
from ickd_lib.runtime import InputError
from ickd_lib.runtime.registry import enter

_REGISTRY: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def register(name: str) -> Callable[[M], M]:
    """Class decorator that registers a Method under `name`.

    Raises:
        InputError: another class has the name, or the class declares an unknown need or label space.
    """

    def add(cls: M) -> M:
        for need in cls.needs:
            runtime.choose(need, NEEDS, "need")
        runtime.choose(cls.label_space, LABEL_SPACES, "label space")
        cls.registered_name = name
        enter(_REGISTRY, name, cls, "method")
        return cls

    return add


def names() -> list[str]:
    """Return the names of the registered methods, sorted."""
    return sorted(_REGISTRY)


def create(name: str, **weights: Any) -> Method:
    """Create a method by name; arguments may be part of the name, as in "ickd(nicd=0, positives=4)".

    "ickd+dist" combines two methods, with the cross-entropy of the first (the `ce` of a later one is 0 unless given).

    Args:
        name: the name of a method, or several joined by "+".
        weights: arguments of the method; they take precedence over those in the name.
    Raises:
        InputError: a name or an argument is unknown (the message contains the most similar one), or a value is
            impossible.
    """
    parts = split(name)
    if len(parts) > 1:
        if weights:
            raise InputError(f"write the arguments for {name!r} into the name, after the method that takes them")
        later = [parse(part) for part in parts[1:]]
        for part, _ in later:
            if "ce" not in defaults(_REGISTRY[runtime.choose(part, _REGISTRY, "method")]):
                raise InputError(
                    f"{part!r} has no weight of cross-entropy that could be 0; write it before the +, or leave it out"
                )
        return Combined(parts=[create(parts[0]), *(create(part, **{"ce": 0.0} | given) for part, given in later)])
    name, given = parse(name)
    weights = given | weights
    name = runtime.choose(name, _REGISTRY, "method")
    cls = _REGISTRY[name]
    known = defaults(cls)
    for key in weights:
        if key not in known:
            if key in inspect.signature(cls.__init__).parameters:
                raise InputError(
                    f"argument {key!r} of method {name!r} is not keyword-only; write it after a *, as in "
                    f"def __init__(self, *, {key}=…)"
                )
            runtime.choose(key, known, "argument", f" of method {name!r}")
    method = cls(**weights)
    require_initialised(method)
    return method


def recorded(config: Mapping[str, Any]) -> Method:
    """Create the method of a run from its configuration, which is the `config` of a method.

    Raises:
        InputError: as for `create`.
    """
    if parts := config.get("parts"):
        return Combined(parts=[recorded(part) for part in parts])
    cls = _REGISTRY[runtime.choose(config["name"], _REGISTRY, "method")]
    return create(config["name"], **cls.recorded_arguments(config))


def split(text: str) -> list[str]:
    """Split "ickd(a=1e+2)+dist" at each + outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "+" and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    if not all(part.strip() for part in parts):
        raise InputError(f"{text!r} has no method on one side of a +; remove the +, or name a method there")
    return [part.strip() for part in parts]


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Split "ickd(nicd=0)" into ("ickd", {"nicd": 0}); the values are Python literals.

    Raises:
        InputError: the text has another form.
    """
    return runtime.parse_call(text, "method", "ickd(nicd=0.5, positives=4)")

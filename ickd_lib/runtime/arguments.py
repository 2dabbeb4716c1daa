"""The types and ranges of arguments: annotations declare them, and they are checked here.

Methods, recipes, functions with many settings, the command line and the parameters of notebooks all use these.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import torch
from torch import Tensor, nn

from ickd_lib.runtime.errors import InputError, choose, shown

F = TypeVar("F", bound=Callable[..., Any])
LARGEST = 1e30  # float32, in which networks compute, has no room for much larger numbers
NOUNS = {
    float: "a finite number",
    int: "a whole number",
    bool: "True or False",
    str: "a text",
    Path: "a path",
    NoneType: "None",
}


class Bound(NamedTuple):
    """A condition in an annotation, as in Annotated[float, Bound(lambda value: value > 0, "above 0")]."""

    holds: Callable[[Any], bool]
    text: str


Positive = Annotated[float, Bound(lambda value: value > 0, "above 0")]
NotNegative = Annotated[float, Bound(lambda value: value >= 0, "of 0 or more")]
Share = Annotated[float, Bound(lambda value: 0 <= value <= 1, "from 0 to 1")]
BelowOne = Annotated[float, Bound(lambda value: 0 <= value < 1, "from 0 to below 1")]
Count = Annotated[int, Bound(lambda value: 1 <= value < 2**31, "of 1 or more")]
Natural = Annotated[int, Bound(lambda value: 0 <= value < 2**31, "of 0 or more")]
Precision = Literal["auto", "fp32", "bf16"]
Name = Annotated[str, Bound(bool, "that is not empty")]


def check(name: str, value: Any, kind: Any, of: str = "") -> Any:
    """Return the value of an argument in the form that its annotation declares.

    Args:
        name, value: the argument.
        kind: an annotation. int, float, bool, str, None, other classes, Literal, Annotated with a `Bound`, callables,
            unions, tuples, lists and sequences of these are checked; anything else is not. An int is a float, but a
            bool is neither. In place of a class of modules any module is accepted, because the functions that use it
            say how to make one of that class.
        of: what the argument is of, such as the name of a method, for the message.
    Returns:
        The value; an int as a float where that is declared, and a list as a tuple, so that equal settings are recorded
        alike.
    Raises:
        InputError: the value is not of this kind.
    """
    if fits(value, kind):
        return _as_declared(value, kind)
    if get_origin(kind) is Literal and isinstance(value, str):
        choose(value, get_args(kind), name)
    given = f"{name}={shown(value)}"
    raise InputError(f"{f'{of}({given})' if of else given}: expected {described(kind)}")


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of the kind that an annotation declares; see `check`."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return fits(value, parts[0]) and all(bound.holds(value) for bound in parts[1:])
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin in (tuple, list, Sequence):
        if isinstance(value, str) or not isinstance(value, Sequence if origin is Sequence else (list, tuple)):
            return False
        if origin is tuple and parts[-1] is not ...:
            return len(value) == len(parts) and all(map(fits, value, parts))
        return all(fits(one, parts[0]) for one in value)
    if kind in (int, float):
        number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        return number and (abs(value) <= LARGEST if kind is float else abs(value) < 2**63)  # NaN is not <= LARGEST
    if kind is str:
        return isinstance(value, str) and "\0" not in value
    if kind in (bool, None, NoneType):
        return isinstance(value, bool if kind is bool else NoneType)
    if origin is Callable:
        return callable(value)
    if not isinstance(kind, type) or kind is Any:
        return True
    if kind is Path:
        return isinstance(value, os.PathLike)
    return isinstance(value, nn.Module if issubclass(kind, nn.Module) else kind)


def _as_declared(value: Any, kind: Any) -> Any:
    """Return a value that fits an annotation, as `check` returns it."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _as_declared(value, parts[0])
    if origin in (Union, UnionType):
        return _as_declared(value, next(part for part in parts if fits(value, part)))
    if origin is tuple:
        each = parts if parts[-1] is not ... else parts[:1] * len(value)
        return tuple(map(_as_declared, value, each))
    return float(value) if kind is float else value


def described(kind: Any) -> str:
    """Return in words what an annotation declares, as in "a finite number above 0"."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return " ".join([described(parts[0]), *(bound.text for bound in parts[1:])])
    if origin in (Union, UnionType, Literal):
        words = [repr(part) if origin is Literal else described(part) for part in parts]
        return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
    if origin in (tuple, list, Sequence):
        fixed = origin is tuple and parts[-1] is not ...
        return f"{len(parts) if fixed else 'a list'} of {described(parts[0])}"
    if origin is Callable:
        return "a function"
    return NOUNS.get(NoneType if kind is None else kind) or str(getattr(kind, "__name__", kind))


def check_tensor(name: str, value: Any, shape: Sequence[int | None], dtype: torch.dtype | None = None) -> None:
    """Raise InputError if a tensor is sparse or without content, or of another shape or type.

    Args:
        name, value: the tensor and what the message calls it.
        shape: the sizes; None for any size.
        dtype: its type; None for any type of floating-point numbers.
    """
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    wanted = f"{name} must be a dense tensor [{sizes}] of type {str(dtype or 'float').removeprefix('torch.')}"
    if not isinstance(value, Tensor):
        raise InputError(f"{wanted}, not a {type(value).__name__}")
    right = value.is_floating_point() if dtype is None else value.dtype == dtype
    right &= len(shape) == value.ndim and all(n in (None, size) for n, size in zip(shape, value.shape, strict=True))
    if value.layout != torch.strided or value.is_meta or not right:
        form = value.device if value.is_meta else value.layout
        raise InputError(f"{wanted}, not {list(value.shape)}, {value.dtype}, {form}")


def refuse_probabilities(what: str, logits: Tensor) -> None:
    """Raise InputError if logits [N, C, ...] are the probabilities of two or more classes; `what` names them."""
    if logits.numel() and logits.shape[1] > 1 and float(logits.min()) >= 0:
        if bool(((logits.sum(1, dtype=torch.double) - 1).abs() < 1e-3).all()):
            raise InputError(
                f"{what} are probabilities, not logits: each row has the sum 1; give the logits, from before the "
                "softmax, or the logarithms of the probabilities"
            )


@functools.cache
def kinds(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function by argument, without those whose names are known to a type checker alone."""
    found = {}
    function = inspect.unwrap(function)
    for name, annotation in function.__annotations__.items():
        try:
            found[name] = eval(annotation, function.__globals__) if isinstance(annotation, str) else annotation
        except NameError:
            continue
    return found


def checked(function: F) -> F:
    """Decorator that checks the arguments of each call against the annotations."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        try:
            named = signature.bind(*args, **given).arguments
        except TypeError:  # the call below raises it, with the name of the function
            named = {}
        for name, value in named.items():
            if name in kinds(function):
                check(name, value, kinds(function)[name])
        return function(*args, **given)

    return call  # type: ignore[return-value]

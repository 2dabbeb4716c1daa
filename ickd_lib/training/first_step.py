"""The check of what a method returns in its first step, so that a mistake in an own method is named in one line."""

from __future__ import annotations

import traceback
from collections.abc import Sequence

import torch
from torch import Tensor

from ickd_lib.methods import Context, Method
from ickd_lib.methods.base import named_terms
from ickd_lib.runtime import InputError

# What a method must declare in its `needs` to use an attribute of the context or of its samples.
NEEDED = {
    **{name: name for name in ("teacher", "maps", "pixels", "bank", "partner", "strong", "classifiers", "peers")},
    **{"earlier": "earlier", "shared_logits": "teacher", "preactivations": "maps", "unpooled": "pooled features"},
}


def first_terms(method: Method, context: Context, trained: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the loss terms of a method in its first step, after a check that reads no value of a tensor.

    Args:
        method, context: the method and what it may use of the step.
        trained: the parameters in the optimiser.
    Raises:
        InputError: the method uses what it did not declare, or it does not return scalar tensors by name of which one
            has a gradient, or it has a parameter that the optimiser does not have.
    """
    name = method.config["name"] or type(method).__name__
    try:
        terms = method(context)
    except Exception as error:
        if advice := _undeclared(method, error):
            what = " ".join(str(error).split())[:100]
            problem = f"method {name!r} stopped in its first step ({type(error).__name__}{what and ': ' + what})"
            raise InputError(f"{problem}; {advice}") from error
        raise
    terms = named_terms(method, terms)
    for term, value in terms.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise InputError(f"method {name!r}: the loss term {term!r} is of type {kind}; return a scalar tensor")
        if value.shape:
            raise InputError(
                f"method {name!r}: the loss term {term!r} has shape {list(value.shape)}, but must be a scalar; return "
                "for example its mean"
            )
    fixed = context.student.fixed is not None
    if not terms and not fixed:
        raise InputError(f"method {name!r} returned no loss term; return one, such as {{'ce': context.supervised}}")
    if torch.is_grad_enabled() and not fixed and not any(value.requires_grad for value in terms.values()):
        raise InputError(
            f"method {name!r}: no loss term ({', '.join(map(str, terms))}) has a gradient; compute one from "
            "context.student or context.supervised, without detach() or no_grad()"
        )
    known = set(map(id, trained))
    for parameter, value in method.named_parameters():
        if value.requires_grad and id(value) not in known:
            raise InputError(
                f"method {name!r}: its parameter {parameter} was created in a training step, so the optimiser does not "
                "have it and it would not be trained; it must be created in setup(student_dim, teacher_dim, "
                "num_classes, rows)"
            )
    return terms


def _undeclared(method: Method, error: Exception) -> str:
    """Return what the method must declare, if an error comes from None or from an empty tuple in its place, else ""."""
    empty = isinstance(error, (IndexError, AssertionError)) or "None" in str(error) or "empty" in str(error)
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__)) if empty else []):
        if frame.f_globals.get("__name__", "").startswith("ickd_lib."):
            continue
        for used in frame.f_code.co_names:
            if used in ("positives", "negatives") and not method.retrievals:
                return (
                    f"it uses {used}, so set its attribute retrieval, such as to Retrieval(positives=8, negatives=32)"
                )
            if (need := NEEDED.get(used)) and need not in method.needs:
                return f"it uses {used}, so add {need!r} to its needs"
    return ""

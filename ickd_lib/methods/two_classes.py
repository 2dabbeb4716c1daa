"""Notes on terms that teach nothing if there are only two classes."""

from __future__ import annotations

from ickd_lib.methods.base import Method
from ickd_lib.runtime import notice


def note_standardised(method: Method, terms: str) -> None:
    """Print that the terms of a method, which standardises the logits, have no gradient with two classes."""
    name = method.config["name"]
    notice(
        f"{name} standardises the logits of each sample, and two standardised logits are always -0.71 and 0.71; so "
        f"with two classes, {terms} no gradient: use kd with standardised=False"
    )


def note_others(method: Method, term: str, instead: str = "kd") -> None:
    """Print that a term of a method, which compares the classes other than the label, is 0 with two classes."""
    name = method.config["name"]
    notice(
        f"the term {term} of {name} compares the classes other than the label; with two classes, this is a single one, "
        f"and the term is always 0: use a method without it, such as {instead}"
    )

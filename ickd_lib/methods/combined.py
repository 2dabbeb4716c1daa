"""The combination of several methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ickd_lib.methods.base import LABEL_SPACES, Method, defaults, named_terms
from ickd_lib.methods.context import Context, Retrieval
from ickd_lib.methods.limits import limited
from ickd_lib.models import Network
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Samples


class Combined(Method):
    """The sum of the terms of several methods, as in "ickd+dist", with the cross-entropy of the first.

    A limit on the gradient of a term counts the terms of all parts.

    Args:
        parts: the methods, two or more.
    Raises:
        InputError: more than one method has `restarts`.
    """

    parts: Any  # nn.ModuleList of methods

    def __init__(self, *, parts: Sequence[Method]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        name = "+".join([describe(parts[0]), *(describe(part, ce=0.0) for part in parts[1:])])
        if any(part.limits for part in parts):
            self.version = 2  # the limits count the terms of all parts
        version = {"version": self.version} if self.version > 1 else {}
        object.__setattr__(self, "config", {"name": name, **version, "parts": [part.config for part in parts]})
        self.needs = frozenset().union(*(part.needs for part in parts))
        phased = [part for part in parts if part.restarts]
        if len(phased) > 1:
            raise InputError(
                f"{self.config['name']} has several methods with phases; combine methods of which one does"
            )
        self.separable = all(part.separable for part in parts)
        self.unlabelled = all(part.unlabelled for part in parts)
        self.one_class = any(part.one_class for part in parts)
        self.momentum = max(part.momentum for part in parts)
        if phased:
            self.restarts, self.embedding_rates = phased[0].restarts, phased[0].embedding_rates
        spaces = [part.label_space for part in parts if part.needs_teacher]
        self.label_space = min(spaces, key=LABEL_SPACES.index, default="same")

    @property
    def retrievals(self) -> tuple[Retrieval, ...]:
        """The requests of all parts, each once."""
        return tuple(dict.fromkeys(spec for part in self.parts for spec in part.retrievals))

    def compared(self, samples: Samples) -> Samples:
        return samples  # each part selects its own

    def adapt(self, student: Network, teacher: Network | None, size: tuple[int, int]) -> Network:
        for part in self.parts:
            student = part.adapt(student, teacher, size)
        return student

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        for part in self.parts:
            part.setup(student_dim, teacher_dim, num_classes, rows)
            self.chance = {
                **part.chance,
                **self.chance,
            }  # as in `forward`, a name belongs to the first part that has it

    def forward(self, context: Context) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        limits: dict[str, float] = {}
        for part in self.parts:
            for name, value in named_terms(part, part.unlimited(context.seen_by(part))).items():
                key = name
                while key in terms:
                    key = f"{part.registered_name} {key}"
                terms[key] = value
                if name in part.limits:
                    limits[key] = part.limits[name]
        return limited(terms, limits, context)


def describe(method: Method, **assumed: Any) -> str:
    """Return the name from which `create` makes this method, with only the arguments that differ from the defaults.

    Args:
        method: the method.
        assumed: values to use as defaults instead of the method's own.
    """
    name = method.config["name"]
    if isinstance(method, Combined):
        return name
    known = defaults(type(method)) | assumed
    changed = [f"{k}={v!r}" for k, v in method.config.items() if k in known and v != known[k]]
    return f"{name}({', '.join(changed)})" if changed else name

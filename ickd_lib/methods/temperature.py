"""Methods that train the temperature of another method."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ickd_lib.methods.base import Method
from ickd_lib.methods.combined import describe
from ickd_lib.methods.context import Context, Retrieval
from ickd_lib.methods.registry import create, parse, recorded, register
from ickd_lib.models import Network
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import Count, NotNegative
from ickd_lib.tasks import Samples


@register("ctkd")
class CTKD(Method):
    """Another method, by default KD, with a temperature that is trained (curriculum temperature), Li et al. 2023.

    Source: arXiv 2211.16231. The temperature is τ = 1 + 20 σ(θ), one for all samples ("global" in the paper). θ ascends
    the loss: its gradient is multiplied by a number that falls from 0 to -1 over the first epochs, so that the
    student's task becomes harder. `learnt_temperature` is the present value.

    of: the method whose temperature is trained, with its arguments, as in "ctkd(of='dkd(nckd=2)')".
    ce: weight of the cross-entropy; with None, that of the method.
    epochs: number of epochs over which the factor of the gradient falls to -1, by a cosine.
    """

    paper = "Li et al. 2023, arXiv 2211.16231"
    code = "zhengli97/CTKD"
    of: Any  # the method

    def __init__(self, *, of: str = "kd", ce: NotNegative | None = None, epochs: Count = 10) -> None:
        super().__init__()
        method = create(of, **_weight(ce))
        if not hasattr(method, "temperature"):
            raise InputError(f"{of!r} has no temperature that ctkd could learn; choose a method with one, such as kd")
        self.of, self.epochs = method, epochs
        object.__setattr__(self, "config", {**self.config, "wrapped": method.config})
        self.theta = nn.Parameter(torch.ones(()))
        self.needs, self.label_space, self.separable = method.needs, method.label_space, method.separable
        self.restarts, self.embedding_rates, self.momentum = method.restarts, method.embedding_rates, method.momentum
        self.limits, self.unlabelled, self.one_class = dict(method.limits), method.unlabelled, method.one_class

    @classmethod
    def recorded_arguments(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments, with the method's own arguments as they were recorded, or else with its first form."""
        found = super().recorded_arguments(config)
        name, given = parse(found["of"])
        weight = _weight(found.get("ce"))
        method = recorded(found.pop("wrapped", {"name": name, **given, **weight}))
        if method.config != create(found["of"], **weight).config:
            found["of"] = describe(method, **weight)
        return found

    @property
    def learnt_temperature(self) -> Tensor:
        """τ, a scalar with gradient."""
        return 1 + 20 * self.theta.sigmoid()

    @property
    def retrievals(self) -> tuple[Retrieval, ...]:
        return self.of.retrievals

    def compared(self, samples: Samples) -> Samples:
        return samples  # the method selects its own

    def adapt(self, student: Network, teacher: Network | None, size: tuple[int, int]) -> Network:
        return self.of.adapt(student, teacher, size)

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        self.of.setup(student_dim, teacher_dim, num_classes, rows)
        self.chance = self.of.chance

    def forward(self, context: Context) -> dict[str, Tensor]:
        return self._at_temperature(self.of, context)

    def unlimited(self, context: Context) -> dict[str, Tensor]:
        return self._at_temperature(self.of.unlimited, context)

    def _at_temperature(self, terms: Callable[[Context], dict[str, Tensor]], context: Context) -> dict[str, Tensor]:
        done = torch.as_tensor((context.epoch + 1) / self.epochs).clamp(max=1)
        factor = (torch.cos(math.pi * done) - 1) / 2
        # The value is τ, and its gradient is that of factor · τ.
        temperature = factor * self.learnt_temperature
        temperature = temperature + (self.learnt_temperature - temperature).detach()
        constant, self.of.temperature = self.of.temperature, temperature
        try:
            return terms(context.seen_by(self.of))
        finally:
            self.of.temperature = constant  # a method with a tensor of this step could not be copied


def _weight(ce: float | None) -> dict[str, float]:
    """Return the argument `ce` of the method, if it is given."""
    return {} if ce is None else {"ce": ce}

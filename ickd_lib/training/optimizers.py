"""The optimiser of a student: parameter groups, learning rates on the device, and averaged weights."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from ickd_lib import models, runtime
from ickd_lib.models import Network
from ickd_lib.training.recipe import Recipe, optimizers


class Optimizer:
    """An optimiser over two kinds of parameters, the embedding (all layers but the classifier) and the rest.

    Learning rates of fused optimisers are tensors on the device, so that a captured step reads their present values.

    Args:
        network: the student.
        method: its method; parameters of the method are trained at the classifier's rate.
        recipe: the optimiser and its settings.
        size: height and width of the images in pixels.
    """

    def __init__(self, network: Network, method: nn.Module, recipe: Recipe, size: tuple[int, int]) -> None:
        self.recipe = recipe
        device = next(network.parameters()).device
        trained = [p for p in network.parameters() if p.requires_grad]  # a method may add a frozen layer
        classifier = {id(p) for p in models.classifier(network, size=size)[1].parameters()}
        embedding = [p for p in trained if id(p) not in classifier]
        others = [p for p in trained if id(p) in classifier]
        self.rates = torch.full((2,), recipe.lr, device=device).unbind()
        self._lr = (recipe.lr, recipe.lr)
        groups: list[dict[str, Any]] = []
        self._kinds: list[int] = []  # kind of each group: 0 for the embedding, 1 for the rest
        for kind, parameters in enumerate((embedding, [*others, *method.parameters()])):
            for decay, some in self._by_decay(network, parameters):
                groups.append({"params": some, "weight_decay": decay})
                self._kinds.append(kind)
        cls = getattr(torch.optim, runtime.choose(recipe.optimizer, optimizers(), "optimizer"))
        known = inspect.signature(cls.__init__).parameters
        options = {
            "lr": recipe.lr,
            "momentum": recipe.momentum,
            "nesterov": recipe.nesterov,
            "betas": recipe.betas,
            "fused": True,
            "capturable": device.type == "cuda",
        }
        # On a GPU, torch has fused forms of SGD and of Adam and AdamW, which have the option `capturable`.
        self.fused = "fused" in known and (device.type != "cuda" or cls is torch.optim.SGD or "capturable" in known)
        if not self.fused:
            options = {key: value for key, value in options.items() if key not in ("fused", "capturable")}
        self.inner: torch.optim.Optimizer = cls(groups, **{k: v for k, v in options.items() if k in known})
        self.inner._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]  # of eager steps
        self._use_rates()

    def _by_decay(self, network: Network, parameters: list[nn.Parameter]) -> list[tuple[float, list[nn.Parameter]]]:
        """Return the parameters with their weight decay, in one group or in two."""
        decay = self.recipe.weight_decay
        if self.recipe.decay_norms_and_biases or not decay:
            return [(decay, parameters)]
        vectors = [p for p in parameters if p.ndim <= 1]
        return [(decay, [p for p in parameters if p.ndim > 1]), (0.0, vectors)]

    def _use_rates(self) -> None:
        """Make the tensors `rates` the learning rates of a fused optimiser."""
        if self.fused:
            for group, kind in zip(self.inner.param_groups, self._kinds, strict=True):
                group["lr"] = self.rates[kind]

    @property
    def parameters(self) -> list[Tensor]:
        """Every parameter that is trained."""
        return [p for group in self.inner.param_groups for p in group["params"]]

    def set_rates(self, embedding: float, classifier: float) -> None:
        """Set the learning rates of the next step. On a GPU a change is a kernel launch, so equal ones are skipped."""
        if (embedding, classifier) == self._lr:
            return
        self._lr = (embedding, classifier)
        for rate, value in zip(self.rates, self._lr, strict=True):
            rate.fill_(value)
        if not self.fused:
            for group, kind in zip(self.inner.param_groups, self._kinds, strict=True):
                group["lr"] = self._lr[kind]

    def forget(self) -> None:
        """Drop momenta and other state, as a new phase starts without those of the previous one."""
        self.inner.state.clear()

    def clear(self) -> None:
        """Drop the gradients."""
        self.inner.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Take one step with the present gradients."""
        if self.recipe.clip_grad_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_grad_norm)
        self.inner.step()

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)
        self._use_rates()
        self._lr = (math.nan, math.nan)  # the next `set_rates` sets them, whatever they were


class Average:
    """An exponential moving average of a network's weights (EMA), as a network of its own.

    Args:
        network: the network that is trained.
        decay: highest weight of the present average in an update. In step n of the training, counted from 0, the weight
            is at most (1 + n) / (10 + n), so that the average does not keep the initial weights of a short training.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.decay, self.source = decay, network
        self.network = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def update(self, step: Tensor) -> None:
        """Move the average towards the present weights; buffers such as batch-norm statistics are copied.

        Args:
            step: number of the step in the whole training, from 0, a scalar on the device.
        """
        averages: list[Tensor] = list(self.network.parameters())
        differences = list(torch._foreach_sub(list(self.source.parameters()), averages))
        torch._foreach_mul_(differences, 1 - ((1 + step) / (10 + step)).clamp(max=self.decay))
        torch._foreach_add_(averages, differences)
        for averaged, present in zip(self.network.buffers(), self.source.buffers(), strict=True):
            averaged.copy_(present)

"""The effect of each sample's residual on the logits of others, to first order in one step of gradient descent."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ickd_lib.theory.smoothing import soft_cross_entropy


def _functional(network: nn.Module) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    """Return a copy of the network as a function of its trainable parameters, and these parameters.

    The function maps (parameters, images [n, 3, H, W]) to logits [n, C]. The copy is in eval mode, in which the logits
    of a sample depend on no other sample of the batch, so that all results of this module are exact.
    """
    frozen = copy.deepcopy(network).eval()
    parameters = {name: p.detach() for name, p in frozen.named_parameters() if p.requires_grad}

    def f(values: dict[str, Tensor], images: Tensor) -> Tensor:
        return _logits(torch.func.functional_call(frozen, values, (images,)))

    return f, parameters


def _logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def _flat(values: dict[str, Tensor], batch_dims: int) -> Tensor:
    """Concatenate a dictionary of tensors [*batch, *shape] to one tensor [*batch, P]."""
    return torch.cat([v.flatten(batch_dims) for v in values.values()], dim=-1)


def tangent_kernel(network: nn.Module, queries: Tensor, samples: Tensor, *, chunk: int = 16) -> Tensor:
    """Compute the C×C tangent kernels K_ij = (dz_i/dθ)(dz_j/dθ)ᵀ at the network's present weights, in eval mode.

    This follows the definition (Jacot et al. 2018) and suits a few images. `influence` and `shares` compute their
    results without forming the kernel.

    Args:
        network: a module from images to logits, or to an object with an attribute `logits`.
        queries: images, [Q, 3, H, W].
        samples: images, [N, 3, H, W].
        chunk: number of samples evaluated at once; (Q + chunk)·C·P numbers are held for P trainable parameters.
    Returns:
        [Q, N, C, C].
    """
    f, parameters = _functional(network)

    def jacobians(images: Tensor) -> Tensor:  # [n, C, P]
        one = torch.func.jacrev(lambda values, image: f(values, image[None])[0])
        return _flat(torch.func.vmap(one, (None, 0))(parameters, images), 2)

    left = [jacobians(part) for part in queries.split(chunk)]
    right = map(jacobians, samples.split(chunk))
    columns = [torch.cat([torch.einsum("qap,nbp->qnab", q, part) for q in left]) for part in right]
    return torch.cat(columns, 1)


def influence(network: nn.Module, queries: Tensor, samples: Tensor, residuals: Tensor, *, chunk: int = 256) -> Tensor:
    """Compute Σ_j K_ij r_j for every query i: the total effect of the samples' residuals on the query's logits.

    No kernel is formed: the residuals are pulled back to the parameters, Σ_j (dz_j/dθ)ᵀ r_j, and the result is pushed
    forward through dz_i/dθ.

    Args:
        network: a module from images to logits, or to an object with an attribute `logits`; evaluated in eval mode.
        queries: images, [Q, 3, H, W].
        samples: images, [N, 3, H, W].
        residuals: r, [N, C]. For a cross-entropy to q_j, q_j − p_j is the negative gradient with respect to
            the logits.
        chunk: number of samples evaluated at once; the queries are always evaluated all at once.
    Returns:
        [Q, C].
    """
    f, parameters = _functional(network)
    direction = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for images, r in zip(samples.split(chunk), residuals.split(chunk), strict=True):
        pulled = torch.func.vjp(partial(f, images=images), parameters)[1](r)[0]
        direction = {name: direction[name] + pulled[name] for name in direction}
    logits, pull = torch.func.vjp(partial(f, images=queries), parameters)[:2]
    # The pullback is linear, so its own pullback is the push-forward. This needs only reverse mode, which every layer
    # supports.
    return torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(logits))[1](direction)[0]


def shares(
    network: nn.Module, queries: Tensor, samples: Tensor, residuals: Tensor, *, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """Compute the share of each sample j in R_i = Σ_j K_ij r_j, the effect on query i: ⟨K_ij r_j, R_i⟩ / ‖R_i‖².

    Each row sums to 1, and the share of a set of samples is the sum of their shares. A share is negative where the
    effect of sample j is opposed to R_i. Factors common to all samples (η, α, 1/N, τ) cancel. The inner product
    ⟨K_ij r_j, R_i⟩ is computed as that of r_j and R_i, each pulled back to the parameters.

    Args:
        network, queries, samples, residuals: as for `influence`.
        chunk: number of samples evaluated at once; Q·P + chunk·P numbers are held for P trainable parameters.
    Returns:
        The shares [Q, N] and R [Q, C].
    """
    f, parameters = _functional(network)

    def pull(image: Tensor, r: Tensor) -> dict[str, Tensor]:
        return torch.func.vjp(lambda values: f(values, image[None])[0], parameters)[1](r)[0]

    def pulled(images: Tensor, r: Tensor) -> Iterator[Tensor]:  # [chunk, P] each
        for pair in zip(images.split(chunk), r.split(chunk), strict=True):
            yield _flat(torch.func.vmap(pull)(*pair), 1)

    total = influence(network, queries, samples, residuals)
    towards = torch.cat(list(pulled(queries, total)))
    products = torch.cat([towards @ part.T for part in pulled(samples, residuals)], 1)
    return products / total.square().sum(1, keepdim=True), total


def predicted_change(network: nn.Module, queries: Tensor, samples: Tensor, targets: Tensor, *, lr: float) -> Tensor:
    """Predict the change of the queries' logits in one step, to first order: −(η/N) Σ_j K_ij (p_j − q_j).

    The step is plain gradient descent on the mean of `soft_cross_entropy` over the batch, hence the factor 1/N.

    Args:
        network: as for `influence`.
        queries: images, [Q, 3, H, W].
        samples: the batch, [N, 3, H, W].
        targets: q, [N, C].
        lr: learning rate η.
    Returns:
        [Q, C].
    """
    with torch.no_grad():
        student = _logits(copy.deepcopy(network).eval()(samples)).softmax(-1)
    return lr * influence(network, queries, samples, targets - student) / len(samples)


def actual_change(network: nn.Module, queries: Tensor, samples: Tensor, targets: Tensor, *, lr: float) -> Tensor:
    """Take the step of `predicted_change` on a copy of the network and return the change of the queries' logits.

    Args:
        network, queries, samples, targets, lr: as for `predicted_change`.
    Returns:
        The change, [Q, C].
    """
    stepped = copy.deepcopy(network).eval()
    parameters = [p for p in stepped.parameters() if p.requires_grad]
    with torch.no_grad():
        before = _logits(stepped(queries))
    loss = soft_cross_entropy(_logits(stepped(samples)), targets).mean()
    with torch.no_grad():
        for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.sub_(gradient, alpha=lr)
        return _logits(stepped(queries)) - before


def first_order_errors(network: nn.Module, queries: Tensor, samples: Tensor, targets: Tensor, steps: Tensor) -> Tensor:
    """Compute the relative error ‖predicted − actual‖ / ‖actual‖ of `predicted_change` for several learning rates.

    Everything is computed on a copy of the network in float64.

    Args:
        network, queries, samples, targets: as for `predicted_change`, of any floating-point type.
        steps: learning rates, [M].
    Returns:
        The error at each learning rate, [M], on the CPU.
    """
    double = copy.deepcopy(network).double()
    queries, samples, targets = queries.double(), samples.double(), targets.double()
    unit = predicted_change(double, queries, samples, targets, lr=1.0)  # the prediction is linear in the learning rate
    errors = []
    for step in steps.tolist():
        actual = actual_change(double, queries, samples, targets, lr=step)
        errors.append((step * unit - actual).norm() / actual.norm())
    return torch.stack(errors).cpu()


def largest_step(steps: Tensor, errors: Tensor, *, tolerance: float = 0.1) -> float:
    """Return the largest learning rate with an error below the tolerance, or NaN if there is none.

    Args:
        steps, errors: [M] each, as given to and returned by `first_order_errors`.
        tolerance: upper bound on the relative error.
    """
    good = steps[errors < tolerance]
    return good.max().item() if len(good) else float("nan")

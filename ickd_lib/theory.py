"""Distillation as learned label smoothing, and what in-context samples carry: three exact computations.

1. Soft targets. Knowledge distillation at temperature 1 is label smoothing whose smoothing distribution is
   learned (Yuan et al. 2020, "Revisiting Knowledge Distillation via Label Smoothing Regularization"); its
   gradient tends to logit matching as the temperature grows (Hinton et al. 2015).
2. Influence. To first order the student's tangent kernel (Jacot et al. 2018) says what the soft label of
   every sample does to the logits of every other one in one step of gradient descent.
3. Aggregation. The weighted mean of the neighbours' targets is a kernel regression (Nadaraya 1964, Watson
   1964): its error is a variance, which correlation between errors keeps up, and a bias.

The abstract of IC-KD (Zhu, Li, Wang 2025, arXiv 2501.07040) calls distillation a learned label smoothing and
in-context samples a crucial contributor. Making that testable in these ways is this project's reading.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ickd_lib.runtime import InputError

# ------------------------------------------------------- 1. distillation as learned label smoothing


def smoothed_targets(labels: Tensor, smoothing: Tensor, *, alpha: float) -> Tensor:
    """(1 − α) onehot(y) + α q: label smoothing if q is uniform, a learned one if q is a teacher's prediction.

    Args:
        labels: [N].
        smoothing: q, [N,C] or [C], rows that sum to 1.
        alpha: weight of q.
    Returns:
        [N,C], in the type of `smoothing`.
    """
    hard = F.one_hot(labels, smoothing.shape[-1]).to(smoothing.dtype)
    return (1 - alpha) * hard + alpha * smoothing


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """−Σ_c q_c log σ(z)_c of each sample: logits [N,C] and targets [N,C] to [N].

    It is KL(q ‖ σ(z)) plus the entropy of q, which does not depend on z. Hence, with H the entropy,
    (1−α) CE(y) + α KL(p^T ‖ p^S) = soft_cross_entropy(z^S, smoothed_targets(y, p^T)) − α H(p^T).
    """
    return -(targets * logits.log_softmax(-1)).sum(-1)


def kd_gradient(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """The gradient of τ² KL( σ(z^T/τ) ‖ σ(z^S/τ) ) by the student's logits: τ (σ(z^S/τ) − σ(z^T/τ)).

    One τ is left of τ²: the chain rule through z^S/τ takes the other (Hinton et al. 2015, equation 2). Logits
    [N,C] to [N,C], the gradients of each sample's own loss; divide by N for a batch mean.
    """
    return temperature * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1))


def matching_gradient(student: Tensor, teacher: Tensor) -> Tensor:
    """What `kd_gradient` tends to as τ grows: ( (z^S − mean z^S) − (z^T − mean z^T) ) / C, all [N,C].

    σ(z/τ) = ( 1 + z̃/τ + (z̃² − mean z̃²)/2τ² + … ) / C with z̃ = z − mean z over the classes. So the limit is
    the gradient of ‖z̃^S − z̃^T‖² / 2C, and the gap closes as 1/τ. Hinton et al. 2015 (equation 4) assume
    logits of zero mean; without that assumption the means must be taken off.
    """
    gap = student - teacher
    return (gap - gap.mean(-1, keepdim=True)) / gap.shape[-1]


# ----------------------------------------------------------------- 2. what one step does to other samples


def _functional(network: nn.Module) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    """(f, parameters) with f(parameters, images [n,3,H,W]) -> logits [n,C], of a copy in eval mode.

    In eval mode a sample's logits depend on no other sample of the batch, so that all of this is exact.
    """
    frozen = copy.deepcopy(network).eval()
    parameters = {name: p.detach() for name, p in frozen.named_parameters() if p.requires_grad}

    def f(values: dict[str, Tensor], images: Tensor) -> Tensor:
        return _logits(torch.func.functional_call(frozen, values, (images,)))

    return f, parameters


def _logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def _flat(values: dict[str, Tensor], batch_dims: int) -> Tensor:
    """A dictionary of [*batch, *shape] tensors as one [*batch, P]."""
    return torch.cat([v.flatten(batch_dims) for v in values.values()], dim=-1)


def tangent_kernel(network: nn.Module, queries: Tensor, samples: Tensor, *, chunk: int = 16) -> Tensor:
    """The C×C tangent kernels K_ij = (dz_i/dθ)(dz_j/dθ)ᵀ of `network` at its present weights, in eval mode.

    Jacot et al. 2018. This is the definition, for a few images; `influence` and `shares` do without it.

    Args:
        network: any module from images to logits, or to something with `.logits`.
        queries: images, [Q,3,H,W].
        samples: images, [N,3,H,W].
        chunk: samples a step; (Q + chunk)·C·P numbers are held for P trainable parameters.
    Returns:
        [Q,N,C,C].
    """
    f, parameters = _functional(network)

    def jacobians(images: Tensor) -> Tensor:  # [n,C,P]
        one = torch.func.jacrev(lambda values, image: f(values, image[None])[0])
        return _flat(torch.func.vmap(one, (None, 0))(parameters, images), 2)

    left = [jacobians(some) for some in queries.split(chunk)]
    right = map(jacobians, samples.split(chunk))
    columns = [torch.cat([torch.einsum("qap,nbp->qnab", q, some) for q in left]) for some in right]
    return torch.cat(columns, 1)


def influence(network: nn.Module, queries: Tensor, samples: Tensor, residuals: Tensor, *, chunk: int = 256) -> Tensor:
    """Σ_j K_ij r_j for every query i: how the samples' residuals, together, push the logits of each query.

    The residuals are pulled back to the parameters, Σ_j (dz_j/dθ)ᵀ r_j, and that direction is pushed forward
    through dz_i/dθ; no kernel is formed.

    Args:
        network: any module from images to logits, or to something with `.logits`; used in eval mode.
        queries: images, [Q,3,H,W].
        samples: images, [N,3,H,W].
        residuals: r, [N,C]; q_j − p_j is the negative gradient of a cross-entropy to q_j.
        chunk: samples a step; the queries are one.
    Returns:
        [Q,C].
    """
    f, parameters = _functional(network)
    direction = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for images, r in zip(samples.split(chunk), residuals.split(chunk), strict=True):
        pulled = torch.func.vjp(partial(f, images=images), parameters)[1](r)[0]
        direction = {name: direction[name] + pulled[name] for name in direction}
    logits, pull = torch.func.vjp(partial(f, images=queries), parameters)[:2]
    # Pulling back is linear, and its own pullback pushes forward: reverse mode, which every layer has.
    return torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(logits))[1](direction)[0]


def shares(
    network: nn.Module, queries: Tensor, samples: Tensor, residuals: Tensor, *, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """The share of each sample in what moves query i: ⟨K_ij r_j, R_i⟩ / ‖R_i‖² with R_i = Σ_j K_ij r_j.

    A row sums to 1. A share is negative where sample j pushes against the sum, and the share of a set of
    samples is the sum of theirs. Factors common to all samples (η, α, 1/N, τ) cancel. ⟨K_ij r_j, R_i⟩ is the
    inner product of r_j and of R_i, each pulled back to the parameters.

    Args:
        network, queries, samples, residuals: as for `influence`.
        chunk: samples a step; Q·P + chunk·P numbers are held for P trainable parameters.
    Returns:
        shares [Q,N] and R [Q,C].
    """
    f, parameters = _functional(network)

    def pull(image: Tensor, r: Tensor) -> dict[str, Tensor]:
        return torch.func.vjp(lambda values: f(values, image[None])[0], parameters)[1](r)[0]

    def pulled(images: Tensor, r: Tensor) -> Iterator[Tensor]:  # [chunk,P] each
        for pair in zip(images.split(chunk), r.split(chunk), strict=True):
            yield _flat(torch.func.vmap(pull)(*pair), 1)

    total = influence(network, queries, samples, residuals)
    towards = torch.cat(list(pulled(queries, total)))
    products = torch.cat([towards @ some.T for some in pulled(samples, residuals)], 1)
    return products / total.square().sum(1, keepdim=True), total


def predicted_change(network: nn.Module, queries: Tensor, samples: Tensor, targets: Tensor, *, lr: float) -> Tensor:
    """First-order change of the queries' logits in one step, −(η/N) Σ_j K_ij (p_j − q_j): [Q,C].

    The loss is the batch mean of `soft_cross_entropy`, hence the 1/N; the step is plain gradient descent.

    Args:
        queries: images, [Q,3,H,W].
        samples: the batch, [N,3,H,W].
        targets: q, [N,C].
        lr: η.
    """
    with torch.no_grad():
        student = _logits(copy.deepcopy(network).eval()(samples)).softmax(-1)
    return lr * influence(network, queries, samples, targets - student) / len(samples)


def actual_change(network: nn.Module, queries: Tensor, samples: Tensor, targets: Tensor, *, lr: float) -> Tensor:
    """The change that `predicted_change` predicts, from the step itself, taken on a copy: [Q,C]."""
    stepped = copy.deepcopy(network).eval()
    parameters = [p for p in stepped.parameters() if p.requires_grad]
    with torch.no_grad():
        before = _logits(stepped(queries))
    loss = soft_cross_entropy(_logits(stepped(samples)), targets).mean()
    with torch.no_grad():
        for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.sub_(gradient, alpha=lr)
        return _logits(stepped(queries)) - before


def by_similarity(features: Tensor, rows: Tensor) -> Tensor:
    """All samples but the query itself, the most similar first by the cosine of their features.

    Args:
        features: of the samples, [N,D].
        rows: where the queries stand among the samples, [Q].
    Returns:
        [Q,N−1] rows; exact ties by the lower row.
    """
    unit = F.normalize(features, dim=1)
    similarity = unit[rows] @ unit.T
    similarity[torch.arange(len(rows), device=rows.device), rows] = -math.inf
    return similarity.argsort(stable=True, dim=1, descending=True)[:, :-1]


def shuffled(order: Tensor, *, generator: torch.Generator, labels: Tensor | None = None) -> Tensor:
    """`order` with each row shuffled; with `labels`, only among samples of one class.

    With labels, the first k of a row are, for every k, a random set of samples with the size and the class
    mix of the first k of `order`: what is left when similarity is taken away and the labels are kept.

    Args:
        order: [Q,M] rows of samples.
        generator: a CPU generator.
        labels: of the samples, [N].
    """
    draw = torch.rand(order.shape, generator=generator).to(order.device)
    if labels is None:
        return order.gather(1, draw.argsort(1))
    classes = labels[order]
    places = classes.argsort(stable=True, dim=1)  # grouped by class, each class in the order's own sequence
    drawn = draw.argsort(1)
    drawn = drawn.gather(1, classes.gather(1, drawn).argsort(stable=True, dim=1))  # and within at random
    return torch.empty_like(order).scatter_(1, places, order.gather(1, drawn))


def residuals(probabilities: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What the teacher's soft labels add to three targets that need it less.

    "uniform" (p^T − 1/C) is what distillation adds to label smoothing; most of it is the label. "label"
    (p^T − onehot) takes the label off. "class mean" (p^T − the mean p^T of the label's class) takes off all
    that one soft label a class can say, and leaves what is particular to a sample.

    Args:
        probabilities: p^T, [N,C].
        labels: [N].
    Returns:
        Three residuals, [N,C] each, whose rows sum to 0.
    """
    hard = F.one_hot(labels, probabilities.shape[1]).to(probabilities.dtype)
    by_class = (hard.T @ probabilities) / hard.sum(0).clamp(min=1)[:, None]
    return {
        "uniform": probabilities - 1 / probabilities.shape[1],
        "label": probabilities - hard,
        "class mean": probabilities - by_class[labels],
    }


def cumulative_shares(
    share: Tensor, order: Tensor, labels: Tensor, *, draws: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """The share of the k nearest samples and of random ones, for every k.

    Args:
        share: [Q,N], from `shares`.
        order: [Q,N−1], from `by_similarity`.
        labels: of the samples, [N].
        draws: random sets a query, over which the shares are averaged.
        generator: a CPU generator.
    Returns:
        {"nearest", "same classes" (random, with the nearest's mix of classes), "any" (random)}, [Q,N−1] each;
        column k − 1 is for k samples.
    """

    def running(*orders: Tensor) -> Tensor:
        return torch.stack([share.gather(1, one).cumsum(1) for one in orders]).mean(0)

    return {
        "nearest": running(order),
        "same classes": running(*(shuffled(order, generator=generator, labels=labels) for _ in range(draws))),
        "any": running(*(shuffled(order, generator=generator) for _ in range(draws))),
    }


def mean_interval(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the first axis and the half-width of its 95% interval, 1.96 standard errors."""
    return values.mean(0), 1.96 * values.std(0) / math.sqrt(len(values))


# ------------------------------------------------------------------------ 3. the error of aggregated targets


def mixture(
    points: int, *, classes: int = 3, radius: float = 1.5, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Points in the plane with a known Bayes posterior: unit Gaussians, equally likely, around a circle.

    Args:
        points: how many, n.
        classes: Gaussians, C.
        radius: of the circle; smaller means more overlap.
    Returns:
        x [n,2]; labels [n], drawn from the posterior; the log posterior log p(y | x) [n,C]; all float64.
    """
    angle = 2 * math.pi * torch.arange(classes, dtype=torch.float64) / classes
    centres = radius * torch.stack([angle.cos(), angle.sin()], 1)
    labels = torch.randint(classes, (points,), generator=generator)
    x = centres[labels] + torch.randn(points, 2, generator=generator, dtype=torch.float64)
    return x, labels, (-0.5 * torch.cdist(x, centres).square()).log_softmax(1)


def gaussian_similarity(x: Tensor, *, width: float) -> Tensor:
    """exp(−‖x_i − x_j‖² / 2 width²), [n,n]: an inner product of unit-length features, as in a bank."""
    return (-0.5 * torch.cdist(x, x).square() / width**2).exp()


def correlated_errors(
    x: Tensor, channels: int, *, correlation: float, length: float, generator: torch.Generator
) -> Tensor:
    """Errors of unit variance that neighbours share: √ρ · smooth field(x) + √(1−ρ) · independent noise.

    The field is Gaussian with covariance exp(−‖x − x'‖² / 2 length²), drawn from its random Fourier features
    (Rahimi and Recht 2007), so errors of points much closer than `length` have correlation ρ.

    Args:
        x: [n,d].
        channels: independent errors a point, C.
        correlation: ρ, 0 (independent errors) to 1.
        length: over which the field changes, in the units of x.
    Returns:
        [n,C].
    """
    waves = 256
    normal = partial(torch.randn, generator=generator, dtype=x.dtype, device=x.device)
    phase = x @ normal(x.shape[1], waves) / length
    field = torch.cat([phase.cos(), phase.sin()], 1) @ normal(2 * waves, channels) / math.sqrt(waves)
    return math.sqrt(correlation) * field + math.sqrt(1 - correlation) * normal(len(x), channels)


def neighbour_weights(
    similarity: Tensor, k: int, *, temperature: float, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k most similar others of each sample and their weights softmax(s_ij / τ_a).

    Args:
        similarity: s, [n,n].
        k: neighbours; at most n − 1, and with `labels` the size of the smallest class less 1.
        temperature: τ_a; infinite for equal weights.
        labels: [n]; given, only samples of the same label are neighbours.
    Returns:
        index [n,k] and weights [n,k], which sum to 1; k_eff of a row is 1 / Σ_j w_ij².
    Raises:
        InputError: a sample has fewer than k such others.
    """
    largest = len(similarity) - 1 if labels is None else int(labels.unique(return_counts=True)[1].min()) - 1
    if not 1 <= k <= largest:
        raise InputError(f"k={k} neighbours; every sample here has 1 to {largest} of them, ask for so many")
    allowed = similarity.clone().fill_diagonal_(-math.inf)
    if labels is not None:
        allowed.masked_fill_(labels[:, None] != labels, -math.inf)
    best, index = allowed.topk(k, dim=1)
    return index, (best / temperature).softmax(1)


def aggregate(values: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Σ_j w_ij v_j: values [n,C], index and weights [n,k] to [n,C]."""
    # As one n×n product: gathering [n,k,C] would need k times the memory of the values.
    return values.new_zeros(len(values), len(values)).scatter_(1, index, weights) @ values


def predicted_error(
    truth: Tensor, index: Tensor, weights: Tensor, *, variance: float | Tensor, correlation: float
) -> tuple[float, float]:
    """The mean squared error of aggregated targets as (variance left, bias²), per sample and class.

    With errors of variance σ² and correlation ρ between neighbours, the variance of Σ_j w_ij e_j is
    σ² (ρ + (1 − ρ)/k_eff), 1/k_eff = Σ_j w_ij². The bias is that of kernel regression, Σ_j w_ij v_j − v_i
    for the true values v. So aggregation beats a teacher's own target, of error σ², where
    bias² < σ² (1 − ρ)(1 − 1/k_eff). All this for errors that do not depend on how neighbours are chosen: on
    same-label neighbours, a teacher that memorised labels errs alike, and no k averages that away.

    Args:
        truth: v, [n,C].
        index, weights: [n,k], from `neighbour_weights`.
        variance: σ², one or each sample's, [n].
        correlation: ρ.
    """
    left = variance * (correlation + (1 - correlation) * weights.square().sum(1))
    bias = aggregate(truth, index, weights) - truth
    return left.mean().item(), bias.square().mean().item()

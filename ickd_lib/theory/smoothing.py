"""Knowledge distillation as label smoothing with a learned smoothing distribution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def smoothed_targets(labels: Tensor, smoothing: Tensor, *, alpha: float) -> Tensor:
    """Compute (1 − α) onehot(y) + α q.

    This is label smoothing if q is uniform, and learned label smoothing if q is a teacher's prediction.

    Args:
        labels: y, class of each sample, [N].
        smoothing: q, [N, C] or [C], with rows that sum to 1.
        alpha: α, the weight of q.
    Returns:
        [N, C], in the type of `smoothing`.
    """
    hard = F.one_hot(labels, smoothing.shape[-1]).to(smoothing.dtype)
    return (1 - alpha) * hard + alpha * smoothing


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute −Σ_c q_c log σ(z)_c of each sample.

    It equals KL(q ‖ σ(z)) plus the entropy of q, which does not depend on z. Hence, with H the entropy,
    (1−α) CE(y) + α KL(p^T ‖ p^S) = soft_cross_entropy(z^S, smoothed_targets(y, p^T)) − α H(p^T).

    Args:
        logits: z, [N, C].
        targets: q, [N, C].
    Returns:
        [N].
    """
    return -(targets * logits.log_softmax(-1)).sum(-1)


def kd_gradient(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Compute the gradient of τ² KL( σ(z^T/τ) ‖ σ(z^S/τ) ) with respect to the student's logits.

    It is τ (σ(z^S/τ) − σ(z^T/τ)): the chain rule through z^S/τ cancels one factor τ of τ² (Hinton et al. 2015,
    equation 2).

    Args:
        student, teacher: logits z^S and z^T, [N, C].
        temperature: τ.
    Returns:
        [N, C]: the gradient of each sample's own loss. Divide it by N for the mean over the batch.
    """
    return temperature * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1))


def matching_gradient(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the limit of `kd_gradient` as τ grows: ( (z^S − mean z^S) − (z^T − mean z^T) ) / C.

    With z̃ = z − mean z over the classes, σ(z/τ) = ( 1 + z̃/τ + (z̃² − mean z̃²)/2τ² + … ) / C. So the limit is the
    gradient of ‖z̃^S − z̃^T‖² / 2C, and the difference from it falls as 1/τ. Hinton et al. 2015 (equation 4) assume
    logits of zero mean; without that assumption the means have to be subtracted.

    Args:
        student, teacher: logits z^S and z^T, [N, C].
    Returns:
        [N, C].
    """
    gap = student - teacher
    return (gap - gap.mean(-1, keepdim=True)) / gap.shape[-1]


def identity_gaps(
    student: Tensor, teacher: Tensor, labels: Tensor, *, alpha: float, temperature: float
) -> dict[str, float]:
    """Compare KD with learned label smoothing, and `kd_gradient` with autograd.

    All differences should be rounding errors.

    Args:
        student, teacher: logits, [N, C]; float64 keeps the rounding errors small.
        labels: class of each sample, [N].
        alpha: weight of the teacher's prediction.
        temperature: τ, for the third difference only; the first two are for τ = 1.
    Returns:
        The largest absolute difference over all samples: "loss", between (1−α) CE + α KL(p^T ‖ p^S) and the
        `soft_cross_entropy` to the `smoothed_targets` less α H(p^T); "gradient", between the gradients of these two;
        and "gradient at the temperature", between `kd_gradient` and autograd.
    """
    z = student.detach().clone().requires_grad_()
    soft = teacher.softmax(1)
    divergence = F.kl_div(z.log_softmax(1), soft, reduction="none").sum(1)
    kd = (1 - alpha) * F.cross_entropy(z, labels, reduction="none") + alpha * divergence
    learned = soft_cross_entropy(z, smoothed_targets(labels, soft, alpha=alpha))
    entropy = torch.special.entr(soft).sum(1)
    slopes = [torch.autograd.grad(loss.sum(), z)[0] for loss in (kd, learned)]
    softened = F.kl_div((z / temperature).log_softmax(1), (teacher / temperature).softmax(1), reduction="sum")
    (slope,) = torch.autograd.grad(temperature**2 * softened, z)
    differences = {
        "loss": kd - (learned - alpha * entropy),
        "gradient": slopes[0] - slopes[1],
        "gradient at the temperature": slope - kd_gradient(student, teacher, temperature=temperature),
    }
    return {name: difference.abs().max().item() for name, difference in differences.items()}


def matching_gaps(student: Tensor, teacher: Tensor, temperatures: Tensor) -> Tensor:
    """Compute the relative distance ‖kd_gradient − limit‖ / ‖limit‖ of KD's gradient from its limit.

    Args:
        student, teacher: logits, [N, C].
        temperatures: values of τ, [M].
    Returns:
        The distance at each temperature, [M], on the CPU.
    """
    limit = matching_gradient(student, teacher)
    gaps = [(kd_gradient(student, teacher, temperature=t) - limit).norm() / limit.norm() for t in temperatures.tolist()]
    return torch.stack(gaps).cpu()

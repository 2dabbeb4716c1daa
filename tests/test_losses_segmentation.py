"""The losses of segmentation against naive loops in float64."""

import math

import pytest
import torch

from ickd_lib import losses


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(scores):
    top = max(scores)
    total = sum(math.exp(s - top) for s in scores)
    return [math.exp(s - top) / total for s in scores]


def divergence(student, teacher):
    """KL(teacher ‖ student) of two lists of scores."""
    return sum(t * math.log(t / s) for s, t in zip(softmax(student), softmax(teacher), strict=True))


def cosine(one, other):
    return (one @ other / one.norm() / other.norm()).item()


def test_pixel_similarity_is_a_loop_over_pairs_of_images():
    student, teacher, tau = normal(3, 4, 2, 3), normal(3, 5, 2, 3, seed=1), 0.3
    total = 0.0
    for i in range(3):
        for j in range(3):
            for y in range(6):
                rows = [
                    [cosine(maps[i].flatten(1)[:, y], maps[j].flatten(1)[:, x]) / tau for x in range(6)]
                    for maps in (student, teacher)
                ]
                total += divergence(*rows) / (3 * 3 * 6)
    assert losses.pixel_similarity(student, teacher, temperature=tau).item() == pytest.approx(total, rel=1e-12)


def test_queue_similarity_is_a_loop_over_pixels_and_uses_filled_rows_only():
    student, teacher, queue = normal(5, 4), normal(5, 4, seed=1), normal(6, 4, seed=2)
    queue, mask, tau = torch.nn.functional.normalize(queue, dim=1), torch.tensor([1, 0, 1, 1, 0, 1]).bool(), 0.2
    total = 0.0
    for mine, theirs in zip(student, teacher, strict=True):
        rows = [[cosine(one, row) / tau for row in queue[mask]] for one in (mine, theirs)]
        total += divergence(*rows) / 5
    found = losses.queue_similarity(student, teacher, queue, mask, temperature=tau)
    assert found.item() == pytest.approx(total, rel=1e-12)
    full = losses.queue_similarity(student, teacher, queue[mask], torch.ones(4).bool(), temperature=tau)
    assert full.item() == pytest.approx(total, rel=1e-12)


def test_channel_wise_is_a_loop_over_channels():
    student, teacher, tau = normal(2, 3, 4, 2), normal(2, 3, 4, 2, seed=1), 4.0
    total = 0.0
    for i in range(2):
        for c in range(3):
            rows = [(maps[i, c].flatten() / tau).tolist() for maps in (student, teacher)]
            total += tau**2 * divergence(*rows) / (2 * 3)
    assert losses.channel_wise(student, teacher, temperature=tau).item() == pytest.approx(total, rel=1e-12)


def test_gradients_reach_the_student_alone_and_are_finite():
    maps = [normal(2, 3, 2, 2, seed=s).requires_grad_() for s in (0, 1)]
    rows = [normal(4, 3, seed=s).requires_grad_() for s in (2, 3)]
    queue, mask = normal(5, 3, seed=4).requires_grad_(), torch.ones(5).bool()
    (
        losses.pixel_similarity(*maps) + losses.channel_wise(*maps) + losses.queue_similarity(*rows, queue, mask)
    ).backward()
    assert all(one.grad.abs().sum() > 0 for one in (maps[0], rows[0]))
    assert all(one.grad is None for one in (maps[1], rows[1], queue))

    same = torch.ones(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    losses.pixel_similarity(same, maps[1]).backward()
    assert same.grad.isfinite().all()


def test_without_pixels_or_filled_rows_the_loss_and_its_gradient_are_zero():
    none, queue = torch.zeros(0, 3, requires_grad=True), normal(5, 3).float()
    assert losses.queue_similarity(none, none, queue, torch.ones(5).bool()).item() == 0
    some = torch.ones(2, 3, requires_grad=True)
    found = losses.queue_similarity(some, torch.rand(2, 3), queue, torch.zeros(5).bool())
    found.backward()
    assert found.item() == 0 and not some.grad.any()

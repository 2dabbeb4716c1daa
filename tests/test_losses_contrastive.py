"""The losses that contrast embeddings with a memory equal plain loops."""

import math

import pytest
import torch
from test_losses import cosine, draw, kl, softmax

from ickd_lib import losses

B = 6


def unit_rows(*shape, seed):
    return torch.nn.functional.normalize(draw(*shape, seed=seed), dim=-1).detach().requires_grad_()


class TestCRD:
    ROWS, NEGATIVES = 50, 9

    @pytest.fixture
    def given(self):
        """Cosines of the positives and the negatives, and a mask without a negative for the first sample."""
        generator = torch.Generator().manual_seed(3)
        positive, negative = (
            (2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1).requires_grad_()
            for shape in ((B,), (B, self.NEGATIVES))
        )
        mask = torch.rand(B, self.NEGATIVES, generator=generator) < 0.7
        mask[0], mask[1] = False, True
        return positive, negative, mask

    def loss(self, given, **options):
        return losses.crd(*given, rows=self.ROWS, log_normaliser=torch.tensor(2.0).double(), **options)

    def test_loop(self, given):
        positive, negative, mask = (x.tolist() for x in given)
        expected = 0.0
        for i in range(B):
            noise = sum(mask[i]) / self.ROWS
            u = math.exp(positive[i] / 0.5) / math.exp(2.0)
            expected -= math.log(u / (u + noise + 1e-7)) / B
            for j in range(self.NEGATIVES):
                if mask[i][j]:
                    u = math.exp(negative[i][j] / 0.5) / math.exp(2.0)
                    expected -= math.log(noise / (u + noise + 1e-7)) / B
        assert self.loss(given, temperature=0.5).item() == pytest.approx(expected, rel=1e-9)

    def test_gradients(self, given):
        self.loss(given, temperature=1e-3).backward()  # a temperature at which exp(cosine / τ) would overflow
        assert all(cosines.grad.isfinite().all() and cosines.grad.abs().sum() > 0 for cosines in given[:2])
        assert (given[1].grad[~given[2]] == 0).all()
        assert torch.autograd.gradcheck(lambda p, n: self.loss((p, n, given[2]), temperature=0.5), given[:2])


class TestCRDBank:
    ROWS, NEGATIVES, E = 50, 9, 4

    @pytest.fixture
    def given(self):
        sides = [draw(n, self.E, seed=n) for n in (B, B + 1, self.NEGATIVES)]
        student, positives, negatives = (
            torch.nn.functional.normalize(x[:n], dim=1).detach().requires_grad_()
            for x, n in zip(sides, (B, B, self.NEGATIVES), strict=True)
        )
        mask = draw(B, self.NEGATIVES) > -0.5
        mask[0] = False
        return student, positives, negatives, mask

    def loss(self, given, **options):
        return losses.crd_bank(*given, rows=self.ROWS, log_normaliser=torch.tensor(2.0).double(), **options)

    def test_loop(self, given):
        student, positives, negatives, mask = (x.tolist() for x in given)
        noise, expected = self.NEGATIVES / self.ROWS, 0.0

        def posterior(a, b):
            u = math.exp(sum(x * y for x, y in zip(a, b, strict=True)) / 0.5) / math.exp(2.0)
            return u / (u + noise)

        for i in range(B):
            expected -= math.log(posterior(student[i], positives[i])) / B
            for j in range(self.NEGATIVES):
                expected -= mask[i][j] * math.log(1 - posterior(student[i], negatives[j])) / B
        assert self.loss(given, temperature=0.5).item() == pytest.approx(expected)

    def test_gradients_reach_the_projectors_of_both_sides(self, given):
        self.loss(given, temperature=1e-3).backward()  # a temperature at which exp(<s, t> / τ) would overflow
        for side in given[:3]:
            assert side.grad.isfinite().all() and side.grad.abs().sum() > 0
        assert torch.autograd.gradcheck(lambda s: self.loss((s, *given[1:])), given[0])


class TestSEED:
    D, K = 5, 7

    @pytest.fixture
    def given(self):
        mask = torch.tensor([True, False, True, True, False, True, False])
        return draw(B, self.D, seed=1), draw(B, self.D, seed=2), unit_rows(self.K, self.D, seed=3), mask

    def test_loop(self, given):
        student, teacher, queue, mask = (x.tolist() for x in given)
        expected = 0.0
        for own, target in zip(student, teacher, strict=True):
            memory = [target, *(row for row, written in zip(queue, mask, strict=True) if written)]
            p = softmax([cosine(target, row) for row in memory], 0.1)
            q = softmax([cosine(own, row) for row in memory], 0.3)
            expected += (kl(p, q) - sum(x * math.log(x) for x in p)) / B
        found = losses.seed(*given, student_temperature=0.3, teacher_temperature=0.1)
        assert found.item() == pytest.approx(expected)

    def test_gradients_reach_the_student_alone(self, given):
        losses.seed(*given).backward()
        assert given[0].grad.abs().sum() > 0 and given[1].grad is None and given[2].grad is None
        assert torch.autograd.gradcheck(lambda s: losses.seed(s, *given[1:], teacher_temperature=0.1), given[0])

    def test_an_empty_queue_and_samples_that_coincide(self, given):
        student, teacher, queue, mask = given
        assert losses.seed(student, teacher, queue, mask & False).item() == 0
        found = losses.seed(student, student, student.detach(), torch.ones(B, dtype=torch.bool))
        found.backward()
        assert found.isfinite() and student.grad.isfinite().all()

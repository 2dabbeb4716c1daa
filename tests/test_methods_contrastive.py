"""The memories of the contrastive methods: what is drawn from them, and when they are written."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_methods import B, C, D, context

from ickd_lib import methods
from ickd_lib.memory import MemoryBank
from ickd_lib.runtime import InputError

ROWS = 9


def bank(labels):
    n = len(labels)
    return MemoryBank(torch.zeros(n, 1), torch.zeros(n, C), torch.tensor(labels), torch.arange(n), tuple("abcdefghij"))


@pytest.fixture
def crd():
    torch.manual_seed(0)
    method = methods.create("crd", ce=0, dim=4, temperature=0.5, memory_momentum=0.75)
    method.setup(D, D, C, ROWS)
    return method.double()


def step(method, seed=0, labels=(0, 1, 2, 0, 1, 2, 0, 0, 3)):
    """A step of the first B of ROWS samples, in double precision."""
    seen = context(method, seed)
    own = torch.tensor(labels[:B])
    parts = {
        name: replace(part, features=part.features.detach().double().requires_grad_(), labels=own)
        for name in ("student", "teacher")
        if (part := getattr(seen, name))
    }
    return replace(seen, **parts, bank=bank(labels))


def naive_crd(method, seen):
    """Both directions of CRD, sample by sample, and the memories after the step."""

    def embedded(layer, features):
        return F.normalize(layer(features), dim=1).tolist()

    anchors = [
        embedded(method.student_embedding, seen.student.features),
        embedded(method.teacher_embedding, seen.teacher.features),
    ]
    memories = [method.teacher_memory.tolist(), method.student_memory.tolist()]
    labels, total = seen.bank.labels.tolist(), 0.0
    for anchor, memory in zip(anchors, memories, strict=True):
        exponents = [
            {j: math.exp(sum(a * b for a, b in zip(anchor[i], memory[j], strict=True)) / 0.5) for j in range(ROWS)}
            for i in range(B)
        ]
        chosen = [[i, *(j for j in range(ROWS) if labels[j] != labels[i])] for i in range(B)]
        every = [exponents[i][j] for i in range(B) for j in chosen[i]]
        z = sum(every) / len(every) * ROWS
        for i in range(B):
            noise = (len(chosen[i]) - 1) / ROWS
            total -= math.log(exponents[i][i] / z / (exponents[i][i] / z + noise + 1e-7)) / B
            total -= sum(math.log(noise / (exponents[i][j] / z + noise + 1e-7)) for j in chosen[i][1:]) / B
    written = []
    for anchor, memory in zip(anchors, memories[::-1], strict=True):  # each network's own memory
        mixed = [[0.25 * a + 0.75 * b for a, b in zip(anchor[i], memory[i], strict=True)] for i in range(B)]
        written.append([[x / math.hypot(*row) for x in row] for row in mixed] + memory[B:])
    return total, written


def test_memories_start_uniform_within_the_published_bound():
    """The bound is 1 / √(dim / 3), so that the mean squared length of a row is 1."""
    method = methods.create("crd", dim=12, negatives=10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method.setup(D, D, C, 5000)
    for memory in (method.student_memory, method.teacher_memory):
        assert memory.shape == (5000, 12) and 0.499 < memory.max() <= 0.5 and -0.5 <= memory.min() < -0.499
        assert memory.mean().abs() < 0.01 and memory.square().sum(1).mean() == pytest.approx(1, abs=0.01)
    assert not torch.equal(method.student_memory, method.teacher_memory)


def test_crd_compares_with_the_memories_and_then_writes_them(crd):
    seen = step(crd)
    expected, written = naive_crd(crd, seen)
    term = crd(seen)["crd"]
    assert term.item() == pytest.approx(0.8 * expected, rel=1e-9)
    for memory, rows in zip((crd.student_memory, crd.teacher_memory), written, strict=True):
        assert torch.allclose(memory, torch.tensor(rows, dtype=torch.float64), rtol=1e-12)
    # The backward pass uses the memories of before the step.
    gradient = torch.autograd.grad(term, seen.student.features)[0]
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_memories_and_teacher_receive_no_gradient_but_both_embeddings_do(crd):
    seen = step(crd)
    crd(seen)["crd"].backward()
    assert not crd.student_memory.requires_grad and not crd.teacher_memory.requires_grad
    assert crd.student_memory.grad is None and crd.teacher_memory.grad is None and seen.teacher.features.grad is None
    assert crd.student_embedding.weight.grad.abs().sum() > 0 and crd.teacher_embedding.weight.grad.abs().sum() > 0


def test_crd_keeps_the_normalisers_of_its_first_step(crd):
    assert crd.log_normalisers.isnan().all()
    crd(step(crd))
    first = crd.log_normalisers.clone()
    crd(step(crd, seed=1))
    assert first.isfinite().all() and first[0] != first[1] and torch.equal(first, crd.log_normalisers)


def test_negatives_are_distinct_samples_of_other_classes():
    method = methods.create("crd", negatives=3)
    method.setup(D, D, C, ROWS)
    rows, own = bank([0, 0, 0, 0, 0, 0, 0, 1, 2]), torch.tensor([0, 1, 2])
    seen = []
    for _ in range(200):
        drawn, mask = method._draw(rows, own)
        assert drawn.shape == (3, 3) and mask.sum(1).tolist() == [2, 3, 3]  # class 0 has two negatives alone
        for row, valid, label in zip(drawn, mask, own, strict=True):
            assert len(set(row.tolist())) == 3 and (rows.labels[row[valid]] != label).all()
        seen.extend(drawn[1].tolist())
    counts = torch.bincount(torch.tensor(seen), minlength=ROWS)
    assert counts[7] == 0 and (counts[[0, 1, 2, 3, 4, 5, 6, 8]] > 40).all()  # 75 each are expected


def test_crd_reports_fewer_negatives_and_refuses_a_bank_of_other_samples(crd, capfd):
    method = methods.create("crd", negatives=5000)
    method.setup(D, D, 4, 1000)
    assert "crd uses all samples of other classes, about 750, as negatives instead of 5000" in capfd.readouterr().err
    with pytest.raises(InputError, match="memory of the 9 training samples, but the bank has 10 rows"):
        crd(step(crd, labels=(0, 1, 2, 0, 1, 2, 0, 0, 3, 1)))


def test_the_queue_of_seed_is_first_in_first_out_and_written_after_the_loss():
    method = methods.create("seed", ce=0, queue=10)
    method.setup(D, D, C, 100)
    expected = torch.zeros(0, D)
    for seed in range(5):
        seen = context(method, seed)
        before = method.queue.clone()
        term = method(seen)["seed"]
        if seed == 0:
            assert term.item() == 0 and (before == 0).all()  # no row was written
        else:
            assert term.item() > 0
        term.backward()
        expected = torch.cat([expected, F.normalize(seen.teacher.features.detach(), dim=1)])
        latest = torch.arange(max(0, len(expected) - 10), len(expected))
        assert torch.equal(method.queue[latest % 10], expected[latest]) and method.enqueued == len(expected)
        assert seen.teacher.features.grad is None and not method.queue.requires_grad


def test_a_queue_is_at_most_as_long_as_the_data_and_may_be_shorter_than_a_batch(capfd):
    method = methods.create("seed")
    method.setup(D, 7, C, 50)
    assert method.queue.shape == (50, 7)
    assert "seed uses a queue of 50 instead of 65536" in capfd.readouterr().err
    short = methods.create("seed", queue=4)
    short.setup(D, D, C, 50)
    for seed in range(2):
        seen = context(short, seed)
        assert short(seen)["seed"].isfinite()
    last = F.normalize(seen.teacher.features.detach(), dim=1)[-4:]
    assert torch.equal(short.queue, last)  # row 0 holds the first of the last four

"""Methods that contrast embeddings with a memory, so that the teacher may have any classes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ickd_lib import losses
from ickd_lib.memory import MemoryBank
from ickd_lib.methods.base import WithLabels
from ickd_lib.methods.context import Context
from ickd_lib.methods.registry import register
from ickd_lib.runtime import InputError, notice
from ickd_lib.runtime.arguments import Count, NotNegative, Positive, Share
from ickd_lib.tasks import mean_of_each


@register("crd")
class CRD(WithLabels):
    """Contrast of each network's embedding of a sample with a memory of the other network's embeddings.

    Contrastive representation distillation, Tian et al. 2020 (arXiv 1910.10699), in both directions. Embeddings are
    trained linear maps of the features, scaled to unit length. Each network has a memory with the embedding of every
    training sample, random at first, which is updated after the loss of each step. The positive of a sample is its own
    row in the other network's memory; its negatives are rows of samples of other classes, drawn for each sample without
    replacement. The normaliser of each direction is estimated in the first step and constant afterwards. The teacher's
    bank only provides labels and the positions of the rows.

    A step with S samples computes the cosines with all rows of the two memories and one random number for each of
    them, 3 · S · rows numbers (38 MB with 64 samples and 50,000 rows), and copies the two memories. The authors' code
    copies the embeddings of the negatives instead, 2 · S · 16385 · 128 numbers (1.1 GB).

    crd: weight of the sum of both directions.
    negatives: number of negatives of each sample. If fewer samples have other classes, all of them are used; a note is
        printed.
    dim: number of features of the embeddings.
    temperature: divides the cosines.
    memory_momentum: weight of the old embedding when a row of a memory is written again.
    """

    needs = frozenset({"teacher", "features", "bank"})
    label_space = "any"
    paper = "Tian et al. 2020, arXiv 1910.10699"
    code = "HobbitLong/RepDistiller"
    version = 2
    student_memory: Tensor
    teacher_memory: Tensor
    log_normalisers: Tensor

    def __init__(
        self,
        *,
        ce: NotNegative = 1.0,
        crd: NotNegative = 0.8,
        negatives: Count = 16384,
        dim: Count = 128,
        temperature: Positive = 0.07,
        memory_momentum: Share = 0.5,
    ) -> None:
        super().__init__(ce=ce)
        self.crd, self.temperature = crd, temperature
        self.negatives, self.dim = negatives, dim
        self.memory_momentum = memory_momentum

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        self.student_embedding = nn.Linear(student_dim, self.dim)
        self.teacher_embedding = nn.Linear(teacher_dim, self.dim)
        bound = math.sqrt(3 / self.dim)  # so that the mean squared norm of a row is 1
        self.register_buffer("student_memory", torch.empty(rows, self.dim).uniform_(-bound, bound))
        self.register_buffer("teacher_memory", torch.empty(rows, self.dim).uniform_(-bound, bound))
        self.register_buffer("log_normalisers", torch.full((2,), math.nan))  # against the teacher's, the student's
        others = rows - rows // num_classes
        if self.negatives > others:
            notice(
                f"{self.config['name']} uses all samples of other classes, about {others}, as negatives instead of "
                f"{self.negatives}"
            )

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None and context.bank is not None
        rows = context.bank.rows(context.student.key)
        student = F.normalize(self.student_embedding(context.student.features), dim=1)
        teacher = F.normalize(self.teacher_embedding(context.teacher.features.detach()), dim=1)
        drawn, mask = self._draw(context.bank, context.student.labels)
        against_teacher = self._contrast(student, self.teacher_memory, rows, drawn, mask, self.log_normalisers[0])
        against_student = self._contrast(teacher, self.student_memory, rows, drawn, mask, self.log_normalisers[1])
        if context.student.whole is not None:  # several proposals may be matched to one annotated box
            rows, student, teacher = mean_of_each(rows, student, teacher)
        self._write(self.student_memory, rows, student)
        self._write(self.teacher_memory, rows, teacher)
        return {"crd": self.crd * (against_teacher + against_student)}

    def _draw(self, bank: MemoryBank, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Draw rows of other classes for each sample.

        Returns:
            Positions of rows, [S, N], and which of them are of other classes, [S, N].
        """
        if len(bank) > len(self.student_memory):
            raise InputError(
                f"crd has a memory of the {len(self.student_memory)} training samples, but the bank has {len(bank)} "
                "rows; give a bank of the training samples alone"
            )
        order = torch.rand(len(labels), len(bank), device=labels.device)
        order = order.masked_fill(bank.labels == labels[:, None], -1)
        first, drawn = order.topk(min(self.negatives, len(bank) - 1), sorted=False)
        return drawn, first >= 0

    def _contrast(
        self, anchor: Tensor, memory: Tensor, rows: Tensor, drawn: Tensor, mask: Tensor, log_normaliser: Tensor
    ) -> Tensor:
        """Compute one direction. `log_normaliser` is written if it has no value yet."""
        # The product uses a copy, because the memory is written before the backward pass.
        cosines = anchor @ memory.clone().T
        same, other = cosines.gather(1, rows[:, None]), cosines.gather(1, drawn)
        with torch.no_grad():
            scores = torch.cat([same, other.masked_fill(~mask, -torch.inf)], 1) / self.temperature
            estimate = (
                scores.flatten().logsumexp(0) - scores.isfinite().sum(dtype=scores.dtype).log() + math.log(len(memory))
            )
            log_normaliser.copy_(torch.where(log_normaliser.isnan(), estimate, log_normaliser))
        return losses.crd(
            same.squeeze(1),
            other,
            mask,
            rows=len(memory),
            log_normaliser=log_normaliser,
            temperature=self.temperature,
        )

    @torch.no_grad()
    def _write(self, memory: Tensor, rows: Tensor, embedding: Tensor) -> None:
        """Write the embeddings of a batch into their rows."""
        mixed = self.memory_momentum * memory[rows] + (1 - self.memory_momentum) * embedding
        memory.index_copy_(0, rows, F.normalize(mixed, dim=1))


@register("crd_bank")
class CRDBank(WithLabels):
    """Contrast of the student's embedding of a sample with the teacher's embeddings of the memory bank.

    This project's simplification of contrastive representation distillation (`crd`; Tian et al. 2020, arXiv
    1910.10699). Of the paper's two directions only the one against the teacher is computed. There is no memory of
    embeddings: the positive and the negatives are the teacher's clean rows of the memory bank, embedded anew in each
    step, and the embedding of the teacher is trained through them. The negatives are drawn with replacement from all
    rows and shared by the batch; rows of a sample's own class are masked.

    crd: weight of the term.
    negatives: number of rows that are drawn from the bank in each step and shared by the batch.
    dim: number of features of the embeddings.
    temperature: divides the cosine similarities.
    """

    needs = frozenset({"bank"})
    label_space = "any"
    paper = "Tian et al. 2020, arXiv 1910.10699"
    log_normaliser: Tensor

    def __init__(
        self,
        *,
        ce: NotNegative = 1.0,
        crd: NotNegative = 0.8,
        negatives: Count = 16384,
        dim: Count = 128,
        temperature: Positive = 0.07,
    ) -> None:
        super().__init__(ce=ce)
        self.crd, self.temperature = crd, temperature
        self.negatives, self.dim = negatives, dim

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        if self.bank_classes == 1:
            raise InputError(
                "crd_bank needs negatives of other classes, and all rows of the bank have the same class; give data of "
                "two or more classes"
            )
        self.student_embedding = nn.Linear(student_dim, self.dim)
        self.teacher_embedding = nn.Linear(teacher_dim, self.dim)
        # The normaliser is estimated in the first step and constant afterwards.
        self.register_buffer("log_normaliser", torch.tensor(math.nan))

    def teach(self, context: Context) -> dict[str, Tensor]:
        bank, labels = context.bank, context.student.labels
        assert bank is not None
        drawn = torch.randint(len(bank), (min(self.negatives, len(bank)),), device=labels.device)
        student = F.normalize(self.student_embedding(context.student.features), dim=1)
        positives = F.normalize(self.teacher_embedding(bank.features[bank.rows(context.student.key)].float()), dim=1)
        negatives = F.normalize(self.teacher_embedding(bank.features[drawn].float()), dim=1)
        other = bank.labels[drawn] != labels[:, None]
        with torch.no_grad():
            scores = (student @ negatives.T / self.temperature).masked_fill(~other, -torch.inf)
            estimate = scores.flatten().logsumexp(0) - other.sum().log() + math.log(len(bank))
            self.log_normaliser.copy_(torch.where(self.log_normaliser.isnan(), estimate, self.log_normaliser))
        contrast = losses.crd_bank(
            student,
            positives,
            negatives,
            other,
            rows=len(bank),
            log_normaliser=self.log_normaliser,
            temperature=self.temperature,
        )
        return {"crd": self.crd * contrast}


@register("seed")
class SEED(WithLabels):
    """Matching of the similarities between a sample and a queue of the teacher's earlier samples, Fang et al. 2021.

    Source: SEED, arXiv 2101.04731. A network's similarity distribution is a softmax over the cosines of its
    features with the teacher's features of the same sample and of the samples in the queue. The queue is first in,
    first out: the batch replaces the oldest rows after the loss. Rows that were never written are left out, whereas the
    authors' code begins with random rows. The method was built from the paper; the tests compare the loss with a
    transcription of the authors' code.

    The paper pretrains the student without labels (ce = 0) with a self-supervised teacher. Here the labels train the
    classifier at the same time.

    seed: weight of the term.
    queue: number of rows of the queue, at most that of the training samples; a note is printed if that is smaller.
    student_temperature, teacher_temperature: temperatures of the two distributions. The defaults are the paper's;
        the default for the teacher in the authors' code is 1e-4.

    The student's features pass through a trained projection to the number of the teacher's features: two linear layers
    with a ReLU between them, as in the authors' code.
    """

    needs = frozenset({"teacher", "features"})
    label_space = "any"
    paper = "Fang et al. 2021, arXiv 2101.04731"
    code = "jacobswan1/SEED"
    queue: Tensor
    enqueued: Tensor

    def __init__(
        self,
        *,
        ce: NotNegative = 1.0,
        seed: NotNegative = 1.0,
        queue: Count = 65536,
        student_temperature: Positive = 0.2,
        teacher_temperature: Positive = 0.01,
    ) -> None:
        super().__init__(ce=ce)
        self.seed, self.size = seed, queue
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        if self.size > rows:
            notice(f"{self.config['name']} uses a queue of {rows} instead of {self.size}: one row per training sample")
        self.projection = nn.Sequential(
            nn.Linear(student_dim, student_dim), nn.ReLU(), nn.Linear(student_dim, teacher_dim)
        )
        self.register_buffer("queue", torch.zeros(min(self.size, rows), teacher_dim))
        self.register_buffer("enqueued", torch.zeros((), dtype=torch.long))  # number of rows ever written

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        matched = losses.seed(
            self.projection(context.student.features),
            context.teacher.features,
            self.queue.clone(),  # because the queue is written before the backward pass
            torch.arange(len(self.queue), device=self.queue.device) < self.enqueued,
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
        )
        self._enqueue(context.teacher.features)
        return {"seed": self.seed * matched}

    @torch.no_grad()
    def _enqueue(self, features: Tensor) -> None:
        """Replace the oldest rows by the features of a batch, the last ones if the batch is larger than the queue."""
        latest = F.normalize(features[-len(self.queue) :], dim=1)
        rows = (self.enqueued + torch.arange(len(latest), device=latest.device)) % len(self.queue)
        self.queue.index_copy_(0, rows, latest)
        self.enqueued.add_(len(latest))

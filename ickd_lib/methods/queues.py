"""Queues of embeddings, one for each class, and the random choice of what is written into them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClassQueues(nn.Module):
    """One queue of unit-length embeddings for each class; the newest rows of a class replace its oldest.

    The queues are buffers in float32, num_classes · size · dim · 4 bytes, so that they are stored in checkpoints.

    Args:
        num_classes: C.
        size: number of rows of each queue.
        dim: D, the number of features of an embedding.
    """

    rows: Tensor
    written: Tensor

    def __init__(self, num_classes: int, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(num_classes, size, dim))
        self.register_buffer("written", torch.zeros(num_classes, dtype=torch.long))  # number of rows ever written

    @torch.no_grad()
    def push(self, embeddings: Tensor, labels: Tensor) -> None:
        """Write embeddings [n, D] into the queues of their classes [n]; of more than `size` for one class, the last."""
        order = labels.argsort(stable=True)
        labels, size = labels[order], self.rows.shape[1]
        classes = torch.arange(len(self.rows), device=labels.device)
        number = torch.searchsorted(labels, classes, right=True) - torch.searchsorted(labels, classes)
        place = _rank(labels)
        if len(labels) > size:
            kept = place >= number[labels] - size
            order, labels, place = order[kept], labels[kept], place[kept]
        at = labels * size + (self.written[labels] + place) % size
        self.rows.view(-1, self.rows.shape[2]).index_copy_(0, at, F.normalize(embeddings[order].float(), dim=1))
        self.written.add_(number)

    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        """Draw rows of each class at random, each row at most once.

        Args:
            number: n, the number of rows of each class; at most `size`.
        Returns:
            A copy of the rows, [C · n, D], and which of them are filled, [C · n]. If fewer than n rows of a class are
            filled, all of these are among them.
        """
        size = self.rows.shape[1]
        order = torch.rand(self.rows.shape[:2], device=self.rows.device)
        order = order.masked_fill(torch.arange(size, device=order.device) >= self.written[:, None], -1)
        first, at = order.topk(min(number, size), sorted=False)
        rows = self.rows.gather(1, at[..., None].expand(-1, -1, self.rows.shape[2]))
        return rows.flatten(0, 1), first.flatten() >= 0


def some_of_each(groups: Tensor, number: int) -> Tensor:
    """Return random positions in `groups` [n], at most `number` of each group; those of a group are adjacent."""
    order = torch.randperm(len(groups), device=groups.device)
    order = order[groups[order].argsort(stable=True)]
    return order[_rank(groups[order]) < number]


def _rank(ordered: Tensor) -> Tensor:
    """Return, for each entry of a sorted tensor [n], the number of equal entries before it."""
    return torch.arange(len(ordered), device=ordered.device) - torch.searchsorted(ordered, ordered)

"""Samples whose label is suspect, because the samples around them in a memory bank have other labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ickd_lib.memory import MemoryBank
from ickd_lib.runtime import InputError

BLOCK = 4096  # rows that are searched at once


@dataclass(frozen=True)
class Suspects:
    """The N written rows of a bank, the most suspect label first.

    Args:
        key: key of each row, shape [N].
        score: weight of the neighbours with another label, from 0 to 1, shape [N].
        label: the row's label, shape [N].
        suggestion: the class with the largest weight among the neighbours, shape [N].
    """

    key: Tensor
    score: Tensor
    label: Tensor
    suggestion: Tensor

    def __repr__(self) -> str:
        differ = int((self.suggestion != self.label).sum())
        return f"Suspects({len(self.key):,} rows, for {differ:,} of them the neighbours suggest another class)"


def suspect_labels(bank: MemoryBank, *, neighbours: int = 16, temperature: float = 0.05) -> Suspects:
    """Rank the rows of a memory bank by how much their neighbours disagree with their label.

    Empty rows are left out. The neighbours are the rows with the highest cosine to the row's features, whatever
    their labels. Each has a weight, the softmax of cosine / temperature. The score is the weight of the neighbours with
    another label. Rows of equal score are in the order of the teacher's probability of their label, the lowest first.

    Args:
        bank: a memory bank; its features may come from a teacher that was trained with the suspect labels.
        neighbours: number of neighbours of each row.
        temperature: temperature of the weights.
    Raises:
        InputError: the bank has fewer than two written rows, or `neighbours` is not positive.
    """
    bank = bank.without_empty()
    if neighbours < 1 or len(bank) < 2:
        raise InputError(f"neighbours={neighbours} of {len(bank)} rows; a label needs at least one neighbour")
    features, labels = bank.features.float(), bank.labels
    rows = torch.arange(len(bank), device=labels.device)
    votes = features.new_zeros(len(bank), len(bank.classes))
    for some in rows.split(BLOCK):
        cosine = features[some] @ features.T
        cosine[torch.arange(len(some)), some] = -torch.inf  # no row is its own neighbour
        near = cosine.topk(min(neighbours, len(bank) - 1))
        votes[some] = votes[some].scatter_add_(1, labels[near.indices], (near.values / temperature).softmax(1))
    score = 1 - votes[rows, labels]
    probability = bank.logits.float().softmax(1)[rows, labels]
    order = probability.argsort(stable=True)
    order = order[score[order].argsort(descending=True, stable=True)]
    return Suspects(bank.index[order], score[order], labels[order], votes.argmax(1)[order])

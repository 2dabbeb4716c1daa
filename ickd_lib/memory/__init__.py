"""The memory bank: a teacher's features and logits of a data set, and exact retrieval of in-context samples."""

from ickd_lib.memory.bank import MemoryBank, source_of
from ickd_lib.memory.search import InContext, Neighbours

__all__ = ["InContext", "MemoryBank", "Neighbours", "source_of"]

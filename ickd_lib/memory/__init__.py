"""The memory bank: a teacher's features and logits of a data set, and exact retrieval of in-context samples."""

from ickd_lib.memory.bank import InContext, MemoryBank, source_of
from ickd_lib.memory.search import Neighbours

__all__ = ["InContext", "MemoryBank", "Neighbours", "source_of"]

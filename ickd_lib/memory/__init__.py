"""The memory bank: a teacher's features and logits of a data set, and exact retrieval of in-context samples."""

from ickd_lib.memory.bank import MemoryBank
from ickd_lib.memory.search import InContext, Neighbours
from ickd_lib.memory.source import require_fit, source_of

__all__ = ["InContext", "MemoryBank", "Neighbours", "require_fit", "source_of"]

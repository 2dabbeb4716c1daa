"""The memory bank: a network's features and logits for a data set, and the retrieval of in-context samples."""

from ickd_lib.memory.approximate import Faiss, requested
from ickd_lib.memory.bank import MemoryBank
from ickd_lib.memory.dynamic import DynamicBank
from ickd_lib.memory.search import NEGATIVES, POSITIVES, InContext, Neighbours
from ickd_lib.memory.source import require_fit, require_replaceable, source_of

__all__ = [
    "NEGATIVES",
    "POSITIVES",
    "DynamicBank",
    "Faiss",
    "InContext",
    "MemoryBank",
    "Neighbours",
    "requested",
    "require_fit",
    "require_replaceable",
    "source_of",
]

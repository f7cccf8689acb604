"""The change a stage made, as an artifact: kinds, algebra, folders."""

from temper.delta.base import Delta, Provenance, Undo, read_delta, write_provenance
from temper.delta.dense import DenseDelta, add, subtract
from temper.delta.low_rank import Factors, LowRankDelta, spread, stack
from temper.delta.prompt import PromptDelta
from temper.delta.sparse import SparseChange, SparseDelta

__all__ = [
    "Delta",
    "DenseDelta",
    "Factors",
    "LowRankDelta",
    "PromptDelta",
    "Provenance",
    "SparseChange",
    "SparseDelta",
    "Undo",
    "add",
    "read_delta",
    "spread",
    "stack",
    "subtract",
    "write_provenance",
]

"""Operations with a gradient of their own, called with types: PyTorch's `Function.apply` has none."""

from __future__ import annotations

from typing import Any

from torch.autograd import Function


def apply(operation: type[Function], *arguments: Any) -> Any:
    """Return what an operation's `forward` gives, in the graph."""
    return operation.apply(*arguments)

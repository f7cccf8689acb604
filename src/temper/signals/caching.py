"""Gradient caching: a function of all examples of a step reaches the weights though micro-batches run one by one.

What the function reads is first made for all micro-batches without gradients; there its value and its slopes are taken;
each micro-batch then makes its own part again, with gradients, and carries the slopes on (arXiv:2101.06983).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def slopes_of(
    function: Callable[[list[Tensor]], Tensor], parts: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, list[list[Tensor]]]:
    """Return a function's value, detached, and the gradient of its sum by what each micro-batch gave to it.

    Args:
        function: takes tensors, each joined over micro-batches along its first dimension.
        parts: for each micro-batch its parts of these tensors.
    """
    joined = [torch.cat([part.detach() for part in of_one]).requires_grad_() for of_one in zip(*parts, strict=True)]
    with torch.enable_grad():
        value = function(joined)
        whole = torch.autograd.grad(value.sum(), joined)
    lengths = [[len(part) for part in of_one] for of_one in zip(*parts, strict=True)]
    ends = [slope.split(counts) for slope, counts in zip(whole, lengths, strict=True)]
    return value.detach(), [list(own) for own in zip(*ends, strict=True)]


def carry(tensors: Sequence[Tensor], slopes: Sequence[Tensor], value: Tensor, taken_at: Sequence[Tensor]) -> Tensor:
    """Return a number that is `value`, and whose gradients by the tensors are the slopes.

    Without gradients the number itself follows the tensors along the slopes, so that an optimizer that compares losses
    a little to both sides finds the slope as well.

    Args:
        taken_at: the tensors as they were when value and slopes were taken.
    """
    if torch.is_grad_enabled():
        linear = _along(tensors, slopes)
        return linear - linear.detach() + value
    return value + _along([tensor - was for tensor, was in zip(tensors, taken_at, strict=True)], slopes)


def _along(tensors: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
    return torch.stack([(tensor * slope).sum() for tensor, slope in zip(tensors, slopes, strict=True)]).sum()

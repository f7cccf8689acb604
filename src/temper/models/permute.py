"""Reorder a block's heads or channels in place: the model computes the same, in another order.

Coupled matrices are permuted together: the rows of q, k and v with the columns of o, head by head; the rows of gate and
up with the columns of down. Heads that share keys and values stay together. Numbers only move, so that the inverse
order gives every bit back.

Legend: G groups of heads (one for each key and value head), C channels of the MLP, I input features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from temper.models.anatomy import Block, Part, part_bias, part_slices, part_weight
from temper.models.families import PartName


@torch.no_grad()
def permute_heads(module: nn.Module, block: Block, order_G: Tensor) -> None:
    """Bring a block's groups of heads into another order.

    Args:
        order_G: int64, the former place of each group.
    """
    parts = {part.name: part for part in block.parts}
    sizes: dict[PartName, int] = {
        "q": block.head_dim * (block.num_heads // block.num_kv_heads),
        "k": block.head_dim,
        "v": block.head_dim,
    }
    for name, size in sizes.items():
        _permute_rows(module, parts[name], _spread(order_G, size))
    for part_name, path in block.head_norms:
        for parameter in module.get_submodule(path).parameters(recurse=False):
            parameter.copy_(parameter[_spread(order_G, sizes[part_name])])
    _permute_columns(module, parts["o"], _spread(order_G, sizes["q"]))


@torch.no_grad()
def permute_channels(module: nn.Module, block: Block, order_C: Tensor) -> None:
    """Bring the channels of a block's MLP into another order.

    Args:
        order_C: int64, the former place of each channel.
    """
    for part in block.parts:
        if part.name in ("gate", "up"):
            _permute_rows(module, part, order_C)
        elif part.name == "down":
            _permute_columns(module, part, order_C)


def inverse(order: Tensor) -> Tensor:
    """Return the order that undoes an order."""
    return order.argsort()


def _spread(order: Tensor, size: int) -> Tensor:
    """Return the order of single features from that of groups of `size` features."""
    return (order[:, None] * size + torch.arange(size, device=order.device)).reshape(-1)


def _permute_rows(module: nn.Module, part: Part, order: Tensor) -> None:
    whole = part_weight(module, part)
    order = order.to(whole.device)
    lengths = [stop - start for start, stop in part.runs]
    for piece, new in zip(part_slices(module, part), whole[order].split(lengths), strict=True):
        piece.copy_(new)
    bias = part_bias(module, part)
    if bias is not None:
        own = module.get_submodule(part.path).bias
        assert isinstance(own, Tensor)
        for (start, stop), new in zip(part.runs, bias[order].split(lengths), strict=True):
            own[start:stop] = new


def _permute_columns(module: nn.Module, part: Part, order: Tensor) -> None:
    for piece in part_slices(module, part):
        piece.copy_(piece[:, order.to(piece.device)])

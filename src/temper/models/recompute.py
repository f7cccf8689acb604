"""Activation checkpointing by budget: a share of the blocks keeps its input alone and computes the rest again.

The first blocks are taken: their backward pass comes last, when the others' activations are gone, so that what is
computed again meets an emptier memory. A block runs a second time with the same random numbers and under the same
autocast, so gradients have the same bits, dropout included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from temper.core.errors import SettingError
from temper.models.model import Model


def num_recomputed(num_blocks: int, share: float) -> int:
    """Return how many of a model's blocks a share is: rounded up, so that a share above 0 is at least one."""
    return min(num_blocks, -int(-share * num_blocks // 1))


@contextmanager
def recomputing(model: Model, share: float) -> Iterator[None]:
    """Let a share (0 to 1) of the blocks be computed again in the backward pass, while it lasts.

    Raises:
        SettingError: blocks that transformers cannot compute again.
    """
    blocks = model.anatomy.blocks[: num_recomputed(len(model.anatomy.blocks), share)]
    modules = [model.module.get_submodule(block.path) for block in blocks]
    for block in modules:
        if not isinstance(block, GradientCheckpointingLayer):
            raise SettingError(
                "train.recompute",
                share,
                f"needs blocks of transformers' GradientCheckpointingLayer, and {type(block).__name__} is none",
                "set it to 0 and lower micro_tokens instead",
            )
    for block in modules:
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    try:
        yield
    finally:
        for block in modules:
            block.gradient_checkpointing = False
            del block._gradient_checkpointing_func

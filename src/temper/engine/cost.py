"""What a run costs: floating-point operations by count, memory by the system's own account.

Legend: T tokens, N supervised tokens, B documents.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from temper.data.pack import Batch
from temper.models.model import Model
from temper.models.prompt import prompt_lengths
from temper.models.recompute import num_recomputed
from temper.optim.base import Optim
from temper.signals.head import KEPT_VALUES
from temper.signals.passes import Pass

_CLEAR_PEAK = "5"


def reset_peak_memory(device: torch.device) -> None:
    """Forget earlier peaks, where the system can (Linux, CUDA)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
        except OSError:  # a sandbox may forbid it; the peak then counts from the start of the process
            return


def peak_memory_bytes(device: torch.device) -> int:
    """Return the largest memory held: allocated on a GPU, resident in the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class FlopCounter:
    """Counts a step's operations from shapes: two for each multiplication of a matrix product.

    Forward: 2 per weight of a block and token (soft prompts included), 2 per weight of the head and supervised token, 4
    H E (pairs of tokens) per block for attention. Backward: as much for the gradient of the inputs, from the last block
    down to the lowest that trains, as much again for the gradient of the weights that train, and of those that a tuner
    picks entries from. The head's logits are computed twice where they are too many to be held, and the forward pass of
    a `recompute` share of the blocks as well. Of a step the passes of other models count, too, and those that methods
    take beside; an adapter's own small products, validation, and what is looked at before the first step do not.

    Args:
        model: the one that trains.
        recompute: share of the blocks.
        num_picked_from: numbers of frozen matrices whose gradient is computed all the same.
        num_frozen: first blocks through which no gradient runs.
    """

    def __init__(self, model: Model, recompute: float = 0.0, num_picked_from: int = 0, num_frozen: int = 0) -> None:
        named = dict(model.module.named_modules())
        anatomy = model.anatomy
        trains = {name for name, parameter in model.module.named_parameters() if parameter.requires_grad}
        self.block, self.block_trained, self.block_frozen = 0, num_picked_from, 0
        for part in anatomy.parts():
            size = part.in_features * part.out_features
            self.block += size
            self.block_frozen += size if part.block < num_frozen else 0
            self.block_trained += size if f"{part.path}.weight" in trains else 0
        head: Tensor = named[anatomy.head].weight
        self.head, self.vocabulary = head.numel(), head.shape[0]
        self.head_trained = self.head if head.requires_grad else 0
        again = num_recomputed(len(anatomy.blocks), recompute)
        self.again = sum(
            part.in_features * part.out_features for part in anatomy.parts() if num_frozen <= part.block < again
        )
        widths = [block.num_heads * block.head_dim for block in anatomy.blocks]
        self.attention_again = sum(widths[num_frozen:again])
        self.attention, self.attention_frozen = sum(widths), sum(widths[:num_frozen])
        self.model = model
        self.others: dict[int, FlopCounter] = {}
        """of other models, by their identity"""

    def step(self, batches: Sequence[Batch], further: Iterable[Pass], optim: Optim, is_kept: bool = False) -> float:
        """Return the operations of an optimizer step over micro-batches.

        Args:
            further: what methods run forward besides.
            optim: says how often the step's loss is evaluated, and whether backward.
            is_kept: what the frozen first blocks give is there already.
        """
        own = [Pass(self.model, batch, trains=True) for batch in batches]
        spared = sum(self._spared(batch) for batch in batches) * optim.num_evaluations if is_kept else 0.0
        passes = sum((1 if one.once else optim.num_evaluations) * self._of(one, optim) for one in (*own, *further))
        return passes - spared

    def _spared(self, batch: Batch) -> float:
        pairs = sum(length * (length + 1) // 2 for length in batch.lengths)
        return 2.0 * batch.num_tokens * self.block_frozen + 4.0 * pairs * self.attention_frozen

    def _of(self, one: Pass, optim: Optim) -> float:
        if one.trains and optim.needs_gradient:
            return self.count(one.batch)
        total = 0.0
        for model in one.model.members:
            if model is not self.model and id(model) not in self.others:
                self.others[id(model)] = FlopCounter(model)
            total += self.others.get(id(model), self).forward(one.batch, one.heads)
        return total

    def forward(self, batch: Batch, heads: int = 1) -> float:
        """Return the operations of a forward pass over a batch, with the logits computed some times."""
        lengths = prompt_lengths(self.model, batch.lengths)
        pairs = sum(length * (length + 1) // 2 for length in lengths)
        blocks = 2.0 * sum(lengths) * self.block + 4.0 * pairs * self.attention
        return blocks + 2.0 * heads * batch.num_supervised * self.head

    def look(self, batch: Batch) -> float:
        """Return the operations of a forward pass over a batch that ends below the head."""
        pairs = sum(length * (length + 1) // 2 for length in batch.lengths)
        return 2.0 * batch.num_tokens * self.block + 4.0 * pairs * self.attention

    def count(self, batch: Batch) -> float:
        """Return the operations of a forward and backward pass over a batch."""
        lengths = prompt_lengths(self.model, batch.lengths)
        pairs = sum(length * (length + 1) // 2 for length in lengths)
        blocks = 2.0 * sum(lengths) * (2 * self.block - self.block_frozen + self.block_trained + self.again)
        is_computed_again = batch.num_supervised * self.vocabulary > KEPT_VALUES
        head = 2.0 * batch.num_supervised * ((2 + is_computed_again) * self.head + self.head_trained)
        return blocks + head + 4.0 * pairs * (3 * self.attention - 2 * self.attention_frozen + self.attention_again)

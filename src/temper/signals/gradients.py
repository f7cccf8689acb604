"""Per-example gradients, made short by a seeded random projection, so that those of many rows can be kept.

Decisions:
- The projection is a matrix of random signs, generated a block at a time from the seed and never held whole. Inner
  products are kept in expectation, with a relative error of about 1/sqrt(dimension).
- A gradient is that of the mean negative log-likelihood of one row's supervised tokens, without dropout. Before it is
  projected, it may be turned into something else of the same length, such as an optimizer's step.

Legend: E examples, P numbers that train, K dimensions of the projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from temper.data.example import Example
from temper.data.example import Sequence as Tokens
from temper.data.pack import pack
from temper.models.generate import evaluation_mode
from temper.models.model import Model
from temper.signals.forward import token_logprobs

BLOCK_VALUES = 2**24
"""random signs held at once: 64 MiB in float32"""
GRADIENT_VALUES = 2**26
"""numbers of gradients that wait for their projection: 256 MiB"""

Transform = Callable[[Tensor], Tensor]
"""takes a gradient (P,), returns (P,)"""


class Projection:
    """Random signs over sqrt(K), from P to K dimensions: the same seed gives the same matrix."""

    def __init__(self, dimension: int, seed: int) -> None:
        self.dimension, self.seed = dimension, seed

    def project(self, vectors_EP: Tensor) -> Tensor:
        """Return the vectors in K dimensions, (E, K), float32."""
        generator = torch.Generator().manual_seed(self.seed)
        projected_EK = torch.zeros(len(vectors_EP), self.dimension, device=vectors_EP.device)
        for block_EP in vectors_EP.split(max(1, BLOCK_VALUES // self.dimension), 1):
            shape = (block_EP.shape[1], self.dimension)
            signs_PK = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8).to(block_EP)
            projected_EK += block_EP @ (2 * signs_PK - 1)
        return projected_EK.div_(self.dimension**0.5)


def example_gradients(
    model: Model, parameters: Sequence[nn.Parameter], sequences: Sequence[Tokens]
) -> Iterator[Tensor]:
    """Yield each row's gradient with respect to the numbers that train, flat, (P,), float32."""
    device = model.module.get_input_embeddings().weight.device
    with evaluation_mode(model.module):
        for sequence in sequences:
            batch = pack([Example((sequence,))]).to(device)
            loss = -(token_logprobs(model, batch) * batch.weights_N).sum() / batch.weights_N.sum()
            found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
            parts = [
                torch.zeros_like(parameter) if gradient is None else gradient
                for parameter, gradient in zip(parameters, found, strict=True)
            ]
            yield torch.cat([part.reshape(-1).float() for part in parts])


def projected_gradients(
    model: Model,
    parameters: Sequence[nn.Parameter],
    sequences: Sequence[Tokens],
    projection: Projection,
    transform: Transform | None = None,
) -> NDArray[np.float32]:
    """Return each row's gradient, transformed and projected, (E, K)."""
    size = sum(parameter.numel() for parameter in parameters)
    at_once = max(1, GRADIENT_VALUES // max(1, size))
    parts, waiting = [np.empty((0, projection.dimension), dtype=np.float32)], list[Tensor]()

    def flush() -> None:
        if waiting:
            parts.append(projection.project(torch.stack(waiting)).cpu().numpy())
            waiting.clear()

    for gradient_P in example_gradients(model, parameters, sequences):
        waiting.append(gradient_P if transform is None else transform(gradient_P))
        if len(waiting) == at_once:
            flush()
    flush()
    return np.concatenate(parts)

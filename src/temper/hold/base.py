"""In what form is what rests held: the axis of frozen bases.

A training whose tuner leaves the base's matrices alone reads them and no more, so they can be held in fewer bits than
they are computed in. They are packed when the tuner has been attached.

What trains learns beside the rounded numbers, and so does validation see them. What is saved is the change, which is
put on the base's own numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from temper.core.methods import Method
from temper.models.model import Model
from temper.models.packed import pack

AT_ONCE = {"cpu": 2**20}
"""numbers that are made at once: on a CPU 4 MiB in float32, which stay in its cache"""
AT_ONCE_ELSEWHERE = 2**25


class Hold(Method, axis="hold", packages=("temper.hold",)):
    """In what form is what rests held?

    It concerns the matrices of the blocks of the model that trains. Embeddings, head, norms and biases are held as
    numbers, and so are other models that are asked. The base is loaded whole before it is packed.
    """

    bits: ClassVar[float] = 16
    """that a number takes, about: the planner offers what takes more first"""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        return (*super().needs(), "a tuner that trains beside the base's matrices, such as lora")

    @abstractmethod
    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """Turn a matrix, as its module stores it, into what is held of it. Runs on tensors without content, too."""

    @abstractmethod
    def unpack(self, tensors: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Make the matrix' numbers, rounded once to a type. The same bits every time."""

    def pack_blocks(self, model: Model, dtype: torch.dtype) -> None:
        """Pack the matrices of a model's blocks, which are then read in a type."""
        for path in dict.fromkeys(part.path for part in model.anatomy.parts()):
            module = model.module.get_submodule(path)
            pack(module, self.pack(module.weight.detach()), self.unpack, dtype)


def at_once(device: torch.device, width: int) -> int:
    """Return how many rows of so many numbers are to be made at once."""
    return max(1, AT_ONCE.get(device.type, AT_ONCE_ELSEWHERE) // width)


def scaled(codes: Tensor, scales: Tensor, pairs: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return a matrix of codes' numbers, each times the scale of its row of codes, rounded once to a type.

    Args:
        codes: (rows, any) integers, which may go on beyond the matrix' end.
        scales: (rows,) float32.
        pairs: (codes, 2) float32, the two numbers that a code stands for; None where it stands for itself.
    """
    rows, width = codes.shape
    # A pair is looked up as one integer of its size, which takes a tenth of the time of looking up two numbers.
    table = None if pairs is None else pairs.contiguous().view(torch.int64).flatten()
    width *= 1 if table is None else 2
    matrix = torch.empty(shape, dtype=dtype, device=codes.device)
    flat, step = matrix.view(-1), at_once(codes.device, width)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        if table is None:
            numbers = codes[part].float()
        else:
            numbers = table.index_select(0, codes[part].flatten().int()).view(torch.float32).view(-1, width)
        into = flat[start * width : (start + step) * width]
        into.copy_(numbers.mul_(scales[part, None]).flatten()[: len(into)])
    return matrix

"""How a model's numbers lie on several processes: FSDP2, and tensor parallel through DTensor.

Decisions:
- A layout belongs to the machines and not to the recipe: it changes where numbers lie and never what is computed.
- Each block is a group of its own, gathered when it computes and let go of afterwards. What is used outside the
  blocks (embedding, last norm, head) is the root's and stays gathered for a step, since the head's weight is read
  directly (`signals/head.py`), in each of a step's passes.
- In bf16 only the matrices are gathered in bf16, which is what autocast would have cast them to; norms and the root
  stay in float32, gradients are added up in float32, and the master weights are float32. So a pass is computed in the
  same numbers as by one process, and no float32 copy of a block is ever whole.
- Tensor parallel divides q, k, v, gate and up by output features, o and down by input features: whole heads each, and
  one sum a half block. Everything else is the same on all processes that share a batch.
- Nothing here allocates or talks: it works on `meta` and fake tensors, to plan for machines that are not there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from temper.core.errors import SettingError
from temper.models.anatomy import Anatomy

KEY = "--layout"
DIMENSIONS = ("dp", "fsdp", "tp")
"""of a mesh of processes, in order: those of one `tp` are next to one another, then those of one `fsdp`"""
BY_INPUT = ("o", "down")


@dataclass(frozen=True)
class Layout:
    """How many processes divide what: `dp` the batch alone, `fsdp` it and the model's numbers, `tp` each matrix.

    With `dp`, a group of `fsdp` processes holds the whole model, and `dp` groups hold it: what is gathered block by
    block stays within a group (a node), and once a pass gradients go from group to group.
    """

    fsdp: int | None = None
    """None: as many as there are for the `dp` and `tp` given"""
    tp: int = 1
    dp: int = 1

    def __str__(self) -> str:
        return f"dp={self.dp}, fsdp={self.fsdp or 'all'}, tp={self.tp}"

    @staticmethod
    def parse(text: str) -> Layout:
        """Read `dp=2,fsdp=2,tp=2`.

        Raises:
            SettingError: another key, a key twice, or a number below 1.
        """
        sizes: dict[str, int] = {}
        for entry in filter(None, text.split(",")):
            name, _, number = entry.partition("=")
            if name.strip() not in DIMENSIONS or not number.strip().isdecimal() or int(number) < 1:
                raise SettingError(KEY, entry, "is no part of a layout", "write it as dp=2,fsdp=2,tp=2")
            if name.strip() in sizes:
                raise SettingError(KEY, entry, f"says {name.strip()} a second time", "say it once")
            sizes[name.strip()] = int(number)
        return Layout(**sizes)

    def sizes(self, num_processes: int) -> tuple[int, int, int]:
        """Return the sizes of `DIMENSIONS` for a number of processes.

        Raises:
            SettingError: they do not make that number.
        """
        fsdp = self.fsdp or max(1, num_processes // (self.dp * self.tp))
        if self.dp * fsdp * self.tp != num_processes:
            replicas = f"dp={self.dp}," if self.dp > 1 else ""
            raise SettingError(
                KEY,
                f"{replicas}fsdp={fsdp},tp={self.tp}",
                f"makes {self.dp * fsdp * self.tp} processes and {num_processes} run",
                "start as many with `torchrun --nproc-per-node`, or leave the layout out",
            )
        return self.dp, fsdp, self.tp


class Whole(nn.Module):
    """The root of a sharded model: what runs inside it may read the root's own numbers directly."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, work: Callable[[], Tensor]) -> Tensor:
        return work()


def shard(module: nn.Module, anatomy: Anatomy, mesh: DeviceMesh, dtype: torch.dtype) -> Whole:
    """Divide a model's parameters among processes, in place.

    Args:
        module: with float32 parameters, on any device; each block moves to the mesh's device as it is divided.
        anatomy: where its blocks are.
        mesh: with `DIMENSIONS`.
        dtype: in which products are computed.

    Returns:
        the root; every pass over the module runs inside it.

    Raises:
        SettingError: a model whose matrices cannot be divided as `tp` asks.
    """
    if mesh["tp"].size() > 1:
        parallelize_module(module, mesh["tp"], tensor_plan(module, anatomy, mesh["tp"].size()))
    # Two dimensions: the first holds replicas of what the second divides.
    over: Any = mesh["fsdp"] if mesh["dp"].size() == 1 else mesh["dp", "fsdp"]
    for block in anatomy.blocks:
        if dtype != torch.float32:
            matrices = [module.get_submodule(path) for path in dict.fromkeys(part.path for part in block.parts)]
            policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
            fully_shard(matrices, mesh=over, mp_policy=policy)
        fully_shard(module.get_submodule(block.path), mesh=over, mp_policy=_AS_IT_IS)
    root = Whole(module)
    fully_shard(root, mesh=over, mp_policy=_AS_IT_IS, reshard_after_forward=False)
    for child in root.modules():
        if isinstance(child, FSDPModule):
            # The loss is divided by the units of all processes already: gradients are added, not averaged.
            child.set_gradient_divide_factor(1.0)
            child.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    return root


_AS_IT_IS = MixedPrecisionPolicy(cast_forward_inputs=False)


def tensor_plan(module: nn.Module, anatomy: Anatomy, size: int) -> dict[str, ParallelStyle]:
    """Return how each projection is divided among `size` processes, by module path.

    Raises:
        SettingError: fused or transposed matrices, norms over heads, or sizes that cannot be divided.
    """
    asked = f"tp={size}"
    plan: dict[str, ParallelStyle] = {}
    for block in anatomy.blocks:
        for part in block.parts:
            if part.rows is not None or part.is_transposed:
                how = "one fused matrix with others" if part.rows is not None else "stored transposed"
                raise _refusal(asked, anatomy, f"{part.path} holds {part.name} as {how}, which is not divided by head")
            divided = part.in_features if part.name in BY_INPUT else part.out_features
            if divided % size:
                raise _refusal(asked, anatomy, f"{part.path} has {divided} features, which {size} does not divide")
            plan[part.path] = RowwiseParallel() if part.name in BY_INPUT else ColwiseParallel()
        if block.num_heads % size or block.num_kv_heads % size:
            heads = f"{block.num_heads} heads and {block.num_kv_heads} of keys and values"
            raise _refusal(asked, anatomy, f"{block.path} has {heads}, which {size} does not divide")
        attention = next(part.path for part in block.parts if part.name == "q").rpartition(".")[0]
        # OPT's attention reshapes by a number of heads that it keeps; the others take as many as come.
        if "num_heads" in vars(module.get_submodule(attention)):
            raise _refusal(asked, anatomy, f"{attention} counts its heads itself")
        for norm in block.norms:
            if norm.startswith(f"{attention}."):
                raise _refusal(asked, anatomy, f"{norm} normalises queries or keys, whose heads would be divided")
    return plan


def _refusal(asked: str, anatomy: Anatomy, reason: str) -> SettingError:
    return SettingError(KEY, asked, f"does not fit the family {anatomy.family}: {reason}", "take tp=1")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor gathered from all processes; itself where it is not divided."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """Return what of a tensor lies on this process; itself where it is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def num_pieces(tensor: Tensor) -> int:
    """Return into how many pieces a tensor is divided; what is not divided lies whole on every process."""
    if not isinstance(tensor, DTensor):
        return 1
    pieces = 1
    for dimension, placement in enumerate(tensor.placements):
        if not placement.is_replicate():
            pieces *= tensor.device_mesh.size(dimension)
    return pieces

"""Random deltas of every kind for the tiny models, and bitwise comparison."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from temper.compress.compeft import top_signs
from temper.delta import Delta, DenseDelta, Factors, LowRankDelta, Provenance, SparseChange, SparseDelta, spread, stack
from temper.delta.golomb import best_width
from temper.delta.ternary import TernaryDelta, flatten
from temper.models.model import Model

PROVENANCE = Provenance("f00d", "lab:tiny", {"lora": {"rank": 3}}, {"lab/copy": "abc"}, seed=7)


def make_dense(model: Model, seed: int = 0) -> DenseDelta:
    """Change the embedding and every other tensor."""
    generator = torch.Generator().manual_seed(seed)
    embedding = f"{model.anatomy.embedding}.weight"
    named = [(name, p) for i, (name, p) in enumerate(model.module.named_parameters()) if name == embedding or i % 2]
    changes = {name: 0.1 * torch.randn(parameter.shape, generator=generator) for name, parameter in named}
    return DenseDelta(changes, PROVENANCE)


def make_low_rank(model: Model, seed: int = 0) -> LowRankDelta:
    """Change q with rank 2, v with rank 3 and down with rank 4; q and v are slices of one module in some families."""
    generator = torch.Generator().manual_seed(seed)
    by_module: dict[str, list[Factors]] = {}
    for part in model.anatomy.parts("q", "v", "down"):
        rank = {"q": 2, "v": 3, "down": 4}[part.name]
        factors = Factors(
            0.3 * torch.randn(rank, part.in_features, generator=generator),
            0.3 * torch.randn(part.out_features, rank, generator=generator),
            scaling=1 + rank / 4,
            is_transposed=part.is_transposed,
        )
        weight = model.module.get_submodule(part.path).weight
        if part.rows is not None:
            factors = spread(factors, part.rows, weight.shape[1 if part.is_transposed else 0])
        by_module.setdefault(part.path, []).append(factors)
    return LowRankDelta({path: stack(parts) for path, parts in by_module.items()}, PROVENANCE)


def make_ternary(model: Model, seed: int = 0) -> TernaryDelta:
    """Change what `make_dense` changes, a fifth of its entries, by 0.1."""
    slots, read = flatten(make_dense(model, seed))
    vector = torch.cat([read(slot).flatten() for slot in slots])
    return TernaryDelta(slots, top_signs(vector, 0.2), 0.1, PROVENANCE)


def make_sparse(model: Model, seed: int = 0) -> SparseDelta:
    """Change a few entries of the embedding and of every other tensor, some of them the same for every seed."""
    generator = torch.Generator().manual_seed(seed)
    changes = {}
    for name, change in make_dense(model, seed).tensors.items():
        count = max(1, change.numel() // 9)
        index = torch.randperm(change.numel(), generator=generator)[:count]
        index = torch.cat([index, torch.arange(min(3, change.numel()))]).unique()
        changes[name] = SparseChange(index, change.flatten()[index], tuple(change.shape))
    return SparseDelta(changes, PROVENANCE)


KINDS: dict[str, Callable[..., Delta]] = {
    "dense": make_dense,
    "low_rank": make_low_rank,
    "ternary": make_ternary,
    "sparse": make_sparse,
}


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def expected_bits(density: float) -> float:
    """The bits that Golomb's code takes on average for an entry that is not 0, its sign included, by the formula."""
    width = best_width(density)
    return width + 1 / (1 - (1 - density) ** (2**width)) + 1

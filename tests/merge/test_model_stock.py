"""Model stock against mergekit, and the angles that define it."""

from __future__ import annotations

import math

import mergekit.merge_methods as mergekit
import pytest
import torch
from torch import Tensor

from temper.merge.base import Formula, Merge

SHAPES = {"matrix": (13, 7), "vector": (31,), "cube": (3, 4, 5)}


def stock(**settings: object) -> Formula:
    method = Merge.parse({"model_stock": settings})
    assert isinstance(method, Formula)
    return method


def models(count: int) -> list[dict[str, Tensor]]:
    """A base, and models whose changes have something in common."""
    generator = torch.Generator().manual_seed(1)

    def noise(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator)

    base = {name: noise(shape) for name, shape in SHAPES.items()}
    common = {name: noise(shape) for name, shape in SHAPES.items()}
    return [
        base,
        *({name: base[name] + common[name] + noise(shape) for name, shape in SHAPES.items()} for _ in range(count)),
    ]


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("per", ["tensor", "row"])
def test_it_is_mergekits(count: int, per: str) -> None:
    base, *others = models(count)
    if per == "row":  # mergekit takes a cube's last axis for a filter, and here its first is a row
        base, *others = ({name: model[name] for name in ("matrix", "vector")} for model in (base, *others))
    expected = mergekit.merge_state_dicts(
        dict(enumerate([base, *others])), "model_stock", parameters={"filter_wise": per == "row"}, base=0
    )
    for name, value in base.items():
        merged = value + stock(per=per).combine(name, value, [other[name] - value for other in others])
        # Sums of a hundred float32 products of the order of 1.
        torch.testing.assert_close(merged, expected[name], atol=2e-6, rtol=1e-6)
        mean = torch.stack([other[name] for other in others]).mean(0)
        assert not torch.allclose(merged, mean, atol=1e-2), "it is not the soup"


@pytest.mark.parametrize("degrees", [0.0, 30.0, 60.0, 90.0])
@pytest.mark.parametrize("count", [2, 3])
def test_the_share_is_the_papers(degrees: float, count: int) -> None:
    """N changes of one length with the same angle between any two: t = N cos / (1 + (N - 1) cos)."""
    cosine = math.cos(math.radians(degrees))
    gram = torch.full((count, count), cosine, dtype=torch.float64) + (1 - cosine + 1e-15) * torch.eye(count)
    values, vectors = torch.linalg.eigh(gram)
    changes = (vectors * values.clamp(min=0).sqrt()).float()
    merged = stock().combine("w", torch.zeros(count), list(changes))
    share = count * cosine / (1 + (count - 1) * cosine)
    torch.testing.assert_close(merged, share * changes.mean(0), atol=1e-6, rtol=0)


def test_a_model_that_leaves_a_tensor_alone_has_nothing_in_common_with_the_rest() -> None:
    change = torch.randn(4, 3)
    merged = stock().combine("w", torch.zeros(4, 3), [change, torch.zeros(4, 3)])
    assert torch.equal(merged, torch.zeros(4, 3))
    kept = stock().combine("w", torch.zeros(4, 3), [change, change])
    torch.testing.assert_close(kept, change)
    assert torch.isfinite(stock().combine("w", torch.zeros(4, 3), [change, -change])).all()
    rows = stock(per="row").combine("w", torch.zeros(4, 3), [change, change * torch.tensor([[1.0], [0], [1], [0]])])
    assert rows[1::2].eq(0).all() and torch.allclose(rows[::2], change[::2], atol=1e-6)

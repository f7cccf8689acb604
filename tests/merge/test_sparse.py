"""The product mask x sign x scale against mergekit, and each mask against its paper's formula."""

from __future__ import annotations

from typing import Any

import mergekit.merge_methods as mergekit
import pytest
import torch
from torch import Tensor

from temper.core.errors import SettingError
from temper.merge.base import Formula, Merge
from temper.merge.dare import Dare
from temper.merge.sparse import keep_ranked, rescaled

SHAPES = {"matrix": (13, 7), "vector": (31,), "one": (1,)}


def models(count: int = 4, seed: int = 0) -> list[dict[str, Tensor]]:
    """A base and some models; a third of the second one's entries are left alone."""
    generator = torch.Generator().manual_seed(seed)
    made = [{name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()} for _ in range(count)]
    for name in SHAPES:
        still = torch.rand(SHAPES[name], generator=generator) < 1 / 3
        made[2][name] = torch.where(still, made[0][name], made[2][name])
    return made


def ours(method: Formula, base: dict[str, Tensor], *others: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: base[n] + method.combine(n, base[n], [other[n] - base[n] for other in others]) for n in base}


def theirs(name: str, made: list[dict[str, Tensor]], **parameters: Any) -> dict[str, Tensor]:
    """Merge with mergekit; per-model settings are given for all but the base."""
    by_model = {key: value for key, value in parameters.items() if isinstance(value, list)}
    spread = {key: {number + 1: item for number, item in enumerate(value)} for key, value in by_model.items()}
    return mergekit.merge_state_dicts(dict(enumerate(made)), name, parameters={**parameters, **spread}, base=0)


@pytest.mark.parametrize(
    ("written", "name", "parameters"),
    [
        ({"task_arithmetic": {}}, "task_arithmetic", {"weight": 1.0}),
        (
            {"task_arithmetic": {"weights": [0.3, -1, 2], "scale": 0.7}},
            "task_arithmetic",
            {"weight": [0.3, -1.0, 2.0], "lambda": 0.7},
        ),
        (
            {"task_arithmetic": {"weights": [0.3, 1, 2], "normalize": True}},
            "task_arithmetic",
            {"weight": [0.3, 1.0, 2.0], "normalize": True},
        ),
        ({"ties": {"density": 0.4}}, "ties", {"weight": 1.0, "density": 0.4}),
        (
            {"ties": {"density": 0.11, "weights": [0.5, 2, 1], "scale": 1.5}},
            "ties",
            {"weight": [0.5, 2.0, 1.0], "density": 0.11, "lambda": 1.5},
        ),
        (
            {"ties": {"density": 0.7, "weights": [1, -1, 1], "normalize": False}},
            "ties",
            {"weight": [1.0, -1.0, 1.0], "density": 0.7, "normalize": False},
        ),
        ({"ties": {"density": 1}}, "ties", {"weight": 1.0, "density": 1.0}),
        (
            {"breadcrumbs": {"density": 0.6, "gamma": 0.1}},
            "breadcrumbs",
            {"weight": 1.0, "density": 0.6, "gamma": 0.1},
        ),
        (
            {"breadcrumbs": {"density": 0.6, "gamma": 0.1, "weights": [1, 2, 3], "scale": 0.3, "elect": True}},
            "breadcrumbs_ties",
            {"weight": [1.0, 2.0, 3.0], "density": 0.6, "gamma": 0.1, "lambda": 0.3},
        ),
        (
            {"breadcrumbs": {"density": 0.5, "gamma": 0.05, "rescale": "l1"}},
            "breadcrumbs",
            {"weight": 1.0, "density": 0.5, "gamma": 0.05, "rescale": True},
        ),
        ({"dare": {"density": 1, "weights": [1, 2, 3]}}, "dare_linear", {"weight": [1.0, 2.0, 3.0], "density": 1.0}),
        ({"linear": {"weights": [1, 2, 3], "normalize": True}}, "linear", {"weight": [0.0, 1.0, 2.0, 3.0]}),
    ],
)
def test_it_is_mergekit(written: Any, name: str, parameters: dict[str, Any]) -> None:
    made = models()
    if name == "linear":  # mergekit's linear counts the base as one of the models
        expected = mergekit.merge_state_dicts(made, name, parameters=parameters)
    else:
        expected = theirs(name, made, **parameters)
    method = Merge.parse(written)
    assert isinstance(method, Formula)
    for tensor, value in ours(method, *made).items():
        # Sums of a few float32 values of the order of 1.
        torch.testing.assert_close(value, expected[tensor], atol=1e-6, rtol=1e-6, msg=lambda m, n=tensor: f"{n}: {m}")


@pytest.mark.parametrize("elect", [False, True])
def test_dare_is_mergekit_where_the_masks_are_the_same(elect: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """mergekit's masks are written down while it draws them, and handed to the product."""
    masks: list[Tensor] = []
    draw = torch.bernoulli

    def noting(probabilities: Tensor) -> Tensor:
        masks.append(draw(probabilities))
        return masks[-1]

    def masked(self: Dare, delta: Tensor, name: str, number: int) -> Tensor:
        return rescaled(delta * masks[number], delta, self.rescale, self.density)

    made = [{"matrix": model["matrix"]} for model in models()]
    monkeypatch.setattr(torch, "bernoulli", noting)
    parameters = {"weight": [1.0, 0.5, 2.0], "density": 0.5, "lambda": 0.9}
    expected = theirs("dare_ties" if elect else "dare_linear", made, **parameters)
    assert len(masks) == 3 and 0 < float(masks[0].mean()) < 1
    monkeypatch.setattr(Dare, "masked", masked)
    value = ours(Dare(weights=[1, 0.5, 2], scale=0.9, elect=elect, rescale="l1"), *made)
    torch.testing.assert_close(value["matrix"], expected["matrix"], atol=1e-6, rtol=1e-6)


def test_dare_keeps_a_share_and_divides_by_it() -> None:
    """m ~ Bernoulli(p), tau~ = (1 - m) tau / (1 - p); its expectation is tau."""
    dare = Merge.parse({"dare": {"density": 0.25}})
    assert isinstance(dare, Formula)
    delta = torch.full((400, 100), 2.0)
    merged = dare.combine("w", torch.zeros_like(delta), [delta])
    assert set(merged.unique().tolist()) == {0.0, 8.0}
    # 40,000 draws: the share is within 5 standard errors of 0.25.
    assert float((merged != 0).float().mean()) == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 40000) ** 0.5)
    other = dare.combine("v", torch.zeros_like(delta), [delta])
    both = dare.combine("w", torch.zeros_like(delta), [delta, delta])
    assert not torch.equal(other, merged), "another tensor has another mask"
    assert torch.equal(dare.combine("w", torch.zeros_like(delta), [delta]), merged)
    assert {0.0, 8.0, 16.0} == set(both.unique().tolist()), "another model has another mask"
    another = Merge.parse({"dare": {"density": 0.25, "seed": 1}})
    assert isinstance(another, Formula)
    assert not torch.equal(another.combine("w", torch.zeros_like(delta), [delta]), merged)


def test_ties_is_the_papers_example() -> None:
    """Trim to the two largest of four, elect +, +, -, and average what agrees."""
    ties = Merge.parse({"ties": {"density": 0.5}})
    assert isinstance(ties, Formula)
    first, second = torch.tensor([3.0, 0.5, -2.0, 0.1]), torch.tensor([1.0, 2.0, 0.1, -0.2])
    merged = ties.combine("w", torch.zeros(4), [first, second])
    # Trimmed: (3, 0, -2, 0) and (1, 2, 0, 0).
    assert merged.tolist() == [2.0, 2.0, -2.0, 0.0]
    clash = ties.combine("w", torch.zeros(2), [torch.tensor([3.0, 0.0]), torch.tensor([-1.0, 0.0])])
    assert clash.tolist() == [3.0, 0.0], "the smaller one of two that disagree is left out, not averaged in"


def test_breadcrumbs_keep_the_middle() -> None:
    crumbs = Merge.parse({"breadcrumbs": {"density": 0.5, "gamma": 0.2, "scale": 2.0}})
    assert isinstance(crumbs, Formula)
    delta = torch.tensor([10.0, -9.0, 8.0, -7.0, 6.0, -5.0, 4.0, -3.0, 2.0, -1.0])
    merged = crumbs.combine("w", torch.zeros(10), [delta])
    assert merged.tolist() == [0.0, 0.0, 16.0, -14.0, 12.0, -10.0, 8.0, 0.0, 0.0, 0.0]


def test_task_arithmetic_adds_and_negates() -> None:
    base, first, second = (torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    negated = Merge.parse({"task_arithmetic": {"weights": [-1.0]}})
    chat = Merge.parse("task_arithmetic")
    assert isinstance(negated, Formula) and isinstance(chat, Formula)
    torch.testing.assert_close(base + negated.combine("w", base, [first - base]), 2 * base - first)
    torch.testing.assert_close(base + chat.combine("w", base, [first - base, second - base]), first + second - base)


def test_ranks_are_by_magnitude() -> None:
    delta = torch.tensor([[1.0, -4.0], [3.0, -2.0]])
    assert keep_ranked(delta, 1, 3).tolist() == [[0.0, 0.0], [3.0, -2.0]]
    assert keep_ranked(delta, 0, 0).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_settings_that_do_not_fit_are_refused() -> None:
    for name in ("ties", "dare", "task_arithmetic", "breadcrumbs"):
        with pytest.raises(SettingError, match=r"weights: \[1.0, 2.0\] has 2 factors for 3 models"):
            Merge.parse({name: {"weights": [1, 2]}}).check(3)
    with pytest.raises(SettingError, match="sums to 0"):
        Merge.parse({"ties": {"weights": [1, -1]}}).check(2)
    with pytest.raises(Exception, match="settings of breadcrumbs"):
        Merge.parse({"breadcrumbs": {"density": 0.95, "gamma": 0.1}})

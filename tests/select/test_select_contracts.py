"""What every selector must keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pools import RECORDS, make_pool, rows_of
from temper.select.base import Pool, Selector, best

SELECTORS = {name: method.model_validate(dict(method.example)) for name, method in Selector.methods().items()}


def pool_for(name: str, cache: Path, **more: Any) -> Pool:
    """A pool, with a warm-up's trajectory under each name of a stage that the selector reads."""
    return make_pool(cache, trajectory=next(iter(SELECTORS[name].models()), None), **more)


@pytest.mark.parametrize("name", SELECTORS)
def test_kept_rows_are_in_order_once_each_and_have_a_score(tmp_path: Path, name: str) -> None:
    pool = pool_for(name, tmp_path)
    selection = SELECTORS[name].select(pool)
    assert selection.kept.dtype == np.int64 and 0 < len(selection.kept) <= len(pool.rows)
    assert np.array_equal(np.unique(selection.kept), selection.kept)
    assert selection.score_E.shape == (len(pool.rows),)
    assert not np.isnan(selection.score_E[selection.kept]).any()
    for values in (selection.parts or {}).values():
        assert values.shape == selection.score_E.shape


@pytest.mark.parametrize("name", SELECTORS)
def test_the_same_pool_and_seed_give_the_same_choice_with_and_without_a_cache(tmp_path: Path, name: str) -> None:
    first, cached, fresh = (
        SELECTORS[name].select(pool_for(name, cache)) for cache in (tmp_path / "a", tmp_path / "a", tmp_path / "b")
    )
    for other in (cached, fresh):
        assert np.array_equal(first.kept, other.kept) and np.array_equal(first.score_E, other.score_E)


@pytest.mark.parametrize("name", SELECTORS)
def test_a_row_that_cannot_be_scored_is_never_kept(tmp_path: Path, name: str) -> None:
    if not SELECTORS[name].needs_model and not SELECTORS[name].models():
        return  # it reads no row, so no row is bad to it
    rows = rows_of([{"prompt": "a", "completion": "b" * 200}, *RECORDS])
    selection = SELECTORS[name].select(pool_for(name, tmp_path, rows=rows, on_bad_rows="skip"))
    assert np.isnan(selection.score_E).tolist() == [True] + [False] * 6 and 0 not in selection.kept


def test_best_is_a_share_of_the_scored_rows_ties_to_the_first() -> None:
    score_E = np.array([1.0, np.nan, 3.0, 3.0, 2.0])
    assert best(score_E, 0.25).tolist() == [2]
    assert best(score_E, 0.5).tolist() == [2, 3]
    assert best(score_E, 0.75).tolist() == [2, 3, 4]
    assert best(score_E, 1.0).tolist() == [0, 2, 3, 4]
    assert best(score_E, 0.01).tolist() == [2]
    assert best(np.full(3, np.nan), 0.5).tolist() == []


def test_random_keeps_a_uniform_share_and_a_smaller_one_is_part_of_a_larger(tmp_path: Path) -> None:
    rows = rows_of([{"prompt": "a", "completion": str(number)} for number in range(1000)])

    def kept(share: float, seed: int = 0) -> np.ndarray:
        return Selector.parse({"random": {"keep": share}}).select(make_pool(tmp_path, rows, seed=seed)).kept

    assert set(kept(0.1)) < set(kept(0.4)) and len(kept(0.1)) == 100 and len(kept(0.4)) == 400
    # Of 1000 rows the first half gets Binomial(400, ~1/2) of 400: 5 standard deviations are 39.
    assert abs(int((kept(0.4) < 500).sum()) - 200) < 39
    both = len(set(kept(0.4)) & set(kept(0.4, seed=1)))
    assert abs(both - 160) < 50, "another seed draws other rows: 0.4 of them are shared, not all"

"""ComPEFT against the authors' formula, on whole and low-rank changes, in the file and in a recipe's stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from benches import RunWithData
from deltas import assert_same_bits, expected_bits, make_dense, make_low_rank, values
from families import tiny
from temper.compress.compeft import ComPEFT
from temper.core.errors import ModelError, SettingError
from temper.delta import Delta, DenseDelta, LowRankDelta, add, read_delta
from temper.delta.golomb import entropy_bits
from temper.delta.ternary import FILE, TernaryDelta
from temper.measure.base import Subject, Suite
from temper.measure.statistics import value_of
from temper.stages.base import Outcome, Stage
from temper.stages.export import export

ROWS = {"lab": {"skill": "copy", "num": 6}}
BY = {"perplexity": {"source": ROWS, "split": "train"}}
MAKERS = {"dense": make_dense, "low_rank": make_low_rank}


def finished(folder: Path, kind: str, family: str = "llama") -> RunWithData:
    run = RunWithData(folder, family)
    run.finish("adapt", MAKERS[kind](tiny(family)))
    return run


def compress(run: RunWithData, **method: Any) -> tuple[TernaryDelta, Outcome]:
    stage = Stage.parse({"compress": {"method": {"compeft": method}, "of": "adapt"}})
    outcome = stage.run(run, "base")
    made = read_delta(run.folder / "delta")
    assert isinstance(made, TernaryDelta)
    return made, outcome


def parts(delta: Delta) -> list[Tensor]:
    if isinstance(delta, LowRankDelta):
        return [factor for _, part in sorted(delta.factors.items()) for factor in (part.a_RI, part.b_OR)]
    return [delta.update(name) for name in sorted(delta.names())]


def authors(vector: Tensor, density: float, alpha: float) -> Tensor:
    """Prune to the top k, take signs, and give all the standard deviation of the unpruned vector times alpha."""
    num_kept = round(density * vector.numel())
    threshold = vector.abs().kthvalue(vector.numel() - num_kept + 1).values
    pruned = vector * (vector.abs() >= threshold)
    return alpha * vector.std() * pruned.sign()


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(("density", "alpha"), [(0.05, 1.0), (0.2, 0.5), (1.0, 2.0)])
def test_it_is_the_authors_formula(tmp_path: Path, kind: str, density: float, alpha: float) -> None:
    run = finished(tmp_path, kind)
    made, outcome = compress(run, density=density, alpha=alpha)
    vector = torch.cat([part.flatten() for part in parts(MAKERS[kind](tiny()))])
    ours = torch.cat([part.flatten() for part in parts(made.plain())])
    # One product of float32 numbers, and a standard deviation summed in another order.
    torch.testing.assert_close(ours, authors(vector, density, alpha), atol=1e-7, rtol=1e-5)
    assert len(ours.unique()) == 3 - (density == 1)
    assert outcome.details["kept"] == round(density * len(vector))


@pytest.mark.parametrize("kind", MAKERS)
def test_the_file_has_the_size_that_the_formula_says(tmp_path: Path, kind: str) -> None:
    run = finished(tmp_path, kind, "gpt2")
    made, outcome = compress(run, density=0.05)
    details = outcome.details
    file = run.folder / "delta" / FILE
    assert details["bytes"] == file.stat().st_size
    share = details["kept"] / details["entries"]
    coded = expected_bits(share) * details["kept"] / 8
    names = sum(len(slot.name) + 120 for slot in made.slots) + 400
    # Gaps of some hundreds to thousands of entries: a few per cent around the mean; then names and shapes.
    assert 0.9 * coded < details["bytes"] < 1.1 * coded + names
    assert details["entropy_bytes"] == pytest.approx(entropy_bits(share) * details["entries"] / 8)
    assert details["bytes"] > details["entropy_bytes"] * 0.9
    assert details["bytes_in_16_bits"] == 2 * details["entries"]
    assert details["ratio"] == pytest.approx(details["bytes_in_16_bits"] / details["bytes"])
    if kind == "dense":
        assert details["ratio"] > 8, "the paper's eight times, names and all, on a change of some 10,000 entries"


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_written_read_applied_and_undone(tmp_path: Path, kind: str, family: str) -> None:
    run = finished(tmp_path, kind, family)
    made, _ = compress(run, density=0.3)
    again = read_delta(run.folder / "delta")
    assert isinstance(again.plain(), LowRankDelta if kind == "low_rank" else DenseDelta)
    for name in made.names():
        assert torch.equal(again.update(name), made.update(name)), name
    model = tiny(family)
    before = values(model.module)
    undo = again.apply(model)
    for name, parameter in model.module.named_parameters():
        if name in made.names():
            torch.testing.assert_close(parameter.detach(), before[name] + made.update(name), atol=1e-6, rtol=1e-6)
        else:
            assert torch.equal(parameter, before[name]), name
    undo.undo()
    assert_same_bits(values(model.module), before)


def test_sums_and_exports_of_a_low_rank_one_stay_low_rank(tmp_path: Path) -> None:
    run = finished(tmp_path, "low_rank")
    made, _ = compress(run, density=0.3)
    total = add(made, make_low_rank(tiny(), 1))
    assert isinstance(total, LowRankDelta)
    run.stages["now"] = (made, "base")
    (run.folder / "stage.json").write_text('{"name": "now", "models": ["base", "adapt"]}')
    assert export(run, "now", tmp_path / "adapter", "adapter")["parameters"] == make_low_rank(tiny()).num_values


def test_the_best_pair_on_held_out_rows_is_taken(tmp_path: Path) -> None:
    run = finished(tmp_path, "dense")
    made, outcome = compress(run, density=[0.1, 0.4], alpha=[0.5, 4.0], by=BY)

    def perplexity(delta: Delta) -> float:
        model = tiny()
        delta.apply(model)
        score = Suite.parse(BY).measure(Subject(model), run.cache)
        return value_of(score.scores, score.weights, score.transform)

    found = {}
    for density in (0.1, 0.4):
        for alpha in (0.5, 4.0):
            run.name = f"{density}-{alpha}"
            found[density, alpha] = perplexity(compress(run, density=density, alpha=alpha)[0])
    best = min(found, key=lambda pair: found[pair])
    assert len({round(value, 3) for value in found.values()}) == 4, "the pairs differ"
    assert (outcome.details["density"], outcome.details["alpha"]) == best
    assert perplexity(made) == pytest.approx(found[best])
    assert [-trial["value"] for trial in outcome.details["tried"]] == pytest.approx(list(found.values()), rel=1e-5)


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for wrong, reason in (
        ({"density": [0.1, 0.2]}, "does not go with 2 pairs"),
        ({"by": BY}, "does not go with 1 pairs"),
        ({"density": [], "alpha": 1.0}, "leaves nothing to try"),
        ({"density": 0}, "greater than 0"),
    ):
        with pytest.raises((ValidationError, SettingError), match=reason):
            ComPEFT.model_validate(wrong)
    run = RunWithData(tmp_path)
    run.finish("adapt", DenseDelta({}))
    with pytest.raises(ModelError, match="nothing can be compressed"):
        compress(run)

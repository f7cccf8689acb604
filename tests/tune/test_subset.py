"""Methods that train some whole tensors at a time: HFT, LISA and its scores, with GaLore underneath."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from families import FAMILIES, tiny
from temper.core.errors import SettingError
from temper.core.schedule import Moment
from temper.data.pack import pack
from temper.engine.loop import Loop
from temper.models.model import Model
from temper.optim.galore import GaLoreOptimizer
from temper.signals.calibration import observe
from temper.tune.hft import HalfFineTuning
from temper.tune.lisa import LISA, LISATuning
from temper.tune.score.outlier import Outlier
from training import attach, examples, make_loop

OWLORE = {"lisa": {"blocks": 1, "every_steps": 3, "score": {"outlier": {"threshold": 3}}}}


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.module.named_parameters()}


def moved_names(model: Model, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, parameter in model.module.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize("family", FAMILIES)
def test_hft_draws_half_of_each_kind_in_each_block(family: str) -> None:
    model = tiny(family)
    names = {name for name, _ in HalfFineTuning(train_embeddings=False).attach(model, seed=5).parameters()}
    for kind in (("q", "k", "v", "o"), ("gate", "up", "down")):
        drawn = total = 0
        for block in model.anatomy.blocks:
            paths = {part.path for part in block.parts if part.name in kind}
            drawn += sum(f"{path}.weight" in names for path in paths)
            total += len(paths)
        assert drawn == total // 2
    for block in model.anatomy.blocks:
        assert sum(f"{path}.weight" in names for path in block.norms) == len(block.norms) // 2
    assert not any(model.anatomy.embedding in name or model.anatomy.head in name for name in names)


def test_hft_trains_two_of_three_matrices_in_a_random_half_of_the_blocks_and_one_in_the_others() -> None:
    model = tiny("llama", num_hidden_layers=4)
    larger = []
    for seed in range(8):
        tuning = HalfFineTuning().attach(model, seed=seed)
        names = {name for name, _ in tuning.parameters()}
        by_block = [
            sum(f"{part.path}.weight" in names for part in block.parts if part.name in ("gate", "up", "down"))
            for block in model.anatomy.blocks
        ]
        assert sorted(by_block) == [1, 1, 2, 2]
        larger.append(tuple(by_block))
        # The paper trains embeddings and head.
        assert {"model.embed_tokens.weight", "lm_head.weight"} <= names
        tuning.detach()
    # Of six ways to choose two blocks of four, eight fair draws give one alone in fewer than one case of 10^5.
    assert len(set(larger)) > 1


def test_hft_leaves_the_other_half_bit_for_bit_and_draws_anew_by_seed(tmp_path: Path) -> None:
    model = tiny("llama")
    before = weights(model)
    loop = make_loop(tmp_path, model, tune={"hft": {"train_embeddings": False}}, seed=1)
    drawn = {name for name, _ in loop.trained}
    loop.run()
    loop.tuning.merge()
    assert moved_names(model, before) == drawn
    others = [{name for name, _ in attach("hft", tiny("llama"), seed).parameters()} for seed in range(2, 6)]
    assert len({frozenset(names) for names in others}) > 1


def test_lisa_trains_the_drawn_blocks_and_holds_state_for_them_alone(tmp_path: Path) -> None:
    model, seen, active = tiny("llama", num_hidden_layers=5), [], []

    def look(metrics: dict[str, float]) -> None:
        before, after = seen[-1], weights(model)
        seen.append(after)
        changed = {name for name in after if not torch.equal(after[name], before[name])}
        assert changed == {name for name, _ in loop.trained}
        held = {parameter for group in loop.optimizer.param_groups for parameter in group["params"]}
        assert set(loop.optimizer.state) == held == {parameter for _, parameter in loop.trained}
        active.append(tuple(sorted({name.split(".")[2] for name in changed if ".layers." in name})))
        assert {name for name in changed if ".layers." not in name} == {
            "model.embed_tokens.weight",
            "model.norm.weight",
            "lm_head.weight",
        }

    tune = {"lisa": {"blocks": 2, "every_steps": 4}}
    loop = make_loop(tmp_path, model, tune=tune, num_steps=16, on_step=look)
    seen.append(weights(model))
    loop.run()
    assert all(len(blocks) == 2 for blocks in active)
    periods = [set(active[start : start + 4]) for start in range(0, 16, 4)]
    assert all(len(period) == 1 for period in periods) and len(set.union(*periods)) > 1


def test_lisa_that_draws_once_is_full_tuning_with_the_other_blocks_frozen(tmp_path: Path) -> None:
    lisa = make_loop(tmp_path / "lisa", tune={"lisa": {"blocks": 1, "every_steps": 99}}, num_steps=4)
    paths = [block.path for block in lisa.model.anatomy.blocks]
    resting = [path for path in paths if not any(name.startswith(f"{path}.") for name, _ in lisa.trained)]
    assert len(resting) == len(paths) - 1
    full = make_loop(tmp_path / "full", tune={"full": {"freeze": [f"{path}.*" for path in resting]}}, num_steps=4)
    before = weights(full.model)
    lisa.run(), full.run()
    made, expected = weights(lisa.model), weights(full.model)
    assert all(torch.equal(made[name], value) for name, value in expected.items())
    assert not torch.equal(expected["model.norm.weight"], before["model.norm.weight"])


def test_what_keeps_training_keeps_its_optimizer_state(tmp_path: Path) -> None:
    """The head trains throughout: in every bit as if no block had ever been exchanged, blocks being without effect."""
    model = tiny("llama", num_hidden_layers=4)
    steps: list[float] = []

    def look(metrics: dict[str, float]) -> None:
        head = model.module.lm_head.weight
        steps.append(float(loop.optimizer.state[head]["step"]))

    loop = make_loop(tmp_path, model, tune={"lisa": {"blocks": 1, "every_steps": 2}}, on_step=look)
    loop.run()
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    blocks = [
        float(state["step"])
        for parameter, state in loop.optimizer.state.items()
        if any(parameter is p for p in model.module.model.layers.parameters())
    ]
    assert set(blocks) <= {2.0, 4.0, 6.0, 8.0} and min(blocks) < 8


def test_lisas_chances_are_the_scores(tmp_path: Path) -> None:
    model = tiny("llama", num_hidden_layers=4)
    tuning = LISATuning(model, LISA(blocks=1, every_steps=1), [1.0, 0.0, 6.0, 3.0], seed=0)
    counts = [0, 0, 0, 0]
    for step in range(2000):
        tuning.before_step(Moment(step, 0.0))
        (index,) = {int(name.split(".")[2]) for name in tuning.active if ".layers." in name}
        counts[index] += 1
    assert counts[1] == 0
    # Three standard deviations of a share of 2000 draws.
    for count, share in zip(counts, (0.1, 0.0, 0.6, 0.3), strict=True):
        assert abs(count / 2000 - share) <= 3 * (share * (1 - share) / 2000) ** 0.5


def test_outlier_score_is_the_papers_and_finds_planted_outliers() -> None:
    model = tiny("llama", num_hidden_layers=3)
    with torch.no_grad():
        model.module.model.layers[1].mlp.up_proj.weight.view(-1)[::29] *= 30
    score = Outlier(threshold=5)
    calibration = score.calibration(model)
    inputs: dict[str, list[torch.Tensor]] = {}
    handles = [
        model.module.get_submodule(part.path).register_forward_pre_hook(
            lambda _, args, path=part.path: inputs.setdefault(path, []).append(args[0][0])
        )
        for part in model.anatomy.parts()
    ]
    observe(model, [pack(examples((20, 9))), pack(examples((7,), seed=2))], [calibration])
    for handle in handles:
        handle.remove()
    found = score.scores(model, calibration)
    for block, value in zip(model.anatomy.blocks, found, strict=True):
        metrics = []
        for part in block.parts:
            x = torch.cat(inputs[part.path])
            weight = model.module.get_submodule(part.path).weight.detach()
            metrics += (weight.abs() * x.norm(dim=0)).flatten().tolist()
        mean = sum(metrics) / len(metrics)
        expected = sum(metric > 5 * mean for metric in metrics) / len(metrics)
        assert value == pytest.approx(expected, abs=1e-3)
    assert found[1] > 2 * max(found[0], found[2])
    with pytest.raises(SettingError, match=r"outlier\.threshold: 1000.* exceeded by no weight"):
        Outlier(threshold=1000).scores(model, calibration)


def test_owlore_is_a_composition(tmp_path: Path) -> None:
    """LISA's sampler, the outlier score and GaLore know nothing of one another, and work together."""
    sizes: list[int] = []

    def look(metrics: dict[str, float]) -> None:
        assert isinstance(loop.optimizer, GaLoreOptimizer)
        drawn = {p for _, p in loop.trained}
        assert set(loop.optimizer.stand_ins) == {p for p in drawn if p.ndim == 2}
        sizes.append(state_size(loop))

    loop = make_loop(tmp_path / "a", tune=OWLORE, optimizer={"galore": {"rank": 4}}, on_step=look)
    loop.run()
    expected = 0
    for name, parameter in loop.trained:
        long = max(parameter.shape)
        expected += 2 * (4 * long if parameter.ndim == 2 else parameter.numel())
        expected += 4 * min(parameter.shape) if parameter.ndim == 2 else 0
        assert name
    assert set(sizes) == {expected}
    full = make_loop(tmp_path / "b")
    full.run()
    assert state_size(full) > 5 * expected


def state_size(loop: Loop) -> int:
    """Numbers that the optimizer holds, step counts apart."""
    found: list[Any] = [loop.optimizer.state]
    if isinstance(loop.optimizer, GaLoreOptimizer):
        found.append(loop.optimizer.inner.state)
    tensors = [value for states in found for state in states.values() for value in state.values()]
    return sum(value.numel() for value in tensors if isinstance(value, torch.Tensor) and value.ndim)


def test_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(SettingError, match=r"tune\.lisa\.blocks: 3 is more than the 2 blocks"):
        LISA(blocks=3).attach(tiny("llama"))

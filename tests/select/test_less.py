"""LESS is the authors' formula: the cosine of each row's Adam step and the target's gradient, over the snapshots."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from families import tiny
from pools import RECORDS, make_pool, rows_of, warm_up
from temper.core.errors import SettingError
from temper.data.encode import Encoder
from temper.data.rows import Rows
from temper.data.source import Source
from temper.hold.base import Hold
from temper.select.base import Selection
from temper.select.less import Less
from temper.signals.gradients import Projection
from temper.signals.trajectory import Snapshot, read_trajectory
from temper.tune.base import Tune

TARGETS = {
    "one.jsonl": [{"prompt": "how many?", "completion": "three"}, {"prompt": "how many?", "completion": "four"}],
    "two.jsonl": [{"prompt": "why?", "completion": "because of that"}],
}
DIMENSION = 32


def targets(source: Source) -> Rows:
    return rows_of(TARGETS[source.label], source.label)


def select(cache: Path, folder: Path, **settings: object) -> Selection:
    less = Less.model_validate({"trajectory": "train", "target": list(TARGETS), "dimension": DIMENSION, **settings})
    return less.select(make_pool(cache, folders={"train": folder}, sources=targets))


def gradients(snapshot: Snapshot, rows: Rows) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Each row's gradient by transformers' own forward pass, and the moments laid out in the same way."""
    model = tiny("llama")
    tuning = Tune.parse(snapshot.tune).attach(model, snapshot.seed)
    if snapshot.hold is not None:
        method = Hold.parse(snapshot.hold)
        for part in model.anatomy.parts():
            weight = model.module.get_submodule(part.path).weight
            weight.data = method.unpack(method.pack(weight.detach()), weight.shape, torch.float32)
    parameters = dict(tuning.parameters())
    for name, parameter in parameters.items():
        parameter.data.copy_(snapshot.trained()[name])
    found = []
    for row in rows:
        sequence = Encoder.of(model, 128).supervised(row)
        tokens_T = torch.from_numpy(sequence.tokens_T).long()
        logits_TV = model.module(input_ids=tokens_T[None]).logits[0]
        nll_T = -torch.log_softmax(logits_TV[:-1].float(), 1).gather(1, tokens_T[1:, None])[:, 0]
        loss = nll_T[torch.from_numpy(sequence.weights_T[1:] > 0)].mean()
        found.append(torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(parameters.values()))]))
    state = snapshot.optimizer_state()
    moments = {
        what: torch.cat([state[name][what].reshape(-1) for name in parameters]) for what in ("exp_avg", "exp_avg_sq")
    }
    return found, moments


def formula(folder: Path) -> np.ndarray:
    """max_j sum_i (lr_i / sum lr) mean_v cos(P Gamma_i(z), P grad_i(v)), one pair of rows at a time."""
    snapshots = read_trajectory(folder)
    project = Projection(DIMENSION, seed=0).project
    influence = np.zeros((len(TARGETS), len(RECORDS)))
    for snapshot in snapshots:
        weight = snapshot.lr / sum(other.lr for other in snapshots)
        rows, moments = gradients(snapshot, rows_of())
        for number, records in enumerate(TARGETS.values()):
            wanted, _ = gradients(snapshot, rows_of(records))
            for index, gradient in enumerate(rows):
                first = 0.9 * moments["exp_avg"] + 0.1 * gradient
                second = 0.999 * moments["exp_avg_sq"] + 0.001 * gradient**2
                step = project((first / torch.sqrt(second + 1e-8))[None])[0]
                cosines = [torch.cosine_similarity(step, project(value[None])[0], dim=0) for value in wanted]
                influence[number, index] += weight * float(sum(cosines)) / len(cosines)
    return influence


@pytest.mark.parametrize("hold", [None, "nf4"])
def test_the_scores_are_the_authors_formula(tmp_path: Path, hold: str | None) -> None:
    """Beside a base that was held packed, too: of the numbers that the warm-up was trained with."""
    folder = warm_up(tmp_path, hold=hold)
    expected = formula(folder)
    selection = select(tmp_path, folder, keep=0.5)
    parts = selection.parts or {}
    assert list(parts) == ["influence on one.jsonl", "influence on two.jsonl"]
    # Cosines of float32 gradients that were summed in another order.
    np.testing.assert_allclose(np.stack(list(parts.values())), expected, atol=2e-4)
    np.testing.assert_allclose(selection.score_E, expected.max(0), atol=2e-4)
    assert selection.kept.tolist() == sorted(np.argsort(-expected.max(0))[:3].tolist())


def test_plain_gradients_would_give_other_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without Adam's moments the numbers are others, so the test above sees them."""
    from temper.select import less

    folder = warm_up(tmp_path)
    with_moments = select(tmp_path / "a", folder).score_E
    monkeypatch.setattr(less, "adam_step", lambda snapshot, parameters: lambda gradient: gradient)
    assert np.abs(select(tmp_path / "b", folder).score_E - with_moments).max() > 0.02


def test_gradients_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from temper.select import less

    folder = warm_up(tmp_path)
    first = select(tmp_path, folder)

    def never(*arguments: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(less, "projected_gradients", never)
    again = select(tmp_path, folder, keep=0.9)
    assert np.array_equal(first.score_E, again.score_E) and len(again.kept) > len(first.kept)
    with pytest.raises(AssertionError, match="computed again"):
        select(tmp_path, folder, dimension=DIMENSION + 1)


def test_a_stage_without_snapshots_or_moments_is_refused(tmp_path: Path) -> None:
    folder = warm_up(tmp_path)
    with pytest.raises(SettingError, match="'train' kept no snapshots; set `snapshots: 4` in that stage"):
        select(tmp_path, tmp_path / "nothing")
    for optimizer in folder.glob("trajectory/*/optimizer.safetensors"):
        from safetensors.torch import save_file

        save_file({"momentum_buffer:x": torch.zeros(1)}, optimizer)
    with pytest.raises(SettingError, match="without Adam's moments of each number; train that stage with"):
        select(tmp_path / "other", folder)


def test_a_start_that_rows_were_measured_for_is_refused(tmp_path: Path) -> None:
    folder = warm_up(tmp_path)
    for file in folder.glob("trajectory/*/snapshot.json"):
        facts = json.loads(file.read_text())
        file.write_text(json.dumps({**facts, "tune": {"lora": {"rank": 2, "init": "eva"}}}))
    with pytest.raises(SettingError, match=r"less\.trajectory: 'train' was trained by 'lora' from a start that rows"):
        select(tmp_path, folder)

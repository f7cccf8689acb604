"""EVA and CorDA against PEFT's, on one and the same data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig, EvaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.eva import get_eva_state_dict

from families import tiny
from temper.core.errors import SettingError, TrainingError
from temper.data.example import Example
from temper.data.pack import pack
from temper.models.model import Model
from temper.signals.calibration import Calibration, Covariance, IncrementalSVD, observe, shared_inputs
from temper.tune.base import Tune
from temper.tune.lora import LoRA, LoRATuning
from training import attach, examples, moved, outputs

LENGTHS = (20, 31, 7, 25, 40, 12, 9, 33)
BATCH = 4


def padded(made: list[Example]) -> dict[str, torch.Tensor]:
    """Examples as PEFT takes them: a padded batch with a mask."""
    tokens = [torch.from_numpy(example.sequences[0].tokens_T).long() for example in made]
    rows = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in tokens], batch_first=True)
    return {"input_ids": rows, "attention_mask": mask.long()}


def in_batches(made: list[Example]) -> list[list[Example]]:
    return [made[start : start + BATCH] for start in range(0, len(made), BATCH)]


def eva(model: Model, made: list[Example], targets: tuple[str, ...] = LoRA().targets, **settings: Any) -> LoRATuning:
    """Attach EVA, calibrated on batches of four examples."""
    tune = LoRA.model_validate({"rank": 4, "targets": targets, "init": {"eva": settings}})
    calibration = tune.calibration(model)
    assert calibration is not None
    observe(model, [pack(batch) for batch in in_batches(made)], [calibration])
    return tune.attach(model, calibration=calibration)


@pytest.mark.parametrize("rho", [1.0, 2.0])
@pytest.mark.parametrize(
    ("family", "theirs_named", "ours_named"),
    [
        ("llama", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], LoRA().targets),
        ("gpt2", ["c_fc"], ("up",)),
    ],
)
def test_eva_is_pefts(
    family: str, theirs_named: list[str], ours_named: tuple[str, ...], rho: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = examples(LENGTHS)
    config = LoraConfig(
        r=4, target_modules=theirs_named, init_lora_weights="eva", eva_config=EvaConfig(rho=rho, tau=0.9)
    )
    data = [padded(batch) for batch in in_batches(made)]
    cosine = torch.nn.functional.cosine_similarity
    with monkeypatch.context() as patch:
        # To PEFT a direction whose sign has turned is another one, and it looks on.
        patch.setattr(torch.nn.functional, "cosine_similarity", lambda now, before: cosine(now, before).abs())
        theirs = get_eva_state_dict(tiny(family).module, data, config, show_progress_bar=False)
    ours = eva(tiny(family), made, ours_named, rho=rho, tau=0.9)
    found = {adapter.part.path: adapter.a_RI.detach() for adapter in ours.adapters}
    shared = shared_inputs(tiny(family).anatomy)
    # Parts that read one tensor explain the same; PEFT ranks them in the order in which they have settled.
    assert sorted((shared[path], len(a_RI)) for path, a_RI in found.items()) == sorted(
        (shared[path], len(a_RI)) for path, a_RI in theirs.items() if len(a_RI)
    )
    for path, a_RI in found.items():
        num = min(len(a_RI), len(theirs[path]))
        # Directions of a randomised decomposition: float32 rounding of the inputs, over the gap between two values.
        torch.testing.assert_close(a_RI[:num], theirs[path][:num].float(), atol=2e-3, rtol=1e-2)
    assert all(not adapter.b_OR.any() for adapter in ours.adapters)
    ranks = [len(a_RI) for a_RI in found.values()]
    assert sum(ranks) == 4 * len(theirs) and (set(ranks) == {4}) == (rho == 1)


def test_eva_finds_a_planted_direction() -> None:
    model = tiny("llama")
    part = next(model.anatomy.parts("q"))
    inputs: list[torch.Tensor] = []
    module = model.module.get_submodule(part.path)
    handle = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()[0]))
    made = examples(LENGTHS)
    ours = eva(model, made, rho=1.0)
    handle.remove()
    x_TI = torch.cat([x for x in inputs if x.shape[0] > 1][:2])
    exact = torch.linalg.svd(x_TI - x_TI.mean(0), full_matrices=False).Vh[0]
    first = next(adapter for adapter in ours.adapters if adapter.part == part).a_RI[0].detach()
    assert abs(float(first @ exact)) > 0.99
    assert abs(float(torch.nn.functional.normalize(torch.randn(48), dim=0) @ exact)) < 0.9, "the control"


@pytest.mark.parametrize("mode", ["keep", "learn"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_corda_is_pefts(family: str, mode: str) -> None:
    made = examples(LENGTHS)
    names = {"llama": ["q_proj", "v_proj", "down_proj", "up_proj"], "gpt2": ["c_fc"]}[family]
    parts = {"llama": ["q", "v", "down", "up"], "gpt2": ["up"]}[family]
    model = tiny(family)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=names,
        fan_in_fan_out=family == "gpt2",
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method={"keep": "kpm", "learn": "ipm"}[mode]),  # type: ignore[arg-type]
    )

    def run() -> None:
        for example in made:
            model.module(torch.from_numpy(example.sequences[0].tokens_T).long()[None])

    preprocess_corda(model.module, config, run_model=run)
    theirs = get_peft_model(model.module, config)
    ours_model = tiny(family)
    tune = {"lora": {"rank": 4, "targets": parts, "init": {"corda": {"mode": mode}}}}
    ours = attach(tune, ours_model, calibrated_on=made)
    assert isinstance(ours, LoRATuning)
    layers: dict[str, Any] = dict(theirs.base_model.model.named_modules())
    for adapter in ours.adapters:
        layer = layers[adapter.part.path]
        b_OR, a_RI = layer.lora_B["default"].weight.detach(), layer.lora_A["default"].weight.detach()
        # Each component is unique up to its sign, which cancels in the product.
        torch.testing.assert_close((adapter.b_OR @ adapter.a_RI).detach(), b_OR @ a_RI, atol=2e-4, rtol=1e-2)
    base = outputs(tiny(family))
    assert torch.equal(outputs(ours_model), base), "the start is the base, bit for bit"


@pytest.mark.parametrize("mode", ["keep", "learn"])
def test_cordas_split_is_the_papers_formula(mode: str) -> None:
    """Written naively: W = U S V^T C^-1, the r largest or smallest; what is trained and what is frozen make W."""
    model = tiny("llama")
    tune = LoRA.model_validate({"rank": 5, "alpha": 5, "targets": ["0.down"], "init": {"corda": {"mode": mode}}})
    calibration = tune.calibration(model)
    assert calibration is not None
    observe(model, [pack(examples(LENGTHS))], [calibration])
    (statistic,) = calibration.statistics.values()
    assert isinstance(statistic, Covariance)
    (adapter,) = tune.attach(model, calibration=calibration).adapters
    c_II = statistic.mean_II.double()
    c_II = c_II + 0.01 * c_II.diag().mean() * torch.eye(len(c_II))
    w_OI = model.module.get_submodule(adapter.part.path).weight.double()
    u, s, vh = torch.linalg.svd(w_OI @ c_II, full_matrices=False)
    kept = list(range(5)) if mode == "learn" else list(range(len(s) - 5, len(s)))
    component = (u[:, kept] * s[kept]) @ vh[kept] @ torch.linalg.inv(c_II)
    torch.testing.assert_close((adapter.b_OR @ adapter.a_RI).double(), component, atol=1e-4, rtol=1e-3)


def test_one_pass_serves_all_who_ask() -> None:
    model, calls = tiny("llama"), 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.module.model.layers[0].register_forward_pre_hook(count)
    path = next(model.anatomy.parts("q")).path
    alone, together = Covariance(), Covariance()
    batches: list[Any] = [pack(examples(LENGTHS))]
    observe(model, batches, [Calibration({path: alone})])
    observe(model, batches, [Calibration({path: together}), Calibration({path: Covariance()})])
    assert calls == 2 and torch.equal(alone.mean_II, together.mean_II)


def test_a_direction_that_turns_its_sign_is_the_same() -> None:
    found = IncrementalSVD(1)
    # Two entries of opposite signs are about as large, and take turns in being the largest.
    for first, second, length in ((1.0, -1.001, 1.0), (1.002, -1.0, 10.0)):
        along_I = torch.tensor([first, second, 0.0, 0.0])
        found.update(length * torch.tensor([[1.0], [-1.0]]) * along_I, [2])
    assert found.components_CI is not None and found.previous_CI is not None
    assert (found.components_CI * found.previous_CI).sum() < -0.99
    assert found.similarity_C() > 0.99


def test_what_never_settles_is_told() -> None:
    model = tiny("llama")
    path = next(model.anatomy.parts("q")).path
    with pytest.raises(TrainingError, match=r"not settled.*`examples` of the method"):
        observe(model, [pack(examples((9,)))], [Calibration({path: Covariance()}, is_repeated=True)])


def test_without_its_pass_a_start_is_refused() -> None:
    with pytest.raises(SettingError, match=r"tune\.lora\.init: 'eva' needs a calibration pass"):
        LoRA.model_validate({"init": "eva"}).attach(tiny("llama"))


def test_saved_corda_is_plain_lora_of_twice_the_rank() -> None:
    model = tiny("phi3")
    tuning = attach({"lora": {"rank": 3, "init": "corda"}}, model)
    assert isinstance(tuning, LoRATuning)
    moved(tuning)
    attached = outputs(model)
    delta = tuning.delta()
    assert {factors.rank for factors in delta.factors.values()} == {18, 12, 6}, "qkv and gate-up are fused"
    base = tiny("phi3")
    delta.apply(base)
    torch.testing.assert_close(outputs(base), attached, atol=2e-5, rtol=1e-5)


def batches_of(tune: Tune, model: Model) -> Iterator[str]:
    calibration = tune.calibration(model)
    yield from () if calibration is None else calibration.statistics


def test_parts_that_read_one_tensor_share_a_statistic() -> None:
    names = [path.rsplit(".", 1)[-1] for path in batches_of(LoRA.model_validate({"init": "eva"}), tiny("llama"))]
    assert names == ["q_proj", "o_proj", "gate_proj", "down_proj"] * 2

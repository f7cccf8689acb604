"""The loop's contracts: accumulation, resuming, stopping, and that only what trains moves."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from families import FAMILIES, tiny
from temper.core.errors import TrainingError
from temper.core.schedule import Moment
from temper.data.pack import Batch
from temper.engine.loop import Loop, Validation, to_batches
from temper.objectives.base import Loss
from temper.optim.base import Optim
from temper.tune.base import Tune
from temper.tune.init.base import LowRankInit
from training import examples, make_loop, trained, trained_with_a_break

TUNERS = [
    *({name: dict(method.example)} for name, method in Tune.methods().items()),
    {"lora": {"rank": 3, "dropout": 0.1}},
    {"lora": {"targets": ["q", "down"], "rs_lora": True}},
    *({"lora": {"rank": 3, "init": {name: dict(way.example)}}} for name, way in LowRankInit.methods().items()),
    {"lisa": {"blocks": 1, "every_steps": 2, "score": {"outlier": {"threshold": 3}}}},
]
TUNERS += [
    {"lift": {"rank": 4, "every_steps": 2}},
    {"spiel": {"every_steps": 3, "gather_steps": 2}},
    {"spiel": {"every_steps": 3, "gather_steps": 2, "regrow": "ma"}},
]
OPTIMIZERS = [
    *({name: dict(method.example)} for name, method in Optim.methods().items()),
    {"galore": {"rank": 4, "every_steps": 2}},
]
CHANGING = {"lisa": {"blocks": 1, "every_steps": 2}}
"""what trains changes under the optimizer's feet"""


@pytest.mark.parametrize("tune", TUNERS, ids=str)
@pytest.mark.parametrize("micro_tokens", [1, 30])
def test_accumulated_equals_one_large_batch(tmp_path: Path, tune: dict, micro_tokens: int) -> None:
    # Dropout draws once per forward pass, so it is off here.
    tune = {name: {**settings, "dropout": 0.0} if name == "lora" else settings for name, settings in tune.items()}
    whole = trained(make_loop(tmp_path / "whole", tune=tune))
    split = trained(make_loop(tmp_path / "split", tune=tune, micro_tokens=micro_tokens))
    for name, value in whole.items():
        # Adam divides by the gradient's size: rounding of a gradient near zero is a step of up to lr per step.
        torch.testing.assert_close(split[name], value, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("tune", "optimizer"),
    [*((tune, {"adamw": {}}) for tune in TUNERS), *((CHANGING, optimizer) for optimizer in OPTIMIZERS)],
    ids=str,
)
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, tune: dict, optimizer: dict, stop: int) -> None:
    chosen = {"tune": tune, "optimizer": optimizer, "checkpoint_steps": 3}
    expected = trained(make_loop(tmp_path / "whole", **chosen))
    got = trained_with_a_break(tmp_path / "cut", stop, **chosen)
    assert all(torch.equal(got[name], value) for name, value in expected.items())

    def log(folder: Path) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]

    assert log(tmp_path / "cut") == log(tmp_path / "whole") and len(log(tmp_path / "whole")) == 8


def test_only_what_the_tuner_names_moves(tmp_path: Path) -> None:
    model = tiny("llama")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    loop = make_loop(tmp_path, model, tune={"lora": {"rank": 2}})
    loop.run()
    assert all(torch.equal(model.module.state_dict()[name], value) for name, value in before.items())
    held = {id(p) for group in loop.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for _, p in loop.trained} and len(loop.optimizer.state) == len(held)


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    model = tiny("llama")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    make_loop(tmp_path, model, tune={"full": {"freeze": ["*embed_tokens*", "*.layers.0.*"]}}).run()
    after = model.module.state_dict()
    for name, value in before.items():
        is_frozen = "embed_tokens" in name or ".layers.0." in name
        assert torch.equal(after[name], value) == is_frozen, name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns(tmp_path: Path, family: str) -> None:
    made = examples((6, 8, 10, 12))
    for tune in ("full", "lora"):
        losses: list[float] = []
        lr = 1e-2 if tune == "lora" else 3e-3
        loop = make_loop(
            tmp_path / tune,
            tiny(family),
            made=made,
            tune=tune,
            num_steps=30,
            lr=lr,
            on_step=lambda m, losses=losses: losses.append(m["loss"]),
        )
        loop.run()
        assert losses[-1] < 0.5 * losses[0], (tune, losses)


def test_a_loss_that_is_not_finite_stops_and_names_the_example(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, made=examples((5, 6, 7, 8)))
    whole = loop.target.loss

    def broken(batch, moment):  # type: ignore[no-untyped-def]
        loss = whole(batch, moment)
        bad = torch.tensor([origin.line == 3 for origin in batch.origins])
        document_B = loss.document_B.masked_fill(bad, math.nan)  # type: ignore[union-attr]
        return Loss(loss.total * math.nan, document_B)

    loop.sums = None  # what comes back is no longer the sum that it was
    loop.target.loss = broken  # type: ignore[method-assign]
    before = {name: p.detach().clone() for name, p in loop.trained}
    with pytest.raises(TrainingError, match=r"step 0: the loss is nan .* made:3 \(nan\)"):
        loop.run()
    assert all(torch.equal(p, before[name]) for name, p in loop.trained), "a broken step must not be applied"


def test_a_spike_stops_and_names_the_example(tmp_path: Path) -> None:
    made = examples(tuple([9] * 40))
    loop = make_loop(tmp_path, made=made, num_steps=60, batch_size=4)
    whole = loop.target.loss

    def jumping(batch, moment):  # type: ignore[no-untyped-def]
        loss = whole(batch, moment)
        if moment.step < 30:
            return loss
        spiked = torch.tensor([50.0 if origin.line == batch.origins[1].line else 1.0 for origin in batch.origins])
        return Loss(loss.total * 50, loss.document_B * spiked)

    loop.sums = None
    loop.target.loss = jumping  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"step 30: the loss jumped to .* made:\d+"):
        loop.run()
    quiet = make_loop(tmp_path / "quiet", made=made, num_steps=60)
    quiet.run()


@pytest.mark.parametrize("begins_anew", [True, False])
def test_a_tuner_that_begins_anew_is_no_spike_and_one_that_goes_on_is(
    begins_anew: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = make_loop(tmp_path, made=examples(tuple([9] * 40)), num_steps=60, batch_size=4)
    whole, steps = loop.target.loss, iter(range(60))

    def lost(batch: Batch, moment: Moment) -> Loss:
        loss = whole(batch, moment)
        return loss if moment.step < 30 else Loss(loss.total * 50, loss.document_B)

    def change() -> dict[str, torch.Tensor] | None:
        if next(steps) != 30:
            return None
        return {name: torch.full(p.shape, -1) for name, p in loop.tuning.parameters()} if begins_anew else {}

    loop.sums = None
    monkeypatch.setattr(loop.target, "loss", lost)
    monkeypatch.setattr(loop.tuning, "take_change", change)
    if begins_anew:
        assert loop.run()["steps"] == 60
    else:
        with pytest.raises(TrainingError, match="step 30: the loss jumped to"):
            loop.run()


def test_validation_picks_the_best_step_and_stops_early(tmp_path: Path) -> None:
    held_out = to_batches(examples((9, 9, 12), seed=5), 64)
    loop = make_loop(
        tmp_path, made=examples((5, 6, 7, 8)), num_steps=200, lr=1e-2, validation=Validation(held_out, 2, patience=3)
    )
    totals = loop.run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    best = min(losses, key=lambda step: losses[step])
    assert totals["steps"] < 200 and totals["best_step"] == best and totals["best_validation_loss"] == losses[best]
    assert totals["steps"] == best + 6
    # The numbers that were best are the ones that are left.
    at_best: dict[str, torch.Tensor] = {}

    def keep(metrics: dict[str, float]) -> None:
        if metrics["step"] == best:
            at_best.update({name: p.detach().clone() for name, p in again.trained})

    again = make_loop(tmp_path / "again", made=examples((5, 6, 7, 8)), num_steps=200, lr=1e-2, on_step=keep)
    again.run()
    assert all(torch.equal(p, at_best[name]) for name, p in loop.trained)


def test_a_run_that_was_killed_after_it_was_over_takes_no_further_step(tmp_path: Path) -> None:
    held_out = to_batches(examples((9, 9, 12), seed=5), 64)

    def loop(on_step: Callable[[dict[str, float]], None] = lambda metrics: None) -> Loop:
        validation = Validation(held_out, 2, patience=1)
        return make_loop(tmp_path, num_steps=200, lr=1e-2, checkpoint_steps=1, validation=validation, on_step=on_step)

    whole = loop().run()
    again = loop().run()
    whole.pop("seconds"), again.pop("seconds")
    assert again == whole and whole["steps"] < 200


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    norms: list[float] = []
    loop = make_loop(tmp_path, clip=1e-3, on_step=lambda m: norms.append(m["grad_norm"]))
    loop.run()
    assert min(norms) > 1e-3, "the reported norm is the gradient's before clipping"
    total = math.sqrt(sum(float((state["exp_avg"] ** 2).sum()) for state in loop.optimizer.state.values()))
    assert total <= 1e-3


def test_bf16_trains_with_fp32_master_weights(tmp_path: Path) -> None:
    losses: list[float] = []
    made = examples((6, 8))
    loop = make_loop(
        tmp_path, made=made, num_steps=20, dtype=torch.bfloat16, on_step=lambda m: losses.append(m["loss"])
    )
    loop.run()
    assert {p.dtype for _, p in loop.trained} == {torch.float32} and losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata", "state.pt", "checksums.json"])
@pytest.mark.parametrize("damage", ["torn", "flipped", "gone"])
def test_a_damaged_checkpoint_is_passed_over_and_told(tmp_path: Path, file: str, damage: str) -> None:
    def loop(folder: str, num_steps: int) -> Loop:
        return make_loop(tmp_path / folder, num_steps=num_steps, checkpoint_steps=2)

    expected = trained(loop("whole", 8))

    def stop(metrics: dict[str, float]) -> None:
        if metrics["step"] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_loop(tmp_path / "cut", num_steps=8, checkpoint_steps=2, on_step=stop).run()
    newest = tmp_path / "cut" / "checkpoints" / "step-000000006" / file
    data = bytearray(newest.read_bytes())
    if damage == "gone":
        newest.unlink()
    else:
        data[len(data) // 2] ^= 1
        newest.write_bytes(data if damage == "flipped" else data[: len(data) // 2])
    continued = loop("cut", 8)
    found = trained(continued)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    (warning,) = continued.checkpoints.warnings
    assert "step-000000006" in warning and "went on from before it" in warning


def test_where_every_checkpoint_is_damaged_training_begins_anew(tmp_path: Path) -> None:
    expected = trained(make_loop(tmp_path / "whole", num_steps=4))
    make_loop(tmp_path / "cut", num_steps=4, checkpoint_steps=2).run()
    for file in (tmp_path / "cut" / "checkpoints").glob("step-*/state.pt"):
        file.write_bytes(b"")
    continued = make_loop(tmp_path / "cut", num_steps=4, checkpoint_steps=2)
    found = trained(continued)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(continued.checkpoints.warnings) == 2
    assert len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_names_the_setting(tmp_path: Path, error: Exception) -> None:
    loop = make_loop(tmp_path, micro_tokens=77)

    def fail(*arguments: object) -> None:
        raise error

    loop.target.loss = fail  # type: ignore[assignment, method-assign]
    with pytest.raises(
        TrainingError, match=r"step 0: out of memory in a pass over \d+ tokens; .*micro_tokens \(?(now|is) 77"
    ):
        loop.run()


def test_a_checkpoint_of_another_machine_is_not_continued_in_silence(tmp_path: Path) -> None:
    make_loop(tmp_path, num_steps=4, checkpoint_steps=2).run()
    with pytest.raises(TrainingError, match=r"precision.*end in other bits.*--force"):
        make_loop(tmp_path, num_steps=8, dtype=torch.bfloat16).run()


def test_lora_holds_no_second_copy_of_the_base(tmp_path: Path) -> None:
    def bytes_held() -> int:
        gc.collect()
        held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if is_tensor(t)}
        return sum(held.values())

    def is_tensor(thing: object) -> bool:
        return isinstance(thing, torch.Tensor) and thing.layout == torch.strided

    model = tiny("llama")
    base = sum(p.numel() * 4 for p in model.module.parameters())
    before = bytes_held()
    loop = make_loop(tmp_path, model, tune={"lora": {"rank": 1, "targets": ["q"]}}, num_steps=3)
    loop.run()
    grown = bytes_held() - before
    # The adapters, their gradients' averages, and nothing of the base's size; full tuning holds two averages of it.
    assert grown < 0.1 * base
    control = make_loop(tmp_path / "full", model, num_steps=3)
    control.run()
    assert bytes_held() - before > 1.5 * base


def test_a_held_out_loss_that_is_no_number_stops_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN is below nothing: the first one would stay the best, and its weights the result."""
    loop = make_loop(tmp_path, validation=Validation(to_batches(examples(), 64), 2))
    monkeypatch.setattr(loop, "mean_loss", lambda batches: float("nan"))
    with pytest.raises(TrainingError, match="step 2: the loss on the held-out rows is nan"):
        loop.run()

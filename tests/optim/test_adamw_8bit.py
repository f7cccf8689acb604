"""AdamW in 8 bits against its formula written naively, and against AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from temper.models import eight_bits
from temper.models.eight_bits import code, decode
from temper.optim.adamw import AdamW
from temper.optim.adamw_8bit import AdamW8bit, AdamW8bitOptimizer
from temper.optim.base import Optim
from training import examples, make_loop, trained


def made(*shapes: tuple[int, ...]) -> list[tuple[str, nn.Parameter]]:
    torch.manual_seed(0)
    return [(str(number), nn.Parameter(torch.randn(shape))) for number, shape in enumerate(shapes)]


def in_8_bits(numbers: Sequence[float], block: int, is_signed: bool) -> Tensor:
    return decode(*code(torch.tensor(numbers), is_signed, block), is_signed, block)


def test_it_takes_adams_steps_between_codes() -> None:
    """Averages from their codes, Adam's step in full, and codes again: number by number."""
    lr, (b1, b2), eps, decay, block = 0.03, (0.8, 0.95), 1e-6, 0.2, 16
    ((_, parameter),) = named = made((7, 9))
    optimizer = AdamW8bit(betas=(b1, b2), eps=eps, weight_decay=decay, block=block, least=1).build(named, lr)
    weights = parameter.detach().flatten().double().tolist()
    average, square = [0.0] * len(weights), [0.0] * len(weights)
    for step in range(1, 6):
        parameter.grad = torch.randn(parameter.shape)
        gradient = parameter.grad.flatten().tolist()
        average = [b1 * m + (1 - b1) * g for m, g in zip(average, gradient, strict=True)]
        square = [b2 * v + (1 - b2) * g * g for v, g in zip(square, gradient, strict=True)]
        weights = [
            w * (1 - lr * decay) - lr * (m / (1 - b1**step)) / ((v / (1 - b2**step)) ** 0.5 + eps)
            for w, m, v in zip(weights, average, square, strict=True)
        ]
        optimizer.step()
        torch.testing.assert_close(parameter.detach().flatten(), torch.tensor(weights), rtol=1e-5, atol=1e-5)
        expected = in_8_bits(average, block, True), in_8_bits(square, block, False)
        average, square = (optimizer.read(optimizer.state[parameter], name).tolist() for name in AVERAGE_NAMES)
        for held, one in zip((average, square), expected, strict=True):
            # A number on the edge between two levels may go to either.
            same = torch.isclose(torch.tensor(held), one, rtol=1e-5, atol=0)
            assert int((~same).sum()) <= 1


AVERAGE_NAMES = ("exp_avg", "exp_avg_sq")


def stepped(
    method: Optim,
    named: list[tuple[str, nn.Parameter]],
    count: int = 20,
    room: bool = False,
    sizes: Tensor | None = None,
) -> list[Tensor]:
    optimizer = method.build(named, 1e-2)
    if room:
        method.make_room(optimizer)
    torch.manual_seed(1)
    for _ in range(count):
        for _, parameter in named:
            parameter.grad = torch.randn(parameter.shape) * (1 if sizes is None else sizes.view_as(parameter))
        optimizer.step()
    return [parameter.detach().clone() for _, parameter in named]


def test_small_tensors_take_the_steps_of_adamw() -> None:
    ours = stepped(AdamW8bit(weight_decay=0.1), made((4, 3), (5,)))
    theirs = stepped(AdamW(weight_decay=0.1), made((4, 3), (5,)))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def evenly(is_signed: bool) -> tuple[float, ...]:
    return tuple(place / 127 for place in range(-127, 128)) if is_signed else tuple(place / 255 for place in range(256))


def apart() -> float:
    """How far from AdamW's twenty steps of 1e-2 it ends, as a share of how far those moved; gradients of a block differ
    by up to a thousand times."""
    sizes = 10 ** -torch.linspace(0, 3, 64 * 80)[torch.randperm(64 * 80, generator=torch.Generator().manual_seed(0))]
    theirs, ours = (stepped(method, made((64, 80)), sizes=sizes)[0] for method in (AdamW(), AdamW8bit()))
    (start,) = (parameter.detach() for _, parameter in made((64, 80)))
    return float((ours - theirs).abs().mean() / (theirs - start).abs().mean())


def test_large_ones_stay_near_adamw() -> None:
    assert 0 < apart() < 0.1


def test_with_even_levels_they_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: as many codes, evenly spaced, as the paper has them beside its own."""
    monkeypatch.setattr(eight_bits, "levels", evenly)
    assert apart() > 0.3


def test_a_tensor_that_lies_in_another_order_takes_the_same_steps() -> None:
    """As the first factors of some starts of LoRA lie, column by column."""
    ((_, plain),) = made((40, 24))
    turned = nn.Parameter(plain.detach().T.contiguous().T)
    assert not turned.is_contiguous()
    method = AdamW8bit(block=16, least=1)
    (expected,) = stepped(method, [("0", plain)])
    (found,) = stepped(method, [("0", turned)])
    assert torch.equal(found, expected)


def test_a_step_in_parts_is_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    method = AdamW8bit(block=16, least=1)
    whole = stepped(method, made((13, 11)))
    monkeypatch.setattr("temper.optim.adamw_8bit.AT_ONCE", {"cpu": 32})
    assert torch.equal(*whole, *stepped(method, made((13, 11))))


def test_room_is_made_as_the_first_step_would() -> None:
    method = AdamW8bit(least=64)
    one, other = (stepped(method, made((12, 7), (5,)), room=room) for room in (False, True))
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_its_state_is_two_bytes_a_number_and_eight_a_block() -> None:
    named = made((256, 256), (100,))
    optimizer = AdamW8bit().build(named, 1e-3)
    AdamW8bit().make_room(optimizer)
    large, small = (optimizer.state[parameter] for _, parameter in named)
    sizes = [sum(one.nbytes for name, one in state.items() if name != "step") for state in (large, small)]
    assert sizes == [2 * 256 * 256 + 8 * 256, 8 * 100]


def test_what_is_saved_and_loaded_goes_on_with_the_same_bits() -> None:
    method = AdamW8bit(least=16)

    def begun(count: int) -> tuple[nn.Parameter, AdamW8bitOptimizer]:
        ((_, parameter),) = named = made((8, 40))
        optimizer = method.build(named, 1e-2)
        go_on(parameter, optimizer, range(count))
        return parameter, optimizer

    def go_on(parameter: nn.Parameter, optimizer: AdamW8bitOptimizer, steps: range) -> None:
        for step in steps:
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    whole, _ = begun(6)
    half, former = begun(3)
    ((_, parameter),) = named = made((8, 40))
    with torch.no_grad():
        parameter.copy_(half)
    again = method.build(named, 1e-2)
    again.load_state_dict(former.state_dict())
    assert again.state[parameter]["exp_avg"].dtype == torch.uint8
    go_on(parameter, again, range(3, 6))
    assert torch.equal(parameter, whole)


def test_averages_go_with_numbers_that_come_to_lie_elsewhere() -> None:
    method = AdamW8bit(block=16, least=1)
    (first, second) = named = made((64,), (64,))
    old = method.build(named, 1e-2)
    for _ in range(3):
        for _, parameter in named:
            parameter.grad = torch.randn_like(parameter)
        old.step()
    before = {name: old.read(old.state[first[1]], name) for name in AVERAGE_NAMES}
    new = method.build(named, 1e-2)
    origin = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    origin[5] = -1
    method.carry(old, new, {first[1]: origin})
    for name, numbers in before.items():
        expected = torch.where(origin >= 0, numbers[origin.clamp(min=0)], 0.0)
        signed = name == "exp_avg"
        rounded = in_8_bits(expected.tolist(), 16, signed)
        torch.testing.assert_close(new.read(new.state[first[1]], name), rounded, rtol=1e-6, atol=0)
        assert torch.equal(new.state[second[1]][name], old.state[second[1]][name])


@pytest.mark.parametrize("tune", ["full", "lora", {"lisa": {"every_steps": 2}}, {"spiel": {"density": 0.2}}])
def test_the_loss_falls(tune: Any, tmp_path: Path) -> None:
    losses: list[float] = []
    loop = make_loop(
        tmp_path,
        made=examples((6, 8, 10, 12)),
        tune=tune,
        optimizer={"adamw_8bit": {"least": 64}},
        num_steps=30,
        lr=3e-3,
        on_step=lambda metrics: losses.append(metrics["loss"]),
    )
    loop.run()
    assert losses[-1] < 0.8 * losses[0]


def test_inside_galore_it_holds_the_projected_averages(tmp_path: Path) -> None:
    inner = {"galore": {"rank": 8, "inner": {"adamw_8bit": {"least": 64}}}}
    loop = make_loop(tmp_path, optimizer=inner, num_steps=4)
    before = {name: value.clone() for name, value in trained_at_start(loop).items()}
    after = trained(loop)
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    held = [state for state in loop.optimizer.inner.state.values() if "exp_avg_scale" in state]  # type: ignore[attr-defined]
    assert held and all(state["exp_avg"].dtype == torch.uint8 for state in held)


def trained_at_start(loop: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in loop.trained}


def test_settings_out_of_bounds_are_refused() -> None:
    for written in ({"betas": [0.9, 1.0]}, {"block": 0}, {"eps": 0}, {"bits": 4}):
        with pytest.raises(ValueError, match="adamw_8bit"):
            Optim.parse({"adamw_8bit": written})

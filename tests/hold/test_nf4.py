"""NF4 against its paper's numbers and the formula written naively."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from temper.hold.base import Hold
from temper.hold.nf4 import NF4, levels
from temper.models.eight_bits import code, decode

PUBLISHED = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""the paper's appendix E"""


def there_and_back(weight: Tensor, dtype: torch.dtype = torch.float32, **settings: object) -> Tensor:
    method = NF4.model_validate(settings)
    return method.unpack(method.pack(weight), weight.shape, dtype)


def naive(weight: Tensor, block: int, scale_of: dict[int, float] | None = None) -> Tensor:
    flat, made = weight.flatten().tolist(), []
    for start in range(0, len(flat), block):
        part = flat[start : start + block]
        scale = max(map(abs, part)) if scale_of is None else scale_of[start // block]
        made += [scale * min(levels(), key=lambda level, one=one: abs(scale * level - one)) for one in part]
    return torch.tensor(made).view(weight.shape)


def error(weight: Tensor, made: Tensor) -> float:
    return float((weight - made).square().mean().sqrt())


def test_levels_are_the_papers() -> None:
    torch.testing.assert_close(torch.tensor(levels()), torch.tensor(PUBLISHED), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 64), (5, 77), (64, 48)])
@pytest.mark.parametrize("block", [16, 64])
def test_every_number_goes_to_the_nearest_level_of_its_block(shape: tuple[int, int], block: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made = there_and_back(weight, block=block, double=False)
    torch.testing.assert_close(made, naive(weight, block), rtol=1e-6, atol=1e-7)


def test_double_quantization_is_the_formula() -> None:
    """Scales of 256 blocks, in 8 bits once their mean is taken off."""
    weight = torch.randn(300, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 2, 300)[:, None]
    scales = weight.abs().amax(1)
    made: dict[int, float] = {}
    for first in (0, 256):
        own = scales[first : first + 256]
        own = torch.cat([own, own[-1:].expand(256 - len(own))])
        rest = decode(*code(own - own.mean(), True, 256), True, 256)
        made |= {first + number: max(0.0, float(own.mean() + one)) for number, one in enumerate(rest)}
    apart = torch.tensor([made[number] - one for number, one in enumerate(scales.tolist())]).abs()
    assert 1e-4 < float(apart.max()) < 0.03
    torch.testing.assert_close(there_and_back(weight, block=16), naive(weight, 16, made), rtol=1e-5, atol=1e-6)


def test_ordinary_blocks_beside_a_giant_one_keep_their_scales() -> None:
    weight = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    weight[100] *= 100
    found = error(weight[:100], there_and_back(weight)[:100])
    assert found < 1.3 * error(weight[:100], there_and_back(weight, double=False)[:100])


def test_a_number_takes_little_more_than_four_bits() -> None:
    for double, bits in ((True, 4 + 8 / 64 + 64 / (256 * 64)), (False, 4.5)):
        held = NF4(double=double).pack(torch.randn(1024, 1024))
        assert sum(one.numel() * one.element_size() for one in held.values()) * 8 / 2**20 == bits


def test_levels_suit_what_is_spread_normally() -> None:
    """Evenly spaced levels are farther off for normal weights, and nearer (the control) for uniform ones."""
    generator = torch.Generator().manual_seed(0)
    for weight, is_nearer in (
        (torch.randn(512, 512, generator=generator), True),
        (torch.rand(512, 512, generator=generator) * 2 - 1, False),
    ):
        blocks = weight.view(-1, 64)
        scale = blocks.abs().amax(1, keepdim=True)
        evenly = ((blocks / scale * 7.5 - 0.5).round().clamp(-8, 7) + 0.5) / 7.5 * scale
        assert (error(weight, there_and_back(weight)) < error(weight, evenly.view_as(weight))) == is_nearer


def test_blocks_of_zeros_and_of_one_giant_come_back() -> None:
    weight = torch.zeros(4, 64)
    weight[2, 5] = -1e4
    for double in (True, False):
        made = there_and_back(weight, double=double)
        torch.testing.assert_close(made[2], weight[2], rtol=1e-2, atol=0)
    assert torch.equal(there_and_back(weight, double=False), weight)
    assert torch.isfinite(there_and_back(torch.zeros(300, 64))).all()


def test_settings_out_of_bounds_are_refused() -> None:
    for written in ({"block": 8}, {"block": 17}, {"bits": 4}):
        with pytest.raises(ValueError, match="nf4"):
            Hold.parse({"nf4": written})

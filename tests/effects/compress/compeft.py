"""ComPEFT on a whole change and on an adapter: what they still know, and how many bytes they take."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from effects.bench import Bench
from effects.merging import learnt
from effects.study import Contrast, Study
from temper.compress.compeft import ComPEFT, top_signs
from temper.delta.base import Delta, read_delta
from temper.delta.dense import DenseDelta
from temper.delta.ternary import TernaryDelta, flatten

PAIRS = {"change": (0.3, 2.0), "adapter": (0.5, 1.2)}
"""density and alpha: of 0.1, 0.3 and 0.5 with 0.5, 0.8, 1.2 and 2 the pair that did best in development"""


class InMemory:
    """What is to be made small (`temper.compress.base.Original`): all that ComPEFT asks for with one pair."""

    def __init__(self, change: Delta) -> None:
        self._change = change

    def change(self) -> Delta:
        return self._change


def measure(bench: Bench) -> dict[str, float]:
    model = bench.base("tiny")
    rows = bench.rows("reverse", 512)
    fitted = bench.fit(model, rows, tune={"lora": {"rank": 8}}, lr=5e-3, steps=40)
    with tempfile.TemporaryDirectory() as folder:
        fitted.tuning.save(Path(folder))
        wholes = {"change": DenseDelta(learnt(bench, rows)), "adapter": read_delta(Path(folder) / "delta")}

    def accuracy(change: Delta) -> float:
        tuned = bench.base("tiny")
        change.apply(tuned, keep=False)
        return bench.accuracy(tuned, "reverse")

    arms = {"base": bench.accuracy(bench.base("tiny"), "reverse"), "eight": 8.0}
    for name, whole in wholes.items():
        density, alpha = PAIRS[name]
        original: Any = InMemory(whole)
        small = ComPEFT(density=density, alpha=alpha).build(original).result
        assert isinstance(small, TernaryDelta)
        arms[name] = accuracy(whole)
        arms[f"{name}, less 5 points"] = arms[name] - 5
        arms[f"{name}, compressed"] = accuracy(small)
        arms[f"{name}, times smaller"] = 2 * whole.num_values / num_bytes(small)
        arms[f"{name}, signs at random places"] = accuracy(anywhere(small, whole, density, bench.seed))
    return arms


def num_bytes(change: Delta) -> int:
    """Return what a change takes on disk, all files of its folder counted."""
    with tempfile.TemporaryDirectory() as folder:
        change.save(Path(folder))
        return sum(file.stat().st_size for file in Path(folder).iterdir())


def anywhere(small: TernaryDelta, whole: Delta, density: float, seed: int) -> TernaryDelta:
    """Return as many signs with the same scale, of the entries that are largest once all are shuffled."""
    slots, read = flatten(whole)
    vector = torch.cat([read(slot).flatten() for slot in slots])
    order = torch.randperm(len(vector), generator=torch.Generator().manual_seed(seed))
    return TernaryDelta(slots, top_signs(vector[order], density), small.scale_of_signs)


STUDY = Study(
    claim="The largest entries of a change or an adapter, as signs with one scale, take 8 to 50 times fewer bytes than "
    "all in 16 bits, and lose next to nothing (arXiv:2311.13171).",
    unit="exact match of reverse in per cent, more is better; `times smaller` is a ratio of bytes on disk, all of the "
    "folder's files counted",
    measure=measure,
    contrasts=(
        Contrast("a compressed change works", "change, compressed", "base", "above"),
        Contrast("as well as the whole one, within 5 points", "change, compressed", "change, less 5 points", "above"),
        Contrast("it is more than 8 times smaller", "change, times smaller", "eight", "above"),
        Contrast("a compressed adapter works", "adapter, compressed", "base", "above"),
        Contrast("as well as the whole one, within 5 points", "adapter, compressed", "adapter, less 5 points", "above"),
        Contrast("as many signs at random places", "change, signs at random places", "base", "none"),
    ),
    finding="A whole change keeps 92 of 99 points in a thirteenth of the bytes, so that whether it is within 5 is open."
    " An adapter of rank 8 keeps half of what it knew, at half of its entries, and next to nothing at a fifth: likely "
    "because its factor A begins random and large, its factor B at zero, and one scale with one order over both takes "
    "what A was drawn with for what was learnt.",
)

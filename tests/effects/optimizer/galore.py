"""GaLore against Adam in all dimensions, against LoRA at its memory, and against dimensions of no meaning."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch

from effects.bench import Bench
from effects.study import Contrast, Study

STEPS, RANK = 60, 16
LR = {"adamw": 2e-3, "galore": 4e-3, "lora": 5e-3}
LORA = {"lora": {"rank": 16}}
GALORE = {"galore": {"rank": RANK, "every_steps": 20, "scale": 1.0}}


def measure(bench: Bench) -> dict[str, float]:
    def learnt(tune: Any, optimizer: Any, lr: float) -> float:
        model = bench.trained("reverse", tune=tune, optimizer=optimizer, lr=lr, steps=STEPS)
        return bench.loss(model, "reverse")

    chance, svd = torch.Generator().manual_seed(bench.seed), torch.linalg.svd

    def of_shuffled(matrix: torch.Tensor, full_matrices: bool = True) -> Any:
        flat = matrix.flatten()[torch.randperm(matrix.numel(), generator=chance)]
        return svd(flat.reshape(matrix.shape), full_matrices=full_matrices)

    def of_noise(matrix: torch.Tensor, full_matrices: bool = True) -> Any:
        return svd(torch.randn(matrix.shape, generator=chance), full_matrices=full_matrices)

    found = {
        "adamw": learnt("full", "adamw", LR["adamw"]),
        "lora": learnt(LORA, "adamw", LR["lora"]),
        "galore": learnt("full", GALORE, LR["galore"]),
    }
    for name, basis in (("any dimensions", of_noise), ("of shuffled gradients", of_shuffled)):
        with patch.object(torch.linalg, "svd", basis):
            found[name] = learnt("full", GALORE, LR["galore"])
    return {
        **found,
        "state: adamw": bench.state_share(bench.base()),
        "state: galore": bench.state_share(bench.base(), "full", GALORE),
    }


STUDY = Study(
    claim="Adam on gradients projected to a few dimensions learns what Adam does, more than LoRA, with up to 65.5 % "
    "less state (arXiv:2403.03507).",
    unit="held-out loss of reverse in nats per token; arms named state: bytes of the optimizer's state for each byte "
    "of weights; less is better",
    measure=measure,
    contrasts=(
        Contrast("GaLore holds less state than Adam", "state: galore", "state: adamw", "below"),
        Contrast("it learns more than LoRA", "galore", "lora", "below"),
        Contrast("the gradient's own dimensions help", "galore", "any dimensions", "below"),
        Contrast(
            "dimensions of shuffled gradients are any dimensions", "of shuffled gradients", "any dimensions", "none"
        ),
    ),
    finding="GaLore holds a sixth of Adam's state, its bases included. That it learns more than LoRA is not shown: it "
    "does in four seeds of five (1.49 nats left for 1.87 in the mean). Nor is it shown that the gradient's own "
    "dimensions help: any others leave 1.63, and do better in two seeds. Beside Adam in all dimensions (1.54) it is on "
    "either side by seed. Rates are the best of those tried (GaLore 2e-3, 4e-3, 8e-3; Adam 2e-3, 4e-3; LoRA 5e-3, "
    "1e-2).",
)

"""A model that has half learnt a skill, less what its base says, or itself half-way, or a model of another base."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from effects.bench import Bench
from effects.study import Contrast, Study
from temper.data.rows import Rows
from temper.decode.base import Fused
from temper.decode.contrastive import ContrastiveDecoding
from temper.models.model import Model

NEW, KNOWN = "reverse", "copy"
STEPS, EARLIER = 30, 15


class Dealt(ContrastiveDecoding):
    """Contrastive decoding without its idea: what the amateur says is dealt to other tokens, always the same."""

    def combine(self, logprobs: Any) -> Tensor:
        expert_NV, amateur_NV = logprobs
        order = torch.randperm(amateur_NV.shape[-1], generator=torch.Generator().manual_seed(0))
        return super().combine([expert_NV, amateur_NV[:, order.to(amateur_NV.device)]])


def measure(bench: Bench) -> dict[str, float]:
    # The known skill trains along, so that it stays known.
    rows = Rows.from_rows([*bench.rows(NEW, 512), *bench.rows(KNOWN, 512)], f"both {bench.seed}")
    asked = {skill: list(bench.rows(skill, 150, "test")) for skill in (NEW, KNOWN)}

    def learnt(base: str, steps: int) -> Model:
        # 1e-3 did better than 2e-3 on reverse in development.
        return bench.tuned(base, rows, lr=1e-3, steps=steps)

    def right(model: Model, skill: str = NEW) -> float:
        return bench.exact_match(model, asked[skill])

    expert = learnt("tiny", STEPS)
    amateurs = {"base": bench.base("tiny"), "itself earlier": learnt("tiny", EARLIER), "nano": learnt("nano", STEPS)}
    contrast = ContrastiveDecoding(alpha=0.1, beta=0.5)
    joined = {name: contrast.join([expert, amateur]) for name, amateur in amateurs.items()}
    dealt = Fused(Dealt.model_construct(**dict(contrast)), (amateurs["base"],))
    return {
        "expert": right(expert),
        "amateur: itself earlier": right(amateurs["itself earlier"]),
        "amateur: nano": right(amateurs["nano"]),
        **{f"less {name}": right(model) for name, model in joined.items()},
        "less base, tokens dealt": right(replace(joined["base"], fusion=dealt)),
        "known: expert": right(expert, KNOWN),
        "known: less base": right(joined["base"], KNOWN),
    }


STUDY = Study(
    claim="What an expert says more than an amateur, among the tokens that the expert finds plausible, is right more "
    "often than the expert's likeliest token: up to 8 points of accuracy on GSM8K over greedy decoding "
    "(arXiv:2309.09117). Amateurs here are the expert's base, the expert at half its steps, and a base of fewer skills "
    "after as many.",
    unit="exact match in per cent of reverse, or of copy (known), more is better",
    measure=measure,
    contrasts=(
        Contrast("the expert less its base beats the expert", "less base", "expert", "above"),
        Contrast("so does the expert less itself earlier", "less itself earlier", "expert", "above"),
        Contrast("so does the expert less a model of another base", "less nano", "expert", "above"),
        Contrast("it needs what the amateur says", "less base", "less base, tokens dealt", "above"),
        Contrast("an amateur whose tokens are dealt changes nothing", "less base, tokens dealt", "expert", "none"),
        Contrast("nothing to mend in a skill that both know", "known: less base", "known: expert", "none"),
    ),
    finding="Not shown: less its base the expert is right less often in four seeds of five, by 10 points in the mean; "
    "less itself earlier or a model of another base it is right as often. Likely since an error of this expert is a "
    "wrong place in the word, of which it is as unsure as the amateur is, and not a habit of the weaker model that a "
    "stronger one half shares. Both controls fail. That on copy was ill chosen, and 11 points are lost: the base knows "
    "copy, and less of what is right is less. The other, an amateur whose tokens are dealt, came in its place after "
    "that was seen; it costs 4 points, in every seed: what is taken from the plausible tokens is then that of others, "
    "which is noise and not nothing. That the amateur's own word is needed is not shown. alpha 0.1 and beta 0.5 are "
    "the paper's, the only ones tried; in development, with an expert at 24 steps, it was the same.",
)

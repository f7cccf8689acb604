"""Replay and a tie to what the base said before, against plain training, while a base that knows much learns more."""

from __future__ import annotations

from effects.bench import Bench
from effects.forgetting import after, sources, told
from effects.study import Contrast, Study

UNKNOWN = ["look_up"]
"""a skill that the base has never seen: what it says there is no part of what it knows"""


def measure(bench: Bench) -> dict[str, float]:
    known = sources(bench.known("tiny"), bench)
    other = sources(UNKNOWN, bench)
    return told(
        {
            "plain": after(bench),
            "replay": after(bench, {"replay": {"of": known, "share": 0.25}}),
            "replay of another skill": after(bench, {"replay": {"of": other, "share": 0.25}}),
            "kl_base": after(bench, {"kl_base": {"of": known, "strength": 1.0}}),
            "kl_base on the new skill": after(bench, {"kl_base": {"strength": 0.3}}),
        }
    )


STUDY = Study(
    claim="Replaying some of the earlier data all but ends forgetting (CLEAR, arXiv:1811.11682); so does staying near "
    "what the model said before on given inputs, without their answers, the new task's own inputs included (Learning "
    "without Forgetting, arXiv:1606.09282).",
    unit="exact match in per cent on a new skill and on the seven old ones, more is better",
    measure=measure,
    contrasts=(
        Contrast("replay keeps the old skills", "old, replay", "old, plain", "above"),
        Contrast("KL to the base on the old questions keeps them", "old, kl_base", "old, plain", "above"),
        Contrast(
            "KL to the base on the new questions keeps them", "old, kl_base on the new skill", "old, plain", "above"
        ),
        Contrast("replay of another skill does not", "old, replay of another skill", "old, plain", "none"),
    ),
    also=("retain/kl_base",),
    finding="Replay and KL on the old questions keep most of the old skills (68 and 90 points, 11 without), and cost "
    "some of the new one at the same 40 steps (72 % without, 57 with replay, 60 with KL on the old questions). That KL "
    "on the new questions alone keeps them is not shown: it keeps 14, no more than replay of another skill does (15), "
    "likely since a skill has a word of its own here, and what the base says behind an unknown word is no part of what "
    "it knows. All at lr 1e-3; shares and strengths are the first that were tried (on one seed, with sort_descending "
    "for the new skill, which was given up as slower to learn).",
)

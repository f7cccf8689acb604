"""The contrasts of backward and forward transfer, over skills learnt one after another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from effects.bench import Bench
from effects.study import Contrast, Study
from temper.data.rows import Rows
from temper.measure.transfer import Matrix, transfer_matrix
from temper.models.model import Model


def measure(bench: Bench) -> dict[str, float]:
    def learn(model: Model, skills: Sequence[str], also: Sequence[str] = ()) -> None:
        rows = [*bench.rows(skills, 512), *(bench.rows(also, 512) if also else [])]
        # The same rate for every stage; 1e-3 did better than 2e-3 on reverse in development.
        bench.fit(model, Rows.from_rows(rows, f"{skills} {also}"), tune="full", lr=1e-3, steps=30)

    def sequence(first: str, second: str, replays: bool = False) -> Matrix:
        """Learn one skill and then another, and measure both before, between and after."""
        model = bench.base("tiny")
        rows = [("base", _reports(bench, model, (first, second)))]
        learn(model, [first])
        rows.append(("first", _reports(bench, model, (first, second))))
        learn(model, [second], [first] if replays else [])
        rows.append(("second", _reports(bench, model, (first, second))))
        return transfer_matrix(rows, {first: 1, second: 2})

    plain = sequence("reverse", "rotate")
    replayed = sequence("reverse", "rotate", replays=True)
    related = sequence("reverse", "reverse_shift")
    # A first stage that learns nothing: its rows are of what the base knows.
    idle = sequence("copy", "reverse_shift")

    def value(found: float | None) -> float:
        assert found is not None
        return found

    return {
        "backward": value(plain["backward_contrast"]),
        "backward, replayed": value(replayed["backward_contrast"]),
        "forward, reverse to reverse_shift": value(related["forward_contrast"]),
        "forward, copy to reverse_shift": value(idle["forward_contrast"]),
        "zero": 0.0,
    }


def _reports(bench: Bench, model: Model, skills: Sequence[str]) -> dict[str, Any]:
    """Return 1 / perplexity of each skill: the mean probability of the right token, a share that is never 0."""
    return {
        skill: {
            "role": "gain",
            "metric": "1 / perplexity",
            "unit": "share",
            "higher_is_better": True,
            "value": math.exp(-bench.loss(model, skill, 100)),
        }
        for skill in skills
    }


STUDY = Study(
    claim="The contrasts (after - before) / (after + before) tell forgetting from transfer: backward below 0 where a "
    "second task wipes out the first and near 0 where that is rehearsed, forward above 0 where the first task is part "
    "of the second (arXiv:2301.07799).",
    unit="contrast of 1 / perplexity, from -1 to 1",
    measure=measure,
    contrasts=(
        Contrast("a second skill makes the first be forgotten", "backward", "zero", "below"),
        Contrast("replay mends it", "backward, replayed", "backward", "above"),
        Contrast("reverse prepares for reverse_shift", "forward, reverse to reverse_shift", "zero", "above"),
        Contrast(
            "a first stage that learns nothing prepares for nothing", "forward, copy to reverse_shift", "zero", "none"
        ),
    ),
    finding="Forgetting and its cure show clearly. Forward transfer is not shown: it is above 0 in four seeds of five "
    "and far below in one (-0.57). In an earlier run, with one base for all seeds, it was below in every seed: likely "
    "since a model that has just learnt reverse is sure of the letters that reverse_shift does not want, and 1 / "
    "perplexity punishes that. Why bases differ in this is not known; after a first stage that learns nothing it is "
    "between -0.56 and 0.09. Exact match, in which the paper's contrast would be 0 / 0, says nothing of the two skills "
    "before they are learnt.",
)

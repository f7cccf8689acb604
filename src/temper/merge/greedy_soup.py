"""The greedy soup: models are added while the average does not get worse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from temper.measure.base import Suite
from temper.merge.base import Bench, Merge, Merging
from temper.merge.linear import Linear


class GreedySoup(Merge, name="greedy_soup"):
    """Average the models that help, tried in the order of how good they are alone.

        sort the theta_i by their value on held-out data, best first;  S = {}
        for each:  if value(mean(S + {theta_i})) is not worse than value(mean(S)):  S = S + {theta_i}
        theta = mean(S)

    `by` is the held-out measure: any suite, on rows that are neither trained on nor measured afterwards. Equally good
    models are tried in the order of `of`. By construction the soup is not worse on `by` than the best model alone.

    Paper: Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
    inference time, arXiv:2203.05482, recipe 1.
    """

    example: ClassVar[dict[str, Any]] = {"by": "lab/copy"}

    by: Suite = Field(description="held-out suite by which models are chosen")

    def build(self, bench: Bench) -> Merging:
        tried: list[dict[str, Any]] = []

        def value(members: Sequence[int]) -> float:
            weights = [float(number in members) / len(members) for number in range(len(bench.of))]
            bench.pour(Linear(weights=weights).combine)
            score = self.by.measure(bench.subject(), bench.cache)
            tried.append({"of": [bench.of[number] for number in members], "value": score.value})
            bench.say(f"{self.by.label} of {' + '.join(tried[-1]['of'])}: {score.value:.4g}")
            return score.value if score.higher_is_better else -score.value

        alone = [value([number]) for number in range(len(bench.of))]
        order = sorted(range(len(alone)), key=lambda number: -alone[number])
        soup, best = order[:1], alone[order[0]]
        for number in order[1:]:
            found = value([*soup, number])
            if found >= best:
                soup, best = [*soup, number], found
        weights = [float(number in soup) / len(soup) for number in range(len(bench.of))]
        details = {"ingredients": [bench.of[number] for number in soup], "tried": tried}
        return Merging(Linear(weights=weights).combine, details)

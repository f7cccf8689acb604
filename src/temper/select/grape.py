"""GRAPE: of several responses to a prompt, the one that the model itself finds likeliest.

Legend: E rows (examples).
"""

from __future__ import annotations

import json
from typing import ClassVar

import numpy as np
from pydantic import Field

from temper.data.example import Format, Row
from temper.select.base import Pool, Selection, Selector, best


class Grape(Selector, name="grape"):
    """Keep, for each instruction, the response that fits the model's own distribution best.

    y*(x) = argmax_y (1/|y|) sum_t log p(y_t | x, y_<t), over the responses y to the instruction x that the pool holds,
    p being the model before it is tuned (`from` of the stage) and |y| the response's tokens. Rows with the same prompt
    (and tools) are responses to one instruction; put several sources together to have several.

    Paper: The Best Instruction-Tuning Data are Those That Fit, arXiv:2502.04194.
    Deviation: `per_prompt` and `keep` go beyond the paper, whose choice is one response and every instruction.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"messages", "completion"})

    per_prompt: int = Field(1, ge=1, description="responses kept for each prompt, the likeliest first")
    keep: float = Field(
        1.0, gt=0, le=1, description="share of the rows so chosen that is kept in the end: those likeliest"
    )

    def select(self, pool: Pool) -> Selection:
        score_E = pool.scores(pool.rows).mean_logprobs(pool.load(pool.model))
        responses: dict[str, list[int]] = {}
        for index, row in enumerate(pool.rows):
            if not np.isnan(score_E[index]):
                responses.setdefault(prompt_of(row), []).append(index)
        chosen_E = np.full(len(score_E), np.nan)
        for indices in responses.values():
            # Sorting is stable: of equal responses the first in the pool is kept.
            likeliest = sorted(indices, key=lambda index: -score_E[index])[: self.per_prompt]
            chosen_E[likeliest] = score_E[likeliest]
        return Selection(best(chosen_E, self.keep), score_E)


def prompt_of(row: Row) -> str:
    """Return what a row's response answers, as text that is the same for the same prompt."""
    content = row.content
    prompt = content["prompt"] if row.format == "completion" else list(content["messages"])[:-1]
    return json.dumps([prompt, content.get("tools")], sort_keys=True, ensure_ascii=False)

"""IFD: keep the rows whose instruction helps the model least to say the response.

Legend: E rows (examples).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat

from temper.data.example import Format, Row
from temper.models.model import Model
from temper.select.base import Pool, Selection, Selector, best
from temper.signals.scores import Scores


class InstructionFollowingDifficulty(Selector, name="ifd"):
    """Keep the rows with the highest instruction-following difficulty: the loss with the instruction over that without.

    IFD(Q, A) = s(A|Q) / s(A), with s(A|Q) = -(1/|A|) sum_i log p(w_i | Q, w_<i) and s(A) = -(1/|A|) sum_i log p(w_i |
    w_<i), A being the response (of a conversation its last turn), Q all that stands before it, and p the model that the
    rows are chosen for. Near 1, Q is little help and there is something to learn; above 1, Q and A do not belong
    together.

    Paper: From Quantity to Quality: Boosting LLM Performance with Self-Guided Data Selection for Instruction Tuning,
    arXiv:2308.12032; by a smaller model (`model`), Superfiltering, arXiv:2402.00530.
    Symbols: rows above `limit` are left out, and of the rest a share `keep` with the highest IFD is kept. Deviation:
    the paper first tunes p on a few clustered rows, which an earlier stage may do; without Q the chat template stays,
    around a message of nothing.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"messages", "completion"})

    keep: float = Field(0.1, gt=0, le=1, description="share of the rows within the limit that is kept")
    limit: PositiveFloat | None = Field(1.0, description="IFD above which a row is left out; null for none")
    model: str | None = Field(
        None, min_length=1, description="p: a stage, or base; by default the model that the rows are chosen for"
    )

    def models(self) -> Sequence[str]:
        return () if self.model is None else (self.model,)

    def select(self, pool: Pool) -> Selection:
        scores, model = pool.scores(pool.rows), pool.load(self.model or pool.model)
        both_E2 = scores.kept("ifd", model, None, __name__, lambda: _losses(scores, model))
        given_E, alone_E = both_E2.T
        ifd_E = np.asarray(given_E / alone_E)
        within_E = ifd_E if self.limit is None else np.where(ifd_E > self.limit, np.nan, ifd_E)
        return Selection(best(within_E, self.keep), ifd_E, {"loss": given_E, "loss_alone": alone_E})


def _losses(scores: Scores, model: Model) -> NDArray[np.floating]:
    """Return s(A|Q) and s(A) of each row, nats per token, (E, 2)."""
    sums = [scores.summed_logprobs(model, shown) for shown in (with_instruction, without_instruction)]
    return np.stack([-sums_E2[:, 0] / sums_E2[:, 1] for sums_E2 in sums], 1)


def with_instruction(row: Row) -> Row:
    """Return a row as prompt and completion: of a conversation, the last turn is what is to be written."""
    if row.format == "completion":
        return row
    *before, last = row.content["messages"]
    tools = {"tools": row.content["tools"]} if "tools" in row.content else {}
    return replace(row, format="completion", content={"prompt": before, "completion": [last], **tools})


def without_instruction(row: Row) -> Row:
    """Return a row whose response answers nothing."""
    content = with_instruction(row).content
    prompt = "" if isinstance(content["prompt"], str) else [{"role": "user", "content": ""}]
    return replace(row, format="completion", content={"prompt": prompt, "completion": content["completion"]})

"""GISTEmbed: learn an embedding from pairs, with a guide that says which strangers in the batch are none.

Legend: P pairs, C candidates of an anchor, B documents, D model width, G the guide's width.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from temper.core.schedule import Moment
from temper.data.encode import Encoder
from temper.data.example import Format, Row, Sequence
from temper.data.pack import Batch
from temper.models.model import Model
from temper.objectives.base import Loss, Objective, Target
from temper.signals.caching import carry, slopes_of
from temper.signals.forward import hidden_states
from temper.signals.passes import Pass
from temper.signals.pooling import Pooling, pool
from temper.signals.reference import Reference, check_same_vocabulary
from temper.signals.setup import Setup


class GuidedTarget(Target):
    """The embedder and its guide.

    The batch is the whole step, however it is divided (`temper.signals.caching`): the loss on all embeddings gives the
    gradient of each, which its micro-batch carries to the weights. What a micro-batch reports as its loss is the share
    of its own anchors.
    """

    def __init__(self, model: Model, method: GuidedEmbedding, guide: Reference) -> None:
        self.model, self.method, self.guide = model, method, guide
        self.looked_at: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        """for each micro-batch of the step, by its identity: its embeddings (B, D), the loss's gradient by them, losses
        of its pairs"""

    def before_batches(self, batches: Many[Batch], moment: Moment) -> None:
        with torch.no_grad():
            embedded = [self._embed(self.model, batch) for batch in batches]
            guided = []
            for batch in batches:
                with self.guide.asked() as guide:
                    guided.append(self._embed(guide, batch))
        roles = [role for batch in batches for role in batch.roles]
        guides = _by_role(torch.cat(guided), roles)
        with torch.autocast(embedded[0].device.type, enabled=False):
            loss_P, slopes = slopes_of(
                lambda joined: self.method.losses(_by_role(joined[0], roles), guides), [[part] for part in embedded]
            )
        losses = loss_P.split([batch.num_examples for batch in batches])
        self.looked_at = {
            id(batch): (vectors_BD, own, loss)
            for batch, vectors_BD, [own], loss in zip(batches, embedded, slopes, losses, strict=True)
        }

    def further_passes(self, batches: Many[Batch], moment: Moment) -> list[Pass]:
        models = (self.model, self.guide.model)
        return [Pass(model, batch, heads=0, once=True) for model in models for batch in batches]

    def loss(self, batch: Batch, moment: Moment) -> Loss:
        taken_at_BD, slope_BD, loss_P = self.looked_at[id(batch)]
        total = carry([self._embed(self.model, batch)], [slope_BD], loss_P.sum(), [taken_at_BD])
        return Loss(total, loss_P[torch.tensor(batch.examples, device=loss_P.device)])

    def _embed(self, model: Model, batch: Batch) -> Tensor:
        return F.normalize(pool(hidden_states(model, batch, self.method.causal), batch, self.method.pooling), dim=1)


class GuidedEmbedding(Objective, name="gist_embed"):
    """Bring each anchor near its positive and away from the batch's others, save those that a guide finds nearer.

    L = -log(exp(s(q_i, p_i) / tau) / sum_c exp(s(q_i, c) / tau)), the mean over pairs, s being the cosine. The
    candidates c are all positives p_j, the other anchors q_j (against q_i), the other positives (as p_j against p_i)
    and the given negatives, without those whose similarity by the guide exceeds the guide's own s(q_i, p_i).

    Paper: GISTEmbed: Guided In-sample Selection of Training Negatives for Text Embedding Fine-tuning,
    arXiv:2402.16829. Symbols: tau is `temperature`.
    Deviation: tau is 0.05 by default, where sentence-transformers and the authors' models have 0.01; the batch is the
    whole optimizer step, micro-batches notwithstanding (gradient caching: two forward passes, which dropout makes
    differ); the guide reads the same tokens and pools them as the model does.
    """

    example: ClassVar[dict[str, Any]] = {"guide": "start"}
    formats: ClassVar[frozenset[Format]] = frozenset({"pair"})

    guide: str = Field(
        min_length=1,
        description="the guide: start (the model as it was before this stage), base, an earlier stage, or a model's "
        "folder or hub id; it must have the model's tokenizer",
    )
    temperature: PositiveFloat = Field(0.05, description="tau: below 1, near strangers count more")
    pooling: Pooling = Field("mean", description="how the tokens of a text become one vector")
    causal: bool = Field(True, description="whether a token sees only what precedes it; false: its whole text")
    contrast: Literal["all", "positives"] = Field(
        "all", description="what an anchor is contrasted with besides negatives: all texts, or the positives alone"
    )

    def models(self) -> Many[str]:
        return (self.guide,)

    def encode(self, row: Row, encoder: Encoder) -> list[tuple[Sequence, ...]]:
        roles = [role for role in ("anchor", "positive", "negative") if row.content.get(role) is not None]
        return [tuple(replace(encoder.read(row.content[role]), role=role) for role in roles)]

    def units(self, batch: Batch) -> float:
        """Count pairs."""
        return float(batch.num_examples)

    def losses(self, ours: dict[str, Tensor], guides: dict[str, Tensor]) -> Tensor:
        """Return the loss of each pair, (P,).

        Args:
            ours: the model's embeddings by role, (P, D) each (of negatives as many as there are).
            guides: the guide's, (P, G).
        """
        limit_P1 = (guides["anchor"] * guides["positive"]).sum(1, keepdim=True)
        sides = [("anchor", "positive")]
        if self.contrast == "all":
            sides += [("anchor", "anchor"), ("positive", "positive")]
        if len(ours["negative"]):
            sides.append(("anchor", "negative"))
        scores = []
        for one, other in sides:
            score_PC = ours[one] @ ours[other].t()
            is_false_PC = guides[one] @ guides[other].t() > limit_P1
            own = torch.eye(*score_PC.shape, dtype=torch.bool, device=score_PC.device)
            if one == other:
                is_false_PC = is_false_PC | own
            elif other == "positive":
                is_false_PC = is_false_PC & ~own
            scores.append(score_PC.masked_fill(is_false_PC, -torch.inf))
        targets_P = torch.arange(len(limit_P1), device=limit_P1.device)
        return F.cross_entropy(torch.cat(scores, 1) / self.temperature, targets_P, reduction="none")

    def build(self, model: Model, setup: Setup) -> GuidedTarget:
        guide = setup.reference(model, self.guide)
        check_same_vocabulary(model, guide.model, "objective.gist_embed.guide", self.guide)
        return GuidedTarget(model, self, guide)


def _by_role(vectors_BD: Tensor, roles: list[str]) -> dict[str, Tensor]:
    found = {}
    for role in ("anchor", "positive", "negative"):
        places = [place for place, other in enumerate(roles) if other == role]
        found[role] = vectors_BD.index_select(0, torch.tensor(places, dtype=torch.int64, device=vectors_BD.device))
    return found

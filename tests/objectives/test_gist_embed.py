"""GISTEmbed against sentence-transformers: values, and gradients of the embeddings; masks by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss
from torch import Tensor, nn
from torch.nn import functional as F

from families import tiny
from objective_rows import encoded, gradients, other_model, setup_of
from temper.core.schedule import Moment
from temper.data.pack import pack
from temper.objectives.gist_embed import GuidedEmbedding, _by_role
from temper.signals.forward import hidden_states
from temper.signals.pooling import pool

ROLES = ("anchor", "positive", "negative")


class Given(nn.Module):
    """Embeds each column by what it was given for it."""

    def __init__(self, vectors: list[Tensor]) -> None:
        super().__init__()
        self.vectors = vectors

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return {**features, "sentence_embedding": self.vectors[features["column"]]}


def theirs(ours: list[Tensor], guides: list[Tensor], temperature: float, contrast: str = "all") -> Tensor:
    """Their loss, on embeddings: what its constructor sets but for the models' tokenizers."""
    loss = GISTEmbedLoss.__new__(GISTEmbedLoss)
    nn.Module.__init__(loss)
    loss.model, loss.guide, loss.temperature = Given(ours), Given(guides), temperature
    loss.similarity_fct, loss.cross_entropy_loss = nn.CosineSimilarity(dim=-1), nn.CrossEntropyLoss()
    loss.must_retokenize, loss.gather_across_devices = False, False
    loss.margin_strategy, loss.margin = "absolute", 0.0
    loss.contrast_anchors = loss.contrast_positives = contrast == "all"
    return loss([{"column": number} for number in range(len(ours))], torch.empty(0))


def by_role(columns: list[Tensor]) -> dict[str, Tensor]:
    return dict(zip(ROLES, [*columns, columns[0][:0]][:3], strict=True))


def normalised(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("num_columns", [2, 3])
@pytest.mark.parametrize("contrast", ["all", "positives"])
def test_embeddings_have_their_loss_and_gradient(num_columns: int, contrast: str) -> None:
    method = GuidedEmbedding.model_validate({"guide": "big", "temperature": 0.1, "contrast": contrast})
    vectors = [normalised(7, 12, seed=number).requires_grad_(True) for number in range(num_columns)]
    # In few dimensions the guide finds many strangers nearer than the pair.
    guides = [normalised(7, 3, seed=10 + number) for number in range(num_columns)]
    # A cosine is the product of normalised vectors; what lies along a vector is no part of its gradient.
    ours = [F.normalize(vector, dim=1) for vector in vectors]
    loss = method.losses(by_role(ours), by_role(guides)).mean()
    expected = theirs(vectors, guides, 0.1, contrast)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for got, wanted in zip(torch.autograd.grad(loss, vectors), torch.autograd.grad(expected, vectors), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    unguided = theirs(vectors, [torch.eye(7), torch.eye(7), normalised(7, 7, seed=3)][:num_columns], 0.1, contrast)
    assert float(unguided.detach()) != pytest.approx(float(loss.detach()), rel=1e-2), "the guide takes nothing away"


def test_the_model_s_gradients_are_those_of_the_whole_step_whatever_the_division() -> None:
    model = tiny("llama")
    model.module.requires_grad_(True)
    method = GuidedEmbedding.model_validate({"guide": "big"})
    made = encoded(method, model, 8)
    whole = pack(made)
    vectors = _by_role(F.normalize(pool(hidden_states(model, whole), whole, "mean"), dim=1), list(whole.roles))
    guide = F.normalize(pool(hidden_states(other_model("big"), whole), whole, "mean"), dim=1)
    guides = _by_role(guide, list(whole.roles))
    expected = theirs([vectors[role] for role in ROLES], [guides[role] for role in ROLES], 0.05)
    naive = gradients(model, expected)
    target = method.build(model, setup_of(model))
    batches = [pack(made[:1]), pack(made[1:6]), pack(made[6:])]
    target.before_batches(batches, Moment(0, 0.0))
    total = torch.stack([target.loss(batch, Moment(0, 0.0)).total for batch in batches]).sum() / 8
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    got = gradients(model, total)
    scale = max(float(value.abs().max()) for value in naive.values())
    for name, value in naive.items():
        assert float((got[name] - value).abs().max()) < 1e-4 * scale, name


def test_rows_without_a_negative_stand_beside_rows_with_one() -> None:
    method = GuidedEmbedding.model_validate({"guide": "big"})
    anchors, positives, negatives = (normalised(count, 8, seed=count) for count in (4, 4, 2))
    loss_P = method.losses(
        {"anchor": anchors, "positive": positives, "negative": negatives},
        {"anchor": anchors, "positive": anchors, "negative": -anchors[:2]},
    )
    assert loss_P.shape == (4,) and bool(loss_P.isfinite().all())

"""Outputs of another model for the same batch: the base, a teacher, an earlier stage, the model's own past.

Decisions:
- A past of the model that trains is the same model with the numbers that train put back for a moment: for an adapter
  that is a copy of the adapter, never of the model. It serves every tuner alike, since what a tuner moves is what it
  yields, and what is attached and untrained equals the base.
- Any other model is held beside the one that trains, frozen.
- A reference computes as in evaluation (no dropout) and without gradients.

Legend: T packed tokens, N supervised tokens, D model width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from temper.core.errors import SettingError
from temper.core.methods import Live
from temper.data.pack import Batch
from temper.models.model import Model
from temper.signals.forward import hidden_states, token_logprobs

START = "start"
"""the name under which a method's settings ask for the model as it was before the stage"""


class Reference(Live, ABC):
    """A model that is asked and never trained."""

    model: Model

    @abstractmethod
    def asked(self) -> AbstractContextManager[Model]:
        """Return the context inside which the model computes as the reference."""

    def token_logprobs(self, batch: Batch) -> Tensor:
        """Return the log-probability in nats of each supervised token, (N,), float32."""
        with self.asked() as model:
            return token_logprobs(model, batch)

    def supervised_hidden(self, batch: Batch) -> Tensor:
        """Return the hidden state that predicts each supervised token, (N, D)."""
        with self.asked() as model:
            return hidden_states(model, batch).index_select(0, batch.supervised_N)


class Frozen(Reference):
    """Another model, whose parameters must not need gradients."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @contextmanager
    def asked(self) -> Iterator[Model]:
        with torch.no_grad():
            yield self.model


class Past(Reference):
    """The model that trains, as it was when this was made or last refreshed.

    Args:
        model: the model.
        trained: what may ever train of it.
        aside: the context in which whatever else has changed of it since is put aside.
    """

    def __init__(
        self,
        model: Model,
        trained: Sequence[tuple[str, nn.Parameter]],
        aside: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.model, self.trained, self.aside = model, trained, aside
        # A prompt that trains was not there before: its past has no vectors.
        prompts = {id(prompt) for prompt in model.prompts}
        self.values = [
            parameter.detach()[: 0 if id(parameter) in prompts else None].clone() for _, parameter in trained
        ]

    def refresh(self) -> None:
        """Take what the model is now: of a tuner that moves no numbers, these are all that there is."""
        self.values = [parameter.detach().clone() for _, parameter in self.trained]

    @contextmanager
    def asked(self) -> Iterator[Model]:
        module: nn.Module = self.model.module
        was_training = module.training
        now = [parameter.data for _, parameter in self.trained]
        module.eval()
        for value, (_, parameter) in zip(self.values, self.trained, strict=True):
            parameter.data = value
        try:
            with torch.no_grad(), self.aside(), _uncached_autocast(self.model):
                yield self.model
        finally:
            for value, (_, parameter) in zip(now, self.trained, strict=True):
                parameter.data = value
            module.train(was_training)

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = [kept.to(value.device) for value, kept in zip(self.values, state["values"], strict=True)]


def _uncached_autocast(model: Model) -> AbstractContextManager[object]:
    """Keep autocast from remembering the lowered past weights: the forward pass after this would train on them."""
    kind = next(model.module.parameters()).device.type
    if not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), cache_enabled=False)


def check_same_vocabulary(model: Model, other: Model, key: str, name: str) -> None:
    """Raise SettingError where two models do not read and write the same tokens, or the other is several."""
    if other.fusion is not None:
        reason = "is a combination of models, which has no hidden states of its own to compare with"
        raise SettingError(key, name, reason, "name one of the models that it is made of")
    ours, theirs = model.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    heads = [each.module.get_submodule(each.anatomy.head).weight.shape[0] for each in (model, other)]
    if ours == theirs and heads[0] == heads[1]:
        return
    differing = sum(ours.get(token) != number for token, number in theirs.items())
    raise SettingError(
        key,
        name,
        f"has another vocabulary ({heads[1]} logits and {heads[0]} here, {differing} tokens under other numbers)",
        "name a model with the same tokenizer",
    )

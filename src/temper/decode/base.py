"""How models are combined while they generate: the axis of decoders.

A decoder turns what several models say of the next token into one distribution. The combination is a `Model` like any
other: it writes, chats and is measured, and is neither trained nor saved.

Legend: N tokens, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from temper.core.errors import ModelError
from temper.core.hashing import hash_json
from temper.core.methods import Method
from temper.models.model import Model


class Decode(Method, axis="decode", packages=("temper.decode",)):
    """How are models combined while they generate?"""

    def check(self, num_models: int) -> None:
        """Raise SettingError where the settings do not fit the number of models."""

    @abstractmethod
    def combine(self, logprobs: Sequence[Tensor]) -> Tensor:
        """Return the combination's log-probabilities.

        Args:
            logprobs: those of each model, (N, V), float32, in the order of `of`.
        """

    def join(self, models: Sequence[Model]) -> Model:
        """Return the combination of models as a model.

        Raises:
            ModelError: models that do not read the same tokens, or one that is a combination itself.
        """
        first = models[0]
        for number, model in enumerate(models):
            if model.fusion is not None:
                raise ModelError(f"of[{number}]: is a combination of models itself; name the models that it is made of")
        for number, other in enumerate(models[1:], 1):
            sizes = [model.module.get_input_embeddings().num_embeddings for model in (first, other)]
            if first.tokenizer.get_vocab() != other.tokenizer.get_vocab() or sizes[0] != sizes[1]:
                raise ModelError(
                    f"of[{number}]: reads other tokens than of[0] (vocabularies of {sizes[1]} and {sizes[0]}); "
                    "combine models that share a tokenizer"
                )
        name = hash_json([self.written(), self.code_version(), [model.fingerprint for model in models]])
        fused = Fused(self, tuple(models[1:]))
        return replace(first, fingerprint=name, folder=None, is_changed=False, head=None, fusion=fused)


@dataclass(frozen=True)
class Fused:
    """A decoder and all models but the first: `temper.models.model.Fusion`."""

    method: Decode
    members: Sequence[Model]

    def combine(self, logprobs: Sequence[Tensor]) -> Tensor:
        return self.method.combine(logprobs)

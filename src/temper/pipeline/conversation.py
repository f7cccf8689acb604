"""A conversation with a model, by its own chat template; or plain continuing of text where it has none."""

from __future__ import annotations

from temper.core.errors import SettingError
from temper.data.encode import Encoder, RowError
from temper.data.example import Origin, Row
from temper.models.generate import generate
from temper.models.model import Model


class Conversation:
    """The turns so far.

    Args:
        model: who answers.
        system: a system message before the first turn.
        is_plain: continue texts as they are, without template and without memory.
        max_new_tokens: tokens of an answer at most.
        temperature: 0 writes the likeliest token, above 0 samples.
        seed: of the samples; each turn draws anew.

    Raises:
        SettingError: a system message for a model without a chat template.
    """

    def __init__(
        self,
        model: Model,
        *,
        system: str | None = None,
        is_plain: bool = False,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.model, self.max_new_tokens, self.temperature, self.seed = model, max_new_tokens, temperature, seed
        self.has_template = model.tokenizer.chat_template is not None and not is_plain
        if system is not None and not self.has_template:
            raise SettingError("system", system, "has no place without a chat template", "leave it out")
        self.first = [{"role": "system", "content": system}] if system is not None else []
        self.reset()

    def reset(self) -> None:
        """Forget every turn."""
        self.messages = list(self.first)
        self.turn = 0

    def answer(self, text: str) -> str:
        """Take a turn and return the model's. Where the model's room is full, the oldest turns are forgotten.

        Raises:
            SettingError: a text that is empty, that does not fit, or that the chat template refuses.
        """
        if not text.strip():
            raise SettingError("prompt", text, "is empty", "write something")
        room = self.model.num_positions
        encoder = Encoder.of(self.model, room)
        if self.has_template:
            self.messages.append({"role": "user", "content": text})
        tokens = self._tokens(encoder, text)
        while len(tokens) + 1 > room and len(self.messages) > len(self.first) + 1:
            del self.messages[len(self.first) : len(self.first) + 2]
            tokens = self._tokens(encoder, text)
        left = room - len(tokens)
        if left < 1:
            self.reset()
            shown = text if len(text) < 60 else text[:60] + "…"
            raise SettingError("prompt", shown, f"leaves no room in the model's {room} tokens", "write a shorter one")
        (new,) = generate(
            self.model,
            [tokens],
            min(self.max_new_tokens, left),
            temperature=self.temperature,
            seed=self.seed + self.turn,
        )
        self.turn += 1
        written = str(self.model.tokenizer.decode(new, skip_special_tokens=True))
        if self.has_template:
            self.messages.append({"role": "assistant", "content": written})
        return written

    def _tokens(self, encoder: Encoder, text: str) -> list[int]:
        prompt: object = self.messages if self.has_template else text
        try:
            return encoder.prompt(Row("completion", {"prompt": prompt, "completion": ""}, {}, Origin("<chat>", None)))
        except RowError as error:
            self.reset()
            raise SettingError(
                "prompt", text[:60], f"cannot be put to the model: {error}", "write another one"
            ) from error

"""Combine models while they generate; the result is measured and talked with like a model, and has no weights."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from temper.core.files import write_json
from temper.decode.base import Decode
from temper.delta.lineage import COMBINATION_FILE
from temper.stages.base import Context, Outcome, Stage


class DecodeStage(Stage, name="decode"):
    """Combine what several models say of each next token."""

    example: ClassVar[dict[str, Any]] = {"method": "contrastive", "of": ["train", "base"]}

    method: Decode = Field(description="how they are combined")
    of: list[str] = Field(min_length=1, description="the stages (or `base`) whose models are combined, in order")

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        self.method.check(len(self.of))
        return self

    def models(self, previous: str) -> Sequence[str]:
        return list(dict.fromkeys(self.of))

    def stands(self, folder: Path, details: Mapping[str, Any]) -> bool:
        return (folder / COMBINATION_FILE).is_file()

    def run(self, context: Context, previous: str) -> Outcome:
        start = time.monotonic()
        names = list(self.models(previous))
        models = {name: context.load(name) for name in names}
        self.method.join([models[name] for name in self.of])  # they fit, or it is said now
        # Names may change with the recipe; their places among the stage's models do not.
        places = [names.index(name) for name in self.of]
        write_json(context.folder / COMBINATION_FILE, {"method": self.method.written(), "of": places})
        parameters = sum(parameter.numel() for model in models.values() for parameter in model.module.parameters())
        return Outcome(cost={"seconds": time.monotonic() - start}, details={"parameters": parameters})

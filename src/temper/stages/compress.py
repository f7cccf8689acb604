"""Make what a stage learned small; says how many bytes it took before and takes now."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field

from temper.compress.base import Compress
from temper.core.files import whole_folder
from temper.data.rows import Rows
from temper.data.source import Source
from temper.delta.base import Delta
from temper.engine.precision import best_device, hold_in
from temper.measure.base import Subject, Suite
from temper.models.load import save_model
from temper.models.model import HEAD, Model
from temper.stages.base import Context, Outcome, Stage, head_of
from temper.stages.changes import delta_since

BYTES_BEFORE = 2
"""of a number before: bf16 or fp16, as adapters and models are handed round"""


class CompressStage(Stage, name="compress"):
    """Make the change that a stage made, or its whole model, smaller."""

    example: ClassVar[dict[str, Any]] = {"method": "compeft"}

    method: Compress = Field(description="how it is made small")
    of: str | None = Field(None, description="the stage whose model is made small; the nearest before, if not given")
    since: str = Field("base", description="the stage (or `base`) that its change is relative to")

    def models(self, previous: str) -> Sequence[str]:
        # The start comes first: a change that is written is one to it.
        return list(dict.fromkeys([self.since, self.of or previous]))

    def prompt_length(self, lengths: Mapping[str, int], previous: str) -> int:
        return lengths[self.of or previous]

    def sources(self) -> Sequence[Source]:
        return self.method.sources()

    def run(self, context: Context, previous: str) -> Outcome:
        start = time.monotonic()
        original = StageOriginal(context, self.of or previous, self.since)
        made = self.method.build(original)
        place = "delta" if isinstance(made.result, Delta) else "model"
        with whole_folder(context.folder / place) as folder:
            if isinstance(made.result, Delta):
                made.result.save(folder)
            else:
                save_model(made.result, folder)
            num_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        if original.head is not None:
            shutil.copytree(original.head, context.folder / HEAD, dirs_exist_ok=True)
        before = BYTES_BEFORE * original.num_values
        context.say(f"{num_bytes:,} bytes, {before / num_bytes:.1f} times fewer than {before:,} in 16 bits")
        return Outcome(
            cost={"seconds": time.monotonic() - start},
            details={"bytes": num_bytes, "bytes_in_16_bits": before, "ratio": before / num_bytes, **made.details},
        )


class StageOriginal:
    """What a running stage makes small: `temper.compress.base.Original`."""

    def __init__(self, context: Context, stage: str, since: str) -> None:
        self.context, self.stage, self.since = context, stage, since
        self.seed, self.cache, self.on_bad_rows = context.seed, Path(context.cache), context.on_bad_rows

    @property
    def head(self) -> Path | None:
        """The head that was learnt with the change; it is kept as it is."""
        return head_of(self.context.artifact(self.stage))

    @cached_property
    def _change(self) -> Delta:
        return delta_since(self.context, self.stage, self.since)

    @cached_property
    def _start(self) -> Model:
        model = self._load_start()
        self.fingerprint, model.fingerprint = model.fingerprint, ""
        model.head = self.head
        hold_in(model, torch.float32)
        model.module.to(best_device())
        return model

    def _load_start(self) -> Model:
        return self.context.load(self.since)

    @property
    def num_values(self) -> int:
        """How many numbers the change holds."""
        return self._change.num_values

    def change(self) -> Delta:
        return self._change

    def load(self) -> Model:
        return self.context.load(self.stage)

    def score(self, suite: Suite, change: Delta) -> float:
        applied = change.apply(self._start)
        subject = Subject(self._start, base_fingerprint=self.fingerprint, load_base=self._load_start)
        score = suite.measure(subject, self.cache)
        applied.undo()
        return score.value if score.higher_is_better else -score.value

    def open(self, source: Source) -> Rows:
        return self.context.open(source)

    def say(self, text: str) -> None:
        self.context.say(text)

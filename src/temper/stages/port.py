"""Port a change: what one model learned, put onto another without training.

The result is a change to the stage that it is put onto, in the form in which it came: a low-rank one stays low-rank
and exports as an adapter.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, FiniteFloat, model_validator

from temper.core.errors import SettingError
from temper.core.files import whole_folder
from temper.core.hashing import hash_files, hash_json
from temper.delta.base import Delta, read_delta
from temper.delta.dense import DenseDelta
from temper.delta.lineage import trace
from temper.delta.port import port
from temper.stages.base import Context, Outcome, Stage, refuse_heads
from temper.stages.changes import delta_since


class Port(Stage, name="port"):
    """Add the change that one model went through to another of the same architecture.

        theta_new' = theta_new + s (theta_tuned - theta_old)

    The change is that of a stage (`of`, since the stage `since`), of a folder with an adapter or a delta, or the
    difference of two folders with models (`tuned` and `untuned`). `onto` has theta_new, `scale` is s. With the base
    pre-trained further as `onto`, it is a patch that follows its model (PortLLM); with the difference of an instruct
    model and its base, the instruction residual.

    Papers: Efficient Model Development through Fine-tuning Transfer, arXiv:2503.20110; PortLLM: Personalizing Evolving
    Large Language Models with Training-Free and Portable Model Patches, arXiv:2410.10870.
    """

    example: ClassVar[dict[str, Any]] = {"of": "train", "onto": "base"}

    of: str | None = Field(None, description="the stage whose change is taken")
    since: str = Field("base", description="the stage (or `base`) that the change of `of` is relative to")
    adapter: Path | None = Field(None, description="instead of `of`: folder of a PEFT adapter or of a stage's delta")
    tuned: Path | None = Field(None, description="instead of `of`: folder of a tuned model, beside `untuned`")
    untuned: Path | None = Field(None, description="folder of the model that `tuned` was made from")
    onto: str | None = Field(
        None, description="the stage (or `base`) that gets the change; the nearest model before, if not given"
    )
    scale: FiniteFloat = Field(1.0, description="s: factor of the change")

    @model_validator(mode="after")
    def _one_change(self) -> Self:
        given = [name for name in ("of", "adapter", "tuned") if getattr(self, name) is not None]
        if len(given) != 1:
            shown = " and ".join(given) or "nothing"
            raise SettingError("port", shown, "does not name one change", "give one of: of, adapter, tuned")
        if (self.tuned is None) != (self.untuned is None):
            raise SettingError("untuned", self.untuned, "does not go with `tuned`", "give both folders, or neither")
        if self.of is None and self.since != "base":
            raise SettingError("since", self.since, "has no effect without `of`", "take it out")
        return self

    def models(self, previous: str) -> Sequence[str]:
        onto = self.onto or previous
        return [onto] if self.of is None else list(dict.fromkeys([onto, self.of, self.since]))

    def prompt_length(self, lengths: Mapping[str, int], previous: str) -> int:
        moved = 0 if self.of is None else lengths[self.of] - lengths[self.since]
        return lengths[self.onto or previous] + moved

    def content(self) -> str:
        folders = [folder for folder in (self.adapter, self.tuned, self.untuned) if folder is not None]
        for folder in folders:
            if not folder.is_dir():
                raise SettingError("port", str(folder), "is no folder", "paths start at the folder of the run")
        files = [sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.json")) for folder in folders]
        return hash_json([hash_files(found) for found in files]) if folders else ""

    def run(self, context: Context, previous: str) -> Outcome:
        start = time.monotonic()
        onto = self.models(previous)[0]
        refuse_heads(context, self.models(previous), "port.of", "fits the hidden states of its own model alone")
        if self.of is not None and self.of in [stage for stage, _ in trace(onto, context.artifact).deltas]:
            raise SettingError("onto", onto, f"has the change of {self.of!r} already", "put it onto another stage")
        change = self._change(context)
        ported = port(change, context.load(onto), self.scale)
        with whole_folder(context.folder / "delta") as folder:
            ported.save(folder)
        context.say(f"ported a {ported.kind} change of {ported.num_values:,} values onto {onto}")
        return Outcome(
            cost={"seconds": time.monotonic() - start},
            details={"kind": ported.kind, "values": ported.num_values},
        )

    def _change(self, context: Context) -> Delta:
        if self.of is not None:
            return delta_since(context, self.of, self.since)
        if self.adapter is not None:
            return read_delta(self.adapter)
        assert self.tuned is not None and self.untuned is not None
        return DenseDelta.between(self.tuned, self.untuned)

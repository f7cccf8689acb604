"""Write a stage's model where other tools read it: a whole Hugging Face folder, or a PEFT adapter.

An adapter is relative to the recipe's base: the low-rank changes of all the stages on the way are stacked into one.
A head that a stage has learnt for labels lies beside the weights, in `head/`: other tools do not read it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from transformers import AutoTokenizer

from temper.core.errors import ModelError, SettingError
from temper.core.files import whole_folder, write_json
from temper.core.hashing import hash_files
from temper.delta.base import WEIGHTS_FILE, Delta
from temper.delta.dense import add
from temper.delta.lineage import trace
from temper.delta.low_rank import LowRankDelta
from temper.delta.prompt import PromptDelta
from temper.models.load import save_model
from temper.models.model import HEAD, Model
from temper.stages.base import Context, Outcome, Stage, head_of
from temper.stages.changes import Stages

Form = Literal["model", "adapter"]
Precision = Literal["float32", "bfloat16", "float16"]

MARK = "temper.json"
"""A folder with this file is Temper's own and may be replaced by a later export."""

TAKE_OFF = "train `with` the prompt, which takes it off, and export that stage"

PROBE = "Hello there, it's 2026:\n\tdef f(x): return x  # na\u00efve \u4f60\u597d"


class ExportStage(Stage, name="export"):
    """Write a stage's model as a Hugging Face folder or as a PEFT adapter."""

    produces: ClassVar[Literal["model", "data", "files"]] = "files"

    from_stage: str | None = Field(
        None, alias="from", description="the stage (or `base`) to export; by default the nearest one before"
    )
    form: Form = Field(
        "model", alias="as", description="`model`: whole weights; `adapter`: a PEFT adapter of the recipe's base"
    )
    dtype: Precision | None = Field(None, description="number format of the weights; by default as they are")
    to: Path | None = Field(None, description="folder to write; by default `export/` in the stage's own folder")

    def models(self, previous: str) -> Sequence[str]:
        return (self.from_stage or previous,)

    def stands(self, folder: Path, details: Mapping[str, Any]) -> bool:
        return _content(Path(details["to"])) == str(details["content"])

    def run(self, context: Context, previous: str) -> Outcome:
        start = time.monotonic()
        to = self.to or context.folder / "export"
        details = export(context, self.models(previous)[0], to, self.form, self.dtype)
        context.say(f"exported to {to}")
        warnings = details.pop("warnings")
        return Outcome(cost={"seconds": time.monotonic() - start}, details=details, warnings=warnings)


def export(
    stages: Stages, stage: str, to: Path, form: Form = "model", dtype: Precision | None = None
) -> dict[str, Any]:
    """Write the model of a finished stage into a folder, and return `form`, `to`, `parameters` and `warnings`.

    Args:
        stages: where the stages' models and folders are.
        stage: its name, or `base`.
        to: the folder; it appears whole or not at all, and replaces an earlier export.
        form: `model` (reads with transformers) or `adapter` (reads with PEFT, on the recipe's base).
        dtype: number format; as it is where None.

    Raises:
        SettingError: the folder holds something else, or the stage is no adapter.
        ModelError: a weight that the number format cannot hold.
    """
    to = to.expanduser().absolute()
    if to.exists() and not (to / MARK).is_file() and (not to.is_dir() or any(to.iterdir())):
        raise SettingError("to", str(to), "exists and is no export of Temper's", "choose another folder, or empty it")
    if form == "adapter":
        delta = stack_adapters(stages, stage)
        if dtype is not None:
            delta = delta.to(getattr(torch, dtype))
        with whole_folder(to) as folder:
            delta.save(folder)
            warnings = _take_head(stages, stage, folder)
        return {
            "form": form,
            "to": str(to),
            "content": _content(to),
            "parameters": delta.num_values,
            "warnings": warnings,
        }
    model = stages.load(stage)
    if model.prompts:
        reason = f"cannot hold {stage!r}: other tools would read its weights without its soft prompt"
        raise SettingError("as", "model", reason, f"export the prompt's own stage with as: adapter, or {TAKE_OFF}")
    fingerprint = model.fingerprint
    if dtype is not None:
        _cast(model, getattr(torch, dtype))
    with whole_folder(to) as folder:
        save_model(model, folder)
        write_json(folder / MARK, {"export": stage, "form": form, "dtype": dtype, "fingerprint": fingerprint})
        warnings = [*_tokenizer_warnings(model, folder), *_take_head(stages, stage, folder)]
    return {
        "form": form,
        "to": str(to),
        "content": _content(to),
        "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
        "warnings": warnings,
    }


def _content(folder: Path) -> str:
    """Name what an export holds by its mark and an adapter's weights; whole weights are named in the mark."""
    files = [folder / name for name in (MARK, WEIGHTS_FILE) if (folder / name).is_file()]
    return hash_files(files) if files else ""


def stack_adapters(stages: Stages, stage: str) -> LowRankDelta | PromptDelta:
    """Return a stage's whole change to the recipe's base as one low-rank delta, or as one soft prompt.

    Raises:
        SettingError: a stage on the way whose change is something else, or low-rank changes and prompts together.
    """
    fix = "export it with as: model"
    line = trace(stage, stages.artifact)
    if line.root is not None:
        reason = f"cannot hold {stage!r}: stage {line.whole!r} wrote whole weights, which no adapter can express"
        raise SettingError("as", "adapter", reason, fix)
    if not line.deltas:
        raise SettingError("as", "adapter", f"cannot hold {stage!r}: it is the base, without any change", fix)
    deltas: list[Delta] = []
    for name, written in line.deltas:
        delta = written.plain()
        if not isinstance(delta, LowRankDelta | PromptDelta):
            reason = f"cannot hold {stage!r}: the change of stage {name!r} is {delta.kind}, not low-rank"
            raise SettingError("as", "adapter", reason, fix)
        if deltas and type(delta) is not type(deltas[0]):
            reason = f"cannot hold {stage!r}: it is a soft prompt and a low-rank change, and an adapter is one of them"
            raise SettingError("as", "adapter", reason, TAKE_OFF)
        deltas.append(delta)
    total = add(*deltas)
    assert isinstance(total, LowRankDelta | PromptDelta)
    return total


def _cast(model: Model, dtype: torch.dtype) -> None:
    model.module.to(dtype)
    for name, parameter in model.module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(f"{name}: has values that {dtype} cannot hold; export with dtype: float32")


def _take_head(stages: Stages, stage: str, folder: Path) -> list[str]:
    """Write the head that a stage has learnt beside its weights, and say what it is."""
    head = head_of(stages.artifact(stage))
    if head is None:
        return []
    shutil.copytree(head, folder / HEAD)
    return [
        f"the head for labels lies in {HEAD}/ (head.safetensors: `weight`, labels x width, without bias; head.json: "
        "labels, pooling, and whether attention is causal); other tools load the model without it"
    ]


def _tokenizer_warnings(model: Model, folder: Path) -> list[str]:
    """Try what most readers do: for some families transformers takes the family's tokenizer, whatever is saved."""
    if AutoTokenizer.from_pretrained(folder)(PROBE)["input_ids"] == model.tokenizer(PROBE)["input_ids"]:
        return []
    return [
        "transformers' AutoTokenizer reads this folder's tokenizer as its family's own, which splits text otherwise; "
        "load it with PreTrainedTokenizerFast.from_pretrained"
    ]

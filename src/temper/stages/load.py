"""Bring another model into a recipe: to merge with, to port onto, to combine with, or to be compared with."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from temper.core.files import whole_folder
from temper.lab.bases import open_base
from temper.models.load import find_folder, fingerprint_folder, load_model, save_model
from temper.models.model import Model
from temper.stages.base import Context, Outcome, Stage

LAB = "lab:"


class Load(Stage, name="load"):
    """Take a model from a folder, the hub or the lab; writes whole weights."""

    example: ClassVar[dict[str, Any]] = {"path": "model"}

    path: str = Field(min_length=1, description="a model's folder, a hub id (owner/name), or lab:NAME")
    revision: str | None = Field(None, description="branch, tag or commit of a hub repository")

    def idle(self) -> dict[str, str]:
        return {"revision": "for a hub repository"} if self.path.startswith(LAB) else {}

    def models(self, previous: str) -> Sequence[str]:
        return ()

    def prompt_length(self, lengths: Mapping[str, int], previous: str) -> int:
        return 0

    def content(self) -> str:
        if self.path.startswith(LAB):
            return self._open().fingerprint
        return fingerprint_folder(find_folder(self.path, revision=self.revision))

    def run(self, context: Context, previous: str) -> Outcome:
        start = time.monotonic()
        model = self._open()
        with whole_folder(context.folder / "model") as folder:
            save_model(model, folder)
        parameters = sum(parameter.numel() for parameter in model.module.parameters())
        return Outcome(cost={"seconds": time.monotonic() - start}, details={"parameters": parameters})

    def _open(self) -> Model:
        if self.path.startswith(LAB):
            return open_base(self.path.removeprefix(LAB))
        return load_model(self.path, revision=self.revision)

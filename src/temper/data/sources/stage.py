"""The data that an earlier stage of the recipe made.

A stage that makes data writes `data.arrow` into its folder (`data.rows.write_file`). The pipeline, which alone
knows the folders, tells the source where its stage's is before it is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from temper.core.errors import SettingError
from temper.core.hashing import hash_file
from temper.data.rows import Rows
from temper.data.source import OnBadRows, Source, Split

DATA_FILE = "data.arrow"


class StageData(Source, name="stage"):
    """What an earlier stage of the same recipe made; written as that stage's name."""

    example: ClassVar[dict[str, Any]] = {"stage": "select"}

    stage: str = Field(description="the stage's name")
    folder: Path | None = Field(None, exclude=True, description="the stage's folder; set by the pipeline")

    @classmethod
    def shorthand(cls, rest: str) -> dict[str, object]:
        return {"stage": rest}

    @property
    def label(self) -> str:
        return self.stage

    def open(self, split: Split, cache: Path, on_bad_rows: OnBadRows = "stop") -> Rows:
        """Map the stage's rows; made data has no splits.

        Raises:
            SettingError: outside of a recipe, where no such stage has run.
        """
        return Rows.map_file(self._file(), self.fingerprint())

    def fingerprint(self) -> str:
        return hash_file(self._file())

    def _file(self) -> Path:
        if self.folder is None or not (self.folder / DATA_FILE).is_file():
            fix = "name a stage before this one that makes data, in the same recipe"
            raise SettingError("source", self.stage, "is the data of a stage that has not run", fix)
        return self.folder / DATA_FILE

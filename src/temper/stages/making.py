"""What stages share whose result is rows: where they lie, and which rows they start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from temper.core.errors import SettingError
from temper.core.hashing import hash_json
from temper.core.methods import Method
from temper.data.rows import Rows
from temper.data.source import Source
from temper.data.sources.stage import DATA_FILE
from temper.stages.base import Context, Stage


class MakesData(Stage):
    """A stage that leaves rows, which later stages read by its name."""

    produces: ClassVar[Literal["model", "data", "files"]] = "data"

    data: tuple[Source, ...] = Field(description="sources of the rows that it starts from", min_length=1)
    seed: int | None = Field(None, ge=0, lt=2**63, description="of this stage; the recipe's where not given")

    def sources(self) -> Sequence[Source]:
        return self.data

    def stands(self, folder: Path, details: Mapping[str, Any]) -> bool:
        return (folder / DATA_FILE).is_file()

    def seed_in(self, context: Context) -> int:
        """Return the seed that counts in a run."""
        return context.seed if self.seed is None else self.seed


def open_rows(context: Context, sources: Sequence[Source], method: Method, kind: str) -> tuple[list[Rows], Rows]:
    """Return the rows of each source, and all of them together.

    Args:
        method: what is to work with them.
        kind: of the stage, as it is written in a recipe.

    Raises:
        SettingError: no row at all, or rows of a format that the method does not take.
    """
    parts = [context.open(source) for source in sources]
    rows = Rows.concatenate(parts, hash_json([part.fingerprint for part in parts]))
    if len(rows) == 0:
        raise SettingError(f"{kind}.data", "", "holds no row", "look at the rows put aside, or name other data")
    wrong = set(rows.table.column("format").unique().to_pylist()) - (method.formats or frozenset())
    if wrong:
        known = ", ".join(sorted(method.formats or ()))
        reason = f"cannot work with rows of format {', '.join(sorted(wrong))}"
        raise SettingError(f"{kind}.method", method.method_name, reason, f"give it rows of {known}")
    return parts, rows

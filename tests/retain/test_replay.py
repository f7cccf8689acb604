"""Replay mixes exactly the share that it names, and it keeps what plain tuning loses."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from families import tiny
from temper.data.rows import Rows
from temper.data.source import Source
from temper.engine.fit import fit
from temper.engine.settings import FitSettings
from temper.retain.replay import Replay


def rows(letter: str, count: int, written: int = 1) -> Rows:
    """Rows whose completion has `written` letters, and so one supervised token more."""
    records = [{"prompt": letter * (1 + index % 5), "completion": letter.upper() * written} for index in range(count)]
    return Rows.from_list(records, "completion", letter, letter)


def test_one_source_or_many() -> None:
    one = Replay.model_validate({"of": "a.jsonl", "share": 0.2})
    many = Replay.model_validate({"of": ["a.jsonl", "lab/copy"], "share": 0.2})
    assert [source.label for source in one.shares()[0].sources] == ["a.jsonl"]
    assert [source.label for source in many.shares()[0].sources] == ["a.jsonl", "lab/copy"]
    assert one.shares()[0].share == 0.2
    for share in (0, 1, -0.1):
        with pytest.raises(ValidationError):
            Replay.model_validate({"of": "a.jsonl", "share": share})


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_share_of_every_batch_is_replayed(tmp_path: Path, share: float) -> None:
    opened: list[str] = []

    def open_source(source: Source) -> Rows:
        opened.append(source.label)
        return rows("b", 7, written=4)

    settings = FitSettings.model_validate(
        {"tune": "full", "retain": [{"replay": {"of": "old.jsonl", "share": share}}], "steps": 10, "batch_size": 8}
    )
    fitted = fit(tiny("llama"), rows("a", 30), settings, folder=tmp_path, open_source=open_source)
    assert opened == ["old.jsonl"]
    # Ten steps of eight examples; five supervised tokens in a replayed one, two in the others.
    assert fitted.cost["supervised_tokens"] == 80 * (share * 5 + (1 - share) * 2)


def test_shares_that_leave_no_room_are_refused() -> None:
    retain = [{"replay": {"of": name, "share": 0.5}} for name in ("old.jsonl", "older.jsonl")]
    with pytest.raises(ValidationError, match="add up to, which leaves no room"):
        FitSettings.model_validate({"retain": retain, "steps": 1})

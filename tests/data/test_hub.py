"""The source `hub` reads what the `datasets` library writes, as the file source reads the same rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import datasets
import pytest

from temper.core.errors import DataError, MissingExtra
from temper.data.source import Source

ROWS = [
    {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}], "task": "t", "n": n}
    for n in range(50)
]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    halves = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS[:40]), "held_out": datasets.Dataset.from_list(ROWS[40:])}
    )
    halves.save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_a_saved_folder(saved: Path, tmp_path: Path) -> None:
    source = Source.parse({"hub": {"path": str(saved), "test": "held_out"}})
    train, test = (source.open(split, tmp_path / "cache") for split in ("train", "test"))
    assert [{**row.content, **row.columns} for row in train] == ROWS[:40]
    assert [{**row.content, **row.columns} for row in test] == ROWS[40:]
    assert train.take([3])[0].origin.line == 4 and "[train]" in train.take([3])[0].origin.file
    assert source.fingerprint() == Source.parse({"hub": {"path": str(saved), "test": "held_out"}}).fingerprint()
    assert train.fingerprint != test.fingerprint
    with pytest.raises(DataError, match="has no split 'held-out'; did you mean 'held_out'"):
        Source.parse({"hub": {"path": str(saved), "test": "held-out"}}).open("test", tmp_path / "cache")


def test_a_single_data_set_and_its_share(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    source = Source.parse({"hub": {"path": str(tmp_path / "one"), "test_share": 0.3}})
    train, test = (source.open(split, tmp_path / "cache") for split in ("train", "test"))
    assert sorted([*(row.columns["n"] for row in train), *(row.columns["n"] for row in test)]) == list(range(50))


def test_an_id_goes_through_load_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder `owner/name` stands for the hub here: the library's own loader reads it, without a network."""
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    source = Source.parse("hub/owner/name")
    assert source.label == "hub/owner/name"
    assert [{**row.content, **row.columns} for row in source.open("train", tmp_path / "cache")] == ROWS
    with pytest.raises(DataError, match="cannot be loaded"):
        Source.parse("hub/owner/nothing").open("train", tmp_path / "cache")


def test_the_file_source_points_to_it(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"write \{hub: \{path: "):
        Source.parse(str(saved)).open("train", tmp_path / "cache")


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"hub.*needs datasets.*pip install 'temper-llm\[hub\]'"):
        Source.parse("hub/owner/name").open("train", tmp_path)

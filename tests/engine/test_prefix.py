"""What frozen blocks give, kept from one pass over the data to the next: the same training, computed once."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from families import FAMILIES, tiny
from temper.data.rows import Rows
from temper.data.stream import Budget
from temper.engine import prefix
from temper.engine.fit import fit
from temper.engine.loop import Loop, Validation, to_batches
from temper.engine.prefix import KeptPrefix
from temper.engine.settings import FitSettings
from training import examples, make_loop, trained, trained_with_a_break

MADE = examples((*range(3, 20), 40, 40, 41))
NUM_TOKENS = sum(example.num_tokens for example in MADE)
UPPER = {"lora": {"targets": ["1.*"], "rank": 3}}
CHOSEN: dict[str, Any] = {"made": MADE, "tune": UPPER, "num_steps": 14, "checkpoint_steps": 3}
"""four examples a step: five steps a pass, and nearly three passes"""


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def kept(loop: Loop) -> KeptPrefix:
    assert loop.prefix is not None
    return loop.prefix


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_same_training(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    plain = make_loop(tmp_path / "plain", tiny(family), dtype=dtype, **CHOSEN)
    keeping = make_loop(tmp_path / "kept", tiny(family), dtype=dtype, keep_frozen=True, **CHOSEN)
    expected, found = trained(plain), trained(keeping)
    assert plain.prefix is None and plain.num_frozen == keeping.num_frozen == 1
    assert kept(keeping).computed == NUM_TOKENS, "each document once"
    assert kept(keeping).read == keeping.totals["tokens"] - NUM_TOKENS > NUM_TOKENS
    # What a product gives of a document differs by what lies beside it, in its last bits; in the first pass nothing is
    # read back.
    before, after = losses(tmp_path / "plain"), losses(tmp_path / "kept")
    assert before[:5] == after[:5]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert after == pytest.approx(before, rel=tolerance)
    for name, value in expected.items():
        # Adam's step of a gradient near zero is of a size of its own.
        torch.testing.assert_close(
            found[name], value, rtol=0.1, atol=14 * 3e-3 * (0.05 if dtype == torch.float32 else 1)
        )


@pytest.mark.parametrize("stop", [2, 4, 7, 10])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, stop: int) -> None:
    chosen = {**CHOSEN, "keep_frozen": True, "dtype": torch.bfloat16, "micro_tokens": 50}
    expected = trained(make_loop(tmp_path / "whole", **chosen))
    found = trained_with_a_break(tmp_path / "cut", stop, **chosen)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_stage_that_begins_anew_reads_nothing_of_the_one_before(tmp_path: Path) -> None:
    other = tiny("llama", seed=5)
    first = make_loop(tmp_path, other, **{**CHOSEN, "checkpoint_steps": 100}, keep_frozen=True)
    first.run()
    again = make_loop(tmp_path, **{**CHOSEN, "checkpoint_steps": 100}, keep_frozen=True)
    again.run()
    assert kept(again).computed == NUM_TOKENS
    assert losses(tmp_path)[-14:] == losses_of(make_loop(tmp_path / "alone", **CHOSEN, keep_frozen=True))


def losses_of(loop: Loop) -> list[float]:
    loop.run()
    return losses(loop.folder)


@pytest.mark.parametrize("stop", [None, 2, 6, 9])
def test_what_has_no_room_is_computed_each_time(
    tmp_path: Path, stop: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = losses_of(make_loop(tmp_path / "plain", **CHOSEN))
    monkeypatch.setattr(prefix, "_MIB", NUM_TOKENS * 48 * 4 // 2)  # half of it
    monkeypatch.setattr(prefix, "SHARE_OF_DISK", 1e-30)  # that is: 1 of these
    loop = make_loop(tmp_path / "little", **CHOSEN, keep_frozen=True)
    assert losses_of(loop) == pytest.approx(expected, rel=1e-5)
    assert NUM_TOKENS < kept(loop).computed < 2.4 * NUM_TOKENS and kept(loop).read > 0
    assert not kept(loop).store.warnings and not kept(loop).store.takes_all
    if stop is not None:  # what was refused is refused again, whatever came after it
        trained_with_a_break(tmp_path / "cut", stop, **CHOSEN, keep_frozen=True)
        assert losses(tmp_path / "cut") == losses(tmp_path / "little")


FAILURES = {
    "a full disk": ("PRAGMA max_page_count = 8", None, "database or disk is full; no more of what frozen blocks give"),
    "a document that is too long": (None, 5000, "string or blob too big; no more of what frozen blocks give is kept"),
    "a file that cannot be read": ("DROP TABLE kept", None, "no such table: kept; what frozen blocks give is computed"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_fails_ends_the_keeping_and_not_the_training(tmp_path: Path, name: str) -> None:
    order, longest, told = FAILURES[name]
    loop = make_loop(tmp_path, **CHOSEN, keep_frozen=True)
    keep = loop._keep_frozen

    def with_a_failure() -> None:
        keep()
        database = kept(loop).store._database
        assert database is not None
        if longest is not None:
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)
        kept(loop).store.clear = lambda: database.execute(order or "SELECT 1")  # type: ignore[assignment, method-assign]

    loop._keep_frozen = with_a_failure  # type: ignore[method-assign]
    loop.run()
    (warning,) = kept(loop).store.warnings
    assert f"prefix.sqlite: {told}" in warning
    assert losses(tmp_path) == pytest.approx(losses_of(make_loop(tmp_path / "plain", **CHOSEN)), rel=1e-5)


def test_a_damaged_file_is_begun_anew_and_told(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):  # the run ends, and leaves its file
        make_loop(tmp_path, **CHOSEN, keep_frozen=True, on_step=lambda metrics: _stop_after(metrics, 7)).run()
    (file,) = tmp_path.rglob("*.sqlite")
    for path in file.parent.glob(f"{file.name}-*"):
        path.unlink()
    file.write_bytes(b"no database" * 1000)
    loop = make_loop(tmp_path, **CHOSEN, keep_frozen=True)
    loop.run()
    (warning,) = kept(loop).store.warnings
    assert "file is not a database; it is begun anew, and last bits may be other ones than before" in warning
    assert kept(loop).computed > 0
    assert losses(tmp_path) == pytest.approx(losses_of(make_loop(tmp_path / "plain", **CHOSEN)), rel=1e-5)


def _stop_after(metrics: dict[str, float], step: int) -> None:
    assert metrics["step"] < step


def test_a_file_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, **CHOSEN, keep_frozen=True)
    (tmp_path / "checkpoints" / prefix.NAME).mkdir(parents=True)
    loop.run()
    (warning,) = kept(loop).store.warnings
    assert "unable to open database file; what frozen blocks give is computed again" in warning


def test_rows_held_out_are_read_back_too(tmp_path: Path) -> None:
    held_out = to_batches(examples((9, 9, 12), seed=5), 64)
    chosen = {**CHOSEN, "validation": Validation(held_out, 2)}
    loop = make_loop(tmp_path / "kept", **chosen, keep_frozen=True)
    loop.run()
    assert kept(loop).computed == NUM_TOKENS + 30
    plain = make_loop(tmp_path / "plain", **chosen)
    assert plain.run()["best_validation_loss"] == pytest.approx(loop.totals["best_validation_loss"], rel=1e-5)


@pytest.mark.parametrize(
    "written",
    [
        {"tune": "lora"},
        {"tune": {"lisa": {"blocks": 1, "every_steps": 2}}},
        {"keep_frozen": False},
        {"one_pass": True},
        {"num_steps": 5},
        {"objective": "masked_thought"},
    ],
    ids=str,
)
def test_nothing_is_kept_that_is_not_read_again_or_is_not_the_same(tmp_path: Path, written: dict[str, Any]) -> None:
    chosen = {**CHOSEN, "keep_frozen": True, **written}
    is_one_pass = chosen.pop("one_pass", False)
    loop = make_loop(tmp_path, **chosen)
    if is_one_pass:
        loop.steps.budget = Budget(epochs=1)
    loop.run()
    assert loop.prefix is None and not list(tmp_path.rglob("*.sqlite"))


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_are_those_that_are_done(tmp_path: Path, family: str) -> None:
    """Of two blocks one is frozen: a pass that finds it kept has a forward pass less, and none has its backward."""
    model = tiny(family)
    loop = make_loop(tmp_path, model, **{**CHOSEN, "num_steps": 10}, keep_frozen=True)
    with FlopCounterMode(display=False) as counter:
        totals = loop.run()
    # The first run counts what is tried, too: some tokens. Torch counts the adapters' products, and not causality.
    counted = counter.get_total_flops()
    assert totals["flops"] == pytest.approx(counted, rel=0.25)
    batches = to_batches(MADE, 8192)
    spared = sum(loop.flops._spared(batch) for batch in batches)
    without = make_loop(tmp_path / "plain", tiny(family), **{**CHOSEN, "num_steps": 10}).run()["flops"]
    assert without - totals["flops"] == pytest.approx(spared)
    assert 0.1 < spared / without < 0.3


def test_blocks_that_are_held_packed_are_kept_as_they_compute(tmp_path: Path) -> None:
    records = [{"prompt": "ab" * (1 + number % 7), "completion": "cd" * (1 + number % 5)} for number in range(20)]
    found = []
    for keep in (True, False):
        chosen = FitSettings.model_validate(
            {"tune": UPPER, "hold": "nf4", "epochs": 3, "batch_size": 4, "lr": 3e-3, "precision": "bf16",
             "max_length": 64, "keep_frozen": keep}
        )  # fmt: skip
        rows = Rows.from_list(records, "completion", "made", "made.jsonl")
        done = fit(tiny("llama"), rows, chosen, folder=tmp_path / str(keep))
        assert ("kept" in done.details) == keep
        found.append(losses(tmp_path / str(keep)))
    assert found[0][:5] == found[1][:5] and found[0] == pytest.approx(found[1], rel=2e-2)


def test_a_file_that_once_refused_refuses_until_the_stage_begins_anew(tmp_path: Path) -> None:
    """Or else what is there would hang on where a run was stopped."""
    file, large, small = tmp_path / "kept", {b"large": bytes(100)}, {b"small": bytes(10)}
    store = prefix._Store(file)
    store._room = 50
    store.write(small)
    store.write(large)
    assert not store.takes_all and [name for name, _ in store.read([b"small", b"large"])] == [b"small"]
    store.close()
    again = prefix._Store(file)
    again.write({b"other": bytes(1)})
    assert not again.takes_all and not again.read([b"other"])
    again.clear()
    again.write(large)
    assert again.takes_all and dict(again.read([b"small", b"large"])) == large and not again.warnings

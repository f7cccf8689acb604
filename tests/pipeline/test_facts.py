"""What was tried and measured of methods comes from files alone, and stands on their pages in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from temper.core.errors import DataError
from temper.pipeline.facts import Facts
from temper.pipeline.probe import Trial, write_combinations

KNOWN = ("tune/lisa", "tune/lora", "retain/a", "retain/b", "retain/c", "mix/x", "mix/y", "optimizer/only")
TRIALS = (
    Trial(("tune/lisa",), "works"),
    Trial(("mix/y",), "untried", "its weights has no default"),
    Trial(("retain/a", "tune/lisa"), "works"),
    Trial(("retain/b", "tune/lisa"), "refused", "lora: adds; take another"),
    Trial(("retain/c", "tune/lisa"), "refused", "lora: adds; take another"),
    Trial(("retain/a", "tune/lora"), "works"),
    Trial(("mix/x", "tune/lisa"), "works"),
    Trial(("mix/y", "tune/lisa"), "works"),
    Trial(("init/a", "tune/lisa"), "exclusive", "both stand at train.tune: init only in lora"),
    Trial(("optimizer/only", "tune/lisa"), "defect", "ZeroDivisionError: division by zero"),
)


def study(**changes: Any) -> dict[str, Any]:
    contrast = {"name": "it learns", "of": "lisa", "against": "base", "expected": "below"}
    control = {"name": "twice the same", "of": "again", "against": "lisa", "expected": "none"}
    return {
        "method": "tune/lisa",
        "claim": "It learns (arXiv:2403.17919).",
        "finding": "It did.",
        "unit": "loss in nats",
        "arms": {"lisa": [1.0, 1.5], "base": [6.0, 6.1], "again": [1.0, 1.5]},
        "contrasts": [
            {**contrast, "mean": -4.8123, "low": -5.1, "high": -4.5, "verdict": "shown"},
            {**control, "mean": 0.0, "low": -0.1, "high": 0.1, "verdict": "shown"},
        ],
        "seconds": 46.2,
        **changes,
    }


def write_study(folder: Path, of: str, **changes: Any) -> Path:
    file = folder / "effects" / f"{of}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(study(**changes)), encoding="utf-8")
    return file


def test_a_line_for_each_axis_says_what_combines_and_why_not(tmp_path: Path) -> None:
    write_combinations(TRIALS, tmp_path / "combinations.md")
    facts = Facts.read(tmp_path, KNOWN)
    assert facts.combines("tune/lisa") == [
        "init: none; excludes `a` (both stand at train.tune: init only in lora)",
        "mix: all 2",
        "optimizer: none; fails with `only` (ZeroDivisionError: division by zero)",
        "retain: `a`; not with `b`, `c` (lora: adds; take another)",
    ]
    assert facts.combines("tune/lora") == ["retain: `a`"]
    assert facts.combines("mix/y") == ["by itself: untried: its weights has no default", "tune: `lisa`"]
    assert facts.combines("retain/nobody") == []


def test_an_effect_is_a_table_with_claim_and_finding(tmp_path: Path) -> None:
    write_study(tmp_path, "tune/lisa", also=["tune/lora"])
    facts = Facts.read(tmp_path, KNOWN)
    claim, measured, table, finding = facts.effects("tune/lisa")
    assert claim == "**Claim:** It learns (arXiv:2403.17919)." and finding == "It did."
    assert measured == "Measured on the lab's models, 2 seeds: loss in nats."
    assert "| it learns | lisa - base | below | -4.81 | -5.1 to -4.5 | shown |" in table
    assert "| twice the same | again - lisa | none (control) | 0 | -0.1 to 0.1 | shown |" in table
    assert facts.effects("tune/lora") == facts.effects("tune/lisa") and facts.effects("mix/x") == []


def test_where_nothing_was_tried_or_measured_nothing_is_said(tmp_path: Path) -> None:
    facts = Facts.read(tmp_path / "nowhere", KNOWN)
    assert facts == Facts() and facts.combines("tune/lisa") == facts.effects("tune/lisa") == []


@pytest.mark.parametrize(
    ("of", "changes", "reason"),
    [
        ("tune/lora", {}, "is a study of 'tune/lisa'; call it tune/lisa.json"),
        ("tune/lissa", {"method": "tune/lissa"}, "is no method; did you mean 'tune/lisa'"),
        ("tune/lisa", {"also": ["mix/z"]}, "is a study of 'mix/z', which is no method"),
        ("tune/lisa", {"claim": None}, "is no study: .*claim"),
    ],
)
def test_a_study_that_cannot_be_used_is_an_error(of: str, changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    file = write_study(tmp_path, of, **changes)
    with pytest.raises(DataError, match=reason) as caught:
        Facts.read(tmp_path, KNOWN)
    assert caught.value.file == str(file)

"""A comparison's page, table and pictures: nothing is covered, cut off, or taken for markup."""

from __future__ import annotations

import io
import random
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from temper.core.errors import DataError
from temper.report.comparison import View, markdown, print_comparison, read_comparison, write_comparison
from temper.report.scatter import BOLDER, FONT, NARROW, WIDE, Axis, Extent, Point, place_names, scatter

WILD = '<b onclick="x">&|wild'
COSTS = ("seconds", "memory_bytes", "peak_memory_bytes", "trained", "delta_bytes", "tokens", "steps", "flops")


def a_record(num: int = 12, with_intervals: bool = True) -> dict[str, Any]:
    numbers = random.Random(0)

    def mean(value: float) -> dict[str, float | None]:
        half = 0.02 if with_intervals else None
        ends = (None, None) if half is None else (value - half, value + half)
        return {"value": value, "low": ends[0], "high": ends[1]}

    def setting(place: int) -> dict[str, Any]:
        means = {name: mean(1 + numbers.random()) for name in ("gain", "loss", "worst", *COSTS)}
        front = ["loss", "time"] if place < 2 else []
        own = {"label": f"lora (rank {place})", "problem": "", "lr": [4e-3], "is_at_edge": place == 0, "num_failed": 0}
        return {**own, "values": {}, "overrides": [], "runs": [{}, {}], "search": [], "front": front, "mean": means}

    broken = {**setting(99), "label": WILD, "problem": WILD, "mean": dict.fromkeys(setting(99)["mean"])}
    role = {"unit": "share", "metric": "exact match", "suites": ["lab/copy"], "others": []}
    plan = {"seeds": 2, "jobs": 1, "lr_search": {"num": 3}, "budget": {"tokens": 2_000_000, "steps": None}}
    return {
        "name": "mine",
        "command": "temper compare mine.yaml",
        "started": "2026-11-21T14:00:00+00:00",
        "finished": "2026-11-21T14:10:00+00:00",
        "compare": plan,
        "roles": {"gain": role, "keep": role},
        "ways": [{"jobs": 1, "threads": 2, "processor": "a processor"}],
        "settings": [*(setting(place) for place in range(num)), broken],
    }


def test_times_are_said_to_compare_only_where_runs_were_made_alike() -> None:
    record = a_record()
    said = " ".join(View(record).notes)
    assert "not of measuring; 1 run at a time, each with 2 threads on a processor." in said
    record["ways"].append({"jobs": 4, "threads": 1, "processor": "a processor"})
    assert "and does not compare: 1 run at a time, each with 2 threads on a processor; 4 runs" in " ".join(
        View(record).notes
    )


def test_what_some_runs_warned_of_and_others_did_not_is_said_with_their_numbers() -> None:
    """That galore projected nothing, for instance, and not what a base says in every run."""
    record = a_record(3)
    for setting in record["settings"][:3]:
        setting["runs"] = [{"warnings": ["of the base"]}, {"warnings": ["of the base"]}]
    for setting in record["settings"][:2]:
        setting["runs"][1]["warnings"].append("projected nothing")
    view = View(record)
    numbers = [str(row.number) for row in view.compared if row.label in ("lora (rank 0)", "lora (rank 1)")]
    assert view.notes[-1] == f"{' and '.join(numbers)}: projected nothing"
    assert not any("of the base" in note for note in view.notes)


def test_settings_are_ordered_by_gain_and_numbered_alike_everywhere(tmp_path: Path) -> None:
    record = a_record()
    view = View(record)
    gains = [row.means["gain"].value for row in view.compared if row.means["gain"] is not None]
    assert gains == sorted(gains, reverse=True) and [row.number for row in view.rows] == list(range(1, 14))
    assert [row.label for row in view.refused] == [WILD]
    for price in ("loss", "memory", "time"):
        assert {(point.name, point.number) for point in view.points(price)[0]} == {
            (row.label, row.number) for row in view.compared
        }
    cells = view.cells(view.compared[0])
    assert cells[3] == f"{100 * gains[0]:.1f} ± 2.0" and len(cells) == len(view.columns)
    assert any(view.cells(row)[2] == "● LT" for row in view.compared)
    assert any(view.cells(row)[7] == "0.004*" for row in view.compared)


def test_files_are_whole_and_no_text_is_markup(tmp_path: Path) -> None:
    write_comparison(tmp_path, a_record())
    page = (tmp_path / "compare.html").read_text()
    assert WILD not in page and "&lt;b onclick" in page and page.count('<svg class="chart scatter') == 6
    for name in ("gain-loss.svg", "gain-memory.svg", "gain-time.svg"):
        ElementTree.parse(tmp_path / name)
    lines = [line for line in (tmp_path / "compare.md").read_text().splitlines() if line.startswith("| ")]
    assert len(lines) == 14 and {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {12}
    assert "2,000,000 tokens each, 2 seeds, after a search of 3 learning rates" in markdown(View(a_record()))
    with pytest.raises(DataError, match=r"compare\.json: is not there"):
        read_comparison(tmp_path)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_terminal_shows_what_fits(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as captured:
        print_comparison(a_record(), console)
    text = captured.get()
    assert all(len(line) <= width for line in text.splitlines())
    assert "cannot:" in text and ("on disk" in text) == (width == 200)
    head = next(line for line in text.splitlines() if "setting" in line)
    assert "gain, points" in head and "loss, points" in head, "no name of a column is broken"


def test_one_seed_has_no_cross() -> None:
    one = View(a_record(with_intervals=False))
    assert "±" not in "".join(one.cells(one.compared[0])) and '"cross' not in one.picture("loss", is_wide=True)
    assert '"cross' in View(a_record()).picture("loss", is_wide=True)


def test_a_name_runs_away_from_its_point_where_a_font_is_wider_than_thought() -> None:
    middle = Extent(5.0)
    points = [Point("left", 1, Extent(0.0), middle, False), Point("right", 2, Extent(10.0), middle, False)]
    root = ElementTree.fromstring(scatter("both", points, Axis("x"), Axis("y"), is_wide=True))
    first = min(float(circle.attrib["cx"]) for circle in root.iter("circle"))
    name = next(text.attrib for text in root.iter("text") if text.text == "left")
    assert name["text-anchor"] == "start" and float(name["x"]) > first


@settings(max_examples=20)
@given(st.integers(1, 26), st.integers(0, 10**6), st.booleans())
@example(25, 3885, True)  # so crowded a corner that no place around a point was free
def test_names_cover_no_name_and_stay_in_the_frame(num: int, seed: int, is_wide: bool) -> None:
    """However the points lie: here half of them in a corner, as when many settings reach everything."""
    numbers = random.Random(seed)
    frame = (46.0, 12.0, *((WIDE[0] - 12.0, WIDE[1] - 40.0) if is_wide else (NARROW[0] - 12.0, NARROW[1] - 40.0)))
    spread = [1.0 if place % 2 else 0.08 for place in range(num)]
    points = [
        (frame[0] + part * numbers.random() * (frame[2] - frame[0]), frame[1] + part * numbers.random() * 200)
        for part in spread
    ]
    texts = [f"lora (rank {place})" if is_wide else str(place) for place in range(num)]
    boxes = place_names(texts, points, points, frame)
    for text, box in zip(texts, boxes, strict=True):
        assert box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3], text
        assert box[3] - box[1] >= FONT and BOLDER >= 1
    pairs = [(one, other) for place, one in enumerate(boxes) for other in boxes[:place]]
    assert not [
        pair
        for pair in pairs
        if pair[0][0] < pair[1][2] and pair[1][0] < pair[0][2] and pair[0][1] < pair[1][3] and pair[1][1] < pair[0][3]
    ]


def test_a_scale_follows_the_points_and_a_wide_interval_ends_at_the_frame() -> None:
    points = [
        Point("near", 1, Extent(1.0, 0.9, 1.1), Extent(0.5, 0.4, 0.6), True),
        Point("far", 2, Extent(2.0, -900.0, 900.0), Extent(0.7, 0.6, 0.8), True),
    ]
    drawn = scatter("t", points, Axis("x"), Axis("y"), is_wide=True)
    places = [float(x) for x in re.findall(r'<circle class="point front" cx="([\d.]+)"', drawn)]
    assert max(places) - min(places) > 300
    ends = [float(x) for pair in re.findall(r'class="cross front" d="M([\d.]+) [\d.]+H([\d.]+)', drawn) for x in pair]
    assert all(46 <= end <= WIDE[0] - 12 for end in ends)
    assert "nothing to draw" in scatter("t", [], Axis("x"), Axis("y"), is_wide=True)
    assert scatter("t", points[:1], Axis("x"), Axis("y"), is_wide=False)

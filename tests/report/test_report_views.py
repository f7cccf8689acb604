"""What the page and the terminal say, held against a run whose numbers are known."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from report.fake_run import write_run
from temper.core.errors import DataError
from temper.report import format as fmt
from temper.report import print_table
from temper.report.curves import stage_panels
from temper.report.graph import Node, draw, ranks
from temper.report.read import clean, read_run
from temper.report.views import cost_rows, describe_stage, gain_table, headline, sample_groups


@pytest.mark.parametrize(
    ("value", "unit", "signed", "text"),
    [
        (0.942, "share", False, "94.2"),
        (-0.031, "share", True, "−3.1"),  # noqa: RUF001
        (0.5, "share", True, "+50.0"),
        (-0.00001, "share", True, "0.0"),
        (14.156, "perplexity", False, "14.16"),
        (123456.7, "perplexity", False, "123,457"),
        (1e12, "perplexity", False, "1e+12"),
        (2.3456, "nats per token", False, "2.346"),
        (0.000123461, "number", False, "0.0001235"),
        (1234.5, "number", False, "1,234"),
        (1e-9, "number", False, "1e-09"),
        (None, "share", True, "–"),  # noqa: RUF001
        (float("nan"), "share", True, "not a number"),
        (float("-inf"), "number", True, "−∞"),  # noqa: RUF001
    ],
)
def test_numbers(value: float | None, unit: str, signed: bool, text: str) -> None:
    assert fmt.number(value, unit, signed=signed) == text


def test_amounts() -> None:
    assert fmt.count(1234567.0) == "1,234,567" and fmt.count(None) == fmt.MISSING
    assert fmt.flops(3.21e12) == "3.21 TFLOP" and fmt.flops(12.0) == "12 FLOP"
    assert fmt.size(1.3 * 2**30) == "1.3 GiB" and fmt.size(1000 * 2**20) == "1,000 MiB"
    assert fmt.duration(3.25) == "3.2 s" and fmt.duration(59.7) == "1 min" and fmt.duration(192) == "3 min 12 s"
    assert fmt.duration(7260) == "2 h 1 min" and fmt.duration(float("nan")) == fmt.MISSING
    assert fmt.share(65_536, 1_312_384) == "4.99 %" and fmt.share(1, 0) == fmt.MISSING
    assert fmt.moment("2025-11-21T09:14:03+00:00") == "21 November 2025, 09:14 UTC" and fmt.moment("soon") == "soon"
    assert fmt.method({"lora": {"rank": 8, "init": None, "alpha": 16.0}}) == "lora (rank 8, alpha 16)"


def test_table_holds_the_numbers_of_the_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path))
    table = gain_table(run)
    assert [row.name for row in table.rows] == ["base", "few-shot", "adapt", "recall", "polish", "release"]
    assert [suite.role for suite in table.suites] == ["gain", "gain", "keep", "keep", "keep"]
    written = json.loads(next(tmp_path.glob("stage1-*/measure.json")).read_text())["suites"]["lab/copy"]
    cell = table.rows[3].cells["lab/copy"]
    assert cell.suite is not None and cell.base is not None and cell.previous is not None
    assert cell.suite.value == written["value"]
    assert cell.base.negative_flips == written["changes"]["base"]["negative_flips"]
    assert cell.previous.difference == written["changes"]["previous"]["difference"]
    first = table.rows[2].cells["lab/copy"]
    assert first.base is not None and first.previous is None, "the stage before adapt is the base itself"
    assert headline(table).startswith("release against the base: of 2 suites to gain, 2 better; of 3 suites to keep")


def test_costs_add_up(tmp_path: Path) -> None:
    rows = cost_rows(read_run(write_run(tmp_path, num_steps=50)))
    *parts, total = rows
    assert [row.name for row in parts] == ["base", "adapt", "recall", "polish", "release"]
    assert total.steps == 150 and total.tokens == 3 * 50 * 2048
    assert total.seconds == pytest.approx(41.7 + 42.7 + 43.7 + 0.8)
    assert total.measure_seconds == pytest.approx(11.2 + 4 * 6.4)
    assert total.peak_memory_bytes == 412_000_000


def test_lost_samples_come_first_and_do_not_crowd_out_the_others(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    for path in [*folder.glob("base-*/measure.json"), *folder.glob("stage*/measure.json")]:
        measured = json.loads(path.read_text())
        for index, sample in enumerate(measured["suites"]["lab/copy"]["samples"]):
            is_base = path.parent.name.startswith("base")
            sample["score"] = float(is_base) if index < 8 else 1.0
        path.write_text(json.dumps(measured))
    run = read_run(folder)
    group = next(group for group in sample_groups(run, gain_table(run)) if group.suite.label == "lab/copy")
    assert [sample.flip for sample in group.samples] == ["lost", "lost", "lost", "", "", ""]
    assert group.num_left_out == 6
    assert [answer.name for answer in group.samples[0].answers] == ["base", "adapt", "recall", "polish", "release"]


def test_half_written_lines_and_repeated_steps(tmp_path: Path) -> None:
    folder = write_run(tmp_path, num_steps=6)
    path = next(folder.glob("stage0-*/metrics.jsonl"))
    lines = path.read_text().splitlines()
    redone = {**json.loads(lines[4]), "loss": 7.25}
    path.write_text("\n".join([*lines[:5], json.dumps(redone), lines[5], '{"step": 7, "lo']))
    metrics = read_run(folder).stages[0].metrics
    assert metrics["step"] == [1, 2, 3, 4, 5, 6]
    assert metrics["loss"][4] == 7.25


def test_states_of_an_unfinished_run(tmp_path: Path) -> None:
    failed = read_run(write_run(tmp_path / "failed", variant="failed"))
    assert [stage.status for stage in failed.stages] == ["done", "failed", "not started", "not started"]
    assert not failed.is_complete and "loss is nan" in failed.error
    record = next((tmp_path / "failed").glob("stage1-*/stage.json"))
    record.write_text(json.dumps({**json.loads(record.read_text()), "status": "running"}))
    assert read_run(tmp_path / "failed").stages[1].status == "stopped", "a killed stage still says that it runs"
    started = read_run(write_run(tmp_path / "started", variant="started"))
    assert {stage.status for stage in started.stages} == {"not started"}
    assert headline(gain_table(started)) == ""


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run\.json"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text('{"name": ')
    with pytest.raises(DataError, match="not JSON"):
        read_run(tmp_path)


@given(
    st.recursive(st.text(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
)
def test_every_text_can_be_written_and_seen(value: object) -> None:
    text = json.dumps(clean(value), ensure_ascii=False)
    text.encode("utf-8")
    assert not any(ord(letter) < 0x20 or 0x202A <= ord(letter) <= 0x202E for letter in text)


def test_control_characters_are_spelled() -> None:
    assert clean("a\x00\x1b[31m\n\tb\u202e\ud800é\U0001f9ea") == "a\\x00\\x1b[31m\n\tb\\u202e\\ud800é\U0001f9ea"


def test_rank_is_the_longest_way_and_the_picture_names_every_stage() -> None:
    nodes = [
        Node("base", "base", "done", ("lab:tiny",)),
        Node("a", "train", "done", ("lora (rank 8)",), ("base",)),
        Node("b", "train", "done", ("full",), ("base",)),
        Node("c", "train", "failed", ("full",), ("a",), ("b",)),
        Node("m", "merge", "not started", (), ("base", "b", "c")),
    ]
    assert ranks(nodes) == {"base": 0, "a": 1, "b": 1, "c": 2, "m": 3}
    for shape in ("wide", "tall", "narrow"):
        svg = draw(nodes, shape)
        assert svg.count('class="edge model"') == 6 and svg.count('class="edge data"') == 1
        assert all(f">{node.name}</text>" in svg for node in nodes)


def test_stage_in_short_lines(tmp_path: Path) -> None:
    stages = read_run(write_run(tmp_path)).stages
    assert describe_stage(stages[1]) == [
        "full",
        "sft, adamw, lr 0.001, 3 epochs",
        "retain replay (of lab (skill copy), share 0.1)",
        "data lab/double, lab/copy",
    ]


def printed(folder: Path, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as captured:
        print_table(folder, console)
    return captured.get()


@pytest.mark.parametrize("name", ["release", "adapt_to_customer_support"])
def test_no_width_cuts_a_number(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path)
    for path in [folder / "run.json", *folder.glob("*/stage.json")]:
        path.write_text(path.read_text().replace('"adapt"', f'"{name}"'))
    rows = gain_table(read_run(folder)).rows
    cells = [cell for row in rows for cell in row.cells.values() if cell.suite is not None and cell.base is not None]
    shown = [f"{fmt.number(cell.base.difference, cell.suite.unit, signed=True)}{cell.base.verdict}" for cell in cells]
    for width in range(30, 140):
        text = "".join(printed(folder, width).split())
        assert [part for part in shown if part.replace(" ", "") not in text] == [], width


def test_terminal_table_and_list_show_the_same_numbers(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    run = read_run(folder)
    wide, narrow = printed(folder, 160), printed(folder, 40)
    assert "─" in wide and "─" not in narrow
    for text in (wide, narrow):
        assert max(map(len, text.splitlines())) <= (160 if text is wide else 40)
        for row in gain_table(run).rows:
            assert row.name in text
            for label in ("lab/reverse", "lab/copy"):
                cell = row.cells[label]
                assert cell.suite is not None
                assert fmt.number(cell.suite.value, "share") in text
                if cell.base is not None:
                    assert f"{fmt.number(cell.base.difference, 'share', signed=True)} {cell.base.verdict}" in text
    assert "nothing is measured yet" in printed(write_run(tmp_path / "started", variant="started"), 80)


@pytest.mark.parametrize("width", [30, 80, 132, 250])
def test_twenty_suites_and_nasty_names_stay_within_the_terminal(tmp_path: Path, width: int) -> None:
    for variant in ("wide", "wild"):
        folder = write_run(tmp_path / variant, variant=variant, num_suites=20, num_stages=8, num_steps=5)
        text = printed(folder, width)
        assert max(map(len, text.splitlines())) <= width
        assert "\x1b" not in text


def test_speed_is_of_each_step_and_charts_are_named(tmp_path: Path) -> None:
    metrics: dict[str, list[float | None]] = {
        "step": [1, 2, 3, 4],
        "loss": [4.0, 3.0, 2.0, 1.0],
        "validation_loss": [None, 3.5, None, 1.5],
        "tokens": [100, 300, 500, 700],
        "seconds": [1.0, 2.0, 4.0, 4.0],
        "kl": [0.1, 0.2, 0.3, 0.4],
    }
    stage = replace(read_run(write_run(tmp_path, num_steps=4)).stages[0], metrics=metrics)
    panels = stage_panels(stage)
    assert [panel.title for panel in panels] == ["Loss", "Tokens per second", "kl"]
    assert panels[0].note == "2 at the end; validation 1.5"
    assert "100 at step 1, 100 at step 3; between 100 and 200" in panels[1].chart, "100, 200, 100, and none at the last"

"""The page as text: complete, escaped, alone, small."""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from report.fake_run import write_run
from temper.report import format as fmt
from temper.report import write_report
from temper.report.page import to_yaml
from temper.report.read import read_run
from temper.report.views import gain_table

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Outline(HTMLParser):
    """Checks that elements are nested, and gathers tags and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)


def outline(html: str) -> Outline:
    parsed = Outline()
    parsed.feed(html)
    assert parsed.open == []
    return parsed


def page(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def test_page_shows_every_number_of_the_table(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    html = page(folder)
    rows = re.findall(r'<tr role="row" class="(?:reference|made)">.*?</tr>', html, re.DOTALL)
    table = gain_table(read_run(folder))
    assert len(rows) == len(table.rows) == 6
    for row, shown in zip(table.rows, rows, strict=True):
        cells = re.findall(r'<td role="cell".*?</td>', shown, re.DOTALL)
        assert len(cells) == 6, "five suites and the average"
        for suite, cell in zip(table.suites, cells, strict=False):
            known = row.cells[suite.label]
            assert known.suite is not None
            assert f'<span class="value">{fmt.number(known.suite.value, suite.unit)}</span>' in cell
            for change in (known.base, known.previous):
                if change is not None:
                    assert f"<b>{fmt.number(change.difference, suite.unit, signed=True)}</b>" in cell
                    assert fmt.interval(change.low, change.high, suite.unit, signed=True) in cell
                    assert f'<span class="verdict">{change.verdict}</span>' in cell
            if known.base is not None and known.base.negative_flips is not None:
                assert f"{known.base.negative_flips} lost, {known.base.positive_flips} won" in cell
        assert fmt.number(row.average, "share") in cells[-1]


def test_page_has_all_that_it_takes_to_run_it_again(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    run = json.loads((folder / "run.json").read_text())
    text = "".join(outline(page(folder)).text)
    assert run["command"] in text
    for stage in run["stages"]:
        assert stage["key"] in text
    for value in (*run["versions"].values(), run["git"]["commit"], run["machine"]["processor"], "23.5 GiB"):
        assert value in text
    assert yaml.safe_load(to_yaml(read_run(folder).recipe)) == run["recipe"]
    assert to_yaml(read_run(folder).recipe) in text
    for warning in (*run["warnings"], "37 rows of lab/reverse were truncated"):
        assert warning in text
    for reason in ("no supervised token", "records/2025/spring.jsonl:17", "broken JSON: Expecting ',' delimiter"):
        assert reason in text


def test_text_that_looks_like_a_number_stays_text() -> None:
    assert to_yaml({"a": "1e-3", "b": 1e-3, "c": "yes", "d": "12"}).splitlines() == [
        """a: "1e-3\"""",
        "b: 0.001",
        "c: 'yes'",
        """d: "12\"""",
    ]


@pytest.mark.parametrize("variant", ["whole", "failed", "started", "wild", "wide"])
def test_page_stands_alone(tmp_path: Path, variant: str) -> None:
    html = page(write_run(tmp_path, variant=variant, num_suites=20 if variant == "wide" else 5, num_stages=8))
    assert len(html.encode()) < 1_000_000
    parsed = outline(html)
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("script") == 1 and tags.count("img") == tags.count("iframe") == 0
    for tag, attributes in parsed.tags:
        assert not any(name.startswith("on") for name in attributes), "no handler in an attribute"
        for name in ("src", "href", "action", "poster", "data"):
            where = attributes.get(name)
            assert where is None or where.startswith(("#", "data:,")), f"{tag} {name}={where}"
    style = html.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    names = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(names) == len(set(names))
    links = {attributes["href"] for tag, attributes in parsed.tags if tag == "a"}
    assert links <= {f"#{name}" for name in names}


@pytest.mark.parametrize("variant", ["whole", "wild"])
def test_pictures_are_well_formed_and_described(tmp_path: Path, variant: str) -> None:
    html = page(write_run(tmp_path, variant=variant))
    pictures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(pictures) >= 5 + 2 + 3 * 4 - 1, "suites, the recipe twice, four curves for each training stage"
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert root.attrib["role"] == "img" and len(root.attrib["aria-label"]) > 10


def test_tables_have_headers(tmp_path: Path) -> None:
    html = page(write_run(tmp_path))
    tables = re.findall(r"<table.*?</table>", html, re.DOTALL)
    assert len(tables) >= 5
    for table in tables:
        assert 'scope="row"' in table or 'scope="col"' in table


def test_text_of_a_run_never_becomes_markup(tmp_path: Path) -> None:
    parsed = outline(page(write_run(tmp_path, variant="wild")))
    text = "".join(parsed.text)
    assert '<script>document.title = "hacked"</script>' in text
    assert "\\x1b[31mred\\u202eevil" in text
    assert ("b", {}) in parsed.tags and "<b>release</b>" in text
    assert "(13,800 more characters)" in text, "what is cut is said to be cut"


def test_a_long_run_stays_small(tmp_path: Path) -> None:
    html = page(write_run(tmp_path, num_steps=5_000))
    assert len(html.encode()) < 500_000
    assert "5,000 steps" in html


def test_an_unfinished_run_says_where_it_stopped(tmp_path: Path) -> None:
    text = " ".join(" ".join(outline(page(write_run(tmp_path, variant="failed"))).text).split())
    assert "This run is not complete." in text
    assert "recall (train): failed after 100 steps step 100: the loss is nan" in text
    assert text.count("the loss is nan") == 1
    assert "adapt against the base" in text
    assert "The same command goes on from here" in text


def test_the_page_is_replaced_whole(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    first = page(folder)
    assert page(folder) == first
    assert not list(folder.glob("*.partial"))


def test_whatever_is_missing_the_page_is_written(tmp_path: Path) -> None:
    """Take away, or spoil, values at random places of a run's files: a report never fails on its run."""
    for seed in range(30):
        rng = random.Random(seed)
        folder = write_run(tmp_path / str(seed), variant=rng.choice(["whole", "failed", "wild"]), num_steps=8)
        for path in sorted(folder.rglob("*.json")):
            value = json.loads(path.read_text())
            for _ in range(4):
                _spoil(value, rng)
            path.write_text(json.dumps(value))
        outline(page(folder))


def _spoil(value: Any, rng: random.Random) -> None:
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.8:
            value = value[key]
            continue
        if isinstance(value, dict) and rng.random() < 0.4:
            del value[key]
        else:
            value[key] = rng.choice([None, "text", 7, -1.5, float("nan"), float("inf"), [], {}, True, ["x"], {"x": 1}])
        return

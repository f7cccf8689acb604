"""Charts against naive references: nothing that matters is lost on the way to the picture."""

from __future__ import annotations

import math
import re
import statistics
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from temper.report.charts import (
    HEIGHT,
    LARGEST,
    LEFT,
    MAX_POINTS,
    RIGHT,
    WIDTH,
    Line,
    Mark,
    fitted,
    interval_chart,
    line_chart,
    nice_step,
    smooth,
    text_width,
    thin_out,
    tick_text,
)

anything = st.one_of(st.none(), st.floats(-LARGEST, LARGEST), st.sampled_from([math.nan, math.inf, -math.inf]))


@given(st.lists(anything, max_size=60), st.integers(1, 21))
def test_smoothing_is_the_median_of_a_centred_window(values: list[float | None], window: int) -> None:
    half = window // 2
    expected: list[float | None] = []
    for at, value in enumerate(values):
        around = values[max(0, at - half) : at + half + 1]
        finite = [other for other in around if other is not None and math.isfinite(other)]
        expected.append(statistics.median(finite) if value is not None and math.isfinite(value) else None)
    for found, right in zip(smooth(values, window), expected, strict=True):
        assert found is None if right is None else found == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize("num_steps", [1, MAX_POINTS, MAX_POINTS + 1, 5_000, 200_003])
def test_thinned_curve_keeps_spikes_ends_and_order(num_steps: int) -> None:
    steps = list(range(1, num_steps + 1))
    values: list[float | None] = [math.sin(step / 50) for step in steps]
    values[num_steps // 3] = 900.0
    values[2 * num_steps // 3] = -900.0
    points = thin_out([float(step) for step in steps], values)
    assert len(points) <= MAX_POINTS
    assert points[0] == (1.0, values[0]) and points[-1] == (num_steps, values[-1])
    assert [at for at, _ in points] == sorted({at for at, _ in points})
    kept = [value for _, value in points if value is not None]
    assert max(kept) == max(value for value in values if value is not None)
    assert min(kept) == -900.0


def read_back(svg: str, name: str) -> list[tuple[float, float]]:
    """Turn a curve's pixels back into values, as the page's script does."""
    root = ElementTree.fromstring(svg)
    x0, x1, y0, y1 = map(float, root.attrib["data-domain"].split())
    left, right, bottom, top = map(float, root.attrib["data-frame"].split())
    path = next(element for element in root.iter("path") if element.get("data-name") == name)
    points = [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+) ([^MLh\s]+)", path.attrib["d"])]
    values = []
    for x, y in points:
        part = (bottom - y) / (bottom - top)
        value = y0 * (y1 / y0) ** part if root.attrib["data-log"] == "1" else y0 + (y1 - y0) * part
        values.append((x0 + (x1 - x0) * (x - left) / (right - left), value))
    return values


@pytest.mark.parametrize("is_log", [False, True])
def test_values_can_be_read_off_the_picture(is_log: bool) -> None:
    steps = [float(step) for step in range(1, 301)]
    values = [(1000.0 if is_log else 3.0) * math.exp(-step / 60) + 0.01 for step in steps]
    svg = line_chart("Loss", [Line("loss", steps, values, "raw")])
    assert ("log scale" in svg) == is_log
    # Two decimals of a pixel: 0.005 of 152 pixels of the scale's range, in its logarithm where it is logarithmic.
    room = 0.005 / (HEIGHT - 32)
    tolerance = room * (math.log(max(values) / min(values)) * 1.2 if is_log else (max(values) - min(values)) * 1.2)
    for (step, value), (seen_step, seen) in zip(zip(steps, values, strict=True), read_back(svg, "loss"), strict=True):
        assert round(seen_step) == step
        assert abs(math.log(seen / value) if is_log else seen - value) <= tolerance


@given(st.lists(anything, min_size=1, max_size=40))
@settings(max_examples=60)
def test_any_numbers_make_a_picture_inside_its_frame(values: list[float | None]) -> None:
    steps = [float(step) for step in range(1, len(values) + 1)]
    svg = line_chart("<Loss & more>", [Line('"loss"', steps, values, "raw")], description="a < b")
    root = ElementTree.fromstring(svg)
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        assert root.tag == "p" and "no finite numbers" in svg
        return
    marks = [element for element in root.iter("path") if element.get("class") == "broken"]
    assert len(marks) == sum(value is not None and not math.isfinite(value) for value in values)
    path = next(element for element in root.iter("path") if element.get("data-name"))
    points = re.findall(r"[ML](\S+) ([^MLh\s]+)", path.attrib["d"])
    assert len(points) == len(finite)
    for x, y in points:
        assert LEFT <= float(x) <= WIDTH - RIGHT and 0 <= float(y) <= HEIGHT


@pytest.mark.parametrize("values", [[1e308], [5e-324], [0.0, 5e-324], [1e-244, 1e64], [1.0, 1e293], [-1e308, 1e308]])
def test_numbers_at_the_ends_of_float(values: list[float | None]) -> None:
    ElementTree.fromstring(line_chart("Loss", [Line("loss", [1.0, 2.0][: len(values)], values, "raw")]))
    ElementTree.fromstring(
        interval_chart("suite", [Mark("a", value, value, value, "same") for value in values], "number")
    )


def test_a_hole_in_a_curve_is_not_bridged() -> None:
    svg = line_chart("Loss", [Line("loss", [1, 2, 3, 4, 5], [1.0, 2.0, math.nan, 2.0, 1.0], "raw")])
    assert len(re.findall("M", re.findall(r'data-name="loss" d="([^"]*)"', svg)[0])) == 2
    assert "1 number is not finite" in svg
    sparse = line_chart("Loss", [Line("validation", [1, 2, 3], [1.0, None, 2.0], "checked")])
    assert len(re.findall("M", re.findall(r'data-name="validation" d="([^"]*)"', sparse)[0])) == 1


def test_interval_chart_places_values_in_order_and_names_them() -> None:
    marks = [
        Mark("base", 0.1, 0.05, 0.15, "reference"),
        Mark("adapt <b>", 0.9, 0.85, 0.95, "better"),
        Mark("broken", math.nan, None, math.inf, "same"),
        Mark("absent", None, None, None, "same"),
    ]
    root = ElementTree.fromstring(interval_chart("suite", marks, "share", reference=0.1))
    places = [float(circle.attrib["cx"]) for circle in root.iter("circle")]
    assert len(places) == 2 and places[0] < places[1]
    whiskers = [path.attrib["d"] for path in root.iter("path") if path.get("class") == "whisker"]
    assert len(whiskers) == 2
    texts = ["".join(text.itertext()) for text in root.iter("text")]
    assert "10.0" in texts and "90.0" in texts and "–" in texts  # noqa: RUF001
    baseline = next(path for path in root.iter("path") if path.get("class") == "baseline")
    assert baseline.attrib["d"].startswith(f"M{places[0]:.1f} ")


@pytest.mark.parametrize(("rough", "step"), [(0.7, 1), (1, 1), (1.01, 2), (2.3, 5), (6, 10), (0.00031, 0.0005)])
def test_steps_are_one_two_five(rough: float, step: float) -> None:
    assert nice_step(rough) == pytest.approx(step)


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [(0, 1, "0"), (0.25, 0.05, "0.25"), (-2, 1, "−2"), (12000, 2000, "12k"), (5e-5, 5e-5, "5e−5"), (3e7, 1e7, "3e7")],  # noqa: RUF001
)
def test_tick_labels(value: float, step: float, text: str) -> None:
    assert tick_text(value, step) == text


@given(st.text(max_size=80), st.floats(20, 300))
def test_fitted_text_fits(text: str, width: float) -> None:
    short = fitted(text, width, 11)
    assert text_width(short, 11) <= width or len(short) <= 3
    assert short == text or "…" in short

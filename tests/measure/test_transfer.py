"""Transfer on logs made by hand, with values computed by hand."""

from __future__ import annotations

import itertools
import random

import pytest

from temper.core.errors import SettingError
from temper.measure.base import Score
from temper.measure.report import SuiteReport, suite_report
from temper.measure.transfer import transfer_matrix


def _report(value: float, role: str = "gain", unit: str = "share") -> SuiteReport:
    score = Score("m", unit == "share", (value, value), unit=unit)  # type: ignore[arg-type]
    return suite_report(score, role, "s")  # type: ignore[arg-type]


def _row(**values: float) -> dict[str, SuiteReport]:
    return {label: _report(value) for label, value in values.items()}


def test_three_tasks_in_a_row() -> None:
    rows = [
        ("base", _row(a=0.1, b=0.2, c=0.3)),
        ("one", _row(a=0.9, b=0.3, c=0.3)),
        ("two", _row(a=0.7, b=0.8, c=0.6)),
        ("three", _row(a=0.5, b=0.7, c=1.0)),
    ]
    matrix = transfer_matrix(rows, {"a": 1, "b": 2, "c": 3})
    assert matrix["values"][3] == [0.5, 0.7, 1.0]
    assert matrix["average_accuracy"]["three"] == pytest.approx(2.2 / 3)
    assert matrix["average_accuracy"]["base"] == pytest.approx(0.2)
    # a: 0.5 - 0.9, b: 0.7 - 0.8
    assert matrix["backward_transfer"] == pytest.approx((-0.4 - 0.1) / 2)
    # b before it was learned: 0.3 - 0.2; c: 0.6 - 0.3
    assert matrix["forward_transfer"] == pytest.approx((0.1 + 0.3) / 2)
    # a: mean of -0.2 and -0.4; b: -0.1
    assert matrix["performance_maintenance"] == pytest.approx((-0.3 - 0.1) / 2)
    assert matrix["forgetting"] == pytest.approx((0.4 + 0.1) / 2)
    # a around b and around c, b around c
    assert matrix["backward_contrast"] == pytest.approx((-0.2 / 1.6 - 0.2 / 1.2 - 0.1 / 1.5) / 3)
    # b and c around a, c around b
    assert matrix["forward_contrast"] == pytest.approx((0.1 / 0.5 + 0.0 + 0.3 / 0.9) / 3)


@pytest.mark.parametrize("seed", range(3))
def test_contrasts_are_those_of_alternating_blocks(seed: int) -> None:
    """The published rule on a log of blocks: test all, train one, test all, ...; pairs by which was trained first."""
    generator = random.Random(seed)
    tasks = ["a", "b", "c", "d"]
    order = generator.sample(tasks, 4)
    tests = [{task: generator.random() for task in tasks} for _ in range(5)]
    found: dict[str, list[float]] = {"forward": [], "backward": []}
    for task, other in itertools.permutations(tasks, 2):
        block = order.index(task)
        before, after = tests[block][other], tests[block + 1][other]
        kind = "forward" if block < order.index(other) else "backward"
        found[kind].append((after - before) / (before + after))
    rows = [("base", _row(**tests[0]))] + [(task, _row(**tests[n])) for n, task in enumerate(order, 1)]
    matrix = transfer_matrix(rows, {task: n for n, task in enumerate(order, 1)})
    assert matrix["forward_contrast"] == pytest.approx(sum(found["forward"]) / 6)
    assert matrix["backward_contrast"] == pytest.approx(sum(found["backward"]) / 6)


def test_a_contrast_of_zeros_is_left_out() -> None:
    rows = [("base", _row(a=0.0, b=0.0)), ("one", _row(a=0.5, b=0.0)), ("two", _row(a=0.5, b=0.5))]
    matrix = transfer_matrix(rows, {"a": 1, "b": 2})
    assert matrix["forward_contrast"] is None and matrix["backward_contrast"] == 0


def test_a_kept_suite_was_learned_by_the_base_and_its_best_counts_for_forgetting() -> None:
    rows = [(name, {"k": _report(value, "keep")}) for name, value in [("base", 0.8), ("one", 0.9), ("two", 0.6)]]
    matrix = transfer_matrix(rows)
    assert matrix["backward_transfer"] == pytest.approx(-0.2)
    assert matrix["forgetting"] == pytest.approx(0.3)
    assert matrix["performance_maintenance"] == pytest.approx((0.1 - 0.2) / 2)
    assert matrix["forward_transfer"] is None
    # Trained on, it was learned there.
    assert transfer_matrix(rows, {"k": 1})["backward_transfer"] == pytest.approx(-0.3)


def test_only_shares_count_and_the_few_shot_row_is_no_step() -> None:
    def row(share: float, perplexity: float) -> dict[str, SuiteReport]:
        return {"a": _report(share), "p": _report(perplexity, "keep", "perplexity")}

    rows = [("base", row(0.2, 9)), ("few-shot", row(1.0, 9)), ("one", row(0.3, 20)), ("two", row(0.6, 99))]
    matrix = transfer_matrix(rows, {"a": 3, "p": 2})
    assert matrix["average_accuracy"] == {"base": 0.2, "few-shot": 1.0, "one": 0.3, "two": 0.6}
    assert matrix["forward_transfer"] == pytest.approx(0.1)
    assert matrix["backward_transfer"] is None
    assert (matrix["roles"], matrix["higher_is_better"]) == (["gain", "keep"], [True, False])


def test_missing_values_are_left_out() -> None:
    rows = [("base", _row(a=0.1, b=0.2)), ("one", _row(a=0.9)), ("two", _row(b=0.6))]
    matrix = transfer_matrix(rows, {"a": 1, "b": 2})
    assert matrix["values"] == [[0.1, 0.2], [0.9, None], [None, 0.6]]
    assert matrix["average_accuracy"] == {"base": pytest.approx(0.15), "one": 0.9, "two": 0.6}
    assert matrix["backward_transfer"] is None and matrix["forward_transfer"] is None
    assert matrix["forgetting"] is None and matrix["performance_maintenance"] is None


def test_a_branch_that_is_not_in_the_lineage_does_not_count() -> None:
    rows = [("base", _row(a=0.1)), ("one", _row(a=0.9)), ("aside", _row(a=0.0)), ("two", _row(a=0.8))]
    matrix = transfer_matrix(rows, {"a": 1}, lineage=[0, 1, 3])
    assert matrix["performance_maintenance"] == pytest.approx(-0.1)
    assert transfer_matrix(rows, {"a": 1})["performance_maintenance"] == pytest.approx(-0.5)
    # Learned on a branch that the last model does not come from: nothing to say.
    assert transfer_matrix(rows, {"a": 2}, lineage=[0, 1, 3])["backward_transfer"] is None


def test_unknown_label_and_nothing_at_all() -> None:
    with pytest.raises(SettingError, match="names no suite"):
        transfer_matrix([("base", _row(a=0.1))], {"aa": 1})
    empty = transfer_matrix([("base", {})])
    assert empty["average_accuracy"] == {"base": None} and empty["columns"] == []


def test_a_share_of_errors_is_no_accuracy() -> None:
    """Half as many errors are no fall: what goes the other way is left out of every summary."""
    errors = [suite_report(Score("errors", False, (value, value), unit="share"), "gain", "s") for value in (0.8, 0.2)]
    rows = [("base", {**_row(a=0.4), "e": errors[0]}), ("one", {**_row(a=0.6), "e": errors[1]})]
    matrix = transfer_matrix(rows, {"a": 1, "e": 1})
    assert matrix["average_accuracy"] == {"base": pytest.approx(0.4), "one": pytest.approx(0.6)}
    assert matrix["backward_transfer"] is None and matrix["values"][1] == [0.6, 0.2]

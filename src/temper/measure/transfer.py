"""The stage x suite matrix, and what it says of learning one thing after another.

Paper: Gradient Episodic Memory for Continual Learning (Lopez-Paz and Ranzato), arXiv:1706.08840, section 2:
with R[i, j] the accuracy on task j after learning task i of T, and b[j] that of the untrained model,

    average accuracy   ACC = mean over j of R[T, j]
    backward transfer  BWT = mean over j < T of R[T, j] - R[j, j]
    forward transfer   FWT = mean over j > 1 of R[j - 1, j] - b[j]

Also, from A Domain-Agnostic Approach for Characterization of Lifelong Learning Systems, arXiv:2301.07799:
performance maintenance, the mean, over tasks and all models after the one that learned a task, of what has changed
since; and transfer as a contrast, (after - before) / (after + before) of a task's accuracy around the learning of
another one, from -1 to 1, on average over the pairs: backward for tasks learned before the other, forward for those
still to be learned. And forgetting (Riemannian Walk for Incremental Learning, arXiv:1801.10112): the mean over tasks of
the best earlier accuracy minus the last. What a suite's single-task expert tells besides is in `temper.measure.expert`.

Deviations, because a recipe's stages and suites are not one task each:
- Which stage learned which suite is given. A kept suite that no stage trained on counts as learned by the base, so
  that backward transfer says what became of it.
- Only suites in unit `share` of which more is better count: perplexities and nats have no common scale with
  accuracies, and a share of errors goes the other way.
- b[j] is the base, not a random model. Suites that no stage learned do not count towards forward transfer.
- A contrast of two zeros is left out, as 0 / 0.
- Values that are missing are left out of means; a mean of nothing is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypedDict

from temper.core.errors import SettingError, nearest
from temper.measure.expert import Expert, relative_performance, sample_efficiency
from temper.measure.report import Role, SuiteReport

FEW_SHOT = "few-shot"
"""name of the row of the base with worked examples, which is no step of learning"""


class Matrix(TypedDict):
    """Every model on every suite, and summaries of learning."""

    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]
    roles: list[Role]
    higher_is_better: list[bool]
    average_accuracy: dict[str, float | None]
    """of each row"""
    backward_transfer: float | None
    forward_transfer: float | None
    performance_maintenance: float | None
    forgetting: float | None
    backward_contrast: float | None
    forward_contrast: float | None
    intransigence: float | None
    relative_performance: float | None
    sample_efficiency: float | None


def transfer_matrix(
    rows: Sequence[tuple[str, Mapping[str, SuiteReport]]],
    learned_at: Mapping[str, int] | None = None,
    lineage: Sequence[int] | None = None,
    experts: Mapping[str, Expert] | None = None,
) -> Matrix:
    """Lay out what was measured, and say how learning one thing changed the others.

    Args:
        rows: name and suites of each model: the base first, a row `few-shot` where there is one, then the stages.
        learned_at: for suites whose data was trained on, the row of the stage that did.
        lineage: rows from the base to the last model, each made from the one before; all but `few-shot` by default.
        experts: single-task experts of suites that were trained on.

    Raises:
        SettingError: `learned_at` names no suite.
    """
    reports = {label: report for _, suites in reversed(rows) for label, report in suites.items()}
    columns = list(dict.fromkeys(label for _, suites in rows for label in suites))
    trained_on = dict(learned_at or {})
    for label in trained_on:
        if label not in reports:
            raise SettingError("learned_at", label, "names no suite", nearest(label, columns))
    values = [[suites[label]["value"] if label in suites else None for label in columns] for _, suites in rows]
    chain = [row for row, (name, _) in enumerate(rows) if name != FEW_SHOT] if lineage is None else list(lineage)
    shares = [
        column
        for column, label in enumerate(columns)
        if reports[label]["unit"] == "share" and reports[label]["higher_is_better"]
    ]
    learned = {column: 0 for column in shares if reports[columns[column]]["role"] == "keep"}
    learned |= {column: trained_on[columns[column]] for column in shares if columns[column] in trained_on}
    curves = {
        column: ([values[row][column] for row in chain], chain.index(row))
        for column, row in learned.items()
        if row in chain
    }
    accuracies = {name: _mean(values[row][column] for column in shares) for row, (name, _) in enumerate(rows)}
    beside = {
        column: expert
        for label, expert in (experts or {}).items()
        if (column := columns.index(label)) in curves and label in trained_on
    }
    followed = [(curve, at) for curve, at in curves.values() if at < len(curve) - 1]
    return {
        "rows": [name for name, _ in rows],
        "columns": columns,
        "values": values,
        "roles": [reports[label]["role"] for label in columns],
        "higher_is_better": [reports[label]["higher_is_better"] for label in columns],
        "average_accuracy": accuracies,
        "backward_transfer": _mean(_minus(curve[-1], curve[at]) for curve, at in followed),
        "forward_transfer": _mean(_minus(curve[at - 1], curve[0]) for curve, at in curves.values() if at > 1),
        "performance_maintenance": _mean(
            _mean(_minus(value, curve[at]) for value in curve[at + 1 :]) for curve, at in followed
        ),
        "forgetting": _mean(_forgetting(curve) for curve, _ in followed),
        "backward_contrast": _mean(_contrasts(curves.values(), is_backward=True)),
        "forward_contrast": _mean(_contrasts(curves.values(), is_backward=False)),
        "intransigence": _mean(
            _minus(values[expert.row][column], values[learned[column]][column]) for column, expert in beside.items()
        ),
        "relative_performance": _mean(relative_performance(it.learner_losses, it.losses) for it in beside.values()),
        "sample_efficiency": _mean(sample_efficiency(it.learner_losses, it.losses) for it in beside.values()),
    }


def _contrasts(curves: Iterable[tuple[Sequence[float | None], int]], is_backward: bool) -> Iterator[float | None]:
    """Yield the contrast of every task around the learning of every other one."""
    learned = list(curves)
    for number, (curve, at) in enumerate(learned):
        for other, (_, step) in enumerate(learned):
            # What the base knew was not learned in a step of its own.
            if other != number and step > 0 and (at < step if is_backward else at > step):
                yield _contrast(curve[step - 1], curve[step])


def _contrast(before: float | None, after: float | None) -> float | None:
    if before is None or after is None or before + after == 0:
        return None
    return (after - before) / (after + before)


def _forgetting(curve: Sequence[float | None]) -> float | None:
    known = [value for value in curve[:-1] if value is not None]
    return _minus(max(known), curve[-1]) if known else None


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None

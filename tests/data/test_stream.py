"""The stream: every example once an epoch, shares held exactly, any place found again."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from temper.core.errors import DataError
from temper.data.encode import RowError
from temper.data.stream import Budget, EncodedRows, ShuffledStream, Steps, ahead
from training import examples, rows_of


def stream(count: int, seed: int = 0, keep: int = 10**6, first: int = 1) -> ShuffledStream:
    made = examples(tuple(first + index % 9 for index in range(count)), seed)
    rows, encode = rows_of(made)
    return ShuffledStream(EncodedRows(rows, encode, keep=keep), seed)


def lines(steps: Steps) -> list[list[int | None]]:
    return [[example.origin.line for example in step.examples] for step in steps]


def test_an_epoch_gives_each_example_once_in_a_fresh_order() -> None:
    drawn = [line for step in lines(Steps(stream(10), [], Budget(epochs=2), 3)) for line in step]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(1, 11))  # type: ignore[type-var]
    assert drawn[:10] != drawn[10:]
    assert drawn == [line for step in lines(Steps(stream(10), [], Budget(epochs=2), 3)) for line in step]


def test_rows_encoded_beforehand_and_while_training_give_the_same_steps() -> None:
    early = lines(Steps(stream(50), [], Budget(epochs=2), 7))
    late = lines(Steps(stream(50, keep=0), [], Budget(epochs=2), 7))
    assert early == late


@settings(max_examples=25)
@given(st.integers(0, 30), st.booleans(), st.floats(0.05, 0.6))
def test_any_step_can_be_continued_from(stop: int, by_tokens: bool, share: float) -> None:
    def steps() -> Steps:
        size = {"batch_tokens": 30} if by_tokens else {"batch_size": 5}
        return Steps(stream(40), [(stream(7, seed=1), share)], Budget(steps=31), **size)

    whole = list(steps())
    first = whole[: stop + 1]
    rest = steps()
    rest.load_state_dict(first[-1].state)
    continued = [*first, *rest]
    assert [[e.origin for e in step.examples] for step in continued] == [[e.origin for e in s.examples] for s in whole]
    assert [step.progress for step in continued] == [step.progress for step in whole]


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
def test_shares_are_exact_to_one_example(share: float) -> None:
    steps = Steps(stream(60, seed=0), [(stream(11, seed=1), share)], Budget(steps=40), 8)
    replayed = 0
    main = {id(example) for of_row in steps.streams[0].encoded.get(range(60)) for example in of_row}
    for number, step in enumerate(steps, 1):
        replayed += sum(id(example) not in main for example in step.examples)
        assert abs(replayed - share * 8 * number) <= 1
    assert number == 40


def test_shares_of_tokens_are_exact_to_one_example() -> None:
    steps = Steps(stream(60), [(stream(11, seed=1), 0.3)], Budget(steps=40), batch_tokens=64)
    for step in steps:
        assert sum(example.num_tokens for example in step.examples) <= 64
    assert abs(steps.used[1] / sum(steps.used) - 0.3) < 9 / sum(steps.used) + 1e-9


def test_progress_runs_from_nothing_to_all() -> None:
    made = list(Steps(stream(10), [], Budget(epochs=1.5), 4))
    assert made[0].progress == 0 and made[-1].progress_after == 1
    assert all(a.progress_after == b.progress for a, b in itertools.pairwise(made))
    assert sum(len(step.examples) for step in made) == 15


def test_a_bad_row_stops_with_its_place_or_is_put_aside_and_counted_once() -> None:
    made = examples((3, 4, 5))
    rows, encode = rows_of(made)

    def picky(row):  # type: ignore[no-untyped-def]
        if row.content["text"] == "1":
            raise RowError("has no supervised token")
        return encode(row)

    with pytest.raises(DataError, match=r"made:2: has no supervised token"):
        EncodedRows(rows, picky)
    for keep in (0, 10):
        encoded = EncodedRows(rows, picky, "skip", keep=keep)
        drawn = lines(Steps(ShuffledStream(encoded, 0), [], Budget(epochs=3), 2))
        assert sorted(line for step in drawn for line in step) == [1, 1, 1, 3, 3, 3]  # type: ignore[type-var]
        assert [bad.origin.line for bad in encoded.tally.bad] == [2]
        assert (encoded.tally.rows, encoded.tally.examples, encoded.tally.tokens) == (3, 2, 8)


def test_nothing_left_to_train_on_is_an_error() -> None:
    rows, _ = rows_of(examples((3, 4)))

    def none(row):  # type: ignore[no-untyped-def]
        raise RowError("is empty")

    steps = Steps(ShuffledStream(EncodedRows(rows, none, "skip"), 0), [], Budget(steps=1), 2)
    with pytest.raises(DataError, match="no row is left"):
        list(steps)


def test_a_row_of_several_examples_can_be_left_in_its_middle() -> None:
    made = examples((3, 4, 5, 6))
    rows, encode = rows_of(made[:2])

    def twice(row):  # type: ignore[no-untyped-def]
        return [*encode(row), *encode(row)]

    def steps() -> Steps:
        return Steps(ShuffledStream(EncodedRows(rows, twice), 0), [], Budget(epochs=2), 3)

    whole = list(steps())
    assert sum(len(step.examples) for step in whole) == 8
    rest = steps()
    rest.load_state_dict(whole[0].state)
    assert lines(rest) == [[e.origin.line for e in step.examples] for step in whole[1:]]


def test_working_ahead_keeps_order_and_raises_errors_in_their_place() -> None:
    def items():  # type: ignore[no-untyped-def]
        yield 1
        yield 2
        raise ValueError("third")

    made = ahead(items())
    assert next(made) == 1 and next(made) == 2
    with pytest.raises(ValueError, match="third"):
        next(made)
    endless = ahead(iter(int, 1))
    next(endless)
    endless.close()  # must not hang


def test_an_epoch_ends_with_its_last_example_whatever_rows_are_put_aside() -> None:
    made = examples((3,) * 12)
    rows, encode = rows_of(made)
    for bad in ({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, {3, 7}, {11}):

        def picky(row, bad=bad):  # type: ignore[no-untyped-def]
            if int(row.content["text"]) in bad:
                raise RowError("is bad")
            return encode(row)

        for seed in range(8):
            for keep in (0, 100):
                stream = ShuffledStream(EncodedRows(rows, picky, "skip", keep=keep), seed)
                drawn = [line for step in lines(Steps(stream, [], Budget(epochs=2), 3)) for line in step]
                good = sorted(set(range(12)) - bad)
                assert sorted(drawn) == sorted(2 * [place + 1 for place in good])  # type: ignore[type-var]


def test_counting_goes_on_where_it_was_left() -> None:
    made = examples((3,) * 3000)
    rows, encode = rows_of(made)

    def picky(row):  # type: ignore[no-untyped-def]
        if int(row.content["text"]) % 100 == 0:
            raise RowError("is bad")
        return encode(row)

    def steps() -> Steps:
        return Steps(ShuffledStream(EncodedRows(rows, picky, "skip", keep=0), 0), [], Budget(epochs=1), 100)

    whole = steps()
    made_steps = list(whole)
    first, rest = steps(), steps()
    for step in first:
        if step.state["step"] == 12:
            break
    rest.load_state_dict(step.state)
    rest.streams[0].encoded.load_state_dict(first.streams[0].encoded.state_dict())
    assert len(list(rest)) == len(made_steps) - 12
    one, other = (vars(run.streams[0].encoded.tally) for run in (whole, rest))
    assert {**one, "bad": {str(row.origin) for row in one["bad"]}} == {
        **other,
        "bad": {str(row.origin) for row in other["bad"]},
    }
    assert len(one["bad"]) == 30 and one["rows"] == 3000


@settings(max_examples=25)
@given(st.integers(1, 400), st.booleans(), st.floats(0.05, 0.6), st.integers(0, 30))
def test_a_budget_of_tokens_ends_with_the_example_that_reaches_it(
    tokens: int, by_tokens: bool, share: float, stop: int
) -> None:
    def steps() -> Steps:
        size = {"batch_tokens": 30} if by_tokens else {"batch_size": 5}
        return Steps(stream(40), [(stream(7, seed=1), share)], Budget(tokens=tokens), **size)

    whole = list(steps())
    sizes = [example.num_tokens for step in whole for example in step.examples]
    assert sum(sizes) >= tokens > sum(sizes[:-1])
    assert [step.progress_after for step in whole][-1] == 1.0 and all(step.progress < 1 for step in whole)
    rest = steps()
    rest.load_state_dict(whole[min(stop, len(whole) - 1)].state)
    assert [[e.origin for e in step.examples] for step in rest] == [
        [e.origin for e in step.examples] for step in whole[stop + 1 :]
    ]

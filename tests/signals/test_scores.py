"""The table of scores: the naive formula, computed once, and anew when anything changed on which it depends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from families import tiny
from pools import RECORDS, rows_of
from temper.core.errors import DataError
from temper.data.encode import Encoder
from temper.models.model import Model
from temper.signals import scores as module
from temper.signals.scores import Scores


def naive(model: Model, index: int) -> tuple[float, int]:
    """Sum and count of the response's log-probabilities, by transformers' own forward pass of one row."""
    row = rows_of().take([index])[0]
    sequence = Encoder.of(model, 128).supervised(row)
    tokens_T = torch.from_numpy(sequence.tokens_T).long()
    with torch.no_grad():
        logits_TV = model.module(input_ids=tokens_T[None]).logits[0]
    logprobs_T = torch.log_softmax(logits_TV[:-1].double(), 1).gather(1, tokens_T[1:, None])[:, 0]
    is_response_T = torch.from_numpy(sequence.weights_T[1:] > 0)
    return float(logprobs_T[is_response_T].sum()), int(is_response_T.sum())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_logprobs_are_the_naive_formula(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 4)
    model = tiny(family)
    scores = Scores(rows_of(), tmp_path)
    expected = np.array([naive(model, index) for index in range(len(RECORDS))])
    # float32 logits of packed rows against those of one row: rounding of some thirty sums.
    np.testing.assert_allclose(scores.logprobs(model), expected, rtol=1e-4)
    np.testing.assert_allclose(scores.mean_logprobs(model), expected[:, 0] / expected[:, 1], rtol=1e-4)


def test_a_signal_is_computed_once_and_anew_when_rows_model_or_settings_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    whole = module.example_logprobs

    def counted(model, examples):  # type: ignore[no-untyped-def]
        computed.append(len(examples))
        return whole(model, examples)

    monkeypatch.setattr(module, "example_logprobs", counted)
    model = tiny("llama")
    first = Scores(rows_of(), tmp_path).logprobs(model)
    again = Scores(rows_of(), tmp_path).logprobs(tiny("llama"))
    assert computed == [6] and np.array_equal(first, again)
    Scores(rows_of(), tmp_path, max_length=100).logprobs(model)
    Scores(rows_of(), tmp_path).logprobs(tiny("llama", seed=1))
    Scores(rows_of(RECORDS[:4]), tmp_path).logprobs(model)
    assert computed == [6, 6, 6, 4]
    with pytest.raises(ValueError, match="read-only"):
        again[0, 0] = 0.0


def test_a_row_that_cannot_be_scored_stops_or_has_none(tmp_path: Path) -> None:
    rows = rows_of([*RECORDS[:2], {"prompt": "a", "completion": "b" * 200}])
    model = tiny("llama")
    with pytest.raises(DataError, match=r"pool:3: 20\d tokens are more than 128"):
        Scores(rows, tmp_path).logprobs(model)
    skipping = Scores(rows, tmp_path, on_bad_rows="skip")
    assert np.isnan(skipping.mean_logprobs(model)).tolist() == [False, False, True]
    assert not np.isnan(Scores(rows, tmp_path, truncate=True).logprobs(model)).any()

"""What every decoder must keep: a distribution over tokens, the same when written and when scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from families import tiny
from temper.core.errors import ModelError, SettingError
from temper.data.example import Example, Sequence
from temper.data.pack import pack
from temper.decode.base import Decode
from temper.measure.base import Subject, Suite
from temper.models.generate import generate
from temper.models.load import save_model
from temper.signals.forward import forward, token_logprobs
from temper.signals.reference import check_same_vocabulary
from training import examples

CONTRACTS: dict[str, Any] = {name: {name: dict(method.example)} for name, method in Decode.methods().items()}
SIZES: list[dict[str, Any]] = [{}, {"hidden_size": 32, "num_hidden_layers": 1}, {"hidden_size": 32, "seed": 1}]


def joined(written: Any, **changes: Any) -> Any:
    method = Decode.parse(written)
    num = next(num for num in range(2, len(SIZES) + 1) if takes(method, num))
    return method.join([tiny(**{**SIZES[number], **changes}) for number in range(num)])


def takes(method: Decode, num_models: int) -> bool:
    """Tell whether a method combines so many models."""
    try:
        method.check(num_models)
    except SettingError:
        return False
    return True


@pytest.mark.parametrize("written", CONTRACTS.values(), ids=CONTRACTS)
def test_it_is_a_distribution(written: Any) -> None:
    model, batch = joined(written), pack(examples())
    with torch.no_grad():
        all_NV = forward(model, batch, lambda logits, targets: logits)
        chosen_N = token_logprobs(model, batch)
    torch.testing.assert_close(all_NV.exp().sum(1), torch.ones(len(all_NV)), atol=1e-5, rtol=0)
    assert torch.equal(chosen_N, all_NV.log_softmax(1).gather(1, batch.targets_N[:, None])[:, 0])


@pytest.mark.parametrize("written", CONTRACTS.values(), ids=CONTRACTS)
def test_what_it_writes_is_what_scoring_says_whatever_the_batch(written: Any) -> None:
    model = joined(written)
    prompts = [[1, 5, 9], [1, 44], [1, 7, 8, 9, 30, 31, 32]]
    together = generate(model, prompts, 12, stop=[])
    assert together == [generate(model, [prompt], 12, stop=[])[0] for prompt in prompts]
    for prompt, text in zip(prompts, together, strict=True):
        tokens_T = np.array(prompt + text, np.int32)
        weights_T = (np.arange(len(tokens_T)) >= len(prompt)).astype(np.float32)
        with torch.no_grad():
            batch = pack([Example((Sequence(tokens_T, weights_T),), {})])
            best_N = forward(model, batch, lambda logits, targets: logits.argmax(1))
        assert best_N.tolist() == text
    sampled = generate(model, prompts, 8, temperature=1.0, seed=3, stop=[])
    assert sampled == generate(model, prompts, 8, temperature=1.0, seed=3, stop=[]) != together


@pytest.mark.parametrize("written", CONTRACTS.values(), ids=CONTRACTS)
def test_its_name_follows_from_method_and_models_and_it_is_not_saved(written: Any, tmp_path: Any) -> None:
    assert joined(written).fingerprint == joined(written).fingerprint != joined(written, seed=5).fingerprint
    with pytest.raises(ModelError, match="no weights of its own"):
        save_model(joined(written), tmp_path)
    with pytest.raises(ModelError, match=r"of\[1\]: reads other tokens"):
        Decode.parse(written).join([tiny(), tiny(vocab_size=99), tiny()])


def test_a_combination_is_neither_combined_again_nor_looked_into(tmp_path: Any) -> None:
    """What asks for its hidden states or its weights would silently get those of its first model."""
    model = joined({"emulated_fine_tuning": {}})
    for place in (0, 2):
        models = [tiny(), tiny(), tiny()]
        models[place] = model
        with pytest.raises(ModelError, match=rf"of\[{place}\]: is a combination of models itself"):
            Decode.parse("emulated_fine_tuning").join(models)
    with pytest.raises(SettingError, match="teacher: 'both' is a combination of models, which has no hidden states"):
        check_same_vocabulary(tiny(), model, "teacher", "both")
    with pytest.raises(ModelError, match="a combination of models has none of its own"):
        Suite.parse("intruder_dimensions").measure(Subject(model), tmp_path)

"""Rows of every format, and every registered objective with what it cannot do without."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from families import tiny
from temper.data.encode import Encoder
from temper.data.example import Example, Format, Origin, Row
from temper.models.model import Model
from temper.objectives.base import Objective
from temper.signals.setup import Setup

NEEDED: dict[str, dict[str, Any]] = {
    "distill": {"teacher": "big"},
    "gist_embed": {"guide": "big"},
    "classify": {"labels": ["few", "many"]},
    "tag": {"labels": ["odd", "even"]},
}
"""what some objectives are given instead of their `example`: what `content` makes"""
OBJECTIVES: dict[str, object] = {
    **{name: {name: NEEDED.get(name, dict(method.example))} for name, method in Objective.methods().items()},
    "open classify": {"classify": {"labels": ["few", "many"], "causal": False, "pooling": "mean"}},
    "causal tag": {"tag": {"labels": ["odd", "even"], "causal": True}},
    "distill itself": {"distill": {"teacher": "start", "divergence": "skewed_reverse", "temperature": 2.0}},
}
"""every registered objective, and settings worth a look"""


def words(generator: np.random.Generator) -> str:
    """A few letters of no meaning, of awkward length."""
    return "".join(generator.choice(list("abcdefgh "), int(generator.integers(2, 14)))) + "x"


def content(format: Format, generator: np.random.Generator) -> dict[str, Any]:
    """The content of a random row."""
    prompt, one, other = (words(generator) for _ in range(3))
    contents: dict[Format, dict[str, Any]] = {
        "text": {"text": prompt},
        "messages": {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": one}]},
        "completion": {"prompt": prompt, "completion": one},
        "label": {"prompt": prompt, "completion": one, "label": bool(generator.integers(2))},
        "preference": {"prompt": prompt, "chosen": one, "rejected": other + "y"},
        "class": {"text": prompt, "class": "few" if len(prompt) < 8 else "many"},
        "tags": {"words": prompt.split(), "tags": [("odd", "even")[len(word) % 2] for word in prompt.split()]},
        "pair": {"anchor": prompt, "positive": one, "negative": other + "y"},
    }
    return contents[format]


def encoded(objective: Objective, model: Model, count: int = 20, seed: int = 0) -> list[Example]:
    """Examples of random rows, in each of the formats that the objective takes."""
    generator = np.random.default_rng(seed)
    encoder = Encoder.of(model, 64)
    formats = sorted(objective.formats)
    made: list[Example] = []
    for number in range(1, count + 1):
        format = formats[number % len(formats)]
        row = Row(format, content(format, generator), {}, Origin("made", number))
        made += [Example(sequences, row.columns, row.origin) for sequences in objective.encode(row, encoder)]
    return made


def other_model(name: str) -> Model:
    """The model that any name stands for: frozen, and another than the one that trains."""
    model = tiny("llama", seed=7)
    model.module.requires_grad_(False)
    return model


def setup_of(model: Model, trained: list[tuple[str, nn.Parameter]] | None = None) -> Setup:
    """What a fit offers: all parameters train unless they are given."""
    return Setup(list(model.module.named_parameters()) if trained is None else trained, seed=3, load=other_model)


def gradients(model: Model, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of each parameter that has one."""
    model.module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.module.named_parameters() if p.grad is not None}

"""Small training set-ups that the engine's and the axes' tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from families import VOCABULARY, tiny
from temper.core.schedule import Constant
from temper.data.example import Example, Origin, Row, Sequence
from temper.data.pack import pack
from temper.data.rows import Rows
from temper.data.stream import Budget, EncodedRows, ShuffledStream, Steps
from temper.engine.distributed import World
from temper.engine.loop import Loop, to_batches
from temper.engine.placement import Replicated, Sharded, is_divided
from temper.models.model import Model
from temper.objectives.base import Objective
from temper.optim.base import Optim
from temper.retain.base import Retain
from temper.signals.calibration import observe
from temper.signals.forward import token_logprobs
from temper.signals.setup import Setup
from temper.tune.base import Tune, Tuning

REORDERING = frozenset({"s2ft"})
"""tuners that bring sums into another order: attached = base to float32's rounding, not bit for bit"""
AWKWARD_LENGTHS = (1, 5, 40, 5, 9, 33, 64, 2)


def sequence(length: int, generator: np.random.Generator, role: str = "response") -> Sequence:
    """A random sequence whose first half is context."""
    weights_T = np.ones(length, dtype=np.float32)
    weights_T[: max(1, length // 2)] = 0
    return Sequence(generator.integers(4, VOCABULARY, length).astype(np.int32), weights_T, role)


def examples(lengths: tuple[int, ...] = AWKWARD_LENGTHS, seed: int = 0) -> list[Example]:
    generator = np.random.default_rng(seed)
    return [
        Example((sequence(length, generator),), {"task": "t"}, Origin("made", number))
        for number, length in enumerate(lengths, 1)
    ]


def rows_of(examples: list[Example]) -> tuple[Rows, Any]:
    """Rows whose encoding is the given examples."""
    rows = Rows.from_rows(
        [Row("text", {"text": str(index)}, dict(e.columns), e.origin) for index, e in enumerate(examples)], "made"
    )
    return rows, lambda row: [examples[int(row.content["text"])].sequences]


def attach(tune: object, model: Model, seed: int = 0, calibrated_on: list[Example] | None = None) -> Tuning:
    """Attach a tuner as the engine does: with the calibration that it asks for."""
    method = Tune.parse(tune)
    calibration = method.calibration(model)
    if calibration is not None:
        observe(model, to_batches(calibrated_on or examples(), 64), [calibration])
    return method.attach(model, seed, calibration)


def make_loop(
    folder: Path,
    model: Model | None = None,
    *,
    made: list[Example] | None = None,
    tune: object = "full",
    objective: object = "sft",
    optimizer: object = "adamw",
    retain: tuple[object, ...] = (),
    num_steps: int = 8,
    batch_size: int = 4,
    seed: int = 0,
    lr: float = 3e-3,
    world: World | None = None,
    **settings: Any,
) -> Loop:
    """Put a loop together from method names, as the training stage does from a recipe."""
    torch.manual_seed(seed)
    model = model or tiny("llama")
    made = made or examples(tuple(range(3, 23)))
    rows, encode = rows_of(made)
    chosen = Objective.parse(objective)
    method = Tune.parse(tune)
    tuning = attach(tune, model, seed)
    world = world or World()
    placement = Replicated(world)
    if is_divided(world, [] if method.works_on_pieces else [method.method_name]):
        placement = Sharded(world, model, settings.get("dtype", torch.float32))
    setup = Setup(
        trained=list(tuning.movable()),
        at_start=tuning.at_start,
        moves_numbers=tuning.moves_numbers,
        seed=seed,
        load=lambda name: tiny("llama", seed=7),
        examples=lambda sources, count: made[:count],
    )
    retentions = [Retain.parse(method).build(model, setup) for method in retain]
    target = chosen.build(model, setup)
    return Loop(
        model=model,
        tuning=tuning,
        objective=chosen,
        target=target,
        optim=Optim.parse(optimizer),
        lr=lr,
        schedule=Constant(),
        steps=Steps(ShuffledStream(EncodedRows(rows, encode), seed), [], Budget(steps=num_steps), batch_size),
        folder=folder,
        retentions=retentions,
        placement=placement,
        **settings,
    )


def trained(loop: Loop) -> dict[str, torch.Tensor]:
    """Run a loop and return copies of the numbers that it trained."""
    loop.run()
    return {name: tensor.clone() for name, tensor in loop.tuning.numbers().items()}


def trained_with_a_break(folder: Path, step: int, **settings: Any) -> dict[str, torch.Tensor]:
    """What a loop has made that was stopped after a step, and taken up again by a new one in the same folder."""

    class Stopped(Exception):
        pass

    def stop(metrics: dict[str, float]) -> None:
        if metrics["step"] == step:
            raise Stopped

    with pytest.raises(Stopped):
        make_loop(folder, on_step=stop, **settings).run()
    return trained(make_loop(folder, **settings))


def outputs(model: Model) -> torch.Tensor:
    """What a model says of a fixed batch: the log-probability of each supervised token."""
    model.module.eval()
    with torch.no_grad():
        return token_logprobs(model, pack(examples()))


def moved_slightly(model: Model) -> None:
    """Move every parameter by a little, so that the model is no longer its own past."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)


def moved(tuning: Tuning) -> None:
    """Move every number that trains, as if it had trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in tuning.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)

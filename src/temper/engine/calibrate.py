"""What this process holds without a model, and how fast this machine trains: from a few real steps of a small one.

The small model has the family, width and vocabulary of the one that is planned for and at most two of its blocks, so
that the same kernels run; one that would still be large gives way to a small Llama. Its steps also bring into memory
what every training brings there (the libraries' code, their buffers), so that what is left of the process when it is
gone is what a training starts from.
"""

from __future__ import annotations

import copy
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import LlamaConfig

from temper.core.schedule import Moment
from temper.data.example import Example
from temper.data.pack import Batch
from temper.engine.fit import Data, assemble, attach, calibrate
from temper.engine.loop import Loop, to_batches
from temper.engine.precision import best_device
from temper.engine.settings import FitSettings, default_micro_tokens
from temper.models.load import Outline, outline_model
from temper.models.model import Model
from temper.models.pages import give_back

BLOCKS = 2
MOST_PARAMETERS = 60_000_000
TOKENS = 1_024
REPEATS = 2


@dataclass(frozen=True)
class Speed:
    """How fast this machine is."""

    flops_per_second: float
    """of forward and backward passes"""
    updates_per_second: float
    """trained numbers that an optimizer's step changes in a second"""


def small_model(outline: Outline) -> Model:
    """Return a real model of few blocks, with the tokenizer and the length of the one outlined."""
    config = copy.deepcopy(outline.config)
    text = config.get_text_config()
    text.num_hidden_layers = min(BLOCKS, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    with torch.device("meta"):
        size = sum(
            parameter.numel() for parameter in outline_model(replace(outline, config=config)).module.parameters()
        )
    if size > MOST_PARAMETERS:
        config = LlamaConfig(
            vocab_size=min(text.vocab_size, 2**15),
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=BLOCKS,
            num_attention_heads=8,
            max_position_embeddings=text.max_position_embeddings,
        )
        outline = replace(outline, layout=None, trust=False)
    with torch.random.fork_rng(devices=[]):
        return outline_model(replace(outline, config=config))


def measure_speed(make: Callable[[], Model], settings: FitSettings, data: Data) -> Speed:
    """Train a small model for a few steps on the first examples, and time them.

    Raises:
        TemperError: settings that do not fit the small model.
    """
    model = make()
    model.module.to(best_device())
    examples = _some(data, model.module.config.get_text_config().vocab_size)
    calibration = settings.tune.calibration(model)
    if calibration is not None:
        calibration = calibration.for_a_plan()
        calibrate(model, calibration, to_batches(examples, default_micro_tokens(settings)), settings)
    tuning = attach(model, settings, calibration=calibration)
    with tempfile.TemporaryDirectory(prefix="temper-") as folder:
        loop = assemble(tuning, data, settings, Path(folder), load=lambda name: make())
    batches, units = loop.batches(examples)
    model.module.train()
    best_pass = best_update = float("inf")
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        _pass(loop, batches, units)
        passed = time.perf_counter()
        _update(loop)
        best_pass = min(best_pass, passed - started)
        best_update = min(best_update, time.perf_counter() - passed)
    tuning.detach()
    data.mean_loss = None  # holds the loop, and so the model and the optimizer's state
    # Of further passes those over the same batches: the others, over rows of their own, are not taken here.
    further = [one for one in loop.further_passes(batches, Moment(0, 0.0)) if any(one.batch is own for own in batches)]
    operations = loop.flops.step(batches, further, loop.optim)
    numbers = sum(parameter.numel() for _, parameter in loop.trained)
    return Speed(operations / best_pass, numbers / best_update)


def _pass(loop: Loop, batches: Sequence[Batch], units: float) -> None:
    loop.look_at(batches, Moment(0, 0.0))
    with torch.set_grad_enabled(loop.optim.needs_gradient):
        for batch in [*batches] * loop.optim.num_evaluations:
            loss, _ = loop.add_gradients(batch, units, Moment(0, 0.0))
    if loop.optim.needs_gradient:
        loop.finish_gradients()
    float(loss.total)  # a GPU has finished


def _update(loop: Loop) -> None:
    if loop.optim.needs_gradient:
        loop.clip_gradients()
        loop.update()
    else:
        loop.optimizer.step(lambda: 0.0)


def _some(data: Data, vocabulary: int) -> list[Example]:
    """Return the first examples of the data, up to some tokens, as a model of a smaller vocabulary can read them."""
    place = data.main.parts[0]
    chosen: list[Example] = []
    total = 0
    for index in range(len(place)):
        for example in place.get([index])[0]:
            sequences = tuple(
                replace(
                    sequence, tokens_T=(sequence.tokens_T % vocabulary)[:TOKENS], weights_T=sequence.weights_T[:TOKENS]
                )
                for sequence in example.sequences
            )
            chosen.append(replace(example, sequences=sequences))
            total += chosen[-1].num_tokens
        if total >= TOKENS:
            break
    return chosen


def resident_bytes() -> int:
    """Return what the process holds of the system's memory, with nothing in it that could be given back."""
    gc.collect()
    give_back()
    for line in Path("/proc/self/status").read_text().splitlines() if Path("/proc/self/status").is_file() else ():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0

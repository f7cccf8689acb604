"""What a training stage will do and hold: its steps and tokens by reading its data, its memory by tracing its step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from temper.core.errors import TemperError
from temper.core.schedule import Moment
from temper.data.pack import Batch
from temper.data.stream import ENCODED_BEFOREHAND
from temper.engine.cost import FlopCounter
from temper.engine.distributed import World
from temper.engine.fit import Data, assemble, attach, calibrate, calibration_batches, needs_whole
from temper.engine.layout import DIMENSIONS, Layout, shard
from temper.engine.loop import Loop
from temper.engine.placement import is_divided
from temper.engine.precision import best_device, resolve
from temper.engine.settings import FitSettings
from temper.engine.trace import CHECKPOINT, Ledger, Memory, Traced, without_content
from temper.models.model import Model
from temper.signals.calibration import Calibration
from temper.signals.reference import START

READ_STEPS = 1_000
"""Steps that are read to the last token; of a longer stage the rest is estimated from them."""
TRACED_PASSES = 4
"""micro-batches that are traced of a step"""


@dataclass
class Work:
    """What a stage will do."""

    steps: int
    tokens: float
    supervised_tokens: float
    flops: float
    tokens_within: float = 0.0
    """half the width of the tokens' 95 % interval; 0 where every step was read"""
    largest: list[tuple[list[Batch], float]] = field(default_factory=list)
    """two steps of the largest micro-batches, each with its units"""
    flops_before: float = 0.0
    """of one pass over the rows that the tuner looks at before it is attached"""
    kept_bytes: float = 0.0
    """of what frozen blocks give and is kept on disk from one pass over the data to the next"""


class _Largest:
    """The micro-batches that are the largest in some way."""

    measures: tuple[Callable[[Batch], int], ...] = (
        lambda batch: batch.num_tokens,
        lambda batch: batch.num_supervised,
        lambda batch: sum(length**2 for length in batch.lengths),
    )

    def __init__(self) -> None:
        self.found: dict[int, tuple[int, int, Batch]] = {}
        self.most_passes = 0

    def see(self, step: int, batches: Sequence[Batch]) -> None:
        self.most_passes = max(self.most_passes, len(batches))
        for batch in batches:
            for place, measure in enumerate(self.measures):
                if place not in self.found or measure(batch) > self.found[place][0]:
                    self.found[place] = (measure(batch), step, batch)

    def steps(self, units: Callable[[Batch], float]) -> list[tuple[list[Batch], float]]:
        unique = list({id(batch): batch for _, _, batch in self.found.values()}.values())
        if self.most_passes > 1:
            passes = (unique * 2)[: max(2, min(self.most_passes, TRACED_PASSES))]
            steps = [passes, passes]
        else:
            steps = [[batch] for batch in [*unique, *unique]]
        return [(batches, max(1.0, sum(units(batch) for batch in batches))) for batches in steps]


def read_work(loop: Loop, shares: int = 1) -> Work:
    """Read a stage's steps, from the first to the last, or to the last that is read.

    Args:
        shares: processes that each compute a part of every batch; the largest micro-batches are then those of one.
    """
    largest = _Largest()
    steps, num_rows = 0, sum(len(part) for part in loop.steps.streams[0].parts)
    tokens: list[int] = []
    supervised, flops, progress = 0, 0.0, 0.0
    most = READ_STEPS if num_rows <= ENCODED_BEFOREHAND else max(1, READ_STEPS // 10)
    for step in loop.steps:
        batches, _ = loop.batches(step.examples)
        if shares > 1:
            by_size = sorted(step.examples, key=lambda example: -example.num_tokens)
            largest.see(steps, loop.batches(by_size[::shares])[0])
        else:
            largest.see(steps, batches)
        tokens.append(sum(batch.num_tokens for batch in batches))
        supervised += sum(batch.num_supervised for batch in batches)
        flops += loop.operations(batches, Moment(steps, step.progress, step.epoch, passes=step.passes))
        steps, progress = steps + 1, step.progress_after
        if steps >= most:
            break
    work = Work(steps, float(sum(tokens)), float(supervised), flops)
    work.largest = largest.steps(loop.objective.units)
    passes = loop.steps.streams[0].passes
    if loop.keeps_frozen and passes > 0:
        embedding = loop.model.module.get_submodule(loop.model.anatomy.embedding).weight
        of_a_token = loop.model.module.config.get_text_config().hidden_size * embedding.element_size()
        work.kept_bytes = sum(tokens) * min(1 / passes, 1 / progress) * of_a_token
    if progress < 1:
        whole = loop.steps.budget.steps or round(steps / progress)
        mean = sum(tokens) / steps
        spread = math.sqrt(sum((count - mean) ** 2 for count in tokens) / max(1, steps - 1))
        scale = whole / steps
        # The steps that were read are exact; what is uncertain is the mean of the others.
        work = Work(
            whole,
            work.tokens * scale,
            work.supervised_tokens * scale,
            flops * scale,
            1.96 * spread / math.sqrt(steps) * (whole - steps),
            work.largest,
            kept_bytes=work.kept_bytes,
        )
    return work


@dataclass
class Forecast:
    """What a stage will do and hold; what could not be found out is None, and `why` says so."""

    work: Work | None
    memory: Memory | None
    why: str = ""
    trainable: int = 0
    parameters: int = 0
    num_frozen: int = 0
    """first blocks that do not train"""


@dataclass(frozen=True)
class Elsewhere:
    """Machines that are not there."""

    processes: int
    layout: Layout


@contextmanager
def pretended(place: Elsewhere | None) -> Iterator[DeviceMesh | None]:
    """Be the first of some processes that are not there: what is sent to them arrives nowhere."""
    if place is None:
        yield None
        return
    sizes = place.layout.sizes(place.processes)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=place.processes)
    try:
        yield init_device_mesh("cpu", sizes, mesh_dim_names=DIMENSIONS)
    finally:
        dist.destroy_process_group()


def forecast(
    make: Callable[[str], Model], data: Data, settings: FitSettings, seed: int = 0, place: Elsewhere | None = None
) -> Forecast:
    """Read a stage's data and trace its step.

    Args:
        make: makes a model by its name, `start` for the one that trains; called where tensors have no content.
        data: the stage's data; its steps are read, and stand at the start again afterwards.
        settings: of the stage.
        place: the processes that divide the work; None for this one alone. Steps and tokens are then those of all
            of them, and memory is that of one, which has its share of every batch.

    Raises:
        TemperError: settings that do not fit the model, or a layout that does not.
    """
    with pretended(place) as mesh:
        whole_for = needs_whole(settings)
        if mesh is None:
            return _forecast(make, data, settings, seed, _Where())
        world = World(0, mesh.size(), Layout(**{name: mesh[name].size() for name in DIMENSIONS}))
        divides = is_divided(world, whole_for)
        where = _Where(False, mesh if divides else None, world.data_size)
        return _forecast(make, data, settings, seed, where)


@dataclass(frozen=True)
class _Where:
    """On what a stage is traced."""

    is_here: bool = True
    mesh: DeviceMesh | None = None
    """of the processes that divide the model's numbers"""
    shares: int = 1
    """of each batch"""


def _forecast(make: Callable[[str], Model], data: Data, settings: FitSettings, seed: int, where: _Where) -> Forecast:
    begin, mesh = data.steps.state_dict(), where.mesh
    device = best_device() if where.is_here else torch.device("cpu")
    ledger = Ledger(follows_sizes=mesh is not None)
    root, batches = None, _looked_at(make, data, settings)
    if mesh is not None:
        # A mesh asks for its own numbers while it divides a model: that is done on `meta`, outside of the mode.
        with torch.device("meta"):
            model = make(START)
            parameters = sum(parameter.numel() for parameter in model.module.parameters())
            for parameter in model.module.parameters():
                parameter.data = parameter.data.float()
            root = shard(model.module, model.anatomy, mesh, resolve(settings.precision, device))
    try:
        with without_content() as mode, ledger, device:
            if root is None:
                model = make(START)
                parameters = sum(parameter.numel() for parameter in model.module.parameters())
            else:
                root.to_empty(device=device)
            ledger.vocabulary = model.module.get_output_embeddings().out_features
            ledger.start = len(ledger.events)
            counter = FlopCounter(model)
            tuning = attach(model, settings, seed, _calibrated(model, batches, settings))
            loop = assemble(tuning, data, settings, Path(), load=make)
            loop.keep_frozen &= where.is_here
    except TemperError:
        raise
    except Exception as error:
        return Forecast(None, None, f"cannot be planned: {_first_line(error)}")
    try:
        work = read_work(loop, where.shares)
        work.flops_before = sum(counter.look(batch) for batch in batches)
    finally:
        data.steps.load_state_dict(begin)
    trainable = sum(parameter.numel() for _, parameter in loop.trained)
    try:
        memory = Traced(loop, ledger, mode, root, where.is_here).run(work.largest)
        if loop.device.type == "cpu":  # from a GPU it goes to the host's memory
            memory = memory.beside(CHECKPOINT, loop.copied_bytes(work.steps))
    except TemperError:
        raise
    except Exception as error:
        why = f"its memory cannot be traced: {_first_line(error)}"
        return Forecast(work, None, why, trainable, parameters, loop.num_frozen)
    return Forecast(work, memory, "", trainable, parameters, loop.num_frozen)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _looked_at(make: Callable[[str], Model], data: Data, settings: FitSettings) -> list[Batch]:
    """Return what the tuner looks at before it is attached."""
    with torch.device("meta"):
        model = make(START)
        calibration = settings.tune.calibration(model)
    return [] if calibration is None else calibration_batches(model, calibration, data, settings)


def _calibrated(model: Model, batches: Sequence[Batch], settings: FitSettings) -> Calibration | None:
    """Return what the tuner declared, filled with shapes from the largest batches: the first one and one after it."""
    calibration = settings.tune.calibration(model)
    if calibration is None:
        return None
    calibration = calibration.for_a_plan()
    calibrate(model, calibration, sorted(batches, key=lambda batch: -batch.num_tokens)[:2], settings)
    return calibration


def longest_pass(data: Data) -> int:
    """Return the tokens of the longest example: a micro-batch cannot be smaller."""
    return max(2, *(part.tally.longest for part in data.main.parts))

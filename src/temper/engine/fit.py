"""Fit a model to rows: everything that a training stage chooses, put together.

The recipe's `train` stage and a Python script both end here.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from temper.core.errors import SettingError
from temper.core.methods import Live
from temper.data.encode import Encoder
from temper.data.example import Example, Row
from temper.data.example import Sequence as Tokens
from temper.data.pack import Batch
from temper.data.rows import BadRow, Rows
from temper.data.source import OnBadRows, Source
from temper.data.stream import EncodedRows, ShuffledStream, Steps, Stream
from temper.engine.cost import peak_memory_bytes, reset_peak_memory
from temper.engine.distributed import World
from temper.engine.loop import Loop, Metrics, Validation, to_batches
from temper.engine.mixing import Mixture
from temper.engine.placement import Replicated, Sharded, is_divided
from temper.engine.precision import best_device, computing_in, hold_in
from temper.engine.settings import FitSettings, ValidationSettings, default_micro_tokens, dtype_of, learning_rate
from temper.engine.snapshots import Snapshots
from temper.engine.trackers.base import Tracking
from temper.models.load import fingerprint_module
from temper.models.model import Model
from temper.models.packed import unpack_all
from temper.models.pages import give_back
from temper.objectives.base import Objective, Target
from temper.optim.base import Optim
from temper.retain.base import Retain
from temper.signals.calibration import Calibration, observe
from temper.signals.setup import Setup, load_outside
from temper.tune.base import Tune, Tuning

_VALIDATION_STREAM, _MAIN_STREAM, _SHARE_STREAM, _PROCESS_STREAM, _LOOK_STREAM = 1, 2, 3, 4, 5


@dataclass
class Fitted:
    """A finished fit; the tuning is still attached."""

    tuning: Tuning
    target: Target
    """the objective at work, with what it has learnt itself"""
    cost: Metrics
    details: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def fit(
    model: Model,
    rows: Rows | Sequence[Rows],
    settings: FitSettings,
    *,
    folder: Path | None = None,
    seed: int = 0,
    on_bad_rows: OnBadRows = "stop",
    open_source: Callable[[Source], Rows] | None = None,
    load: Callable[[str], Model] | None = None,
    stage: str = "",
    on_step: Callable[[Metrics], None] | None = None,
    world: World | None = None,
) -> Fitted:
    """Train a model on rows.

    Under `torchrun` every process calls it with the same arguments; afterwards the main one holds the trained model
    whole, and the others need not.

    Args:
        model: trained in place; `Fitted.tuning` saves, merges or detaches what moved. Where `settings.hold` packed its
            matrices they stay packed until they are changed or saved, and are then the rounded numbers beside which it
            was trained; a second fit begins from these.
        rows: the training data; several sources where they are to be mixed.
        settings: every choice of the stage.
        folder: holds `metrics.jsonl` and the checkpoints from which a killed fit continues; None for a temporary one.
        seed: of the data's order, the tuner's start and dropout.
        on_bad_rows: what to do with a row that cannot be trained on.
        open_source: opens the data that retention methods name.
        load: gives the models that the methods name, fresh (`FitSettings.asked_models`).
        on_step: called with each step's metrics, on the main process.
        world: the processes that train together; None to join those of `torchrun`.

    Raises:
        SettingError, DataError, TrainingError: see their messages.

    Example:
        >>> fitted = fit(load_model("my-model"), rows, FitSettings(tune="lora", lr=1e-3, steps=100))
        >>> fitted.tuning.save(Path("out"))
    """
    with ExitStack() as held:
        together = held.enter_context(World.join()) if world is None else world
        if folder is None:
            folder = Path(together.broadcast(held.enter_context(tempfile.TemporaryDirectory(prefix="temper-"))))
        sources = [rows] if isinstance(rows, Rows) else list(rows)
        check_formats(Rows.concatenate(sources, ""), settings.objective)
        if model.fusion is not None:
            reason = f"is a combination of {len(model.members)} models, which has no weights of its own"
            raise SettingError("train.from", stage, reason, "train one of the models that it is made of")
        divides = is_divided(together, needs_whole(settings))
        device = best_device()
        if not divides:
            model.module.to(device)
        give_back()  # what loading left
        reset_peak_memory(device)
        cost: Metrics = {"start_memory_bytes": peak_memory_bytes(device)}
        unpack_all(model.module)
        if model.is_changed:
            model.folder, model.fingerprint = None, fingerprint_module(model.module, model.tokenizer, model.prompts)
        data = prepare(model, sources, settings, seed, on_bad_rows, open_source)
        attaching = time.monotonic()
        num_parameters = sum(parameter.numel() for parameter in model.module.parameters())
        tuning = attach(model, settings, seed, _calibrated(model, data, settings))
        cost["attach_seconds"] = time.monotonic() - attaching
        model.is_changed = True
        placement = Sharded(together, model, dtype_of(settings)) if divides else Replicated(together)
        trackings = [tracker.open(stage, folder) for tracker in settings.track if together.is_main]
        loop = assemble(tuning, data, settings, folder, stage, seed=seed, load=load, placement=placement)
        loop.on_step = lambda metrics: _tell(metrics, on_step, trackings)
        if together.data_rank:  # what was drawn so far is the same everywhere; what is dropped now is each one's own
            torch.manual_seed(_seed(seed, _PROCESS_STREAM, together.data_rank))
        try:
            with together.naming_a_death():
                totals = loop.run()
                placement.finish()
        finally:
            for tracking in trackings:
                tracking.close()
        details, bad = _details(loop, data, sources, settings, totals)
        details = {"parameters": num_parameters, **details}
        if together.is_main:
            _write_quarantine(folder / "quarantine.jsonl", bad)
        cost |= {name: totals[name] for name in ("steps", "tokens", "supervised_tokens", "flops", "seconds")}
        cost["peak_memory_bytes"] = peak_memory_bytes(device)
        remarks = [remark for live in loop.lives for remark in live.remarks()]
        remarks += settings.optimizer.remarks(loop.optimizer)
        kept = [] if loop.prefix is None else loop.prefix.store.warnings
        warnings = [*model.notes, *loop.checkpoints.warnings, *kept, *remarks, *_warnings(details)]
        return Fitted(tuning, loop.target, cost, details, warnings)


def _details(
    loop: Loop, data: Data, sources: Sequence[Rows], settings: FitSettings, totals: Metrics
) -> tuple[dict[str, Any], list[BadRow]]:
    """Return what is worth keeping of a finished fit besides its cost, and the rows that were put aside."""
    tallies = [part.tally for part in (*data.main.parts, *data.put_aside, *data.shares)]
    bad = [row for source in (*sources, *(part.rows for part in data.shares)) for row in source.bad]
    bad += [row for tally in tallies for row in tally.bad]
    details: dict[str, Any] = {
        "trainable_parameters": sum(parameter.numel() for _, parameter in loop.trained),
        "rows": sum(map(len, sources)),
        "bad_rows": len(bad),
        "held_out": sum(part.tally.examples for part in data.put_aside),
        "examples": sum(part.tally.examples for part in data.main.parts),
        "truncated": sum(tally.truncated for tally in tallies),
        "truncated_tokens": sum(tally.truncated_tokens for tally in tallies),
        "longest": max(part.tally.longest for part in data.main.parts),
        "lr": learning_rate(settings),
        "dtype": str(loop.dtype).removeprefix("torch."),
        "device": str(best_device()),
        "threads": torch.get_num_threads(),
        "processes": loop.world.size,
        **{name: totals[name] for name in ("loss", "best_step", "best_validation_loss") if name in totals},
        **({} if data.mixture is None else {"mixture": data.mixture.report()}),
        **({} if loop.prefix is None else {"kept": loop.prefix.report()}),
    }
    return details, bad


@dataclass
class Data:
    """What a fit reads, encoded."""

    steps: Steps
    main: Stream
    aside: EncodedRows
    """the rows held out"""
    shares: list[EncodedRows]
    draw: Callable[[Sequence[Source], int], list[Example]]
    """gives at most that many examples of sources, or of the fit's own rows where none is named"""
    mixture: Mixture | None = None
    validation: Validation | None = None
    mean_loss: Callable[[Sequence[Example]], float] | None = None
    """measures the model as it is now, once a loop is put together"""

    @property
    def put_aside(self) -> list[EncodedRows]:
        """All rows that are held out, those by which a mixture measures included."""
        return [self.aside, *(() if self.mixture is None else self.mixture.held_out)]


def prepare(
    model: Model,
    sources: Sequence[Rows],
    settings: FitSettings,
    seed: int = 0,
    on_bad_rows: OnBadRows = "stop",
    open_source: Callable[[Source], Rows] | None = None,
) -> Data:
    """Encode rows as a fit reads them; of the model, only its tokenizer and configuration are read.

    Raises:
        SettingError, DataError: rows that cannot be trained on.
    """
    rows = Rows.concatenate(list(sources), "")
    encoder = _encoder(model, settings)

    def encode(row: Row) -> list[tuple[Tokens, ...]]:
        return settings.objective.encode(row, encoder)

    def encoded(indices: NDArray[np.int64]) -> EncodedRows:
        return EncodedRows(rows, encode, on_bad_rows, indices)

    held_out, kept = _hold_out(len(rows), settings.validation, seed)
    aside = encoded(held_out)
    validation = None
    if settings.validation is not None:
        examples = [example for of_row in aside.get(range(len(held_out))) for example in of_row]
        if not examples:
            raise SettingError(
                "train.validation",
                settings.validation.share,
                f"holds out {len(held_out)} rows of which none can be used",
                "hold out more, or mend the rows put aside",
            )
        prompt_length = model.prompt_length + settings.tune.prompt_length
        batches = to_batches(examples, default_micro_tokens(settings), prompt_length)
        validation = Validation(batches, settings.validation.every_steps, settings.validation.patience)

    def encoded_of(sources: Sequence[Source]) -> EncodedRows:
        others = _open_all(tuple(sources), open_source, on_bad_rows)
        check_formats(others, settings.objective)
        return EncodedRows(others, encode, on_bad_rows)

    def draw(sources: Sequence[Source], count: int) -> list[Example]:
        drawn_from = encoded_of(sources) if sources else encoded(kept)
        order = np.random.default_rng([seed, _LOOK_STREAM]).permutation(len(drawn_from))[:count]
        return [example for of_row in drawn_from.get(order.tolist()) for example in of_row]

    def loss_of(examples: Sequence[Example]) -> float:
        assert data.mean_loss is not None
        return data.mean_loss(examples)

    mixture: Mixture | None = None
    main: Stream
    if settings.mix is None:
        main = ShuffledStream(encoded(kept), _seed(seed, _MAIN_STREAM, 0))
    else:
        ends = np.cumsum([len(source) for source in sources])
        by_source = np.split(kept, np.searchsorted(kept, ends[:-1]))
        mixture = Mixture.of(settings.mix, by_source, encoded, loss_of, seed)
        main = mixture.stream
    shares = [(encoded_of(share.sources), share.share) for share in settings.shares]
    steps = Steps(
        main,
        [
            (ShuffledStream(part, _seed(seed, _SHARE_STREAM, number)), share)
            for number, (part, share) in enumerate(shares)
        ],
        settings.budget,
        None if settings.batch_tokens is not None else settings.batch_size or 32,
        settings.batch_tokens,
    )
    _check_passes(settings, main, on_bad_rows)
    data = Data(steps, main, aside, [part for part, _ in shares], draw, mixture, validation)
    return data


def _check_passes(settings: FitSettings, main: Stream, on_bad_rows: OnBadRows) -> None:
    """Raise SettingError where a stage is sure to end before its objective does what it is for."""
    needed, budget = settings.objective.passes_before, settings.budget
    if budget.epochs is not None:
        most, given = budget.epochs, f"this stage has {budget.epochs:g}"
    elif budget.steps is not None and settings.batch_tokens is None and on_bad_rows == "stop":
        size, num_rows = settings.batch_size or 32, sum(map(len, main.parts))
        most = budget.steps * size / max(1, num_rows)
        given = f"{budget.steps} steps of {size} over {num_rows} rows are {most:.3g} epochs"
    else:  # how many rows a number of tokens takes, or steps between rows that are put aside, the training will tell
        return
    if needed and most <= needed:
        reason = f"differs from plain training only after {needed:g} epochs, and {given}"
        fix = f"train for more than {needed:g} epochs (epochs: {needed + 1:g}), or take another objective"
        raise SettingError("train.objective", settings.objective.method_name, reason, fix)


def _encoder(model: Model, settings: FitSettings) -> Encoder:
    """Return the encoder of a model with the prompt that the tuner will put before every document.

    Raises:
        SettingError: the prompt leaves no room.
    """
    own = settings.tune.prompt_length
    left = model.num_positions - own
    if left < 2:
        taken = model.prompt_length + own
        reason = f"positions of soft prompts leave no room in the model's {left + taken}"
        raise SettingError("train.tune", taken, reason, "take a shorter prompt")
    return Encoder.of(model, min(settings.max_length, left), settings.truncate)


def _calibrated(model: Model, data: Data, settings: FitSettings) -> Calibration | None:
    """Return what the tuner declared, filled; None where it declared nothing."""
    calibration = settings.tune.calibration(model)
    if calibration is not None:
        calibrate(model, calibration, calibration_batches(model, calibration, data, settings), settings)
    return calibration


def calibration_batches(model: Model, calibration: Calibration, data: Data, settings: FitSettings) -> list[Batch]:
    """Return the batches that a calibration asks for."""
    examples = data.draw(calibration.sources, calibration.num_examples)[: calibration.num_examples]
    return to_batches(examples, default_micro_tokens(settings), model.prompt_length)


def calibrate(model: Model, calibration: Calibration, batches: Sequence[Batch], settings: FitSettings) -> None:
    """Fill a calibration."""
    device = next(model.module.parameters()).device
    with computing_in(dtype_of(settings), device):
        observe(model, [batch.to(device) for batch in batches], [calibration])


def attach(model: Model, settings: FitSettings, seed: int = 0, calibration: Calibration | None = None) -> Tuning:
    """Let the numbers move that are to move, and hold the others as the settings say."""
    torch.manual_seed(seed)
    tuning, dtype = settings.tune.attach(model, seed, calibration), dtype_of(settings)
    if settings.hold is not None:
        settings.hold.pack_blocks(model, dtype)
    tuning.hold_in(dtype)
    return tuning


def assemble(
    tuning: Tuning,
    data: Data,
    settings: FitSettings,
    folder: Path,
    stage: str = "",
    *,
    seed: int = 0,
    load: Callable[[str], Model] | None = None,
    placement: Replicated | None = None,
) -> Loop:
    """Put the loop together."""
    model, placement = tuning.model, placement or Replicated(World())
    device = next(model.module.parameters()).device
    dtype = dtype_of(settings)
    setup = Setup(
        trained=list(tuning.movable()),
        at_start=tuning.at_start,
        moves_numbers=tuning.moves_numbers,
        seed=seed,
        load=cache(partial(_frozen, load or load_outside, device, dtype)),
        examples=data.draw,
        computing=partial(computing_in, dtype, device),
    )
    target = settings.objective.build(model, setup)
    further: list[Live] = [] if data.mixture is None else [data.mixture.mixing]
    if settings.snapshots:
        if placement.world.size > 1:
            raise SettingError("train.snapshots", settings.snapshots, "is for one process", "train this stage on one")
        hold = None if settings.hold is None else settings.hold.written()
        facts = {"tune": settings.tune.written(), "seed": seed, "hold": hold}
        snapshots = Snapshots(settings.snapshots, folder, facts)
        snapshots.watch(lambda: (loop.trained, loop.optimizer))
        further.append(snapshots)
    loop = Loop(
        model=model,
        tuning=tuning,
        objective=settings.objective,
        target=target,
        optim=settings.optimizer,
        lr=learning_rate(settings),
        schedule=settings.schedule,
        steps=data.steps,
        folder=folder,
        retentions=[method.build(model, setup) for method in settings.retain],
        micro_tokens=default_micro_tokens(settings),
        recompute=settings.recompute,
        keep_frozen=settings.keep_frozen,
        clip=settings.clip,
        spike=settings.spike,
        checkpoint_steps=settings.checkpoint_steps,
        validation=data.validation,
        dtype=dtype,
        stage=stage,
        placement=placement,
        further=further,
    )
    data.mean_loss = lambda examples: loop.mean_loss(to_batches(examples, loop.micro_tokens, model.prompt_length))
    return loop


def _tell(metrics: Metrics, on_step: Callable[[Metrics], None] | None, trackings: list[Tracking]) -> None:
    if on_step is not None:
        on_step(metrics)
    for tracking in trackings:
        tracking.log(int(metrics["step"]), metrics)


def check_formats(rows: Rows, objective: Objective) -> None:
    """Raise SettingError where rows are none, or of a format that the objective cannot be trained on."""
    if len(rows) == 0:
        raise SettingError("train.data", "", "holds no row", "look at the rows put aside, or name other data")
    found = set(rows.table.column("format").unique().to_pylist())
    wrong = found - objective.formats
    if wrong:
        known = ", ".join(sorted(objective.formats))
        raise SettingError(
            "train.objective",
            objective.method_name,
            f"cannot be trained on rows of format {', '.join(sorted(wrong))}",
            f"it takes {known}; choose another objective or other data",
        )


def needs_whole(settings: FitSettings) -> list[str]:
    """Return the methods that need every number whole on each process."""
    methods: tuple[Tune | Objective | Optim | Retain, ...] = (
        settings.tune,
        settings.objective,
        settings.optimizer,
        *settings.retain,
    )
    return [method.method_name for method in methods if not method.works_on_pieces]


def _hold_out(
    count: int, validation: ValidationSettings | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices that are held out and those that are trained on."""
    if validation is None:
        return np.empty(0, dtype=np.int64), np.arange(count)
    wanted = min(validation.examples, round(count * validation.share))
    if not 0 < wanted < count:
        raise SettingError(
            "train.validation.share", validation.share, f"holds out {wanted} of {count} rows", "choose another share"
        )
    order = np.random.default_rng([seed, _VALIDATION_STREAM]).permutation(count)
    return np.sort(order[:wanted]), np.sort(order[wanted:])


def _seed(seed: int, kind: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, kind, number]).generate_state(1)[0])


def _open_all(
    sources: tuple[Source, ...], open_source: Callable[[Source], Rows] | None, on_bad_rows: OnBadRows
) -> Rows:
    if open_source is None:
        with tempfile.TemporaryDirectory(prefix="temper-") as cache:
            return Rows.concatenate([source.open("train", Path(cache), on_bad_rows) for source in sources], "")
    return Rows.concatenate([open_source(source) for source in sources], "")


def _frozen(load: Callable[[str], Model], device: torch.device, dtype: torch.dtype, name: str) -> Model:
    """Load a model that is asked and not trained."""
    model = load(name)
    model.module.requires_grad_(False).eval()
    if next(model.module.parameters()).device.type != device.type:  # tensors without content are there from the start
        model.module.to(device)
    hold_in(model, dtype)
    return model


def _write_quarantine(path: Path, bad: list[BadRow]) -> None:
    if bad:
        lines = [
            json.dumps(
                {"file": row.origin.file, "line": row.origin.line, "reason": row.reason, "text": row.text},
                ensure_ascii=False,
            )
            for row in bad
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _warnings(details: dict[str, Any]) -> list[str]:
    warnings = []
    if details["bad_rows"]:
        warnings.append(f"{details['bad_rows']} rows were put aside; see quarantine.jsonl")
    if details["truncated"]:
        warnings.append(
            f"{details['truncated']} sequences were cut to max_length, {details['truncated_tokens']} tokens in all"
        )
    return warnings

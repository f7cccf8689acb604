"""Fit a model to rows: everything that a training stage chooses, put together.

The recipe's `train` stage and a Python script both end here.
"""

from __future__ import annotations

import itertools
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
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from temper.core.errors import SettingError
from temper.core.methods import Live, Settings
from temper.core.schedule import Schedule
from temper.data.encode import Encoder
from temper.data.example import Example, Row
from temper.data.example import Sequence as Tokens
from temper.data.rows import BadRow, Rows
from temper.data.source import OnBadRows, Source
from temper.data.stream import Budget, EncodedRows, ShuffledStream, Steps, Stream
from temper.engine.cost import peak_memory_bytes, reset_peak_memory
from temper.engine.distributed import World
from temper.engine.loop import Loop, Metrics, Validation, to_batches
from temper.engine.mixing import Mixture
from temper.engine.placement import Replicated, Sharded, is_divided
from temper.engine.precision import Precision, best_device, computing_in, hold_in, resolve
from temper.engine.snapshots import Snapshots
from temper.engine.trackers.base import Tracker, Tracking
from temper.mix.base import Mix
from temper.models.load import fingerprint_module
from temper.models.model import Model
from temper.objectives.base import Objective, Target
from temper.optim.base import Optim
from temper.retain.base import Retain, Share
from temper.signals.calibration import Calibration, observe
from temper.signals.reference import START
from temper.signals.setup import Setup, load_outside
from temper.tune.base import Tune, Tuning

_VALIDATION_STREAM, _MAIN_STREAM, _SHARE_STREAM, _PROCESS_STREAM, _LOOK_STREAM = 1, 2, 3, 4, 5


class ValidationSettings(Settings):
    """Rows held out of training, whose loss picks the best step."""

    share: float = Field(0.05, gt=0, lt=1, description="part of the rows that is held out")
    examples: PositiveInt = Field(256, description="rows held out at most")
    every_steps: PositiveInt = Field(50, description="optimizer steps between validations")
    patience: PositiveInt | None = Field(
        None, description="validations without a better loss before the stage stops early; null: never"
    )


class FitSettings(Settings):
    """The choices of a training stage."""

    tune: Tune = Field(default_factory=lambda: Tune.parse("lora"), description="which numbers move, and in what form")
    objective: Objective = Field(default_factory=lambda: Objective.parse("sft"), description="towards what")
    optimizer: Optim = Field(default_factory=lambda: Optim.parse("adamw"), description="how the numbers move")
    retain: tuple[Retain, ...] = Field((), description="without losing what: a list of methods")
    mix: Mix | None = Field(
        None, description="in what proportion the sources are drawn; null: all their rows are put together and shuffled"
    )
    lr: PositiveFloat | None = Field(None, description="peak learning rate; the tuner's own default where not given")
    schedule: Schedule = Field(
        default_factory=lambda: Schedule.parse("cosine"),
        description="how the learning rate changes: constant, linear, cosine, wsd",
    )
    epochs: PositiveFloat | None = Field(
        None, description="passes over the data; 1 where neither it, steps nor tokens is given"
    )
    steps: PositiveInt | None = Field(None, description="optimizer steps, instead of epochs")
    tokens: PositiveInt | None = Field(
        None,
        description="tokens to train on, replayed ones included, instead of epochs; the example that reaches them is "
        "the last",
    )
    batch_size: PositiveInt | None = Field(
        None, description="examples per optimizer step; 32 where neither it nor batch_tokens is given"
    )
    batch_tokens: PositiveInt | None = Field(
        None,
        description="tokens per optimizer step at most (a longer example is a step of its own), instead of batch_size",
    )
    micro_tokens: PositiveInt | None = Field(
        None,
        description="tokens in one forward pass at most: bounds memory, and changes nothing else without dropout; by "
        "default 8192 on a GPU and 2048 on a CPU",
    )
    recompute: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the blocks whose activations are computed again in the backward pass instead of being "
        "kept: less memory for up to a third more work, and the same bits",
    )
    max_length: int = Field(
        2048,
        ge=2,
        description="the longest sequence in tokens, the model's own limit at most; a longer row is a bad row",
    )
    truncate: bool = Field(False, description="cut longer rows at their end instead, and count them")
    clip: PositiveFloat | None = Field(1.0, description="largest norm of the gradient; null: no limit")
    spike: PositiveFloat | None = Field(
        8.0, description="standard deviations by which a step's loss may exceed the last 50 steps' mean; null: any"
    )
    precision: Precision = Field("auto", description="auto, fp32 or bf16: in which numbers the model computes")
    checkpoint_steps: PositiveInt = Field(100, description="optimizer steps between checkpoints")
    validation: ValidationSettings | None = Field(None, description="rows held out to pick the best step; null: none")
    snapshots: int = Field(
        0,
        ge=0,
        description="states kept evenly over the stage, with the optimizer's moments, for methods that look at how it "
        "went",
    )
    track: tuple[Tracker, ...] = Field((), description="where the numbers are shown besides metrics.jsonl")

    @model_validator(mode="after")
    def _one_of_each(self) -> FitSettings:
        lengths = itertools.combinations(("epochs", "steps", "tokens"), 2)
        for one, other in (*lengths, ("batch_size", "batch_tokens")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise SettingError(
                    other,
                    getattr(self, other),
                    f"is given beside {one}",
                    f"{one} and {other} are one choice: give one of them",
                )
        if self.snapshots and self.validation is not None:
            reason = "keeps the way to the last step, and validation returns to the best one"
            raise SettingError("snapshots", self.snapshots, reason, "leave one of the two out")
        total = sum(share.share for share in self.shares)
        if total >= 1:
            raise SettingError(
                "retain", total, "is what the shares add up to, which leaves no room for the data", "lower them"
            )
        return self

    @property
    def shares(self) -> tuple[Share, ...]:
        """Other data that is mixed into every batch."""
        return tuple(share for method in self.retain for share in method.shares())

    @property
    def asked_models(self) -> tuple[str, ...]:
        """Stages (or `base`) whose models the methods ask, besides the one that trains."""
        named = [*self.objective.models(), *(name for method in self.retain for name in method.models())]
        return tuple(dict.fromkeys(name for name in named if name != START))

    @property
    def budget(self) -> Budget:
        """How long to train."""
        if self.steps is not None:
            return Budget(steps=self.steps)
        if self.tokens is not None:
            return Budget(tokens=self.tokens)
        return Budget(epochs=1.0 if self.epochs is None else self.epochs)


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
        model: trained in place; `Fitted.tuning` saves, merges or detaches what moved.
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
    if world is None or folder is None:
        with ExitStack() as held:
            together = held.enter_context(World.join()) if world is None else world
            if folder is None:
                folder = Path(together.broadcast(held.enter_context(tempfile.TemporaryDirectory(prefix="temper-"))))
            return fit(
                model,
                rows,
                settings,
                folder=folder,
                seed=seed,
                on_bad_rows=on_bad_rows,
                open_source=open_source,
                load=load,
                stage=stage,
                on_step=on_step,
                world=together,
            )
    sources = [rows] if isinstance(rows, Rows) else list(rows)
    rows = Rows.concatenate(sources, "")
    if model.fusion is not None:
        reason = f"is a combination of {len(model.members)} models, which has no weights of its own"
        raise SettingError("train.from", stage, reason, "train one of the models that it is made of")
    check_formats(rows, settings.objective)
    device = best_device()
    divides = is_divided(world, _whole_for(settings))
    if not divides:
        model.module.to(device)
    reset_peak_memory(device)
    held_before = peak_memory_bytes(device)
    if model.is_changed:
        model.folder, model.fingerprint = None, fingerprint_module(model.module, model.tokenizer, model.prompts)
    data = prepare(model, sources, settings, seed, on_bad_rows, open_source)
    attaching = time.monotonic()
    tuning = attach(model, settings, seed, _calibrated(model, data, settings))
    attach_seconds = time.monotonic() - attaching
    model.is_changed = True
    placement = Sharded(world, model, dtype_of(settings)) if divides else Replicated(world)
    trackings = [tracker.open(stage, folder) for tracker in settings.track if world.is_main]
    loop = assemble(tuning, data, settings, folder, stage, seed=seed, load=load, placement=placement)
    loop.on_step = lambda metrics: _tell(metrics, on_step, trackings)
    if world.data_rank:  # what was drawn so far is the same everywhere; what is dropped from now on is each one's own
        torch.manual_seed(_seed(seed, _PROCESS_STREAM, world.data_rank))
    try:
        with world.naming_a_death():
            totals = loop.run()
            placement.finish()
    finally:
        for tracking in trackings:
            tracking.close()
    tallies = [part.tally for part in (*data.main.parts, *data.put_aside, *data.shares)]
    bad = [row for source in (rows, *(part.rows for part in data.shares)) for row in source.bad]
    bad += [row for tally in tallies for row in tally.bad]
    if world.is_main:
        _write_quarantine(folder / "quarantine.jsonl", bad)
    details: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
        "trainable_parameters": sum(parameter.numel() for _, parameter in loop.trained),
        "rows": len(rows),
        "bad_rows": len(bad),
        "held_out": sum(part.tally.examples for part in data.put_aside),
        "examples": sum(part.tally.examples for part in data.main.parts),
        "truncated": sum(tally.truncated for tally in tallies),
        "truncated_tokens": sum(tally.truncated_tokens for tally in tallies),
        "longest": max(part.tally.longest for part in data.main.parts),
        "lr": learning_rate(settings),
        "dtype": str(loop.dtype).removeprefix("torch."),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "processes": world.size,
        **{name: totals[name] for name in ("loss", "best_step", "best_validation_loss") if name in totals},
        **({} if data.mixture is None else {"mixture": data.mixture.report()}),
    }
    cost: Metrics = {name: totals[name] for name in ("steps", "tokens", "supervised_tokens", "flops", "seconds")}
    cost |= {"attach_seconds": attach_seconds, "peak_memory_bytes": peak_memory_bytes(device)}
    cost["start_memory_bytes"] = held_before
    return Fitted(tuning, loop.target, cost, details, [*model.notes, *loop.checkpoints.warnings, *_warnings(details)])


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


def default_micro_tokens(settings: FitSettings) -> int:
    """Return the tokens of one forward pass at most."""
    return settings.micro_tokens or (2048 if best_device().type == "cpu" else 8192)


def learning_rate(settings: FitSettings) -> float:
    """Return the peak learning rate."""
    return type(settings.tune).default_lr if settings.lr is None else settings.lr


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
    data = Data(steps, main, aside, [part for part, _ in shares], draw, mixture, validation)
    return data


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
        device = next(model.module.parameters()).device
        examples = data.draw(calibration.sources, calibration.num_examples)[: calibration.num_examples]
        batches = [
            batch.to(device) for batch in to_batches(examples, default_micro_tokens(settings), model.prompt_length)
        ]
        with computing_in(dtype_of(settings), device):
            observe(model, batches, [calibration])
    return calibration


def attach(model: Model, settings: FitSettings, seed: int = 0, calibration: Calibration | None = None) -> Tuning:
    """Let the numbers move that are to move, and hold the others in the type of the products."""
    torch.manual_seed(seed)
    tuning = settings.tune.attach(model, seed, calibration)
    tuning.hold_in(dtype_of(settings))
    return tuning


def dtype_of(settings: FitSettings) -> torch.dtype:
    """Return the type in which a fit's products are computed."""
    return resolve(settings.precision, best_device())


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
    parameters = list(tuning.parameters())
    setup = Setup(
        trained=parameters,
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
        snapshots = Snapshots(settings.snapshots, folder, {"tune": settings.tune.written(), "seed": seed})
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


def _whole_for(settings: FitSettings) -> list[str]:
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
    model.module.requires_grad_(False).to(device).eval()
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

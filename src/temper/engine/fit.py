"""Fit a model to rows: everything that a training stage chooses, put together.

The recipe's `train` stage and a Python script both end here.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from temper.core.errors import SettingError
from temper.core.hashing import hash_json
from temper.core.methods import Settings
from temper.core.schedule import Schedule
from temper.data.encode import Encoder
from temper.data.example import Example, Row
from temper.data.example import Sequence as Tokens
from temper.data.rows import BadRow, Rows
from temper.data.source import OnBadRows, Source
from temper.data.stream import Budget, EncodedRows, ShuffledStream, Steps
from temper.engine.cost import peak_memory_bytes, reset_peak_memory
from temper.engine.loop import Loop, Metrics, Validation, to_batches
from temper.engine.precision import Precision, best_device, computing_in, resolve
from temper.engine.trackers.base import Tracker, Tracking
from temper.models.load import fingerprint_module
from temper.models.model import Model
from temper.objectives.base import Objective
from temper.optim.base import Optim
from temper.retain.base import Retain, Share
from temper.signals.calibration import Calibration, observe
from temper.tune.base import Tune, Tuning

_VALIDATION_STREAM, _MAIN_STREAM, _SHARE_STREAM, _CALIBRATION_STREAM = 1, 2, 3, 4


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
    lr: PositiveFloat | None = Field(None, description="peak learning rate; the tuner's own default where not given")
    schedule: Schedule = Field(
        default_factory=lambda: Schedule.parse("cosine"),
        description="how the learning rate changes: constant, linear, cosine, wsd",
    )
    epochs: PositiveFloat | None = Field(
        None, description="passes over the data; 1 where neither it nor steps is given"
    )
    steps: PositiveInt | None = Field(None, description="optimizer steps, instead of epochs")
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
    track: tuple[Tracker, ...] = Field((), description="where the numbers are shown besides metrics.jsonl")

    @model_validator(mode="after")
    def _one_of_each(self) -> FitSettings:
        for one, other in (("epochs", "steps"), ("batch_size", "batch_tokens")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise SettingError(
                    other,
                    getattr(self, other),
                    f"is given beside {one}",
                    f"{one} and {other} are one choice: give one of them",
                )
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
    def budget(self) -> Budget:
        """How long to train."""
        if self.steps is not None:
            return Budget(steps=self.steps)
        return Budget(epochs=1.0 if self.epochs is None else self.epochs)


@dataclass
class Fitted:
    """A finished fit; the tuning is still attached."""

    tuning: Tuning
    cost: Metrics
    details: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def fit(
    model: Model,
    rows: Rows,
    settings: FitSettings,
    *,
    folder: Path | None = None,
    seed: int = 0,
    on_bad_rows: OnBadRows = "stop",
    open_source: Callable[[Source], Rows] | None = None,
    stage: str = "",
    on_step: Callable[[Metrics], None] | None = None,
) -> Fitted:
    """Train a model on rows.

    Args:
        model: trained in place; `Fitted.tuning` saves, merges or detaches what moved.
        rows: the training data.
        settings: every choice of the stage.
        folder: holds `metrics.jsonl` and the checkpoints from which a killed fit continues; None for a temporary one.
        seed: of the data's order, the tuner's start and dropout.
        on_bad_rows: what to do with a row that cannot be trained on.
        open_source: opens the data that retention methods name.
        on_step: called with each step's metrics.

    Raises:
        SettingError, DataError, TrainingError: see their messages.

    Example:
        >>> fitted = fit(load_model("my-model"), rows, FitSettings(tune="lora", lr=1e-3, steps=100))
        >>> fitted.tuning.save(Path("out"))
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="temper-") as temporary:
            return fit(
                model,
                rows,
                settings,
                folder=Path(temporary),
                seed=seed,
                on_bad_rows=on_bad_rows,
                open_source=open_source,
                stage=stage,
                on_step=on_step,
            )
    check_formats(rows, settings.objective)
    device = best_device()
    model.module.to(device)
    reset_peak_memory(device)
    dtype = resolve(settings.precision, device)
    torch.manual_seed(seed)
    if model.is_changed:
        model.folder, model.fingerprint = None, fingerprint_module(model.module, model.tokenizer)
    encoder = Encoder.of(model, settings.max_length, settings.truncate)
    micro_tokens = settings.micro_tokens or (2048 if device.type == "cpu" else 8192)

    def encode(row: Row) -> list[tuple[Tokens, ...]]:
        return settings.objective.encode(row, encoder)

    held_out, kept = _hold_out(len(rows), settings.validation, seed)
    main = EncodedRows(rows, encode, on_bad_rows, kept)
    aside = EncodedRows(rows, encode, on_bad_rows, held_out)
    calibration = settings.tune.calibration(model)
    calibrated_on = {_key(()): main}
    if calibration is not None:
        if calibration.sources:
            opened = _open_all(calibration.sources, open_source, on_bad_rows)
            check_formats(opened, settings.objective)
            calibrated_on[_key(calibration.sources)] = EncodedRows(opened, encode, on_bad_rows)
        with computing_in(dtype, device):
            _calibrate(model, [calibration], calibrated_on, micro_tokens, _seed(seed, _CALIBRATION_STREAM, 0))
    tuning = settings.tune.attach(model, seed, calibration)
    model.is_changed = True
    tuning.hold_in(dtype)
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
        batches = to_batches(examples, micro_tokens)
        validation = Validation(batches, settings.validation.every_steps, settings.validation.patience)
    shares = []
    for share in settings.shares:
        mixed_in = _open_all(share.sources, open_source, on_bad_rows)
        check_formats(mixed_in, settings.objective)
        shares.append((EncodedRows(mixed_in, encode, on_bad_rows), share.share))
    steps = Steps(
        ShuffledStream(main, _seed(seed, _MAIN_STREAM, 0)),
        [
            (ShuffledStream(encoded, _seed(seed, _SHARE_STREAM, number)), share)
            for number, (encoded, share) in enumerate(shares)
        ],
        settings.budget,
        None if settings.batch_tokens is not None else settings.batch_size or 32,
        settings.batch_tokens,
    )
    parameters = list(tuning.parameters())
    lr = type(settings.tune).default_lr if settings.lr is None else settings.lr
    trackings = [tracker.open(stage, folder) for tracker in settings.track]
    loop = Loop(
        model=model,
        tuning=tuning,
        objective=settings.objective,
        target=settings.objective.build(model),
        optim=settings.optimizer,
        lr=lr,
        schedule=settings.schedule,
        steps=steps,
        folder=folder,
        retentions=[method.build(model, tuning) for method in settings.retain],
        micro_tokens=micro_tokens,
        clip=settings.clip,
        spike=settings.spike,
        checkpoint_steps=settings.checkpoint_steps,
        validation=validation,
        dtype=dtype,
        stage=stage,
        on_step=lambda metrics: _tell(metrics, on_step, trackings),
    )
    try:
        totals = loop.run()
    finally:
        for tracking in trackings:
            tracking.close()
    others = [encoded for encoded, _ in shares] + [encoded for encoded in calibrated_on.values() if encoded is not main]
    tallies = [main.tally, aside.tally, *(encoded.tally for encoded in others)]
    bad = [row for source in (rows, *(encoded.rows for encoded in others)) for row in source.bad]
    bad += [row for tally in tallies for row in tally.bad]
    _write_quarantine(folder / "quarantine.jsonl", bad)
    details: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
        "trainable_parameters": sum(parameter.numel() for _, parameter in parameters),
        "rows": len(rows),
        "bad_rows": len(bad),
        "held_out": aside.tally.examples,
        "examples": main.tally.examples,
        "truncated": sum(tally.truncated for tally in tallies),
        "truncated_tokens": sum(tally.truncated_tokens for tally in tallies),
        "longest": main.tally.longest,
        "lr": lr,
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
        "threads": torch.get_num_threads(),
        **{name: totals[name] for name in ("loss", "best_step", "best_validation_loss") if name in totals},
    }
    cost: Metrics = {name: totals[name] for name in ("steps", "tokens", "supervised_tokens", "flops", "seconds")}
    cost["peak_memory_bytes"] = peak_memory_bytes(device)
    return Fitted(tuning, cost, details, [*model.notes, *loop.checkpoints.warnings, *_warnings(details)])


def _calibrate(
    model: Model,
    calibrations: Sequence[Calibration],
    rows: Mapping[str, EncodedRows],
    micro_tokens: int,
    seed: int,
) -> None:
    """Fill calibrations: those that ask for the same rows in one pass."""
    asked: dict[tuple[str, int], list[Calibration]] = {}
    for calibration in calibrations:
        asked.setdefault((_key(calibration.sources), calibration.num_examples), []).append(calibration)
    device = next(model.module.parameters()).device
    for (key, num_examples), together in asked.items():
        stream, examples = ShuffledStream(rows[key], seed), list[Example]()
        while len(examples) < num_examples and stream.place.epoch == 0 and stream.place.row < len(rows[key]):
            examples.append(stream.next())
        observe(model, [batch.to(device) for batch in to_batches(examples, micro_tokens)], together)


def _key(sources: Sequence[Source]) -> str:
    return hash_json([source.written() for source in sources])


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

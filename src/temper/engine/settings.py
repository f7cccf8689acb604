"""The choices of a training stage."""

from __future__ import annotations

import itertools

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from temper.core.errors import SettingError
from temper.core.methods import Settings
from temper.core.schedule import Schedule
from temper.data.stream import Budget
from temper.engine.precision import Precision, best_device, resolve
from temper.engine.trackers.base import Tracker
from temper.hold.base import Hold
from temper.mix.base import Mix
from temper.objectives.base import Objective
from temper.optim.base import Optim
from temper.retain.base import Retain, Share
from temper.signals.reference import START
from temper.tune.base import Tune


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
        default_factory=lambda: Schedule.parse("cosine"), description="how the learning rate changes"
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
    keep_frozen: bool = Field(
        True,
        description="where epochs or steps go through the data more than once: keep on disk what the blocks below the "
        "lowest that trains give, in place of computing it again; takes at most half of the disk's free room, until "
        "the stage is over",
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
    hold: Hold | None = Field(
        None,
        description="in what form the blocks' matrices are held while others train, where the tuner leaves them alone; "
        "the base is loaded whole before; null: in the precision's own numbers",
    )
    checkpoint_steps: PositiveInt = Field(100, description="optimizer steps between checkpoints")
    validation: ValidationSettings | None = Field(None, description="rows held out to pick the best step; null: none")
    snapshots: int = Field(
        0,
        ge=0,
        description="states kept evenly over the stage, with the optimizer's moments, for methods that look at how it "
        "went",
    )
    track: tuple[Tracker, ...] = Field((), description="where the numbers are shown besides metrics.jsonl")

    def idle(self) -> dict[str, str]:
        if self.optimizer.needs_gradient:
            return {}
        without = f"in a backward pass, which {self.optimizer.method_name} does not have"
        return {"recompute": without, **({} if self.clip is None else {"clip": without})}

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
        if self.tune.needs_gradient and not self.optimizer.needs_gradient:
            reason = f"has no backward pass, and the tuner {self.tune.method_name!r} looks at gradients"
            raise SettingError("optimizer", self.optimizer.method_name, reason, "take one that has, such as adamw")
        if self.hold is not None and not self.tune.leaves_base:
            reason = f"packs the base's matrices, into which the tuner {self.tune.method_name!r} writes what it learns"
            fix = "leave hold out, or take a tuner that trains beside them, such as lora"
            raise SettingError("hold", self.hold.method_name, reason, fix)
        if self.snapshots and self.validation is not None:
            reason = "keeps the way to the last step, and validation returns to the best one"
            raise SettingError("snapshots", self.snapshots, reason, "leave one of the two out")
        for number, method in enumerate(self.retain):
            if method in self.retain[:number]:
                reason = "stands there twice with the same settings"
                fix = "name it once, and make it stronger where it is to count more"
                raise SettingError("retain", method.method_name, reason, fix)
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


def default_micro_tokens(settings: FitSettings) -> int:
    """Return the tokens of one forward pass at most."""
    return settings.micro_tokens or (2048 if best_device().type == "cpu" else 8192)


def learning_rate(settings: FitSettings) -> float:
    """Return the peak learning rate."""
    return type(settings.tune).default_lr if settings.lr is None else settings.lr


def dtype_of(settings: FitSettings) -> torch.dtype:
    """Return the type in which a fit's products are computed."""
    return resolve(settings.precision, best_device())

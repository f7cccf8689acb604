"""The loop: batches -> forward -> objective -> backward -> optimizer.

Decisions:
- The loop knows the axes' base classes and none of their methods. Whatever lives while training is a `Live` with
  hooks at step boundaries and a state that goes into every checkpoint.
- A step's loss is a sum divided by the units of the whole step, so micro-batches change nothing but memory (and,
  where there is dropout, what is dropped).
- Everything that the next step depends on is in the checkpoint; a resumed run ends in the same bits.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from temper.core.errors import TrainingError
from temper.core.methods import Live
from temper.core.schedule import Moment, Schedule
from temper.data.example import Example, Origin
from temper.data.pack import Batch, pack, split_by_cost
from temper.data.stream import Step, Steps, ahead
from temper.engine.checkpoint import Checkpoints
from temper.engine.cost import FlopCounter
from temper.engine.precision import computing_in
from temper.engine.watch import LossWatch, naming_memory
from temper.models.model import Model
from temper.objectives.base import Loss, Objective, Target
from temper.optim.base import Optim
from temper.retain.base import Retention
from temper.tune.base import Tuning

Metrics = dict[str, float]


@dataclass(frozen=True)
class Validation:
    """Held-out examples whose loss decides on the best step and on stopping early."""

    batches: Sequence[Batch]
    every_steps: int
    patience: int | None = None
    """validations without a better loss before the stage stops; None: never"""


@dataclass
class _Done:
    """What an evaluation of a step's loss came to."""

    loss: float
    metrics: dict[str, float]
    worst: list[tuple[float, Origin]]
    penalty: float | None
    grad_norm: float | None = None


@dataclass
class Loop:
    """One training stage, put together; `run` does it."""

    model: Model
    tuning: Tuning
    objective: Objective
    target: Target
    optim: Optim
    lr: float
    """peak learning rate"""
    schedule: Schedule
    steps: Steps
    folder: Path
    """holds `metrics.jsonl` and `checkpoints/`"""
    retentions: Sequence[Retention] = ()
    micro_tokens: int = 8192
    """tokens in one forward pass, at most; bounds memory"""
    clip: float | None = 1.0
    spike: float | None = 8.0
    checkpoint_steps: int = 100
    validation: Validation | None = None
    dtype: torch.dtype = torch.float32
    stage: str = ""
    on_step: Callable[[Metrics], None] = field(default=lambda metrics: None)

    def __post_init__(self) -> None:
        self.device = next(self.model.module.parameters()).device
        self._train_what_moves()
        self.lives: list[Live] = [self.tuning, self.target, *self.retentions]
        self.watch = LossWatch(self.spike)
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        self.totals: Metrics = {"steps": 0, "tokens": 0, "supervised_tokens": 0, "flops": 0.0, "seconds": 0.0}
        """further on also `loss`, of the last step"""
        self.best: dict[str, Any] = {"loss": None, "step": 0, "failures": 0, "last": None}

    def _train_what_moves(self) -> None:
        """Begin to train what the tuning names, with a fresh optimizer."""
        self.trained: list[tuple[str, nn.Parameter]] = list(self.tuning.parameters())
        self.optimizer = self.optim.build(self.trained, self.lr)
        self.flops = FlopCounter(self.model)

    def _follow(self, origins: Mapping[str, Tensor]) -> None:
        """Train another set of numbers from now on; the optimizer keeps its state of those that stay."""
        former = self.optimizer
        self._train_what_moves()
        named = dict(self.trained)
        self.optim.carry(former, self.optimizer, {named[name]: origin for name, origin in origins.items()})

    def run(self) -> Metrics:
        """Train from the newest checkpoint, or from the start, to the end of the budget.

        Returns:
            the stage's totals: `steps`, `tokens`, `supervised_tokens`, `flops`, `seconds`, `loss`; with validation
            also `best_step` and `best_validation_loss`.

        Raises:
            TrainingError: the loss is not finite or jumped.
            DataError: a row that cannot be trained on.
        """
        self._resume()
        started = time.monotonic() - self.totals["seconds"]
        self.model.module.train()
        # On a GPU the next batches are made while it computes; on a CPU a second thread would only compete.
        source = ahead(iter(self.steps)) if self.device.type != "cpu" else iter(self.steps)
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
            for step in source:
                if self._is_over():
                    break
                metrics = self._step(step)
                self.totals["loss"] = metrics["loss"]
                self.totals["seconds"] = time.monotonic() - started
                metrics["seconds"] = self.totals["seconds"]
                number = int(self.totals["steps"])
                is_last = step.progress_after >= 1
                if self.validation is not None and (is_last or number % self.validation.every_steps == 0):
                    metrics["validation_loss"] = self._validate(number)
                log.write(json.dumps(metrics) + "\n")
                self.on_step(metrics)
                if number % self.checkpoint_steps == 0:
                    log.flush()
                    self._save(step.state)
        self.model.module.eval()
        if self.validation is not None:
            self.tuning.restore(self.checkpoints.load_best())
            self.totals |= {"best_step": self.best["step"], "best_validation_loss": self.best["loss"]}
        return dict(self.totals)

    def _step(self, step: Step) -> Metrics:
        number = int(self.totals["steps"])
        moment = Moment(number, step.progress, step.epoch, self.stage, self.best["last"])
        for live in self.lives:
            live.before_step(moment)
        change = self.tuning.take_change()
        if change is not None:
            self._follow(change)
        factor = self.schedule.value(moment)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        batches = [pack(examples).to(self.device) for examples in split_by_cost(step.examples, self.micro_tokens)]
        units = sum(self.objective.units(batch) for batch in batches)
        if units == 0:
            origins = ", ".join(str(example.origin) for example in step.examples[:3])
            raise TrainingError(
                f"step {number}: nothing in this batch is supervised ({origins}, ...); remove such rows"
            )
        move = self._move_by_gradient if self.optim.needs_gradient else self._move_by_loss
        done = move(batches, units, moment)
        self.optimizer.zero_grad(set_to_none=True)
        for live in self.lives:
            live.after_step(moment)
        self.totals["steps"] += 1
        self.totals["tokens"] += sum(batch.num_tokens for batch in batches)
        self.totals["supervised_tokens"] += sum(batch.num_supervised for batch in batches)
        self.totals["flops"] += sum(self.flops.count(batch) for batch in batches)
        return {
            "step": number + 1,
            "progress": step.progress_after,
            "epoch": step.epoch,
            "loss": done.loss,
            "lr": self.optimizer.param_groups[0]["lr"],
            **({} if done.grad_norm is None else {"grad_norm": done.grad_norm}),
            "tokens": self.totals["tokens"],
            "supervised_tokens": self.totals["supervised_tokens"],
            **({} if done.penalty is None else {"penalty": done.penalty}),
            **done.metrics,
            **self.optim.report(self.optimizer),
        }

    def _move_by_gradient(self, batches: Sequence[Batch], units: float, moment: Moment) -> _Done:
        """Take a step with the gradient of the whole batch."""
        done = self._evaluate(batches, units, moment, lambda loss: loss.backward())
        parameters = [parameter for _, parameter in self.trained]
        limit = math.inf if self.clip is None else self.clip
        done.grad_norm = float(nn.utils.clip_grad_norm_(parameters, limit))
        self.watch.check(moment.step, done.loss, done.grad_norm, done.worst)
        for live in self.lives:
            live.before_update(moment)
        self.optimizer.step()
        return done

    def _move_by_loss(self, batches: Sequence[Batch], units: float, moment: Moment) -> _Done:
        """Take a step of an optimizer that evaluates the loss as often as it likes; the first one is logged."""
        found: list[_Done] = []

        def evaluate() -> float:
            with torch.no_grad():
                done = self._evaluate(batches, units, moment)
            if not found:
                self.watch.check(moment.step, done.loss, 0.0, done.worst)
            found.append(done)
            return done.loss + (done.penalty or 0.0)

        self.optimizer.step(evaluate)
        return found[0]

    def _evaluate(
        self,
        batches: Sequence[Batch],
        units: float,
        moment: Moment,
        backward: Callable[[Tensor], object] = lambda loss: None,
    ) -> _Done:
        """Run a step's micro-batches and its penalty, each handed to `backward`."""
        total, sums, worst = 0.0, dict[str, float](), list[tuple[float, Origin]]()
        for batch in batches:
            with naming_memory(moment.step, batch.num_tokens, self.micro_tokens):
                with computing_in(self.dtype, self.device):
                    loss = self.target.loss(batch, moment)
                backward(loss.total / units)
            total += float(loss.total.detach())
            for name, value in loss.metrics.items():
                sums[name] = sums.get(name, 0.0) + value
            worst += _by_document(loss, batch)
        penalty = self._penalty(moment)
        if penalty is not None:
            backward(penalty)
        metrics = {name: value / units for name, value in sums.items()}
        return _Done(total / units, metrics, worst, None if penalty is None else float(penalty.detach()))

    def _penalty(self, moment: Moment) -> Tensor | None:
        terms = [self.tuning.penalty(), *(retention.penalty(moment) for retention in self.retentions)]
        present = [term for term in terms if term is not None]
        return torch.stack(present).sum() if present else None

    def _validate(self, step: int) -> float:
        assert self.validation is not None
        loss = mean_loss(self.target, self.objective, self.validation.batches, self.dtype, self.device, self.model)
        self.best["last"] = loss
        if self.best["loss"] is None or loss < self.best["loss"]:
            self.best |= {"loss": loss, "step": step, "failures": 0}
            self.checkpoints.save_best(self.tuning.numbers())
        else:
            self.best["failures"] += 1
        return loss

    def _is_over(self) -> bool:
        patience = None if self.validation is None else self.validation.patience
        return patience is not None and self.best["failures"] >= patience

    def _save(self, stream: Mapping[str, Any]) -> None:
        state = {
            "optimizer": self.optimizer.state_dict(),
            "lives": [live.state_dict() for live in self.lives],
            "watch": self.watch.state_dict(),
            "stream": dict(stream),
            "met": [source.encoded.state_dict() for source in self.steps.streams],
            "made_by": self._made_by(),
            "totals": self.totals,
            "best": self.best,
        }
        self.checkpoints.save(int(self.totals["steps"]), self.tuning.numbers(), state)

    def _made_by(self) -> dict[str, str]:
        """What the bits of a step depend on besides the recipe."""
        return {
            "torch": str(torch.__version__),
            "device": self.device.type,
            "precision": str(self.dtype),
            "threads": str(torch.get_num_threads()),
        }

    def _resume(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        found = self.checkpoints.load()
        if found is not None:
            numbers, state = found
            if state["made_by"] != self._made_by():
                raise TrainingError(
                    f"{self.folder}: its checkpoint was made by {state['made_by']} and this is {self._made_by()}, "
                    f"which would end in other bits; continue on the former, or begin the stage again (--force)"
                )
            for live, kept in zip(self.lives, state["lives"], strict=True):
                live.load_state_dict(kept)
            with torch.no_grad():
                self.tuning.restore(numbers)
            self._train_what_moves()
            self.optimizer.load_state_dict(state["optimizer"])
            self.watch.load_state_dict(state["watch"])
            self.steps.load_state_dict(state["stream"])
            for source, met in zip(self.steps.streams, state["met"], strict=True):
                source.encoded.load_state_dict(met)
            self.totals, self.best = state["totals"], state["best"]
        _cut_lines(self.folder / "metrics.jsonl", int(self.totals["steps"]))


def mean_loss(
    target: Target,
    objective: Objective,
    batches: Sequence[Batch],
    dtype: torch.dtype,
    device: torch.device,
    model: Model,
) -> float:
    """Return the mean loss over batches, without dropout and without gradients."""
    was_training = model.module.training
    model.module.eval()
    moment = Moment(0, 0.0)
    total = units = 0.0
    with torch.no_grad(), computing_in(dtype, device):
        for batch in batches:
            total += float(target.loss(batch.to(device), moment).total)
            units += objective.units(batch)
    model.module.train(was_training)
    return total / units


def to_batches(examples: Sequence[Example], micro_tokens: int) -> list[Batch]:
    """Pack examples into batches of at most `micro_tokens` tokens."""
    return [pack(part) for part in split_by_cost(examples, micro_tokens)]


def _by_document(loss: Loss, batch: Batch) -> list[tuple[float, Origin]]:
    if loss.document_B is None:
        return []
    return [
        (value, batch.origins[example]) for value, example in zip(loss.document_B.tolist(), batch.examples, strict=True)
    ]


def _cut_lines(path: Path, count: int) -> None:
    """Keep a file's first lines: those after the checkpoint are written again."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if len(lines) > count:
        partial = path.with_suffix(".partial")
        partial.write_text("".join(lines[:count]), encoding="utf-8")
        partial.replace(path)

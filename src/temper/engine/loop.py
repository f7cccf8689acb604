"""The loop: batches -> forward -> objective -> backward -> optimizer.

Decisions:
- The loop knows the axes' base classes and none of their methods. Whatever lives while training is a `Live` with
  hooks at step boundaries and a state that goes into every checkpoint.
- A step's loss is a sum divided by the units of the whole step, so micro-batches change nothing but memory (and,
  where there is dropout, what is dropped).
- Everything that the next step depends on is in the checkpoint; a resumed run ends in the same bits.
- One process or many: each takes its share of a step, and the numbers that a step reports and decides by are those of
  all. Where the numbers that train lie is the placement's affair (`placement.py`).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from temper.core.errors import TrainingError
from temper.core.methods import Live
from temper.core.schedule import Moment, Schedule
from temper.data.example import Example, Origin
from temper.data.pack import Batch, pack, split_by_cost
from temper.data.stream import Step, Steps, ahead
from temper.engine.checkpoint import Checkpoints, copied_bytes, paths
from temper.engine.cost import FlopCounter
from temper.engine.distributed import World
from temper.engine.layout import num_pieces, whole
from temper.engine.placement import Replicated
from temper.engine.precision import computing_in
from temper.engine.prefix import KeptPrefix
from temper.engine.watch import LossWatch, naming_memory
from temper.models.model import Model
from temper.models.prefix import can_be_kept, num_frozen, tried
from temper.models.recompute import recomputing
from temper.models.sums import Sums
from temper.objectives.base import Loss, Objective, Target
from temper.optim.base import Optim
from temper.retain.base import Retention
from temper.signals.passes import Pass
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
    recompute: float = 0.0
    """share of the blocks whose activations are computed again in the backward pass"""
    clip: float | None = 1.0
    spike: float | None = 8.0
    checkpoint_steps: int = 100
    validation: Validation | None = None
    dtype: torch.dtype = torch.float32
    keep_frozen: bool = False
    """keep on disk what the blocks below the lowest that trains give"""
    stage: str = ""
    placement: Replicated = field(default_factory=lambda: Replicated(World()))
    """where the numbers that train lie; one process by default"""
    on_step: Callable[[Metrics], None] = field(default=lambda metrics: None)
    further: Sequence[Live] = ()
    """what else lives while training, such as a mixture of the data"""

    def __post_init__(self) -> None:
        self.device = next(self.model.module.parameters()).device
        self.num_frozen = self._count_frozen()
        self.prefix: KeptPrefix | None = None
        self._train_what_moves()
        self.optim.make_room(self.optimizer)
        self.lives: list[Live] = [self.tuning, self.target, *self.retentions, *self.further]
        self.watch = LossWatch(self.spike)
        self.sums = Sums(self.model, self.target.is_sum) if self.placement.is_whole else None
        self.world = self.placement.world
        if self.world.size > 1:
            self._check_that_parts_of_a_step_will_do()
        self.checkpoints = Checkpoints(self.folder / "checkpoints", self.world)
        self.totals: Metrics = {"steps": 0, "tokens": 0, "supervised_tokens": 0, "flops": 0.0, "seconds": 0.0}
        """further on also `loss`, of the last step"""
        self.best: dict[str, Any] = {"loss": None, "step": 0, "failures": 0, "last": None}

    def _train_what_moves(self) -> None:
        """Begin to train what the methods name, with a fresh optimizer."""
        self.trained: list[tuple[str, nn.Parameter]] = [*self.tuning.parameters(), *self.target.parameters()]
        self.optimizer = self.optim.build(self.trained, self.lr)
        self.flops = FlopCounter(self.model, self.recompute, self.tuning.num_picked_from, self.num_frozen)

    def _count_frozen(self) -> int:
        """Return how many first blocks no gradient runs through, for as long as this trains."""
        is_settled = {name for name, _ in self.tuning.movable()} == {name for name, _ in self.tuning.parameters()}
        is_whole = self.placement.is_whole and all(num_pieces(one) == 1 for one in self.model.module.parameters())
        if not is_settled or self.tuning.moves_numbers or not is_whole or self.model.prompt_length:
            return 0
        with computing_in(self.dtype, self.device):
            return num_frozen(self.model)

    @property
    def keeps_frozen(self) -> bool:
        """Whether what the frozen blocks give is kept from one pass over the data to the next."""
        is_read_again = (self.steps.passes or 0) > 1 and self.target.reads_as_written
        can_be = self.num_frozen > 0 and can_be_kept(self.model, self.num_frozen) and self.placement.world.size == 1
        return self.keep_frozen and is_read_again and can_be

    def _keep_frozen(self) -> None:
        """Begin to keep it, or go on with what is there."""
        with computing_in(self.dtype, self.device):
            like_TD = tried(self.model, self.num_frozen) if self.keeps_frozen else None
        self.keep_frozen = like_TD is not None
        if like_TD is not None:
            self.prefix = KeptPrefix(self.model, self.num_frozen, like_TD, self.checkpoints.folder)

    def _follow(self, origins: Mapping[str, Tensor]) -> None:
        """Train another set of numbers from now on; the optimizer keeps its state of those that stay."""
        if all(name in origins and bool((origins[name] < 0).all()) for name, _ in self.tuning.parameters()):
            self.watch.forget()  # all that was learnt has been let go of: the loss may be the base's again
        former = self.optimizer
        self._train_what_moves()
        named = dict(self.trained)
        self.optim.carry(former, self.optimizer, {named[name]: origin for name, origin in origins.items()})

    def _numbers(self) -> dict[str, Tensor]:
        """Return all that training has changed, by name."""
        return {**self.tuning.numbers(), **{name: own.detach() for name, own in self.target.parameters()}}

    @torch.no_grad()
    def _restore(self, numbers: Mapping[str, Tensor]) -> None:
        self.tuning.restore(numbers)
        for name, own in self.target.parameters():
            own.copy_(numbers[name])

    def run(self) -> Metrics:
        """Train from the newest checkpoint, or from the start, to the end of the budget.

        Returns:
            the stage's totals: `steps`, `tokens`, `supervised_tokens`, `flops`, `seconds`, `loss`; with validation
            also `best_step` and `best_validation_loss`.

        Raises:
            TrainingError: the loss is not finite or jumped.
            DataError: a row that cannot be trained on.
        """
        self._keep_frozen()
        with nullcontext() if self.prefix is None else self.prefix.of_stage():
            self._resume()
            self._train()
        self.model.module.eval()
        if self.best["loss"] is not None:
            self._restore(self.checkpoints.load_best(self.best["step"], self._numbers()))
            self.totals |= {"best_step": self.best["step"], "best_validation_loss": self.best["loss"]}
        for live in self.lives:
            live.after_training()
        return dict(self.totals)

    def _train(self) -> None:
        """Take every step that is left."""
        started = time.monotonic() - self.totals["seconds"]
        self.model.module.train()
        # On a GPU the next batches are made while it computes; on a CPU a second thread would only compete.
        is_ahead = self.device.type != "cpu" and not self.steps.is_live
        source = ahead(iter(self.steps)) if is_ahead else iter(self.steps)
        with recomputing(self.model, self.recompute), self._log() as log, self.checkpoints.at_work():
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
                if self.world.is_main:
                    self.on_step(metrics)
                if number % self.checkpoint_steps == 0:
                    log.flush()
                    self._save(step.state)

    def _check_that_parts_of_a_step_will_do(self) -> None:
        """Raise TrainingError where a method looks at all of a step: a process sees its share alone."""
        names = [type(one).__name__ for one in self.retentions if type(one).before_batches != Retention.before_batches]
        if type(self.target).before_batches != Target.before_batches:
            names.append(type(self.target).__name__)
        if type(self.tuning).before_batches != Tuning.before_batches:
            names.append(type(self.tuning).__name__)
        if names:
            raise TrainingError(
                f"{', '.join(names)}: looks at all examples of a step together, of which each of {self.world.size} "
                f"processes has a share; train this stage on one process"
            )

    def _log(self) -> TextIO:
        place = self.folder / "metrics.jsonl" if self.world.is_main else Path(os.devnull)
        return place.open("a", encoding="utf-8")

    def _step(self, step: Step) -> Metrics:
        number = int(self.totals["steps"])
        moment = Moment(number, step.progress, step.epoch, self.stage, self.best["last"], step.passes)
        for live in self.lives:
            live.before_step(moment)
        change = self.tuning.take_change()
        if change is not None:
            self._follow(change)
        factor = self.schedule.value(moment)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        passes = self.placement.divide(step.examples, self.micro_tokens, self.model.prompt_length)
        batches = [(pack(examples).to(self.device), counts) for examples, counts in passes]
        mine = [batch for batch, counts in batches if counts]
        units = self.world.sum({"units": sum(self.objective.units(batch) for batch in mine)})["units"]
        if units == 0:
            origins = ", ".join(str(example.origin) for example in step.examples[:3])
            raise TrainingError(
                f"step {number}: nothing in this batch is supervised ({origins}, ...); remove such rows"
            )
        worst: list[tuple[float, Origin]] = []
        self.look_at(mine, moment)
        if self.optim.needs_gradient:
            sums = self._run(batches, moment, units, worst)
            self.finish_gradients()
            self._add_penalty_to(sums, moment)
            grad_norm = float(self.clip_gradients())
            self.watch.check(number, sums["loss"] / units, grad_norm, partial(self._of_all, worst))
            for live in self.lives:
                live.before_update(moment)
            self.update()
        else:
            sums, grad_norm = self._move_by_loss(batches, moment, units), None
        for live in self.lives:
            live.after_step(moment)
        self.totals["steps"] += 1
        for name in ("tokens", "supervised_tokens", "flops"):
            self.totals[name] += sums.pop(name)
        return {
            "step": number + 1,
            "progress": step.progress_after,
            "epoch": step.epoch,
            "loss": sums.pop("loss") / units,
            "lr": self.optimizer.param_groups[0]["lr"],
            **({} if grad_norm is None else {"grad_norm": grad_norm}),
            "tokens": self.totals["tokens"],
            "supervised_tokens": self.totals["supervised_tokens"],
            **({"penalty": sums.pop("penalty")} if "penalty" in sums else {}),
            **{name: value / units for name, value in sums.items()},
            **self.optim.report(self.optimizer),
        }

    def _move_by_loss(self, batches: Sequence[tuple[Batch, bool]], moment: Moment, units: float) -> Metrics:
        """Take a step of an optimizer that evaluates the loss as often as it likes; the first one is logged."""
        found: list[Metrics] = []

        def evaluate() -> float:
            worst: list[tuple[float, Origin]] = []
            with torch.no_grad():
                sums = self._run(batches, moment, units, worst)
                self._add_penalty_to(sums, moment)
            if not found:
                self.watch.check(moment.step, sums["loss"] / units, 0.0, partial(self._of_all, worst))
            found.append(sums)
            return sums["loss"] / units + sums.get("penalty", 0.0)

        self.optimizer.step(evaluate)
        return found[0]

    def _add_penalty_to(self, sums: Metrics, moment: Moment) -> None:
        penalty = self.add_penalty(moment)
        if penalty is not None:
            sums["penalty"] = sums.get("penalty", 0.0) + float(penalty)

    def _run(
        self, batches: Sequence[tuple[Batch, bool]], moment: Moment, units: float, worst: list[tuple[float, Origin]]
    ) -> Metrics:
        """Run every pass of a step and return the sums over all processes of what they met.

        Args:
            batches: this process' own, and of each whether it counts.
            units: of the whole step.
            worst: takes the loss of each of this process' documents.
        """
        operations = self.operations([batch for batch, counts in batches if counts], moment)
        sums: Metrics = {"loss": 0.0, "tokens": 0, "supervised_tokens": 0, "flops": operations}
        for place, (batch, counts) in enumerate(batches, 1):
            with naming_memory(moment.step, batch.num_tokens, self.micro_tokens):
                loss, penalty = self.add_gradients(batch, units, moment, counts, is_last=place == len(batches))
            if not counts:
                continue
            met = {
                "loss": float(loss.total),
                "tokens": batch.num_tokens,
                "supervised_tokens": batch.num_supervised,
                **({} if penalty is None else {"penalty": float(penalty)}),
            }
            for name, value in {**loss.metrics, **met}.items():
                sums[name] = sums.get(name, 0.0) + value
            worst += _by_document(loss, batch)
        return self.world.sum(sums)

    def _of_all(self, worst: list[tuple[float, Origin]]) -> list[tuple[float, Origin]]:
        return [entry for own in self.world.gather(worst) for entry in own]

    # What follows makes every tensor of a step and reads no number of them, so that it also runs on tensors without
    # content (`trace.py`).

    def batches(self, examples: Sequence[Example]) -> tuple[list[Batch], float]:
        """Return a step's micro-batches on one process, and the units that its loss is divided by."""
        batches = to_batches(examples, self.micro_tokens, self.model.prompt_length)
        return batches, sum(self.objective.units(batch) for batch in batches)

    def further_passes(self, batches: Sequence[Batch], moment: Moment) -> list[Pass]:
        """Return what the methods run forward in a step besides its micro-batches."""
        methods: tuple[Tuning | Target | Retention, ...] = (self.tuning, self.target, *self.retentions)
        return [one for method in methods for one in method.further_passes(batches, moment)]

    def operations(self, batches: Sequence[Batch], moment: Moment) -> float:
        """Count the floating-point operations of a step's micro-batches on one process."""
        is_kept = self.keeps_frozen and moment.passes >= 1 and (self.prefix is None or self.prefix.store.takes_all)
        return self.flops.step(batches, self.further_passes(batches, moment), self.optim, is_kept)

    def look_at(self, batches: Sequence[Batch], moment: Moment) -> None:
        """Show a step's micro-batches to the methods before the first of them is computed."""
        with computing_in(self.dtype, self.device):
            self.tuning.before_batches(batches, moment)
            self.target.before_batches(batches, moment)
            for retention in self.retentions:
                retention.before_batches(batches, moment)

    def add_gradients(
        self, batch: Batch, units: float, moment: Moment, counts: bool = True, is_last: bool = True
    ) -> tuple[Loss, Tensor | None]:
        """Run a micro-batch forward, and backward where gradients are on; return its loss and the methods' own terms,
        detached."""
        self.tuning.before_pass(batch)
        summing = nullcontext() if self.sums is None else self.sums.of_pass(counts / units)
        with computing_in(self.dtype, self.device), summing:
            loss = self.placement.forward(partial(self.target.loss, batch, moment))
        if self.sums is not None:
            self.sums.check(loss.total)
        own = self.tuning.after_pass(batch)
        total = loss.total * counts / units
        if torch.is_grad_enabled():
            self.placement.backward(total if own is None else total + own * counts, is_last)
        terms = [] if own is None else [own.detach()]
        for retention in self.retentions:
            with computing_in(self.dtype, self.device):
                term = retention.batch_penalty(batch, moment)
            if term is not None:
                if torch.is_grad_enabled():
                    term.backward()
                terms.append(term.detach())
        return replace(loss, total=loss.total.detach()), torch.stack(terms).sum() if terms else None

    def finish_gradients(self) -> None:
        """Make each gradient the sum over all passes of a step, those of other processes included."""
        if self.sums is not None:
            self.sums.finish()
        self.placement.add_up_gradients(self.trained)

    def add_penalty(self, moment: Moment) -> Tensor | None:
        """Add the gradient of the methods' own terms, and return their sum, None where there are none."""
        terms = [self.tuning.penalty(), *(retention.penalty(moment) for retention in self.retentions)]
        present = [whole(term) for term in terms if term is not None]
        if not present:
            return None
        penalty = torch.stack(present).sum()
        # Of what rests for now a penalty has no gradient.
        if torch.is_grad_enabled() and penalty.requires_grad:
            penalty.backward()
        return penalty.detach()

    def clip_gradients(self) -> Tensor:
        """Bound the gradient's norm, and return what it was."""
        return self.placement.clip(self.trained, self.clip)

    def update(self) -> None:
        """Take the optimizer's step, and let the gradients go."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _validate(self, step: int) -> float:
        assert self.validation is not None
        loss = self.mean_loss(self.validation.batches)
        if not math.isfinite(loss):
            raise TrainingError(f"step {step}: the loss on the held-out rows is {loss:g}; lower lr, or set clip")
        self.best["last"] = loss
        if not self.tuning.is_result:
            return loss
        if self.best["loss"] is None or loss < self.best["loss"]:
            self.best |= {"loss": loss, "step": step, "failures": 0}
            self.checkpoints.save_best(step, self._numbers())
        else:
            self.best["failures"] += 1
        return loss

    def mean_loss(self, batches: Sequence[Batch]) -> float:
        """Return the mean loss over batches, without dropout and without gradients."""
        module, moment = self.model.module, Moment(0, 0.0)
        module.eval()
        sums = {"loss": 0.0, "units": 0.0}
        with torch.no_grad(), computing_in(self.dtype, self.device):
            dealt = [(batch.to(self.device), counts) for batch, counts in self.placement.deal(batches)]
            self.target.before_batches([batch for batch, counts in dealt if counts], moment)
            for batch, counts in dealt:
                loss = self.placement.forward(partial(self.target.loss, batch, moment))
                if counts:
                    sums["loss"] += float(loss.total)
                    sums["units"] += self.objective.units(batch)
        self.placement.rest()
        module.train()
        sums = self.world.sum(sums)
        return sums["loss"] / sums["units"]

    def _is_over(self) -> bool:
        patience = None if self.validation is None else self.validation.patience
        return patience is not None and self.best["failures"] >= patience

    def _save(self, stream: Mapping[str, Any]) -> None:
        state = {
            "optimizer": self.optimizer.state_dict(),
            "lives": [live.state_dict() for live in self.lives],
            "watch": self.watch.state_dict(),
            "stream": dict(stream),
            "met": [part.state_dict() for part in self.steps.encoded],
            "made_by": self._made_by(),
            "totals": self.totals,
            "best": self.best,
        }
        self.placement.check(self.trained)
        self.checkpoints.save(int(self.totals["steps"]), self._numbers(), state)

    def copied_bytes(self, steps: int) -> int:
        """Return what the copy takes that is made for the checkpoints of so many steps, once the optimizer has its
        state."""
        if steps < self.checkpoint_steps and self.validation is None:
            return 0
        numbers = list(self._numbers().values())
        if steps >= self.checkpoint_steps:
            states = self.optimizer.state.values()
            numbers += [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return copied_bytes(numbers)

    def _made_by(self) -> dict[str, str]:
        """What the bits of a step depend on besides the recipe."""
        return {
            "torch": str(torch.__version__),
            "device": self.device.type,
            "precision": str(self.dtype),
            "threads": str(torch.get_num_threads()),
            "processes": f"{self.world.size} ({self.world.layout})",
        }

    def _resume(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        like = paths([live.state_dict() for live in self.lives], "lives")
        numbered = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        like |= {f"optimizer.state.{number}": parameter for number, parameter in enumerate(numbered)}
        like |= {f"trained.{name}": tensor for name, tensor in self._numbers().items()}
        found = self.checkpoints.load(like)
        if found is None and self.prefix is not None:
            self.prefix.store.clear()
        if found is not None:
            numbers, state = found
            self._compare(state["made_by"])
            for live, kept in zip(self.lives, state["lives"], strict=True):
                live.load_state_dict(kept)
            self._restore(numbers)
            self._train_what_moves()
            self.optimizer.load_state_dict(state["optimizer"])
            self.watch.load_state_dict(state["watch"])
            self.steps.load_state_dict(state["stream"])
            for part, met in zip(self.steps.encoded, state["met"], strict=True):
                part.load_state_dict(met)
            self.totals, self.best = state["totals"], state["best"]
        if self.world.is_main:
            _cut_lines(self.folder / "metrics.jsonl", int(self.totals["steps"]))

    def _compare(self, made_by: Mapping[str, str]) -> None:
        """Raise TrainingError where a checkpoint comes from what computes other bits, but for other processes."""
        here = self._made_by()
        if made_by["processes"] != here["processes"]:
            self.checkpoints.warnings.append(
                f"{self.folder}: begun on {made_by['processes']} processes and continued on {here['processes']}: the "
                "steps are the same to rounding, and their bits are not"
            )
            free = {"processes", "threads"}  # torchrun gives each of its processes one thread
        else:
            free = set()
        if any(made_by[name] != value for name, value in here.items() if name not in free):
            raise TrainingError(
                f"{self.folder}: its checkpoint was made by {made_by} and this is {here}, which would end in other "
                f"bits; continue on the former, or begin the stage again (--force)"
            )


def to_batches(examples: Sequence[Example], micro_tokens: int, prompt_length: int = 0) -> list[Batch]:
    """Pack examples into batches of at most `micro_tokens` tokens, a model's soft prompts included."""
    return [pack(part) for part in split_by_cost(examples, micro_tokens, prompt_length)]


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

"""Coefficients of a mixture that are learned on rows.

    theta_b = theta_base,b + sum_i c_ib tau_ib,    tau_i = theta_i - theta_base

The loss is that of an ordinary training objective on the merged model, packed and chunked as in training. Its gradient
reaches the coefficients by the chain rule, dL/dc_ib = <dL/dtheta_b, tau_ib>, tensor by tensor: no tensor but the
model's own gradient is held, whatever the number of models.

Legend: M models, B blocks that have coefficients of their own, K random parts of a tensor.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from temper.core.errors import SettingError
from temper.core.schedule import Moment, Schedule
from temper.data.encode import Encoder
from temper.data.example import Row
from temper.data.example import Sequence as Tokens
from temper.data.pack import pack, split_by_cost
from temper.data.rows import Rows
from temper.data.source import Source
from temper.data.stream import Budget, EncodedRows, ShuffledStream, Steps
from temper.merge.base import Bench, Merge, Merging
from temper.merge.dare import seeded
from temper.merge.weights import weighted_sum
from temper.objectives.base import Objective, Target
from temper.signals.setup import Setup

MICRO_TOKENS = 2048
"""tokens in one forward pass at most"""


class Coefficients:
    """The learned numbers `raw` (M, B, K), and the mixture that they stand for.

    Args:
        raw: their first values.
        names: parameters in blocks of their own, in the order of B; empty where all share one block.
        seed: of the K random parts into which each tensor's entries fall.
    """

    def __init__(self, raw: Tensor, names: Sequence[str] = (), seed: int = 0) -> None:
        self.raw = nn.Parameter(raw)
        self.blocks = {name: number for number, name in enumerate(names)}
        self.seed = seed

    def values(self) -> Tensor:
        """Return the coefficients c (M, B, K), differentiable in `raw`."""
        return self.raw

    def combine(self, name: str, base: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        """Return the merged change of one parameter."""
        coefficients_MK = self.values().detach()[:, self.blocks.get(name, 0)]
        if coefficients_MK.shape[1] == 1:
            return weighted_sum(coefficients_MK[:, 0].tolist(), deltas)
        part = self._part(name, base)
        merged = torch.zeros_like(base)
        for coefficients_K, delta in zip(coefficients_MK.to(base.device), deltas, strict=True):
            merged += coefficients_K[part] * delta
        return merged

    def slope(self, name: str, gradient: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        """Return what one parameter's gradient says of its block's coefficients, (M, K)."""
        products = [(gradient * delta).flatten() for delta in deltas]
        num_parts = self.raw.shape[2]
        if num_parts == 1:
            return torch.stack([product.sum() for product in products])[:, None]
        part = self._part(name, gradient).flatten()
        return torch.stack([product.new_zeros(num_parts).index_add(0, part, product) for product in products])

    def _part(self, name: str, like: Tensor) -> Tensor:
        """Return the part, 0 to K - 1, into which each entry of a parameter falls."""
        draws = torch.randint(self.raw.shape[2], like.shape, generator=seeded(self.seed, name))
        return draws.to(like.device)


class Learned(Merge):
    """Settings of a method that learns its coefficients on rows."""

    example: ClassVar[dict[str, Any]] = {"data": [{"lab": {"skill": "copy", "num": 8}}]}

    data: tuple[Source, ...] = Field(min_length=1, description="sources of the rows that are learned on, held out")
    objective: Objective = Field(default_factory=lambda: Objective.parse("sft"), description="the loss that is lowered")
    epochs: PositiveFloat = Field(5, description="passes over the rows")
    batch_size: PositiveInt = Field(128, description="examples per optimizer step, all of them where there are fewer")
    lr: PositiveFloat = Field(0.05, description="peak learning rate of AdamW on the coefficients")
    weight_decay: NonNegativeFloat = Field(0.0, description="of AdamW")
    schedule: Schedule = Field(
        default_factory=lambda: Schedule.parse({"constant": {"warmup": 0}}), description="how the learning rate changes"
    )
    max_length: int = Field(2048, ge=2, description="longest example in tokens; the model's own limit where lower")

    @model_validator(mode="after")
    def _the_loss_is_of_the_mixture_alone(self) -> Self:
        if self.objective.declares("models"):
            raise self._refused("asks another model, and what is learned here is a mixture of weights alone")
        if self.objective.passes_before:
            raise self._refused("learns from the past of what it trains, and a mixture has none")
        return self

    def _refused(self, reason: str) -> SettingError:
        return SettingError("objective", self.objective.method_name, reason, "take sft, orpo or another without")

    def sources(self) -> Sequence[Source]:
        return self.data

    @abstractmethod
    def start(self, bench: Bench) -> Coefficients:
        """Return the coefficients before the first step."""

    def report(self, bench: Bench, coefficients: Coefficients) -> dict[str, Any]:
        """Return what was learned, for the stage's record."""
        values_MBK = coefficients.values().detach()
        return {
            "coefficients": int(values_MBK.numel()),
            "mean_coefficient": dict(zip(bench.of, values_MBK.mean((1, 2)).tolist(), strict=True)),
        }

    def build(self, bench: Bench) -> Merging:
        coefficients = self.start(bench)
        losses = self._learn(bench, coefficients)
        bench.say(f"learned {coefficients.raw.numel()} coefficients: loss {losses[0]:.3f} to {losses[-1]:.3f}")
        details = {"losses": losses, **self.report(bench, coefficients)}
        return Merging(coefficients.combine, details)

    def _learn(self, bench: Bench, coefficients: Coefficients) -> list[float]:
        target = self.objective.build(bench.model, Setup(seed=bench.seed))
        if any(True for _ in target.parameters()):
            raise self._refused("trains a head of its own, and what is learned here is a mixture of weights alone")
        torch.manual_seed(bench.seed)  # for dropout, where the model has any
        bench.model.module.train()
        optimizer = torch.optim.AdamW([coefficients.raw], self.lr, weight_decay=self.weight_decay)
        parameters = dict(bench.model.module.named_parameters())
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in bench.names)
        losses: list[float] = []
        for step in self._steps(bench):
            moment = Moment(len(losses), step.progress, step.epoch, passes=step.passes)
            target.before_step(moment)
            optimizer.param_groups[0]["lr"] = self.lr * self.schedule.value(moment)
            bench.pour(coefficients.combine)
            losses.append(self._backward(bench, target, step.examples, moment))
            slopes_MBK = torch.zeros_like(coefficients.raw)
            for name in bench.names:
                gradient = parameters[name].grad
                if gradient is not None:
                    slope_MK = coefficients.slope(
                        name, gradient, [it.to(gradient.device) for it in bench.changes(name)]
                    )
                    slopes_MBK[:, coefficients.blocks.get(name, 0)] += slope_MK.cpu()
                    parameters[name].grad = None
            coefficients.values().backward(slopes_MBK)
            nn.utils.clip_grad_norm_([coefficients.raw], 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return losses

    def _backward(self, bench: Bench, target: Target, examples: Sequence[Any], moment: Moment) -> float:
        """Add the gradient of the mean loss over examples to the model's weights, and return the loss."""
        device = bench.model.module.get_input_embeddings().weight.device
        batches = [pack(part).to(device) for part in split_by_cost(examples, MICRO_TOKENS, bench.model.prompt_length)]
        units = sum(self.objective.units(batch) for batch in batches)
        target.before_batches(batches, moment)
        total = 0.0
        for batch in batches:
            loss = target.loss(batch, moment).total / units
            loss.backward()
            total += float(loss.detach())
        return total

    def _steps(self, bench: Bench) -> Steps:
        encoder = Encoder.of(bench.model, self.max_length)

        def encode(row: Row) -> list[tuple[Tokens, ...]]:
            return self.objective.encode(row, encoder)

        rows = Rows.concatenate([bench.open(source) for source in self.data], "")
        stream = ShuffledStream(EncodedRows(rows, encode, bench.on_bad_rows), bench.seed)
        # A step of more rows than there are would hold some of them twice.
        return Steps(stream, [], Budget(epochs=self.epochs), min(self.batch_size, max(1, len(rows))))

"""The calibration pass: statistics of what modules read, streamed over rows before training.

Decisions:
- A method declares a `Calibration`: an empty accumulator for each module whose inputs it wants to know, and the rows to
  run. The engine fills those of all who ask in one pass over each set of rows; the same rows give the same bits.
- A statistic sees one packed batch at a time, tokens by features, with the lengths of the documents in it; nothing is
  padded, so that nothing needs a mask. Soft prompts are read by the modules too, and count as tokens.
- Modules of a block that read the same tensor (q, k and v; gate and up) share one statistic: `shared_inputs` says
  which.

Legend: T packed tokens, I input features, C components, D tokens of one document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from temper.core.errors import TrainingError
from temper.data.pack import Batch
from temper.data.source import Source
from temper.models.anatomy import Anatomy
from temper.models.generate import evaluation_mode
from temper.models.model import Model
from temper.models.prompt import prompt_lengths
from temper.signals.forward import hidden_states

READ_TOGETHER = (("q", "k", "v"), ("gate", "up"))
"""parts of a block that read one and the same tensor"""
MOST_PASSES = 100
"""passes over the rows after which a statistic that still asks for more is an error"""


class Statistic:
    """An accumulator of one module's inputs."""

    is_settled: bool = False
    """True: further inputs would change nothing that matters, and are not shown to it"""

    def update(self, x_TI: Tensor, lengths: Sequence[int]) -> None:
        """Take in the inputs of one packed batch, float32."""
        raise NotImplementedError


@dataclass
class Calibration:
    """What a method wants to know before it is attached; empty until the engine has filled it."""

    statistics: Mapping[str, Statistic]
    """by module path"""
    sources: tuple[Source, ...] = ()
    """the rows to run; none for the stage's own training rows"""
    num_examples: int = 256
    """rows to run at most"""
    after_batch: Callable[[], None] = field(default=lambda: None)
    """called after each batch, to say which statistics are settled"""
    is_repeated: bool = False
    """run the rows again and again until every statistic is settled"""
    has_numbers: bool = True
    """False where a plan attaches: what was measured has shapes, and no number of it may be read"""

    def for_a_plan(self) -> Calibration:
        """Return one that takes what it is shown, and asks for no number."""
        return replace(self, after_batch=lambda: None, is_repeated=False, has_numbers=False)


class Covariance(Statistic):
    """C = mean over documents of X^T X / max(X)^2, X (D, I) a document's inputs: float32, (I, I)."""

    def __init__(self) -> None:
        self.sum_II: Tensor | None = None
        self.num_documents = 0

    def update(self, x_TI: Tensor, lengths: Sequence[int]) -> None:
        for x_DI in x_TI.split(list(lengths)):
            scaled_DI = x_DI / x_DI.max().abs()
            product_II = scaled_DI.T @ scaled_DI
            self.sum_II = product_II if self.sum_II is None else self.sum_II + product_II
            self.num_documents += 1

    @property
    def mean_II(self) -> Tensor:
        """The covariance.

        Raises:
            TrainingError: an input that was not finite, or a document whose inputs were all 0.
        """
        assert self.sum_II is not None, "not calibrated"
        if not torch.isfinite(self.sum_II).all():
            raise TrainingError("calibration: a module's inputs are not finite, or all 0; look at the model")
        return self.sum_II / self.num_documents


class SquareNorm(Statistic):
    """||X_i||_2 of each input feature i over all tokens: float32, (I,)."""

    def __init__(self) -> None:
        self.sum_I: Tensor | None = None

    def update(self, x_TI: Tensor, lengths: Sequence[int]) -> None:
        sum_I = x_TI.square().sum(0)
        self.sum_I = sum_I if self.sum_I is None else self.sum_I + sum_I

    @property
    def norm_I(self) -> Tensor:
        """The norms."""
        assert self.sum_I is not None, "not calibrated"
        return self.sum_I.sqrt()


class IncrementalSVD(Statistic):
    """The first principal directions of all inputs so far, updated batch by batch (incremental PCA).

    Each batch is stacked under what is known (singular values times directions, and a row for the shift of the mean)
    and decomposed anew; the randomised decomposition starts from a fixed seed.

    Paper: Incremental Learning for Robust Visual Tracking, IJCV 77 (2008).
    """

    SEED, POWER_ITERATIONS = 42, 4

    def __init__(self, num_components: int) -> None:
        self.num_components = num_components
        self.components_CI: Tensor | None = None
        self.previous_CI: Tensor | None = None
        self.singular_C = self.mean_I = self.variance_I = torch.empty(0)
        self.num_tokens = 0

    def update(self, x_TI: Tensor, lengths: Sequence[int]) -> None:
        if len(x_TI) < self.num_components:
            return  # too few to give so many directions
        total = self.num_tokens + len(x_TI)
        mean_I, variance_I = self._moments(x_TI, total)
        batch_mean_I = x_TI.mean(0)
        stacked = [x_TI - batch_mean_I]
        if self.components_CI is not None:
            shift = (self.num_tokens / total * len(x_TI)) ** 0.5
            stacked = [
                self.singular_C[:, None] * self.components_CI,
                *stacked,
                (shift * (self.mean_I - batch_mean_I))[None],
            ]
        singular, directions = self._decompose(torch.cat(stacked))  # float64 once the mean has moved
        self.previous_CI = self.components_CI
        self.components_CI, self.singular_C = directions[: self.num_components], singular[: self.num_components]
        self.mean_I, self.variance_I, self.num_tokens = mean_I, variance_I, total

    def _moments(self, x_TI: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Return mean and variance of all tokens so far, float64."""
        new, old = x_TI.double(), self.num_tokens
        mean_I, variance_I = new.mean(0), new.var(0, correction=0)
        if not old:
            return mean_I, variance_I
        shift_I, share = mean_I - self.mean_I, len(x_TI) / total
        merged_I = (old * self.variance_I + len(x_TI) * variance_I) / total
        return self.mean_I + share * shift_I, merged_I + share * (1 - share) * shift_I.square()

    def _decompose(self, stacked: Tensor) -> tuple[Tensor, Tensor]:
        """Return singular values and right singular vectors (rows), each with its largest entry positive."""
        width = min(2 * self.num_components, *stacked.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.SEED)
            _, singular, right = torch.svd_lowrank(stacked, q=width, niter=self.POWER_ITERATIONS)
        directions = right.T
        largest = directions.abs().argmax(1, keepdim=True)
        return singular, directions * directions.gather(1, largest).sign()

    @property
    def explained_C(self) -> Tensor:
        """The share of the inputs' variance along each direction, float64."""
        return self.singular_C.double().square() / (self.variance_I.sum() * self.num_tokens)

    def similarity_C(self) -> Tensor:
        """Return the cosine between each direction and its former self, whatever their signs; 0 after the first batch.

        The sign is that of the largest entry, and turns from batch to batch where two entries are about as large.
        """
        if self.components_CI is None or self.previous_CI is None:
            return torch.zeros(self.num_components)
        return nn.functional.cosine_similarity(self.components_CI, self.previous_CI).abs()


def shared_inputs(anatomy: Anatomy) -> dict[str, str]:
    """Return, for the module path of each part, the path of the first module that reads the same tensor."""
    shared: dict[str, str] = {}
    for block in anatomy.blocks:
        for part in block.parts:
            together = next((names for names in READ_TOGETHER if part.name in names), (part.name,))
            shared[part.path] = next(other.path for other in block.parts if other.name in together)
    return shared


def observe(model: Model, batches: Iterable[Batch], calibrations: Sequence[Calibration]) -> None:
    """Fill calibrations: one pass over the batches for all of them, more for those that ask for it.

    Args:
        model: run forward in evaluation mode, without gradients.
        batches: a re-iterable of packed batches, on the model's device.

    Raises:
        TrainingError: a statistic that is not settled after 100 passes.
    """
    with torch.no_grad(), evaluation_mode(model.module):
        waiting = list(calibrations)
        for _ in range(MOST_PASSES):
            for batch in batches:
                _observe_batch(model, batch, waiting)
            waiting = [each for each in waiting if each.is_repeated and not _is_settled(each)]
            if not waiting:
                return
    raise TrainingError(
        f"calibration: after {MOST_PASSES} passes over its rows the statistics have not settled; "
        "let it look at more rows (`examples` of the method that asks), or ask for less certainty"
    )


def _observe_batch(model: Model, batch: Batch, calibrations: Sequence[Calibration]) -> None:
    by_path: dict[str, list[Statistic]] = {}
    for calibration in calibrations:
        for path, statistic in calibration.statistics.items():
            if not statistic.is_settled:
                by_path.setdefault(path, []).append(statistic)
    if not by_path:
        return
    lengths = prompt_lengths(model, batch.lengths)
    handles = [
        model.module.get_submodule(path).register_forward_pre_hook(partial(_show, statistics, lengths))
        for path, statistics in by_path.items()
    ]
    try:
        hidden_states(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    for calibration in calibrations:
        calibration.after_batch()


def _show(statistics: list[Statistic], lengths: tuple[int, ...], module: nn.Module, args: tuple[Any, ...]) -> None:
    x_TI = args[0].detach().flatten(0, -2).float()
    with torch.autocast(x_TI.device.type, enabled=False):
        for statistic in statistics:
            statistic.update(x_TI, lengths)


def _is_settled(calibration: Calibration) -> bool:
    return all(statistic.is_settled for statistic in calibration.statistics.values())

"""LESS: the rows whose training step points where the target's loss falls.

Legend: E rows of the pool, V rows of a target, K dimensions of the projection, P numbers that train.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from temper.core.errors import SettingError
from temper.data.example import Format
from temper.data.rows import Rows
from temper.data.source import Source
from temper.hold.base import Hold
from temper.models.model import Model
from temper.select.base import Pool, Selection, Selector, best
from temper.signals.gradients import Projection, Transform, projected_gradients
from temper.signals.trajectory import Snapshot, read_trajectory
from temper.tune.base import Tune


class Less(Selector, name="less"):
    """Keep the rows with the highest influence on a target task, over the trajectory of a warm-up.

    Inf(z, D) = sum_i w_i mean_{z' in D} cos(P grad l(z'; theta_i), P Gamma(z; theta_i)), and the score of z is its
    highest over the targets D. theta_i are the snapshots of the `trajectory` stage, w_i their mean learning rates over
    the sum of these, P a random projection to `dimension` numbers, and Gamma = m / sqrt(v + eps) the step that Adam
    would make from its moments in that snapshot: m = b1 m_i + (1 - b1) g, v = b2 v_i + (1 - b2) g^2, g = grad l(z).

    Paper: LESS: Selecting Influential Data for Targeted Instruction Tuning, arXiv:2402.04333.
    Deviation: the paper corrects the moments for their start at zero, its code does not, and nor does this: that is
    a factor common to all numbers (but for eps), which a cosine does not see.
    Deviation: any tuner that measures no rows first may have trained the trajectory; the paper's is LoRA. Gradients are
    taken without dropout.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"text", "messages", "completion"})
    needs_model: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {
        "trajectory": "train",
        "target": [{"lab": {"skill": "copy", "num": 4}}],
        "dimension": 64,
    }

    trajectory: str = Field(description="the training stage (a warm-up on a few rows) whose `snapshots` are used")
    target: tuple[Source, ...] = Field(min_length=1, description="examples of what is wanted: one source per subtask")
    keep: float = Field(0.05, gt=0, le=1, description="share of the rows that is kept")
    target_rows: int = Field(32, ge=1, description="rows of each target that are used, a fixed random draw")
    dimension: int = Field(8192, ge=1, description="numbers to which a gradient is projected")

    def models(self) -> tuple[str, ...]:
        return (self.trajectory,)

    def select(self, pool: Pool) -> Selection:
        snapshots = read_trajectory(pool.folder(self.trajectory))
        if not snapshots:
            fix = "set `snapshots: 4` in that stage"
            raise SettingError("select.method.less.trajectory", self.trajectory, "kept no snapshots", fix)
        targets = [self._drawn(pool, source) for source in self.target]
        influence_DE = np.zeros((len(targets), len(pool.rows)))
        total = sum(snapshot.lr for snapshot in snapshots)
        for snapshot in snapshots:
            features = _Features(pool, self.trajectory, snapshot, self.dimension)
            steps_EK = _unit(features.of(pool.rows, is_adam=True))
            for number, rows in enumerate(targets):
                wanted_VK = _unit(features.of(rows, is_adam=False))
                mean_K = np.nanmean(wanted_VK, axis=0)
                influence_DE[number] += snapshot.lr / total * (steps_EK @ mean_K)
        score_E = influence_DE.max(axis=0)
        labels = [f"influence on {source.label}" for source in self.target]
        parts = dict(zip(_different(labels), influence_DE, strict=True))
        return Selection(best(score_E, self.keep), score_E, parts)

    def _drawn(self, pool: Pool, source: Source) -> Rows:
        rows = pool.open(source)
        drawn = np.sort(np.random.default_rng(pool.seed).permutation(len(rows))[: self.target_rows])
        return Rows.from_rows(rows.take(drawn), f"{rows.fingerprint}-{pool.seed}-{self.target_rows}")


class _Features:
    """Projected gradients at one snapshot, from the cache where they are there."""

    def __init__(self, pool: Pool, stage: str, snapshot: Snapshot, dimension: int) -> None:
        self.pool, self.stage, self.snapshot, self.dimension = pool, stage, snapshot, dimension
        folder = pool.folder(stage)
        assert folder is not None
        record: dict[str, Any] = json.loads((Path(folder) / "stage.json").read_text(encoding="utf-8"))
        self.model: Model = pool.load(record["models"][0])
        self.parameters: dict[str, nn.Parameter] | None = None

    def of(self, rows: Rows, is_adam: bool) -> NDArray[np.floating]:
        """Return each row's Adam step, or its plain gradient, projected, (E, K)."""
        scores = self.pool.scores(rows)
        settings = [self.snapshot.fingerprint(), self.dimension, self.pool.seed, is_adam]

        def compute() -> NDArray[np.floating]:
            parameters = self._attached()
            transform = adam_step(self.snapshot, parameters) if is_adam else None
            projection = Projection(self.dimension, self.pool.seed)
            values_EK = np.full((len(rows), self.dimension), np.nan, dtype=np.float32)
            for start, window in scores.encoded(self.model):
                usable = [place for place, sequence in enumerate(window) if sequence is not None]
                sequences = [sequence for sequence in window if sequence is not None]
                found = projected_gradients(self.model, list(parameters.values()), sequences, projection, transform)
                values_EK[[start + place for place in usable]] = found
            return values_EK

        return scores.kept("gradients", self.model, settings, "temper.signals.gradients", compute)

    def _attached(self) -> dict[str, nn.Parameter]:
        """Return the numbers that train, as they were at the snapshot; attached once."""
        if self.parameters is not None:
            return self.parameters
        tune = Tune.parse(self.snapshot.tune)
        if tune.calibration(self.model) is not None:
            reason = f"was trained by {tune.method_name!r} from a start that rows were measured for, which is not kept"
            fix = "warm up from a start that needs no rows, such as lora's own"
            raise SettingError("select.method.less.trajectory", self.stage, reason, fix)
        tuning = tune.attach(self.model, self.snapshot.seed)
        if self.snapshot.hold is not None:
            Hold.parse(self.snapshot.hold).pack_blocks(self.model, torch.float32)
        tuning.hold_in(torch.float32)
        named = self.parameters = dict(tuning.parameters())
        values = self.snapshot.trained()
        if values.keys() != named.keys():
            raise SettingError(
                "select.method.less.trajectory",
                self.stage,
                f"trained other numbers at step {self.snapshot.step} than at its start",
                "warm up with a tuner that trains the same numbers throughout, such as lora",
            )
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(values[name])
        return named


def adam_step(snapshot: Snapshot, parameters: dict[str, nn.Parameter]) -> Transform:
    """Return what turns a gradient into the step that Adam would make from a snapshot's moments, (P,) to (P,).

    Raises:
        SettingError: the optimizer keeps no such moments of each number.
    """
    state = snapshot.optimizer_state()
    moments = [_joined(state, parameters, what) for what in ("exp_avg", "exp_avg_sq")]
    group = snapshot.groups[0]
    if any(moment is None for moment in moments) or not {"betas", "eps"} <= group.keys():
        raise SettingError(
            "select.method.less.trajectory",
            str(snapshot.folder),
            "was made by an optimizer without Adam's moments of each number",
            "train that stage with `optimizer: adamw`",
        )
    (b1, b2), eps = group["betas"], group["eps"]
    first_P, second_P = (moment for moment in moments if moment is not None)

    def step(gradient_P: Tensor) -> Tensor:
        m_P = b1 * first_P.to(gradient_P) + (1 - b1) * gradient_P
        v_P = b2 * second_P.to(gradient_P) + (1 - b2) * gradient_P.square()
        return torch.div(m_P, torch.sqrt(v_P + eps))

    return step


def _joined(state: dict[str, dict[str, Tensor]], parameters: dict[str, nn.Parameter], what: str) -> Tensor | None:
    parts = [state.get(name, {}).get(what) for name in parameters]
    fitting = [
        part.reshape(-1)
        for part, parameter in zip(parts, parameters.values(), strict=True)
        if part is not None and part.shape == parameter.shape
    ]
    return torch.cat(fitting) if len(fitting) == len(parts) else None


def _unit(vectors_EK: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return vectors of length 1; one of length 0 stays."""
    lengths_E1 = np.linalg.norm(vectors_EK, axis=1, keepdims=True)
    return np.asarray(vectors_EK / np.where(lengths_E1 == 0, 1, lengths_E1))


def _different(labels: list[str]) -> list[str]:
    """Give every label a name of its own."""
    return [label if labels.count(label) == 1 else f"{label} ({number})" for number, label in enumerate(labels, 1)]

"""EVA: A starts as the directions in which the inputs of the training rows vary most.

Legend: R rank, I input features, C components.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field, PositiveInt

from temper.models.model import Model
from temper.signals.calibration import Calibration, IncrementalSVD, shared_inputs
from temper.tune.init.base import LowRankInit, Start, Wanted


class EVA(LowRankInit, name="eva"):
    """A = the first right singular vectors of the inputs X, B = 0; the ranks go where they explain most.

    An incremental SVD runs over batches of the training rows until each direction's cosine with its former self is
    tau at least. The components of all parts are then ranked by explained variance, sigma_j^2 / (sum of variances),
    and the first (sum of the ranks) are kept, at most rho r of one part.

    Paper: One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation, arXiv:2410.07170.
    Symbols: tau is `tau`, rho is `rho`, r is LoRA's `rank`. As in PEFT's implementation, the scaling of an update does
    not change with the rank that it is given. Deviation: all tokens count, those of prompts too; a direction whose sign
    has turned is the same, where PEFT's loop goes on for as long as signs turn.
    """

    rho: float = Field(2.0, ge=1, le=16, description="how much larger than asked for a rank may become; 1: none")
    tau: float = Field(0.99, gt=0, le=1, description="cosine at which a direction counts as found")
    examples: PositiveInt = Field(256, description="training rows that are looked at, at most")

    def calibration(self, model: Model, wanted: Sequence[Wanted]) -> Calibration:
        shared = shared_inputs(model.anatomy)
        components: dict[str, int] = {}
        for each in wanted:
            path = shared[each.part.path]
            most = min(round(each.rank * self.rho), each.part.in_features, each.part.out_features)
            components[path] = max(components.get(path, 0), most)
        statistics = {path: IncrementalSVD(count) for path, count in components.items()}

        def after_batch() -> None:
            if any(statistic.components_CI is None for statistic in statistics.values()):
                return
            needed = dict.fromkeys(statistics, 0)
            for each, rank in zip(wanted, self._ranks(wanted, statistics, shared), strict=True):
                needed[shared[each.part.path]] = max(needed[shared[each.part.path]], rank)
            for path, statistic in statistics.items():
                statistic.is_settled = bool((statistic.similarity_C()[: needed[path]] >= self.tau).all())

        return Calibration(statistics, num_examples=self.examples, after_batch=after_batch, is_repeated=True)

    def _ranks(
        self, wanted: Sequence[Wanted], statistics: dict[str, IncrementalSVD], shared: dict[str, str]
    ) -> list[int]:
        """Return each part's rank: how many of its components are among the best of all."""
        owners, shares = [], []
        for number, each in enumerate(wanted):
            most = min(each.part.in_features, each.part.out_features)
            explained_C = statistics[shared[each.part.path]].explained_C[:most]
            owners += [number] * len(explained_C)
            shares.append(explained_C)
        # Parts that read the same tensor explain the same: a stable order decides between them.
        best = torch.cat(shares).argsort(descending=True, stable=True)[: sum(each.rank for each in wanted)]
        ranks = [0] * len(wanted)
        for index in best.tolist():
            ranks[owners[index]] += 1
        return ranks

    def start(
        self, model: Model, wanted: Sequence[Wanted], generator: torch.Generator, calibration: Calibration | None
    ) -> Sequence[Start | None]:
        assert calibration is not None
        statistics = {
            path: found for path, found in calibration.statistics.items() if isinstance(found, IncrementalSVD)
        }
        shared = shared_inputs(model.anatomy)
        starts: list[Start | None] = []
        if not calibration.has_numbers:  # the ranks add up to what is asked for, wherever they go
            for each in wanted:
                a_RI = torch.zeros(each.rank, each.part.in_features)
                starts.append(Start(a_RI, torch.zeros(each.part.out_features, each.rank), is_zero=True))
            return starts
        for each, rank in zip(wanted, self._ranks(wanted, statistics, shared), strict=True):
            components_CI = statistics[shared[each.part.path]].components_CI
            assert components_CI is not None
            a_RI = components_CI[:rank].cpu().float()
            starts.append(Start(a_RI, torch.zeros(each.part.out_features, rank), is_zero=True) if rank else None)
        return starts

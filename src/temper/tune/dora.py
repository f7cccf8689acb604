"""DoRA: the length and the direction of each row of a matrix train apart, the direction by a low-rank update.

Legend: T tokens, I input features, O output features, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from temper.models.anatomy import part_bias, part_weight
from temper.models.model import Model
from temper.signals.calibration import Calibration
from temper.tune.beside import FoldingTuning, MatrixUpdate
from temper.tune.init.base import Start, Wanted
from temper.tune.low_rank import LowRankTune


class DirectionUpdate(MatrixUpdate):
    """One part's lengths, and the low-rank update of its directions."""

    def __init__(self, module: nn.Module, wanted: Wanted, start: Start, dropout: float) -> None:
        self.module, self.part, self.scaling, self.dropout = module, wanted.part, wanted.scaling, dropout
        device = part_weight(module, wanted.part).device
        self.a_RI, self.b_OR = nn.Parameter(start.a_RI.to(device)), nn.Parameter(start.b_OR.to(device))
        self.start = None if start.is_zero else Start(self.a_RI.detach().clone(), self.b_OR.detach().clone())
        self.magnitude_O = nn.Parameter(self._norms())

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield "lora_A", self.a_RI
        yield "lora_B", self.b_OR
        yield "magnitude", self.magnitude_O

    def output(self, x_TI: Tensor, frozen: Callable[[], Tensor], is_training: bool) -> Tensor:
        ratio_O = self.magnitude_O / self._norms()
        if is_training and self.dropout:
            # As PEFT does: what is dropped is missing from the frozen part's own output, too.
            x_TI = F.dropout(x_TI, self.dropout)
            out_TO = F.linear(x_TI, part_weight(self.module, self.part).to(x_TI.dtype))
        else:
            out_TO, bias_O = frozen(), part_bias(self.module, self.part)
            out_TO = out_TO if bias_O is None else out_TO - bias_O
        update_TO = F.linear(F.linear(x_TI, self.a_RI), self.b_OR * self.scaling)
        if self.start is not None:
            update_TO = update_TO - F.linear(F.linear(x_TI, self.start.a_RI), self.start.b_OR * self.scaling)
        return (ratio_O - 1) * out_TO + ratio_O * update_TO

    @torch.no_grad()
    def matrix(self) -> Tensor:
        return (self.magnitude_O / self._norms())[:, None] * self._direction() - self._weight()

    @torch.no_grad()
    def measure_again(self) -> None:
        """Begin at the lengths that the frozen matrix has now."""
        self.magnitude_O.copy_(self._norms())

    def _weight(self) -> Tensor:
        return part_weight(self.module, self.part).float()

    def _direction(self) -> Tensor:
        """Return V + Delta V, (O, I)."""
        direction_OI = self._weight() + self.scaling * (self.b_OR @ self.a_RI)
        if self.start is None:
            return direction_OI
        return direction_OI - self.scaling * (self.start.b_OR @ self.start.a_RI)

    def _norms(self) -> Tensor:
        """Return ||V + Delta V||_c, (O,), a constant to gradients; that of a row of zeros is as good as 0."""
        with torch.no_grad(), torch.autocast(self.a_RI.device.type, enabled=False):
            norm_O: Tensor = torch.linalg.vector_norm(self._direction(), dim=1)
            return norm_O.clamp(min=torch.finfo(torch.float32).tiny)


class DoRATuning(FoldingTuning):
    """Directions and lengths at work on one model."""

    def hold_in(self, dtype: torch.dtype) -> None:
        super().hold_in(dtype)
        for update in self.updates:
            assert isinstance(update, DirectionUpdate)
            update.measure_again()


class DoRA(LowRankTune, name="dora"):
    """Train the length and the direction of each row of a frozen matrix apart.

    W' = m (V + Delta V) / ||V + Delta V||_c, with V = W, Delta V = (alpha / r) B A and m = ||W||_c at first, so that
    the start is the base. ||.||_c is the norm of all weights of one output (a row of W, as it is stored here). The norm
    below is taken for a constant by gradients (section 4.3 of the paper).

    Paper: DoRA: Weight-Decomposed Low-Rank Adaptation, arXiv:2402.09353.
    Symbols: r is `rank`, alpha is `alpha`; equal to PEFT's (`use_dora`). Deviation: saved, it is a change of whole
    matrices, and no adapter of PEFT's.
    """

    def attach(self, model: Model, seed: int = 0, calibration: Calibration | None = None) -> DoRATuning:
        started = self.started(model, seed, calibration)
        updates = [DirectionUpdate(model.module, wanted, start, self.dropout) for wanted, start in started]
        return DoRATuning(model, updates, self.written())

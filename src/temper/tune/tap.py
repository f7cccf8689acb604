"""A frozen linear module whose weight gradient is tapped: only what is asked of it is kept.

The module computes with its own weight and autograd saves no input for it; `tap` passes the output on as it is and, in
the backward pass, gives a small parameter its gradient from the output's gradient and the inputs that it saved.

Legend: T tokens, I input features, O output features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from temper.models.autograd import apply

Gradient = Callable[[Tensor, Tensor], Tensor]
"""Takes the gradient of the outputs (T, O) and the inputs (T, I), returns the parameter's, float32."""


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, x_TI: Tensor, parameter: Tensor, gradient: Gradient) -> Tensor:
        ctx.save_for_backward(x_TI)
        ctx.gradient = gradient
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (x_TI,) = ctx.saved_tensors
        grad_TO = grads[0].flatten(0, -2)
        return grads[0], None, ctx.gradient(grad_TO, x_TI.to(grad_TO.dtype)), None


def tap(out: Tensor, x_TI: Tensor, parameter: nn.Parameter, gradient: Gradient) -> Tensor:
    """Return a module's output, from whose gradient a parameter gets its own.

    Args:
        out: what the module gave, (..., O).
        x_TI: those of its inputs that `gradient` needs, (T, any).
        parameter: already at work in the module's weight.
        gradient: computes the parameter's gradient.
    """
    kind = out.device.type
    # Saved in the type that the product is computed in, which is half the memory where that is bf16.
    kept_TI = x_TI.detach().to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x_TI.detach()
    tapped: Tensor = apply(_Tap, out, kept_TI, parameter, gradient)
    return tapped

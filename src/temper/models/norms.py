"""RMS norms as one function each, and one cast of what several projections read.

As transformers writes it, an RMS norm is half a dozen operations, each of which goes over the whole tensor and keeps
one for its gradient. Here the backward pass keeps the input, which the residual stream holds anyway, and a number for
each token. Under autocast every projection casts its own copy of its input: attention and MLP are handed one that is
cast already.

What a family's norm computes is found by trying: a norm is replaced only where the replacement gives the same numbers.

Legend: T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import _disable_current_modes
from transformers import PreTrainedModel

from temper.models.anatomy import Anatomy
from temper.models.autograd import apply

TRIED_TOKENS = 5
EPSILONS = ("variance_epsilon", "eps")
"""what families call the number that is added to the mean square"""


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * (offset + weight), computed in float32 and returned in the type of x.

    Args:
        weight: (D,); the parameter of the norm that this one replaces.
        offset: 1 for families that keep the weight's difference from 1 (Gemma).
    """

    def __init__(self, weight: nn.Parameter, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight, self.eps, self.offset = weight, eps, offset

    def forward(self, hidden_states: Tensor) -> Tensor:
        out: Tensor = apply(_RMSNorm, hidden_states, self.weight, self.eps, self.offset)
        return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float, offset: float) -> Tensor:
        norm_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True, dtype=torch.float32)
        inverse_T1 = norm_T1.square_().div_(x_TD.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_TD, weight_D, inverse_T1)
        ctx.offset = offset
        out_TD: Tensor = (x_TD * inverse_T1).mul_(_factor(weight_D, offset))
        return out_TD.to(x_TD.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight_D, inverse_T1 = ctx.saved_tensors
        width = x_TD.shape[-1]
        grad_TD, x_TD, inverse_T1 = (one.reshape(-1, one.shape[-1]) for one in (grads[0].float(), x_TD, inverse_T1))
        product_TD = grad_TD * x_TD
        grad_weight = grad_x = None
        if ctx.needs_input_grad[1]:
            grad_weight = (inverse_T1.t() @ product_TD)[0].to(weight_D.dtype)
        if ctx.needs_input_grad[0]:
            factor_D = _factor(weight_D, ctx.offset)
            # d/dx of 1 / sqrt(mean(x^2) + eps): every number of a token moves with the token's own mean.
            mean_T1 = (product_TD @ factor_D)[:, None].mul_(inverse_T1.pow(3)).div_(width)
            grad_x = torch.mul(grad_TD, factor_D, out=product_TD).mul_(inverse_T1).addcmul_(x_TD, mean_T1, value=-1)
            grad_x = grad_x.to(x_TD.dtype).view_as(grads[0])
        return grad_x, grad_weight, None, None


def _factor(weight_D: Tensor, offset: float) -> Tensor:
    return weight_D.float() + offset if offset else weight_D.float()


def replace_norms(module: PreTrainedModel, anatomy: Anatomy) -> None:
    """Put `RMSNorm` in the place of every norm of the anatomy that computes the same; names and weights stay."""
    paths = [path for block in anatomy.blocks for path in block.norms]
    for path in [*paths, *([] if anatomy.norm is None else [anatomy.norm])]:
        parent, _, name = path.rpartition(".")
        found = equivalent(module.get_submodule(path))
        if found is not None:
            setattr(module.get_submodule(parent), name, found)


def equivalent(norm: nn.Module) -> RMSNorm | None:
    """Return the `RMSNorm` over the same weight that computes what a norm does; None where there is none."""
    epsilons = [value for name in EPSILONS if isinstance(value := vars(norm).get(name), float)]
    if [name for name, _ in norm.named_parameters()] != ["weight"] or not epsilons:
        return None
    weight = norm.get_parameter("weight")
    # Tried on numbers even while a model is built from tensors without content.
    with _disable_current_modes():
        generator = torch.Generator().manual_seed(0)
        x_TD, weight_D = (
            torch.randn(*shape, generator=generator, device="cpu")
            for shape in ((TRIED_TOKENS, *weight.shape), weight.shape)
        )
        with torch.no_grad():
            expected_TD = functional_call(norm, {"weight": weight_D}, (x_TD,))
            for offset in (0.0, 1.0):
                found_TD = RMSNorm(nn.Parameter(weight_D), epsilons[0], offset)(x_TD)
                if torch.allclose(found_TD, expected_TD, rtol=1e-5, atol=1e-6):
                    return RMSNorm(weight, epsilons[0], offset)
    return None


def cast_once(module: PreTrainedModel, anatomy: Anatomy) -> None:
    """Hand attention and MLP of every block what they read in the type that autocast computes in.

    Only where nothing but projections and norms of heads reads it: a router of experts keeps its float32.
    """
    for block in anatomy.blocks:
        doors = {part.path.rpartition(".")[0] for part in block.parts}
        for door in doors - {block.path}:
            own = {f"{part.path}.{kind}" for part in block.parts for kind in ("weight", "bias")}
            inside = {f"{door}.{name}" for name, _ in module.get_submodule(door).named_parameters()}
            if all(name in own or name.rpartition(".")[0] in block.norms for name in inside):
                module.get_submodule(door).register_forward_pre_hook(_cast, with_kwargs=True)


def _cast(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    read = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(read, Tensor) or not torch.is_autocast_enabled(read.device.type):
        return args, kwargs
    cast = read.to(torch.get_autocast_dtype(read.device.type))
    return ((cast, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": cast})

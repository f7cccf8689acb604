"""Keep less for the backward pass: what costs little to make again from what is kept anyway is not kept.

Autograd asks for each tensor that it would keep (`saved_tensors_hooks`), and the tensor tells what made it. Three kinds
are made again, with the same bits:

- The copy of a weight in the type of the products, from the weight.
- The numbers of a frozen matrix that is held packed (`models/packed.py`).
- In a gated MLP, act(gate) and act(gate) * up, from gate and up, which their own gradients need anyway.

In bf16 these are half of what a block's MLP keeps, and a copy of every weight that trains. A recipe lives as long as
what asks for it: what it is made of goes when the pass that reads it is over, as autograd lets go of what it keeps.

Whatever is kept must be what it was. PyTorch leaves that to who takes its place, so changes in place are looked for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from weakref import ref

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from temper.models.packed import MADE_BY

ACTIVATIONS: dict[str, Callable[[Any], Callable[[Tensor], Tensor]]] = {
    "SiluBackward0": lambda node: F.silu,
    "GeluBackward0": lambda node: partial(F.gelu, approximate=node._saved_approximate),
}
"""by the name that autograd has for it: from its node, the function"""
RECIPE = "temper_recipe"
"""where an activation's node tells the recipe of its output, without holding it"""


class Recipe:
    """How to make a tensor again."""

    def __init__(self, make: Callable[..., Tensor], *of: Tensor) -> None:
        self.make, self.of = make, of
        self.versions = [tensor._version for tensor in of]
        self._made: Tensor | None = None

    def follow(self) -> Tensor:
        """Return the tensor.

        Raises:
            RuntimeError: what it is made of has changed since.
        """
        if self._made is not None:
            made, self._made = self._made, None
            return made
        _check_unchanged([tensor._version for tensor in self.of], self.versions)
        return self.make(*(tensor.detach() for tensor in self.of))

    def follow_and_keep(self) -> Tensor:
        """Return the tensor, and keep it for who asks next: in an MLP the same is read twice in a row."""
        self._made = self.follow()
        return self._made


def keeping_less() -> AbstractContextManager[Any]:
    """Return the context in which what is kept for the backward pass is replaced by how to make it, where it can."""
    return saved_tensors_hooks(_pack, _unpack)


def _pack(kept: Tensor) -> Recipe | tuple[Tensor, int]:
    found = _recipe_for(kept)
    return found if isinstance(found, Recipe) else (kept, kept._version)


def _unpack(packed: Recipe | tuple[Tensor, int]) -> Tensor:
    if isinstance(packed, Recipe):
        return packed.follow()
    kept, version = packed
    _check_unchanged(kept._version, version)
    return kept


def _check_unchanged(now: object, before: object) -> None:
    if now != before:
        raise RuntimeError("a tensor was changed in place between the forward and the backward pass that reads it")


def _recipe_for(kept: Tensor) -> Tensor | Recipe:
    whole = kept if kept._base is None else kept._base
    made_by = getattr(whole, MADE_BY, None)
    if made_by is not None:
        place = kept.shape, kept.stride(), kept.storage_offset()
        return Recipe(lambda: made_by().as_strided(*place))
    recipe = None if whole.grad_fn is None else _making(whole, whole.grad_fn)
    if recipe is None or whole is kept:
        return recipe or kept
    view = _view(kept, whole)
    return kept if view is None else Recipe(lambda *of: view(recipe.make(*of)), *recipe.of)


def _making(whole: Tensor, node: Any) -> Recipe | None:
    """Return how a tensor is made again, None where that is not cheap or not known."""
    name = node.name()
    if name == "ToCopyBackward0":
        weight = getattr(node.next_functions[0][0], "variable", None)  # only of a leaf
        return None if weight is None else Recipe(partial(Tensor.to, dtype=whole.dtype), weight)
    if name in ACTIVATIONS:
        known = _told(node)
        if known is None:
            known = Recipe(ACTIVATIONS[name](node), node._saved_self)
            node.metadata[RECIPE] = ref(known)
        return known
    if name == "MulBackward0":
        gate = node.next_functions[0][0]
        activation = None if gate is None else _told(gate)
        if activation is not None and node._saved_other is not None:
            return Recipe(lambda gate, up: activation.follow_and_keep() * up, *activation.of, node._saved_other)
    return None


def _told(node: Any) -> Recipe | None:
    """Return the recipe that an activation's node tells, None where it tells none or nothing asks for it any more."""
    reference: ref[Recipe] | None = node.metadata.get(RECIPE)
    return None if reference is None else reference()


def _view(kept: Tensor, whole: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return how what is kept looks at a whole tensor, None where it is not all of it in its order, or transposed."""
    shape = kept.shape
    if kept.numel() != whole.numel() or not whole.is_contiguous():
        return None
    if kept.is_contiguous():
        return lambda tensor: tensor.view(shape)
    if kept.ndim == 2 and kept.t().is_contiguous() and whole.shape == kept.t().shape:
        return lambda tensor: tensor.t()
    return None

"""A model's first blocks and the others apart: what the first give, and how the others go on from it.

Blocks that do not train give the same for a document however often it is read. Which these are is found by trying: what
they give has no gradient, whatever tuner is attached.

A block is left out by a module that stands in its place while a forward pass lasts.

Legend: T packed tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from temper.models.attention import PackedLayout, packed_inputs
from temper.models.model import Model

TRIED_TOKENS = 8
LENGTH_DEPENDENT = {"dynamic", "longrope"}
"""kinds of rotary positions whose frequencies follow the longest document of a pass"""


class _InPlaceOf(nn.Module):
    """Hands on what it is given, or numbers of its own; what else is asked of it, the block answers."""

    def __init__(self, block: nn.Module, gives: Tensor | None = None) -> None:
        super().__init__()
        self._block, self._gives = (block,), gives  # in a tuple: its parameters are not this module's
        self.was_asked = False

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._block[0], name)

    def forward(self, hidden: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        self.was_asked = True
        return hidden if self._gives is None else self._gives


@contextmanager
def _leaving_out(model: Model, blocks: Sequence[int], gives: Tensor | None = None) -> Iterator[None]:
    """Leave blocks out; the first of them gives numbers where there are any."""
    left: list[tuple[Any, str, nn.Module]] = []
    stands: list[_InPlaceOf] = []
    for place, number in enumerate(blocks):
        parent, _, name = model.anatomy.blocks[number].path.rpartition(".")
        blocks_there, block = model.module.get_submodule(parent), model.module.get_submodule(f"{parent}.{name}")
        left.append((blocks_there, name, block))
        stands.append(_InPlaceOf(block, gives if place == 0 else None))
        setattr(blocks_there, name, stands[-1])
    try:
        yield
        if gives is not None and not stands[0].was_asked:
            raise RuntimeError(f"the model left out {model.anatomy.blocks[0].path}, in whose place numbers were given")
    finally:
        for blocks_there, name, block in left:
            setattr(blocks_there, name, block)


def behind(model: Model, num_blocks: int, hidden_TD: Tensor) -> AbstractContextManager[None]:
    """Return the context in which a forward pass begins behind the first blocks, with what these gave."""
    return _leaving_out(model, range(num_blocks), hidden_TD[None])


@torch.no_grad()
def output_of(model: Model, num_blocks: int, read: dict[str, Any]) -> Tensor:
    """Return what the last of the first blocks gives, (T, D), of what `packed_inputs` returned."""
    given: list[Tensor] = []
    last = model.module.get_submodule(model.anatomy.blocks[num_blocks - 1].path)
    handle = last.register_forward_hook(lambda module, inputs, output: given.append(output))
    try:
        with _leaving_out(model, range(num_blocks, len(model.anatomy.blocks))):
            model.module.get_submodule(model.anatomy.backbone)(**read)
    finally:
        handle.remove()
    return given[0][0]


def num_frozen(model: Model) -> int:
    """Return how many first blocks have nothing that trains in or before them, as the model is now."""
    trains: list[bool] = []
    handles = [
        model.module.get_submodule(block.path).register_forward_hook(
            lambda module, inputs, output: trains.append(not isinstance(output, Tensor) or output.requires_grad)
        )
        for block in model.anatomy.blocks
    ]
    try:
        # There is no way back: nothing is kept for it.
        with torch.enable_grad(), torch.random.fork_rng(), saved_tensors_hooks(_none, _unasked):
            model.module.get_submodule(model.anatomy.backbone)(**_some_tokens(model))
    finally:
        for handle in handles:
            handle.remove()
    return trains.index(True) if True in trains else len(trains)


def can_be_kept(model: Model, num_blocks: int) -> bool:
    """Whether nothing says that the first blocks give something else each time: dropout, blocks that are left out at
    random, rotary frequencies that follow the longest document of a pass."""
    blocks = [model.module.get_submodule(block.path) for block in model.anatomy.blocks[:num_blocks]]
    dropouts = [module.p for block in blocks for module in block.modules() if isinstance(module, nn.Dropout)]
    config = model.module.config.get_text_config()
    return not any(dropouts) and not getattr(config, "layerdrop", 0.0) and not _rope_kinds(config) & LENGTH_DEPENDENT


def _rope_kinds(config: Any) -> set[str]:
    given = getattr(config, "rope_parameters", None) or {}
    of_layers = [given, *(one for one in given.values() if isinstance(one, dict))]
    return {str(one["rope_type"]) for one in of_layers if "rope_type" in one}


@torch.no_grad()
def tried(model: Model, num_blocks: int) -> Tensor | None:
    """Return what the last of the first blocks gives of some tokens, (T, D), as training would compute it.

    None where it is another each time (there is dropout), or hangs on what stands beside a document, or where the
    others do not go on from it to the same bits.
    """
    if not can_be_kept(model, num_blocks):
        return None
    backbone, read, trains = (
        model.module.get_submodule(model.anatomy.backbone),
        _some_tokens(model),
        model.module.training,
    )
    with torch.random.fork_rng():
        model.module.train()
        given_TD = output_of(model, num_blocks, read)
        model.module.eval()
        expected_TD = backbone(**read).last_hidden_state
        with behind(model, num_blocks, given_TD):
            found_TD = backbone(**read).last_hidden_state
        model.module.train(trains)
    return given_TD if torch.equal(found_TD, expected_TD) else None


def _none(kept: Tensor) -> None:
    return None


def _unasked(nothing: None) -> Tensor:
    raise RuntimeError("what was tried has no way back")


def _some_tokens(model: Model) -> dict[str, Any]:
    device = next(model.module.parameters()).device
    tokens_T = torch.arange(TRIED_TOKENS, device=device)
    return packed_inputs(tokens_T, tokens_T, PackedLayout.of((TRIED_TOKENS,), device))

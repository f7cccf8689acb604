"""Biases that a model's linear modules lack: one that is not there is 0, so a change may give a model one.

Decisions:
- Where the family's configuration can say that there are biases (`attention_bias`), it says so from then on, and the
  other biases that go with it are there too, as zeros: the model is one of its family still, and what is saved of it
  loads everywhere.
- Where it cannot, the model computes with its new biases and cannot be saved whole, which `check_saveable` says.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import nn

from temper.core.errors import ModelError

SWITCHES = ("attention_bias", "mlp_bias")
"""settings by which configurations say that some of a block's linear modules have biases"""


@dataclass
class Given:
    """What a model was given."""

    names: list[str] = field(default_factory=list)
    """of the biases, which are parameters of it now"""
    switches: tuple[str, ...] = ()
    """settings of its configuration that are on now"""


def lacking_linear(module: nn.Module, name: str) -> nn.Linear | None:
    """Return the linear module whose bias a name means, where it has none; else None."""
    path, _, kind = name.rpartition(".")
    if kind != "bias":
        return None
    found = dict(module.named_modules()).get(path)
    return found if isinstance(found, nn.Linear) and found.bias is None else None


def give_biases(module: Any, names: Sequence[str]) -> Given:
    """Give a model those of the named biases that its linear modules lack, as zeros: it computes the same.

    Args:
        module: a causal language model of transformers.
        names: of parameters; one that is no missing bias is left alone.
    """
    missing = [name for name in names if lacking_linear(module, name) is not None]
    if not missing:
        return Given()
    given = Given(missing)
    own = _biases(module)
    for switches in _ways(module.config):
        described = _described(module, switches)
        if own | set(missing) <= described and all(lacking_linear(module, name) for name in described - own):
            given = Given(sorted(described - own), switches)
            break
    for name in given.names:
        linear = lacking_linear(module, name)
        assert linear is not None
        linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features), linear.weight.requires_grad)
    for switch in given.switches:
        setattr(module.config, switch, True)
    return given


def take_biases(module: Any, given: Given) -> None:
    """Take away what `give_biases` gave."""
    for name in given.names:
        module.get_submodule(name.rpartition(".")[0]).bias = None
    for switch in given.switches:
        setattr(module.config, switch, False)


def check_saveable(module: Any) -> None:
    """Raise ModelError where a model has parameters that its configuration does not describe."""
    own = {name for name, _ in module.named_parameters()}
    surplus = sorted(own - {name for name, _ in _outline(module, ()).named_parameters(remove_duplicate=False)})
    if surplus:
        raise ModelError(
            f"{surplus[0]}: is no parameter of a {type(module).__name__} by its configuration, so that a folder with "
            "it could not be loaded; keep it as the change that it is (a stage's `delta/`), or, where it is a bias, "
            "train this on a family whose projections may have biases, such as Llama"
        )


def _ways(config: Any) -> list[tuple[str, ...]]:
    """Return the settings that may be switched on, the fewest first."""
    off = [switch for switch in SWITCHES if getattr(config, switch, None) is False]
    return [some for count in range(1, len(off) + 1) for some in combinations(off, count)]


def _described(module: Any, switches: Sequence[str]) -> set[str]:
    """Return the names of the biases that a configuration stands for, with some settings switched on."""
    return _biases(_outline(module, switches))


def _outline(module: Any, switches: Sequence[str]) -> nn.Module:
    """Return what a configuration stands for, with some settings switched on; it takes no memory."""
    config = copy.deepcopy(module.config)
    for switch in switches:
        setattr(config, switch, True)
    with torch.device("meta"):
        outline: nn.Module = type(module)(config)
    return outline


def _biases(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters() if name.endswith(".bias")}

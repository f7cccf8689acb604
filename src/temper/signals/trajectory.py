"""The trajectory of a training stage: what it trained at some moments, with the optimizer's own numbers.

Methods that ask what a row would have changed stand on it (influence by gradients). A training stage keeps one when its
`snapshots` say so, in `trajectory/` of its folder: a folder for each snapshot, whole or absent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from temper.core.files import whole_folder, write_json
from temper.core.hashing import hash_files

FOLDER = "trajectory"
_TRAINED, _OPTIMIZER, _FACTS = "trained.safetensors", "optimizer.safetensors", "snapshot.json"


@dataclass(frozen=True)
class Snapshot:
    """One moment of a training stage."""

    folder: Path
    step: int
    """optimizer steps done"""
    lr: float
    """mean learning rate of the steps since the snapshot before"""
    tune: dict[str, Any]
    """the tuner, as it is written in a recipe"""
    seed: int
    hold: dict[str, Any] | None
    """in what form the frozen base was held, as it is written in a recipe"""
    groups: tuple[dict[str, Any], ...]
    """the optimizer's groups: `names` of their parameters, and plain settings such as `betas` and `eps`"""

    @classmethod
    def read(cls, folder: Path) -> Snapshot:
        """Read what `write` wrote."""
        facts: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        groups = tuple(facts["groups"])
        return cls(folder, facts["step"], facts["lr"], facts["tune"], facts["seed"], facts["hold"], groups)

    def fingerprint(self) -> str:
        """Name it by content."""
        return hash_files([self.folder / name for name in (_TRAINED, _OPTIMIZER, _FACTS)])

    def trained(self) -> dict[str, Tensor]:
        """Return the numbers that train, by name."""
        return load_file(self.folder / _TRAINED)

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Return the optimizer's tensors: by the parameter's name, then by what they are (`exp_avg`, ...)."""
        state: dict[str, dict[str, Tensor]] = {}
        for key, value in load_file(self.folder / _OPTIMIZER).items():
            what, _, name = key.partition(":")
            state.setdefault(name, {})[what] = value
        return state


def write_snapshot(
    folder: Path,
    parameters: Iterable[tuple[str, nn.Parameter]],
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
) -> None:
    """Write a snapshot.

    Args:
        facts: `step`, `lr`, `tune`, `seed` and `hold`.
    """
    named = list(parameters)
    names = {id(parameter): name for name, parameter in named}
    state = {
        f"{what}:{name}": value.detach().contiguous()
        for name, parameter in named
        for what, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
    groups = [
        {
            "names": [names[id(parameter)] for parameter in group["params"]],
            **{key: value for key, value in group.items() if isinstance(value, int | float | tuple | None)},
        }
        for group in optimizer.param_groups
    ]
    with whole_folder(folder) as partial:
        save_file({name: parameter.detach().contiguous() for name, parameter in named}, partial / _TRAINED)
        save_file(state, partial / _OPTIMIZER)
        write_json(partial / _FACTS, {**facts, "groups": groups})


def read_trajectory(stage: Path | None) -> Sequence[Snapshot]:
    """Return the snapshots that a stage's folder holds, first one first; none where it kept none."""
    folder = None if stage is None else stage / FOLDER
    if folder is None or not folder.is_dir():
        return []
    return [Snapshot.read(path) for path in sorted(folder.iterdir()) if (path / _FACTS).is_file()]

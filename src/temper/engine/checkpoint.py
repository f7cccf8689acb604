"""Checkpoints: all that a run needs to end in the same bits as if it had never stopped.

A checkpoint is a folder that is whole or absent. It holds the numbers that train (`trained.safetensors`) and the rest
(`state.pt`): optimizer, generators of random numbers, place in the data, and what methods keep.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from temper.core.files import whole_folder

_NAME = re.compile(r"step-(\d{9})")
KEPT = 2


def save_trained(parameters: Iterable[tuple[str, nn.Parameter]], file: Path) -> None:
    """Write the numbers that train."""
    save_file({name: parameter.detach().contiguous() for name, parameter in parameters}, file)


def load_trained(parameters: Iterable[tuple[str, nn.Parameter]], file: Path) -> None:
    """Read back what `save_trained` wrote, in place."""
    stored = load_file(file)
    with torch.no_grad():
        for name, parameter in parameters:
            parameter.copy_(stored.pop(name))
    assert not stored, f"{file}: unexpected {sorted(stored)}"


class Checkpoints:
    """The checkpoints of one stage, in `folder`; the last two are kept, and the best."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best = folder / "best"

    def save(self, step: int, parameters: Iterable[tuple[str, nn.Parameter]], state: dict[str, Any]) -> None:
        """Write the checkpoint of a step and remove the oldest."""
        with whole_folder(self.folder / f"step-{step:09d}") as partial:
            save_trained(parameters, partial / "trained.safetensors")
            torch.save({**state, "rng": _rng_state()}, partial / "state.pt")
        for old in self.saved()[:-KEPT]:
            shutil.rmtree(old)

    def save_best(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Keep the numbers that train as the best so far."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "best.partial"
        save_trained(parameters, partial)
        partial.replace(self.best)

    def load_best(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Bring back the best numbers."""
        load_trained(parameters, self.best)

    def saved(self) -> list[Path]:
        """Return the whole checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))

    def load(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Any] | None:
        """Bring back the newest checkpoint and return its state; None where there is none."""
        saved = self.saved()
        if not saved:
            return None
        load_trained(parameters, saved[-1] / "trained.safetensors")
        state: dict[str, Any] = torch.load(saved[-1] / "state.pt", weights_only=True)
        _load_rng_state(state.pop("rng"))
        return state

    def remove(self) -> None:
        """Remove every checkpoint: the stage is done."""
        aside = self.folder.with_name(f"{self.folder.name}.old")
        if self.folder.is_dir():
            # Renamed first: a kill while removing must not leave a checkpoint that is half there.
            shutil.rmtree(aside, ignore_errors=True)
            self.folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _load_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])

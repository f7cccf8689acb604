"""Checkpoints: all that a run needs to end in the same bits as if it had never stopped.

A checkpoint is a folder that is whole or absent. It holds the numbers that train (`trained.safetensors`), the rest
(`state.pt`: optimizer, generators of random numbers, place in the data, and what methods keep), and a checksum of each
(`checksums.json`). One whose bytes have changed since is passed over for the one before, and that is said.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from temper.core.files import whole_folder, write_json
from temper.core.hashing import hash_file

_NAME = re.compile(r"step-(\d{9})")
KEPT = 2
CHECKSUMS = "checksums.json"


def save_numbers(numbers: Mapping[str, Tensor], file: Path) -> None:
    """Write the numbers that training has changed."""
    save_file({name: tensor.contiguous() for name, tensor in numbers.items()}, file)


class Checkpoints:
    """The checkpoints of one stage, in `folder`; the last two are kept, and the best."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best = folder / "best"
        self.warnings: list[str] = []
        """what was passed over"""

    def save(self, step: int, numbers: Mapping[str, Tensor], state: dict[str, Any]) -> None:
        """Write the checkpoint of a step and remove the oldest."""
        with whole_folder(self.folder / f"step-{step:09d}") as partial:
            save_numbers(numbers, partial / "trained.safetensors")
            torch.save({**state, "rng": _rng_state()}, partial / "state.pt")
            write_json(partial / CHECKSUMS, {file.name: hash_file(file) for file in sorted(partial.iterdir())})
        for old in self.saved()[:-KEPT]:
            shutil.rmtree(old)

    def save_best(self, numbers: Mapping[str, Tensor]) -> None:
        """Keep the numbers that train as the best so far."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "best.partial"
        save_numbers(numbers, partial)
        partial.replace(self.best)

    def load_best(self) -> dict[str, Tensor]:
        """Return the best numbers."""
        return load_file(self.best)

    def saved(self) -> list[Path]:
        """Return the whole checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return numbers and state of the newest checkpoint that is undamaged; None where there is none."""
        for folder in reversed(self.saved()):
            damaged = _damaged(folder)
            if damaged:
                self.warnings.append(
                    f"{folder}: {damaged} is damaged (its checksum differs), so training went on from before it"
                )
                continue
            numbers = load_file(folder / "trained.safetensors")
            state: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True)
            _load_rng_state(state.pop("rng"))
            return numbers, state
        return None

    def remove(self) -> None:
        """Remove every checkpoint: the stage is done."""
        aside = self.folder.with_name(f"{self.folder.name}.old")
        if self.folder.is_dir():
            # Renamed first: a kill while removing must not leave a checkpoint that is half there.
            shutil.rmtree(aside, ignore_errors=True)
            self.folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _damaged(folder: Path) -> str | None:
    """Return the name of a file that is not what was written, None where all are."""
    try:
        checksums: dict[str, str] = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        for name, checksum in checksums.items():
            if hash_file(folder / name) != checksum:
                return name
    except (OSError, ValueError):
        return CHECKSUMS
    return None


def _rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _load_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])

"""Tiny base models that are made on the spot, and kept by content.

Decisions:
- A base is named by what makes it: its settings, the code that makes it and the versions of torch and transformers.
  The budget is in steps, so the same name is the same bits on one kind of machine, fast or slow.
- A base knows some skills well and has never seen the others: the first are there to be kept, the second to be
  gained. `BASES[name].knows` says which.
- A new model (`NewBase`) has random weights and a BPE tokenizer trained on the text that it is meant for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import Field

from temper.core.errors import SettingError, nearest
from temper.core.files import whole_folder, write_json
from temper.core.hashing import hash_files, hash_json
from temper.core.methods import Settings
from temper.data import encode
from temper.data.example import Row
from temper.data.source import Source
from temper.lab import architecture, skill, tokenizer, training
from temper.lab.architecture import Architecture
from temper.lab.skill import Skill, example
from temper.models.load import Outline, load_model, new_model, save_model
from temper.models.model import Model

CARD = "lab.json"
"""what a made base's folder says of it: its settings, and what it reached"""
VOCABULARY = 96
"""rows of a lab base's embedding: the tokens that there are, and room for the words of skills to come"""


class LabBase(Settings):
    """A tiny model that has learnt some skills."""

    description: str = Field(description="what it is for")
    knows: dict[str, int] = Field(description="the skills that it learns, and how many questions of each")
    steps: int = Field(ge=1, description="optimizer steps")
    batch_size: int = Field(128, ge=1, description="questions a step")
    lr: float = Field(4e-3, gt=0, description="peak learning rate")
    seed: int = Field(0, description="of the weights and of the order of the data")
    architecture: Architecture = Field(Architecture(), description="its family and sizes")

    def open(self, name: str, cache: Path | None = None) -> Model:
        """Return the base, made now if `cache` does not keep it yet under this name."""
        folder = self.folder(name, cache)
        if not folder.is_dir():
            make_lab_base(self, folder)
        return load_model(folder)

    def folder(self, name: str, cache: Path | None = None) -> Path:
        """Return where the base is kept under a name, or will be; by default in the platform's cache."""
        return _folder(name, self.model_dump(mode="json", exclude={"description"}), cache)


_TINY = {"copy": 2048, "shift": 4096, "swap": 4096, "duplicate": 2048, "last": 1024, "sort": 8192, "count": 1024}
BASES: dict[str, LabBase] = {
    "tiny": LabBase(
        description="0.4 million parameters, seven skills: for demonstrations and effects",
        knows=_TINY,
        steps=350,
    ),
    "tiny-qwen3": LabBase(
        description="as tiny, in the style of Qwen 3: norms on queries and keys",
        knows=_TINY,
        steps=500,
        lr=2e-3,
        architecture=Architecture(family="qwen3"),
    ),
    "tiny-gpt2": LabBase(
        description="as tiny, in the style of GPT-2: learned positions, transposed and fused matrices",
        knows=_TINY,
        steps=700,
        lr=1.2e-3,
        architecture=Architecture(family="gpt2"),
    ),
    "nano": LabBase(
        description="as large as tiny, three easy skills in a third of the time: for quick tests",
        knows={"copy": 4096, "shift": 4096, "duplicate": 2048},
        steps=120,
        lr=5e-3,
        architecture=Architecture(heads=2),
    ),
}


def default_cache() -> Path:
    """Return the folder in which this platform keeps what can be made again, for Temper."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "temper"
    return Path.home() / ".cache" / "temper"


def open_base(name: str, cache: Path | None = None) -> Model:
    """Return a lab base by its name (`tiny`), made now if it is not kept yet.

    Args:
        cache: where bases are kept; by default the platform's folder for such things.

    Raises:
        SettingError: there is no base of that name.
    """
    if name not in BASES:
        raise SettingError("base", f"lab:{name}", "is not a lab base", nearest(name, BASES))
    return BASES[name].open(name, cache)


def outline_base(name: str) -> Outline:
    """Return what a lab base is, without making it.

    Raises:
        SettingError: there is no base of that name.
    """
    if name not in BASES:
        raise SettingError("base", f"lab:{name}", "is not a lab base", nearest(name, BASES))
    return Outline(BASES[name].architecture.config(VOCABULARY), tokenizer.character_tokenizer())


def base_folder(name: str, cache: Path | None = None) -> Path:
    """Return where a lab base is kept, or will be."""
    return BASES[name].folder(name, cache)


def make_lab_base(base: LabBase, folder: Path) -> None:
    """Train a base and write it as transformers does, with what it reached in `lab.json`."""
    model = new_model(base.architecture.config(VOCABULARY), tokenizer.character_tokenizer(), base.seed)
    training.teach(model, base.knows, training.Budget(base.steps, base.batch_size, base.lr), base.seed)
    reached = {name: training.exact_match(model, training.skill_named(name)) for name in base.knows}
    with whole_folder(folder) as partial:
        save_model(model, partial)
        write_json(partial / CARD, {"settings": base.model_dump(mode="json"), "exact_match": reached})


class NewBase(Architecture):
    """A new model: random weights, and a byte-level BPE tokenizer trained on the text that it is meant for."""

    vocabulary: int = Field(4096, ge=264, description="tokens, 8 special ones and 256 bytes included")
    tokenizer_data: tuple[Source, ...] = Field(
        min_length=1, description="sources on whose train split the tokenizer is trained"
    )
    seed: int | None = Field(None, description="of the weights; default: the recipe's")

    def open(self, cache: Path, seed: int = 0) -> Model:
        """Return the model, made now if `cache` does not keep it yet."""
        return load_model(self.folder(cache, seed))

    def folder(self, cache: Path, seed: int = 0) -> Path:
        """Return where the model lies, made now if `cache` does not keep it yet."""
        seed = seed if self.seed is None else self.seed
        settings = self.model_dump(mode="json", exclude={"seed"})
        sources = [source.fingerprint() for source in self.tokenizer_data]
        folder = _folder("new", {"settings": settings, "sources": sources, "seed": seed}, cache)
        if not folder.is_dir():
            rows = (row for source in self.tokenizer_data for row in source.open("train", cache))
            bpe = tokenizer.train_bpe((text for row in rows for text in _texts(row)), self.vocabulary)
            model = new_model(self.config(len(bpe)), bpe, seed)
            with whole_folder(folder) as partial:
                save_model(model, partial)
        return folder


def _texts(row: Row) -> Iterator[str]:
    for value in row.content.values():
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from (turn["content"] for turn in value if isinstance(turn, dict) and "content" in turn)


def _folder(name: str, settings: dict[str, Any], cache: Path | None) -> Path:
    modules = (architecture, skill, tokenizer, training, encode)
    code = [Path(str(module.__file__)) for module in modules]
    code += sorted((Path(__file__).parent / "skills").glob("*.py"))
    key = hash_json([settings, hash_files(code), torch.__version__, transformers.__version__])
    return (cache or default_cache()) / "bases" / f"{name}-{key}"


def describe_skills() -> list[dict[str, Any]]:
    """Return each skill's name, description, default lengths, an example row, and the bases that know it."""
    return [
        {
            "name": name,
            "description": (method.__doc__ or "").strip().splitlines()[0],
            "lengths": method.lengths,
            **example(method()),
            "known_by": [base for base, settings in BASES.items() if name in settings.knows],
        }
        for name, method in Skill.methods().items()
    ]


def describe_bases(cache: Path | None = None) -> list[dict[str, Any]]:
    """Return each base's name, description, family, sizes, skills, whether it is kept, and what it then reached."""
    described = []
    for name, base in BASES.items():
        folder = base_folder(name, cache)
        reached = json.loads((folder / CARD).read_text(encoding="utf-8"))["exact_match"] if folder.is_dir() else None
        described.append(
            {
                "name": f"lab:{name}",
                "description": base.description,
                "family": base.architecture.family,
                "width": base.architecture.width,
                "layers": base.architecture.layers,
                "steps": base.steps,
                "knows": list(base.knows),
                "is_cached": folder.is_dir(),
                "exact_match": reached,
            }
        )
    return described

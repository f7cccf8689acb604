"""The model that a recipe starts from: a lab base, a folder, a hub id, or a new one with random weights.

The path by which a base is found does not count for what follows from it; its content does, and how it is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_serializer, model_validator
from transformers import AutoConfig

from temper.core.errors import SettingError
from temper.core.hashing import hash_json
from temper.core.methods import Settings
from temper.lab.bases import NewBase, open_base, outline_base
from temper.models.families import FamilyLayout
from temper.models.load import (
    Outline,
    find_folder,
    fingerprint_folder,
    fingerprint_module,
    load_model,
    load_tokenizer,
    read_outline,
)
from temper.models.model import Model

LAB = "lab:"


class Base(Settings):
    """Where the base model comes from: written as a text, or with its settings."""

    path: str | None = Field(
        None, min_length=1, description="a model's folder, a hub id (owner/name), or lab:NAME for a built-in one"
    )
    new: NewBase | None = Field(None, description="a new model with random weights, instead of a path")
    revision: str | None = Field(None, description="branch, tag or commit of a hub repository")
    trust_remote_code: str | Literal[False] = Field(
        False, description="the exact name of the repository whose own code may run"
    )
    dtype: str = Field("auto", description="float32, bfloat16, float16, or auto for the checkpoint's own")
    layout: FamilyLayout | None = Field(None, description="where the parts of a model of an unknown family are")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, written: object) -> object:
        return {"path": str(written)} if isinstance(written, str | Path) else written

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.path is None) == (self.new is None):
            raise SettingError("base", self.path, "is not one model", "write either a path or `new:`, not both")
        for name in ("revision", "trust_remote_code", "dtype", "layout"):
            value = getattr(self, name)
            if not self._is_found and value != type(self).model_fields[name].default:
                raise SettingError(name, value, "has no effect on a model that is made here", "take the setting out")
        return self

    @model_serializer(mode="wrap")
    def _written(self, handler: Any) -> Any:
        settings = {key: value for key, value in handler(self).items() if value not in (None, False, "auto")}
        return settings["path"] if set(settings) == {"path"} else settings

    @field_validator("path")
    @classmethod
    def _expand(cls, path: str | None) -> str | None:
        return str(Path(path).expanduser()) if path is not None and path.startswith("~") else path

    @property
    def label(self) -> str:
        """A short name for texts."""
        return self.path or "a new model"

    def open(self, cache: Path, seed: int = 0) -> Model:
        """Load the model, fresh.

        A new model is made once and kept in `cache`; a lab base, which many recipes share, in the user's own cache.

        Raises:
            ModelError, SettingError: see `temper.models.load.load_model`.
        """
        if self.new is not None:
            return self.new.open(cache, seed)
        assert self.path is not None
        if self.path.startswith(LAB):
            return open_base(self.path.removeprefix(LAB))
        model = load_model(
            self.path,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
            revision=self.revision,
            layout=self.layout,
        )
        if self.dtype != "auto":
            # Its name is the folder's, whose weights were rounded while they were loaded.
            model.fingerprint = fingerprint_module(model.module, model.tokenizer, model.prompts)
        return model

    def outline(self, cache: Path, seed: int = 0) -> Outline:
        """Read what the model is without its weights; a lab base that is not made yet is not made for it."""
        if self.new is not None:
            return read_outline(self.new.folder(cache, seed))
        assert self.path is not None
        if self.path.startswith(LAB):
            return outline_base(self.path.removeprefix(LAB))
        return read_outline(
            self.path,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
            revision=self.revision,
            layout=self.layout,
        )

    def tokenizer(self, cache: Path, seed: int = 0) -> Any:
        """Load the model's tokenizer, without its weights where they are not made here."""
        if self._is_found and not self.trust_remote_code:
            return load_tokenizer(find_folder(str(self.path), revision=self.revision))
        return self.open(cache, seed).tokenizer

    def num_positions(self, cache: Path, seed: int = 0) -> int:
        """Return how many tokens the model can read, from its configuration where that lies there."""
        if self._is_found and not self.trust_remote_code:
            config = AutoConfig.from_pretrained(find_folder(str(self.path), revision=self.revision))
        else:
            config = self.open(cache, seed).module.config
        return int(config.get_text_config().max_position_embeddings)

    @property
    def _is_found(self) -> bool:
        """Whether the model lies somewhere, and is not made here."""
        return self.path is not None and not self.path.startswith(LAB)

    def key(self, cache: Path, seed: int = 0) -> str:
        """Name the model by content and by how it is read; weights are read only where the name needs them."""
        if self._is_found and not self.trust_remote_code:
            fingerprint = fingerprint_folder(find_folder(str(self.path), revision=self.revision))
        else:
            fingerprint = self.open(cache, seed).fingerprint
        layout = None if self.layout is None else self.layout.model_dump(mode="json")
        return hash_json([fingerprint, self.dtype, layout])

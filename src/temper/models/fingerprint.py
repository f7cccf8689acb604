"""Names for models by content: weights, configuration and tokenizer.

Decisions:
- A weight counts by name, dtype, shape and bytes, not by the file that it lies in: a model in memory and its saved
  folder have one name, whatever the shards. A folder is hashed from its memory-mapped files without building the
  model, on all cores, at the speed of SHA-256 (about 1 GB/s on each).
- A tied weight counts once, under its first name.
- What transformers writes about itself into configurations (version, path, class) does not count.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from temper.core.errors import ModelError
from temper.core.hashing import hash_json
from temper.models.tokenizer import describe_tokenizer, load_tokenizer

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PROMPT = "prompt.safetensors"
"""holds the soft prompts of a model, one after another, beside its weights"""
PROMPT_NAME = "prompt_embeddings"
VOLATILE = frozenset(
    {
        "_name_or_path",
        "_from_model_config",
        "_commit_hash",
        "_attn_implementation",
        "architectures",
        "auto_map",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""keys of configurations that say nothing of what a model computes"""
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""names of dtypes in safetensors files"""


def fingerprint_module(module: Any, tokenizer: Any, prompts: Sequence[Tensor] = ()) -> str:
    """Return 16 hex digits that name a model in memory: those that its saved folder has.

    Args:
        prompts: the soft prompts that it reads, float32 (P, D) each.
    """
    config = json.loads(module.config.to_json_string(use_diff=True))
    generation = json.loads(module.generation_config.to_json_string(use_diff=True))
    weights = _weights_of(module)
    if prompts:
        joined = torch.cat(list(prompts))
        weights.append(_Weight(PROMPT_NAME, DTYPE_NAMES[joined.dtype], list(joined.shape), joined))
    return _combine(_hash_weights(weights), config, generation, tokenizer)


def fingerprint_folder(folder: Path, tokenizer: Any = None) -> str:
    """Return 16 hex digits that name a saved model.

    Args:
        folder: a model in the layout of Hugging Face.
        tokenizer: its tokenizer, where it is loaded already.

    Raises:
        ModelError: no configuration or no safetensors.
    """
    config = read_config(folder)
    generation = _read_json(folder / "generation_config.json") if (folder / "generation_config.json").exists() else {}
    tokenizer = load_tokenizer(folder) if tokenizer is None else tokenizer
    files = [*weight_files(folder), *(path for path in [folder / PROMPT] if path.is_file())]
    return _combine(_hash_weights(_weights_in(files)), config, generation, tokenizer)


def read_config(folder: Path) -> dict[str, Any]:
    """Return a folder's config.json.

    Raises:
        ModelError: there is none, or it is broken.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: holds no config.json, so it is no model; give the folder that holds it")
    return _read_json(path)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that a folder's weights lie in.

    Raises:
        ModelError: there are none, or the index names one that is missing.
    """
    if (folder / INDEX).is_file():
        names = sorted(set(_read_json(folder / INDEX)["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(f"{folder / INDEX}: names {missing[0]!r}, which is not there; copy or download it again")
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder}: holds its weights as {pickles[0]!r} only, and loading a pickle can run any code; where you "
            "trust it, convert it once: "
            f"AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained(a new folder) writes safetensors"
        )
    raise ModelError(f"{folder}: holds no {SINGLE}; give the folder that holds the weights")


def _combine(weights: list[list[Any]], config: dict[str, Any], generation: dict[str, Any], tokenizer: Any) -> str:
    return hash_json([weights, _lasting(config), _lasting(generation), describe_tokenizer(tokenizer)])


def _lasting(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in VOLATILE}


@dataclass(frozen=True)
class _Weight:
    """A tensor in memory, or the bytes of one in a memory-mapped file."""

    name: str
    dtype: str
    shape: list[int]
    data: Tensor | memoryview

    def describe(self) -> list[Any]:
        data = self.data
        if isinstance(data, Tensor):
            data = data.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        return [self.name, self.dtype, self.shape, hashlib.sha256(data).hexdigest()]


def _hash_weights(weights: list[_Weight]) -> list[list[Any]]:
    # hashlib lets go of the interpreter's lock, so that threads use all cores.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return sorted(pool.map(_Weight.describe, weights))


def _weights_of(module: Any) -> list[_Weight]:
    first_names = {id(tensor): name for name, tensor in reversed(module.state_dict(keep_vars=True).items())}
    kept = set(first_names.values())
    once = {name: tensor for name, tensor in module.state_dict().items() if name in kept}
    # In files some families keep older names than in memory (GPT-NeoX: `embed_out` for `lm_head`).
    in_files = revert_weight_conversion(module, once)
    return [_Weight(name, DTYPE_NAMES[tensor.dtype], list(tensor.shape), tensor) for name, tensor in in_files.items()]


def _weights_in(files: list[Path]) -> list[_Weight]:
    weights: list[_Weight] = []
    for path in files:
        try:
            weights += _weights_of_file(path)
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise ModelError(f"{path}: is no whole safetensors file ({error}); copy or download it again") from error
    return weights


def _weights_of_file(path: Path) -> list[_Weight]:
    """Read the header of a safetensors file: 8 bytes of length, JSON, then the tensors' bytes."""
    with path.open("rb") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    (length,) = struct.unpack("<Q", mapped[:8])
    header = json.loads(bytes(mapped[8 : 8 + length]))
    weights: list[_Weight] = []
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            if stop > len(mapped):
                raise ValueError(f"{name} ends behind the file's end")
            weights.append(_Weight(name, entry["dtype"], entry["shape"], mapped[start:stop]))
    return weights


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: is not JSON ({error}); copy or download it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds no JSON object; copy or download it again")
    return value

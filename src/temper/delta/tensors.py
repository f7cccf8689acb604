"""Named weights, read one tensor at a time.

Decisions:
- Names are those of `named_parameters()`: a tied weight has one name and is one tensor.
- A folder whose files carry these names is memory-mapped. One whose files do not (a checkpoint that
  transformers converts while it loads) is loaded whole: right first, small where possible.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from temper.core.errors import ModelError
from temper.models.fingerprint import PROMPT, PROMPT_NAME, read_config, weight_files
from temper.models.load import load_model
from temper.models.model import Model
from temper.models.prompt import all_prompts


class ComputedTensors(Mapping[str, Tensor]):
    """Tensors by name, each made when it is asked for and never kept."""

    def __init__(self, names: Collection[str], compute: Callable[[str], Tensor]) -> None:
        self._names, self._compute = dict.fromkeys(names), compute

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._compute(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_tensors(files: Collection[Path]) -> ComputedTensors:
    """Return the tensors of safetensors files, memory-mapped."""
    handles: dict[str, Any] = {}
    for file in files:
        try:
            handle: Any = safe_open(file, framework="pt")
        except SafetensorError as error:
            raise ModelError(f"{file}: is no whole safetensors file ({error}); copy or download it again") from error
        handles.update(dict.fromkeys(handle.keys(), handle))
    return ComputedTensors(handles, lambda name: handles[name].get_tensor(name))


def module_tensors(module: nn.Module) -> ComputedTensors:
    """Return a module's parameters, detached; a tied one once, under its first name."""
    parameters = dict(module.named_parameters())
    return ComputedTensors(parameters, lambda name: parameters[name].detach())


def with_zeros(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> Mapping[str, Tensor]:
    """Return tensors and, by name and shape, further ones of 0."""
    if not shapes:
        return tensors
    names = [*tensors, *(name for name in shapes if name not in tensors)]
    return ComputedTensors(names, lambda name: tensors[name] if name in tensors else torch.zeros(shapes[name]))


def open_weights(source: Path | Model | nn.Module) -> ComputedTensors:
    """Return the weights of a model by parameter name.

    Args:
        source: a model folder with safetensors, or a model in memory.

    Raises:
        ModelError: a folder without safetensors, or that cannot be loaded.
    """
    if isinstance(source, Model):
        return module_tensors(source.module)
    if isinstance(source, nn.Module):
        return module_tensors(source)
    weights = read_tensors(weight_files(source))
    names = _parameter_names(source)
    if names and all(name in weights for name in names):
        return ComputedTensors(names, weights.__getitem__)
    return module_tensors(load_model(source).module)


def read_prompts(source: Path | Model | nn.Module) -> Tensor:
    """Return the soft prompts of a model one after another, float32 (P, D); (0,) where there is none."""
    if isinstance(source, Model):
        return all_prompts(source).detach().cpu() if source.prompts else torch.empty(0)
    if isinstance(source, Path) and (source / PROMPT).is_file():
        return read_tensors([source / PROMPT])[PROMPT_NAME]
    return torch.empty(0)


def _parameter_names(folder: Path) -> list[str]:
    """Return the parameter names of the model that config.json describes; none where its family is unknown."""
    if read_config(folder).get("model_type") not in CONFIG_MAPPING:
        return []
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    return [name for name, _ in module.named_parameters()]

"""A change held as two thin matrices per module, in PEFT's layout.

    change of W = scaling * B A

with W (O x I) as in y = W x; a module that stores its weight as I x O (GPT-2's Conv1D) gets the transpose.

Decisions:
- Only whole modules: an adapter on a slice of a fused module (q of Phi-3's qkv) has zero rows in B outside
  the slice (`spread`), and several adapters on one module become one (`stack`).
- What PEFT's format can say and this cannot is an error that names the key: nothing is dropped in silence.
- On writing, `alpha = scaling * rank` per module; the most frequent pair is the default of the adapter and
  the rest goes into `rank_pattern` and `alpha_pattern`. rsLoRA's scaling is read, and written as an alpha.

Paper: LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685; A Rank Stabilization Scaling
Factor for Fine-Tuning with LoRA, arXiv:2312.03732.

Legend: R rank, I input features, O output features.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from temper.core.errors import ModelError, nearest
from temper.core.files import write_json
from temper.delta.base import CONFIG_FILE, WEIGHTS_FILE, Delta, Provenance, check_shape
from temper.delta.dense import merged_provenance

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Factors:
    """One module's change: `scaling * B A`."""

    a_RI: Tensor
    b_OR: Tensor
    scaling: float = 1.0
    is_transposed: bool = False
    """the module stores its weight as I x O"""

    @property
    def rank(self) -> int:
        return self.a_RI.shape[0]

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Shape of the module's weight."""
        shape = (self.b_OR.shape[0], self.a_RI.shape[1])
        return shape[::-1] if self.is_transposed else shape

    def product(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the change in float32, in the module's stored shape."""
        change_OI = (self.b_OR.to(device, torch.float32) @ self.a_RI.to(device, torch.float32)) * self.scaling
        return change_OI.T if self.is_transposed else change_OI


def spread(factors: Factors, rows: Sequence[tuple[int, int]], out_features: int) -> Factors:
    """Return the factors of a whole fused module from those of a slice of it.

    Args:
        factors: of the slice.
        rows: the (start, stop) runs of the module's output features that are the slice, in order.
        out_features: of the module.
    """
    picked = torch.cat([torch.arange(start, stop) for start, stop in rows])
    b_OR = factors.b_OR.new_zeros(out_features, factors.rank)
    b_OR[picked.to(b_OR.device)] = factors.b_OR
    return replace(factors, b_OR=b_OR)


def stack(parts: Sequence[Factors]) -> Factors:
    """Return the sum of several changes of one module: the ranks add up.

    Where the scalings differ they are folded into B, and the scaling becomes 1.

    Raises:
        ModelError: changes of different shapes or orientation.
    """
    assert parts, "a stack needs factors"
    first = parts[0]
    for part in parts[1:]:
        if part.stored_shape != first.stored_shape or part.is_transposed != first.is_transposed:
            raise ModelError(
                f"a change of shape {part.stored_shape} cannot be added to one of {first.stored_shape}; "
                "add changes to the same model"
            )
    is_one_scaling = all(part.scaling == first.scaling for part in parts)
    blocks = [part.b_OR if is_one_scaling else part.b_OR * part.scaling for part in parts]
    return Factors(
        a_RI=torch.cat([part.a_RI for part in parts]),
        b_OR=torch.cat(blocks, dim=1),
        scaling=first.scaling if is_one_scaling else 1.0,
        is_transposed=first.is_transposed,
    )


class LowRankDelta(Delta, kind="low_rank"):
    """Factors by module path."""

    peft_type: ClassVar[str] = "LORA"

    def __init__(self, factors: Mapping[str, Factors], provenance: Provenance | None = None) -> None:
        self.factors = dict(factors)
        self.provenance = provenance or Provenance()

    def names(self) -> Sequence[str]:
        return [f"{path}.weight" for path in self.factors]

    def update(self, name: str, like: Tensor | None = None) -> Tensor:
        return self._of(name).product("cpu" if like is None else like.device)

    def update_shape(self, name: str) -> tuple[int, ...]:
        return self._of(name).stored_shape

    def _of(self, name: str) -> Factors:
        path = name.removesuffix(".weight")
        if path == name or path not in self.factors:
            raise ModelError(f"{name}: the delta does not change it; {nearest(name, self.names())}")
        return self.factors[path]

    @property
    def num_values(self) -> int:
        return sum(factors.a_RI.numel() + factors.b_OR.numel() for factors in self.factors.values())

    def scale(self, factor: float) -> LowRankDelta:
        scaled = {path: replace(part, scaling=part.scaling * factor) for path, part in self.factors.items()}
        return LowRankDelta(scaled, self.provenance)

    def to(self, dtype: torch.dtype) -> LowRankDelta:
        """Return it with its factors in another dtype."""
        cast = {
            path: replace(part, a_RI=part.a_RI.to(dtype), b_OR=part.b_OR.to(dtype))
            for path, part in self.factors.items()
        }
        return LowRankDelta(cast, self.provenance)

    @classmethod
    def add_same(cls, deltas: Sequence[Self]) -> LowRankDelta:
        paths = dict.fromkeys(path for delta in deltas for path in delta.factors)
        stacked = {path: stack([delta.factors[path] for delta in deltas if path in delta.factors]) for path in paths}
        return LowRankDelta(stacked, merged_provenance(deltas) if len(deltas) > 1 else deltas[0].provenance)

    def fit(self, module: nn.Module) -> LowRankDelta:
        """Return it with each module's own orientation: adapters from elsewhere say it once for all modules.

        Raises:
            ModelError: a module that is missing, of another shape, or whose weight is tied to another's.
        """
        modules = dict(module.named_modules())
        owners: Counter[Tensor] = Counter(parameter for _, parameter in module.named_parameters(remove_duplicate=False))
        fitted = {}
        for path, factors in self.factors.items():
            target = modules.get(path)
            if target is None:
                raise ModelError(
                    f"{path}: the delta changes it and the model has no such module; {nearest(path, modules)}"
                )
            if not isinstance(target, nn.Linear | Conv1D):
                raise ModelError(f"{path}: is a {type(target).__name__}; a low-rank delta changes linear modules only")
            factors = replace(factors, is_transposed=isinstance(target, Conv1D))
            check_shape(f"{path}.weight", factors.stored_shape, target.weight.shape)
            if owners[target.weight] > 1:
                raise ModelError(
                    f"{path}: its weight is tied to another module's, which the low-rank change would reach too; "
                    "untie them first (tie_word_embeddings: false)"
                )
            fitted[path] = factors
        return LowRankDelta(fitted, self.provenance)

    def write(self, folder: Path) -> None:
        tensors = {}
        for path, factors in self.factors.items():
            # Clones, since two modules may share their factors and safetensors stores no aliases.
            tensors[f"{PREFIX}{path}.lora_A.weight"] = factors.a_RI.detach().cpu().contiguous().clone()
            tensors[f"{PREFIX}{path}.lora_B.weight"] = factors.b_OR.detach().cpu().contiguous().clone()
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        write_json(folder / CONFIG_FILE, _config(self.factors, self.provenance.base_name))

    @classmethod
    def read(cls, folder: Path, provenance: Provenance | None) -> Self:
        """Read a PEFT adapter.

        Raises:
            ModelError: a setting or a tensor that is not plain LoRA on linear modules; names its key.
        """
        file = folder / CONFIG_FILE
        config = json.loads(file.read_text(encoding="utf-8"))
        _check_config(config, file)
        weights = folder / WEIGHTS_FILE
        if not weights.is_file():
            raise ModelError(f"{folder}: holds no {WEIGHTS_FILE}; save the adapter as safetensors")
        pairs: dict[str, dict[str, Tensor]] = {}
        for key, tensor in load_file(weights).items():
            match = re.fullmatch(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight", key)
            if match is None or tensor.ndim != 2:
                raise ModelError(f"{weights}: {key}: is not a LoRA factor of a linear module; only these are supported")
            pairs.setdefault(match[1], {})[match[2]] = tensor
        factors = {}
        for path, pair in pairs.items():
            if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
                raise ModelError(f"{weights}: {PREFIX}{path}: lora_A and lora_B do not fit; save the adapter again")
            rank = pair["A"].shape[0]
            alpha = _by_pattern(config.get("alpha_pattern"), path, config["lora_alpha"], file)
            scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
            factors[path] = Factors(pair["A"], pair["B"], scaling, bool(config.get("fan_in_fan_out")))
        return cls(factors, provenance or Provenance(base_name=config.get("base_model_name_or_path") or "", version=""))


def _config(factors: Mapping[str, Factors], base_name: str) -> dict[str, Any]:
    kinds = {path: (part.rank, _plain(part.scaling * part.rank)) for path, part in factors.items()}
    (rank, alpha), _ = Counter(kinds.values()).most_common(1)[0] if kinds else ((1, 1), 0)
    # A pattern is a regular expression that PEFT looks for at the end of a path; ^ makes it the whole path.
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(path)}": kind[0] for path, kind in kinds.items() if kind[0] != rank},
        "alpha_pattern": {f"^{re.escape(path)}": kind[1] for path, kind in kinds.items() if kind[1] != alpha},
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(part.is_transposed for part in factors.values()),
        "target_modules": list(factors),
    }


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


# What each of PEFT's settings may be for the adapter to be `scaling * B A` on linear modules of the base as it is.
# A setting that is not here must be off.
_INITS_OF_AN_UNTOUCHED_BASE = (None, True, False, "gaussian", "eva", "orthogonal")
_FREE = frozenset({
    "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "r", "lora_alpha",
    "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "fan_in_fan_out", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "eva_config", "megatron_core", "qalora_group_size",
    "ensure_weight_tying",
})  # fmt: skip


def _check_config(config: dict[str, Any], file: Path) -> None:
    allowed: dict[str, tuple[object, ...]] = {
        "peft_type": ("LORA",),
        "task_type": ("CAUSAL_LM", None),
        "bias": ("none",),
        "init_lora_weights": _INITS_OF_AN_UNTOUCHED_BASE,
    }
    for key, value in config.items():
        off: tuple[object, ...] = (None, False, [], {})
        if not (key in _FREE or value in allowed.get(key, off)):
            raise ModelError(
                f"{file}: {key}: {value!r} is not supported; "
                "only plain LoRA on linear modules is (in PEFT: merge_and_unload, and give the merged model)"
            )
    for key in ("peft_type", "lora_alpha"):
        if key not in config:
            raise ModelError(f"{file}: {key}: is missing; save the adapter again with PEFT")


def _by_pattern(patterns: dict[str, float] | None, path: str, default: float, file: Path) -> float:
    for pattern, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", path):
                return value
        except re.error as error:
            raise ModelError(f"{file}: alpha_pattern: {pattern!r} is no regular expression ({error})") from error
    return default

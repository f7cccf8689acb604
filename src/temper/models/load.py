"""Models in and out: by folder or hub id, safetensors only, with their tokenizer and anatomy.

Decisions:
- A hub id becomes a folder first (the hub's own cache); everything after is the same for both.
- Weights come from safetensors files only, and every key must fit: a checkpoint with a missing, unexpected or
  misshapen key is an error, never a random number in a model.
- Code from a checkpoint runs only if the recipe names, exactly, the repository that the code comes from.
- A tokenizer without a padding token takes its end-of-sequence token for one (no token is added; the model's own
  configuration, whose padding index would stop that token's gradient, stays as it is), and the model's notes say so.
  A missing chat template stays missing.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from temper.core.errors import ModelError, SettingError
from temper.models.anatomy import find_anatomy
from temper.models.attention import NAME as ATTENTION
from temper.models.biases import check_saveable
from temper.models.families import FamilyLayout
from temper.models.fingerprint import (
    PROMPT,
    PROMPT_NAME,
    fingerprint_folder,
    fingerprint_module,
    read_config,
    weight_files,
)
from temper.models.model import Model
from temper.models.norms import cast_once, replace_norms
from temper.models.packed import unpack_all
from temper.models.prompt import all_prompts
from temper.models.rotary import replace_attention
from temper.models.tokenizer import load_tokenizer

__all__ = [
    "as_model",
    "find_folder",
    "fingerprint_folder",
    "fingerprint_module",
    "load_model",
    "load_tokenizer",
    "new_model",
    "outline_model",
    "read_outline",
    "save_model",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUT_FILE = "temper_layout.json"
"""holds the layout of a family that Temper does not know, beside the weights of a saved model"""
HUB_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "model.safetensors", "model-*.safetensors"]
MANY_KEYS = 8


def load_model(
    source: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    trust_remote_code: str | Literal[False] = False,
    revision: str | None = None,
    layout: FamilyLayout | None = None,
) -> Model:
    """Load a model, its tokenizer and its anatomy.

    Args:
        source: a folder, or the hub id of a repository (`owner/name`).
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own.
        trust_remote_code: the exact name of the repository (or folder) whose own code may run; False runs none.
        revision: branch, tag or commit of a hub repository.
        layout: how an unknown family names its parts.

    Raises:
        ModelError: nothing can be found or reached, weights that do not fit, or an unknown family.
        SettingError: an unknown dtype, or `trust_remote_code` that does not name what asks for it.
    """
    chosen = _dtype(dtype)
    folder = find_folder(source, revision=revision, trust_remote_code=trust_remote_code)
    config = read_config(folder)
    weight_files(folder)
    trust = _check_remote_code(folder, config, str(source), trust_remote_code)
    if layout is None and (folder / LAYOUT_FILE).is_file():
        layout = FamilyLayout.model_validate_json((folder / LAYOUT_FILE).read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(folder, trust)
    module = _load_module(folder, chosen, trust)
    model = as_model(module, tokenizer, layout=layout, fingerprint=fingerprint_folder(folder, tokenizer))
    model.folder = folder
    if (folder / PROMPT).is_file():
        model.prompts = (load_file(folder / PROMPT)[PROMPT_NAME],)
    return model


@dataclass(frozen=True)
class Outline:
    """A model without its weights: all that is needed to say what it would hold and cost."""

    config: PreTrainedConfig
    tokenizer: Any
    dtype: torch.dtype = torch.float32
    """in which its weights are stored"""
    layout: FamilyLayout | None = None
    trust: bool = False


def read_outline(
    source: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    trust_remote_code: str | Literal[False] = False,
    revision: str | None = None,
    layout: FamilyLayout | None = None,
) -> Outline:
    """Read a model's configuration and tokenizer, and of its weights the type alone. Arguments as `load_model`."""
    chosen = _dtype(dtype)
    folder = find_folder(source, revision=revision, trust_remote_code=trust_remote_code)
    trust = _check_remote_code(folder, read_config(folder), str(source), trust_remote_code)
    if layout is None and (folder / LAYOUT_FILE).is_file():
        layout = FamilyLayout.model_validate_json((folder / LAYOUT_FILE).read_text(encoding="utf-8"))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else _stored_dtype(folder)
    return Outline(config, load_tokenizer(folder, trust), stored if chosen == "auto" else chosen, layout, trust)


def outline_model(outline: Outline) -> Model:
    """Make a model that is never to compute: within `torch.device("meta")` or on fake tensors, it takes no memory."""
    config = copy.deepcopy(outline.config)
    module = AutoModelForCausalLM.from_config(config, dtype=outline.dtype, trust_remote_code=outline.trust)
    return as_model(module, outline.tokenizer, layout=outline.layout, fingerprint="outline")


def _stored_dtype(folder: Path) -> torch.dtype:
    with safe_open(weight_files(folder)[0], framework="pt") as file:
        return next((tensor.dtype for tensor in map(file.get_tensor, list(file.keys())[:1])), torch.float32)


def save_model(model: Model, folder: Path) -> None:
    """Write weights (safetensors), configuration and tokenizer into a folder that transformers reads.

    What is loaded from it equals what was saved bit for bit; tied weights are written once and stay tied. Soft prompts
    lie in a file of their own, which `load_model` reads and transformers does not.

    Raises:
        ModelError: what the model computes cannot be written as one of its family.
    """
    if model.fusion is not None:
        raise ModelError(
            f"{folder}: a combination of {len(model.members)} models has no weights of its own to be saved; "
            "save the models that it is made of"
        )
    check_saveable(model.module)
    unpack_all(model.module)
    with _no_progress_bar():
        model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    (Path(folder) / PROMPT).unlink(missing_ok=True)
    if model.prompts:
        save_file({PROMPT_NAME: all_prompts(model).detach().cpu().contiguous()}, Path(folder) / PROMPT)
    if model.layout is not None:
        text = json.dumps(model.layout.model_dump(mode="json"), indent=1)
        (Path(folder) / LAYOUT_FILE).write_text(text, encoding="utf-8")


def new_model(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast, seed: int, layout: FamilyLayout | None = None
) -> Model:
    """Make a model with random weights in float32: same seed, same bits. The caller's random state is left alone.

    The configuration is copied; its special tokens become the tokenizer's.

    Raises:
        ModelError: an unknown family, or more tokens than the configuration's vocabulary has.
    """
    if len(tokenizer) > config.vocab_size:
        raise ModelError(
            f"vocab_size: {config.vocab_size} is less than the {len(tokenizer)} tokens of the tokenizer; raise it"
        )
    config = copy.deepcopy(config)
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    # An embedding's padding index has no gradient: a token that also means something must not be one.
    is_own = tokenizer.pad_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id)
    config.pad_token_id = tokenizer.pad_token_id if is_own else None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed every accelerator too
        module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return as_model(module, tokenizer, layout=layout)


def as_model(
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    layout: FamilyLayout | None = None,
    fingerprint: str | None = None,
) -> Model:
    """Put a module and a tokenizer together, with packed attention and a padding token.

    Args:
        module: a causal language model of transformers; it is put into evaluation mode.
        layout: how an unknown family names its parts.
        fingerprint: the content's name where it is known; computed otherwise.

    Raises:
        ModelError: an unknown family.
    """
    notes: list[str] = []
    anatomy = find_anatomy(module, layout)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
        notes.append(f"the tokenizer has no padding token; its end-of-sequence token {tokenizer.eos_token!r} pads")
    if len(tokenizer) > module.config.get_text_config().vocab_size:
        notes.append(
            f"the tokenizer has {len(tokenizer)} tokens and the model embeds the first "
            f"{module.config.get_text_config().vocab_size}; a row that needs another is a bad row"
        )
    module.set_attn_implementation(ATTENTION)
    replace_norms(module, anatomy)
    replace_attention(module, anatomy)
    cast_once(module, anatomy)
    module.eval()
    return Model(
        module=module,
        tokenizer=tokenizer,
        anatomy=anatomy,
        fingerprint=fingerprint_module(module, tokenizer) if fingerprint is None else fingerprint,
        layout=layout,
        notes=tuple(notes),
    )


def find_folder(
    source: str | Path, *, revision: str | None = None, trust_remote_code: str | Literal[False] = False
) -> Path:
    """Return the folder of a model: the given one, or a hub repository's in the local cache, downloaded if need be.

    Raises:
        ModelError: no such folder or repository, or the hub cannot be reached.
    """
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    text = str(source)
    if isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise ModelError(f"{text}: is no folder; give a model's folder, or a hub id such as 'owner/name'")
    patterns = [*HUB_FILES, "*.py"] if trust_remote_code else HUB_FILES
    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=patterns))
    except (OSError, HFValidationError) as error:
        version = "" if revision is None else f" (revision {revision!r})"
        raise ModelError(
            f"{text}{version}: is neither a folder here nor in the hub's cache, and the hub did not give it "
            f"({type(error).__name__}); check the name and the network, for a private or gated repository run "
            "`hf auth login`, or without a network copy the model's folder here and give its path"
        ) from error


def _load_module(folder: Path, dtype: torch.dtype | Literal["auto"], trust: bool) -> PreTrainedModel:
    try:
        with _no_progress_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust,
                # Shapes that do not fit are then reported like missing keys, and refused below with them.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: transformers cannot load it as a causal language model: {error}") from error
    module: PreTrainedModel
    module, found = loaded
    wrong = {
        "missing": sorted(found["missing_keys"]),
        "unexpected": sorted(found["unexpected_keys"]),
        "of another shape": [
            f"{name} ({list(saved)} saved, {list(built)} in the model)"
            for name, saved, built in sorted(found["mismatched_keys"])
        ],
    }
    if any(wrong.values()):
        listed = "; ".join(f"{kind}: {_some(keys)}" for kind, keys in wrong.items() if keys)
        raise ModelError(
            f"{folder}: the weights do not fit the {type(module).__name__} that config.json asks for: {listed}; "
            "give a checkpoint whose config.json and weights belong together"
        )
    return module


def _check_remote_code(folder: Path, config: dict[str, Any], source: str, trusted: str | Literal[False]) -> bool:
    """Return whether the checkpoint's own code is to run."""
    if trusted is not False and not isinstance(trusted, str):
        raise SettingError(
            "trust_remote_code", trusted, "does not say whose code may run", f"write its repository: {source!r}"
        )
    repositories = code_repositories(folder, config, source)
    if trusted is False:
        if repositories and config.get("model_type") not in CONFIG_MAPPING:
            raise ModelError(
                f"{source}: the family {config.get('model_type')!r} is code that comes with the checkpoint; read it, "
                f"and where you trust it, set trust_remote_code: {sorted(repositories)[0]}"
            )
        return False
    if not repositories:
        reason = f"is not needed: {source} brings no code"
        raise SettingError("trust_remote_code", trusted, reason, "take the setting out")
    if repositories != {trusted}:
        reason = f"is not all that the code comes from: {', '.join(sorted(repositories))}"
        raise SettingError("trust_remote_code", trusted, reason, "name its one repository, where you trust it")
    return True


def code_repositories(folder: Path, config: dict[str, Any], source: str) -> set[str]:
    """Return the repositories that a checkpoint's own code comes from, none where it brings no code.

    An entry of `auto_map` is `file.Class`, or `owner/name--file.Class` where the code lies elsewhere; a tokenizer's
    is a list of two.
    """
    path = folder / "tokenizer_config.json"
    maps = [config.get("auto_map", {})]
    if path.is_file():
        maps.append(json.loads(path.read_text(encoding="utf-8")).get("auto_map", {}))
    values = [value for entries in maps for value in (entries.values() if isinstance(entries, dict) else [entries])]
    names = [name for value in values for name in (value if isinstance(value, list) else [value]) if name]
    return {name.split("--")[0] if "--" in name else source for name in names}


def _dtype(dtype: str | torch.dtype) -> torch.dtype | Literal["auto"]:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return "auto"
    if dtype not in DTYPES:
        raise SettingError("dtype", dtype, "is no dtype of weights", f"choose one of auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - MANY_KEYS} more" if len(keys) > MANY_KEYS else ""
    return ", ".join(keys[:MANY_KEYS]) + more


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers' bars over tensors and files off the terminal, where Temper shows its own progress."""
    was_on = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            enable_progress_bar()

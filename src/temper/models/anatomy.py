"""Where a model's parts are, for every supported family.

Methods name parts (`q`, `gate`), never module paths. What a family calls them is data (`families.py`); what is
fused or transposed is solved here once: a part's matrix is always out x in, and `part_slices` gives writable views
of it even where q, k and v are one matrix interleaved by head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from temper.core.errors import ModelError
from temper.models.families import LAYOUTS, FamilyLayout, PartName
from temper.models.packed import unpack_all

Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Part:
    """One projection: a whole module, or a slice of a fused one.

    The matrix that computes `y = W x + b` is `W = weight[rows]` (shape out x in) of the module at `path`; for
    GPT-2's Conv1D (`is_transposed`) the stored weight is in x out and `W = weight[:, rows].T`.
    `rows` may be strided (GPT-NeoX interleaves q, k, v by head): it is a tuple of (start, stop) runs of output
    features.
    """

    name: PartName
    block: int
    path: str
    """module path, as in `named_modules`"""
    out_features: int
    in_features: int
    rows: Runs | None
    """output features of the module that are this part; None for all of them"""
    is_transposed: bool

    @property
    def runs(self) -> Runs:
        """The (start, stop) runs of the module's output features that are this part, whether fused or not."""
        return ((0, self.out_features),) if self.rows is None else self.rows


@dataclass(frozen=True)
class Block:
    """One transformer block."""

    index: int
    path: str
    parts: tuple[Part, ...]
    norms: tuple[str, ...]
    """paths of the block's norm modules"""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    head_norms: tuple[tuple[PartName, str], ...] = ()
    """part and path of the norms whose weight runs over all heads of that part"""


@dataclass(frozen=True)
class Anatomy:
    """A model's parts by path."""

    family: str
    backbone: str
    """path of the decoder without head, whose call returns `last_hidden_state`"""
    embedding: str
    positions: str | None
    """path of a learned position embedding"""
    blocks: tuple[Block, ...]
    norm: str | None
    """the last norm, before the head"""
    head: str
    is_tied: bool
    """the head's weight is the embedding's"""
    logit_softcap: float | None = None
    logit_scale: float = 1.0

    def parts(self, *names: str) -> Iterator[Part]:
        """Yield the parts with these names (all when none is given), block by block."""
        for block in self.blocks:
            yield from (part for part in block.parts if not names or part.name in names)


def part_slices(module: nn.Module, part: Part) -> list[Tensor]:
    """Return views (each out x in) on the weight that make up a part, in order: one for each of `part.runs`.

    They share memory with the parameter: written to under `torch.no_grad()`, they change the model.
    """
    weight = _weight(module, part)
    return [weight[:, start:stop].T if part.is_transposed else weight[start:stop] for start, stop in part.runs]


def part_weight(module: nn.Module, part: Part) -> Tensor:
    """Return a part's matrix (out x in): a view where it lies in one run, else a copy of its runs.

    Differentiable with respect to the parameter. To change a part, use `add_to_part` or `part_slices`.
    """
    slices = part_slices(module, part)
    return slices[0] if len(slices) == 1 else torch.cat(slices)


def part_bias(module: nn.Module, part: Part) -> Tensor | None:
    """Return a part's bias (out), None where it has none; a view or a copy, as `part_weight`."""
    bias = dict(module.get_submodule(part.path).named_parameters(recurse=False)).get("bias")
    if bias is None:
        return None
    runs = [bias[start:stop] for start, stop in part.runs]
    return runs[0] if len(runs) == 1 else torch.cat(runs)


@torch.no_grad()
def add_to_part(module: nn.Module, part: Part, delta: Tensor) -> None:
    """Add a change (out x in) to a part's matrix, in place.

    The sum is made in the wider of the two dtypes and rounded once to the weight's.
    """
    assert delta.shape == (part.out_features, part.in_features), f"{tuple(delta.shape)} for {part}"
    start = 0
    unpack_all(module.get_submodule(part.path))
    for piece in part_slices(module, part):
        piece += delta[start : start + piece.shape[0]].to(piece.device)
        start += piece.shape[0]


def find_anatomy(module: PreTrainedModel, layout: FamilyLayout | None = None) -> Anatomy:
    """Find a model's parts.

    Args:
        module: a causal language model of transformers.
        layout: how its family names them; None for the families that Temper knows (`families.LAYOUTS`).

    Raises:
        ModelError: an unknown family, or a layout that does not fit the model.
    """
    family = str(module.config.model_type)
    if layout is None:
        if family not in LAYOUTS:
            raise ModelError(_how_to_describe(module, family))
        layout = LAYOUTS[family]
    return _Reader(module, layout, family).anatomy()


@dataclass(frozen=True)
class _Reader:
    """One reading of a model by a layout."""

    module: PreTrainedModel
    layout: FamilyLayout
    family: str

    def anatomy(self) -> Anatomy:
        layout, config = self.layout, self.module.config.get_text_config()
        embedding = self.find("embedding", layout.embedding)
        head = self.find("head", layout.head)
        self.find("backbone", layout.backbone)
        if layout.positions is not None:
            self.find("positions", layout.positions)
        blocks = self.find("blocks", layout.blocks)
        if not isinstance(blocks, nn.ModuleList):
            raise self.misfit("blocks", layout.blocks, f"is a {type(blocks).__name__}, not a list of blocks")
        softcap = None if layout.logit_softcap is None else getattr(config, layout.logit_softcap)
        scale = 1.0 if layout.logit_scale is None else float(getattr(config, layout.logit_scale))
        if layout.logit_divisor is not None:
            scale /= float(getattr(config, layout.logit_divisor))
        return Anatomy(
            family=self.family,
            backbone=layout.backbone,
            embedding=layout.embedding,
            positions=layout.positions,
            blocks=tuple(self.block(index) for index in range(len(blocks))),
            norm=self.last_norm(),
            head=layout.head,
            is_tied=head.weight is embedding.weight,
            logit_softcap=softcap,
            logit_scale=scale,
        )

    def block(self, index: int) -> Block:
        layout, config = self.layout, self.module.config.get_text_config()
        path = f"{layout.blocks}.{index}"
        num_heads = int(config.num_attention_heads)
        # The same defaults as transformers' own attention modules read from a configuration.
        num_kv_heads = int(getattr(config, "num_key_value_heads", None) or num_heads)
        head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // num_heads)
        out = {"q": num_heads * head_dim, "k": num_kv_heads * head_dim, "v": num_kv_heads * head_dim}
        parts: list[Part] = []
        for module_path in dict.fromkeys(layout.parts.values()):
            names = [name for name, other in layout.parts.items() if other == module_path]
            parts += self.fused(index, f"{path}.{module_path}", names, out, head_dim)
        order = list(layout.parts)
        for norm in layout.norms:
            self.find("norms", f"{path}.{norm}")
        for norm in layout.head_norms.values():
            self.find("head_norms", f"{path}.{norm}")
        return Block(
            index=index,
            path=path,
            parts=tuple(sorted(parts, key=lambda part: order.index(part.name))),
            norms=tuple(f"{path}.{norm}" for norm in layout.norms),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            head_norms=tuple((part, f"{path}.{norm}") for part, norm in layout.head_norms.items()),
        )

    def fused(self, block: int, path: str, names: list[PartName], out: dict[str, int], head_dim: int) -> list[Part]:
        """Return the parts that one module holds (usually one)."""
        module = self.find("parts", path)
        weight = module.weight
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            raise self.misfit("parts", path, f"is a {type(module).__name__} without a matrix")
        is_transposed = isinstance(module, Conv1D)
        in_features, total = weight.shape if is_transposed else reversed(weight.shape)
        sizes = [out.get(name, total // len(names)) for name in names]
        if sum(sizes) != total:
            raise self.misfit("parts", path, f"has {total} output features where {'+'.join(names)} make {sizes}")
        parts: list[Part] = []
        for position, (name, size) in enumerate(zip(names, sizes, strict=True)):
            rows: Runs | None
            if len(names) == 1:
                rows = None
            elif self.layout.interleaved_by_head:
                if len(set(sizes)) != 1:
                    raise self.misfit("interleaved_by_head", path, f"has parts of different sizes {sizes}")
                stride = len(names) * head_dim
                starts = range(position * head_dim, total, stride)
                rows = tuple((start, start + head_dim) for start in starts)
            else:
                start = sum(sizes[:position])
                rows = ((start, start + size),)
            parts.append(Part(name, block, path, size, in_features, rows, is_transposed))
        return parts

    def last_norm(self) -> str | None:
        """OPT may be built without its last norm: the attribute is there and holds None."""
        path = self.layout.norm
        if path is None:
            return None
        parent, _, name = path.rpartition(".")
        if getattr(self.find("norm", parent), name, path) is None:
            return None
        self.find("norm", path)
        return path

    def find(self, key: str, path: str) -> Any:
        try:
            return self.module.get_submodule(path)
        except AttributeError as error:
            raise self.misfit(key, path, "is no module of this model") from error

    def misfit(self, key: str, path: str, reason: str) -> ModelError:
        return ModelError(
            f"layout.{key}: {path!r} {reason}, in a model of the family {self.family!r}; "
            f"compare with the names that `module.named_modules()` lists\n{_outline(self.module)}"
        )


def _weight(module: nn.Module, part: Part) -> Tensor:
    weight = module.get_submodule(part.path).weight
    assert isinstance(weight, Tensor)
    return weight


def _how_to_describe(module: PreTrainedModel, family: str) -> str:
    """Say how to describe an unknown family, with what can be seen of this model."""
    fitting = [name for name, layout in LAYOUTS.items() if _fits(module, layout, family)]
    hint = (
        f"Its names fit the layout of {fitting[0]!r}: where it also computes the same, "
        f"take `layout=LAYOUTS[{fitting[0]!r}]`.\n"
        if fitting
        else ""
    )
    return (
        f"the model family {family!r} is not known; describe it with a layout. {hint}"
        "In Python:\n"
        "    from temper.models.families import LAYOUTS, FamilyLayout\n"
        "    layout = FamilyLayout(\n"
        '        backbone="model", blocks="model.layers", embedding="model.embed_tokens", norm="model.norm",\n'
        '        head="lm_head", norms=("input_layernorm", "post_attention_layernorm"),\n'
        '        parts={"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",\n'
        '               "o": "self_attn.o_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"},\n'
        "    )\n"
        "    load_model(source, layout=layout)\n"
        "or in a recipe: `base: {path: ..., layout: {parts: {q: self_attn.q_proj, ...}, ...}}`.\n"
        f"{_outline(module)}"
    )


def _fits(module: PreTrainedModel, layout: FamilyLayout, family: str) -> bool:
    try:
        _Reader(module, layout, family).anatomy()
    except (ModelError, AttributeError):
        return False
    return True


def _outline(module: nn.Module) -> str:
    """List the modules that hold weights, of the first block where there are several."""
    lines = [
        f"    {path}: {type(child).__name__}"
        for path, child in module.named_modules()
        if next(child.parameters(recurse=False), None) is not None
        and not any(step.isdigit() and step != "0" for step in path.split("."))
    ]
    return "Its modules that hold weights (first block only):\n" + "\n".join(lines)

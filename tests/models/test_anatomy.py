"""The anatomy is proved by numbers: what a part's matrix computes is what the model's own block computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.activations import ACT2FN

from families import FAMILIES, tiny_module
from temper.core.errors import ModelError
from temper.models.anatomy import Anatomy, Part, add_to_part, find_anatomy, part_bias, part_slices, part_weight
from temper.models.families import LAYOUTS, FamilyLayout

# Products of the same fp32 numbers, summed in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
FIRST_TOKENS = torch.tensor([[5], [17], [60], [96]])
"""Sequences of one token: at position 0 rotary embeddings turn nothing, so queries and keys can be compared."""

attended: list[dict[str, Tensor]] = []
"""what attention was given, block by block, while `record` is on"""


def _record(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Any:
    attended.append({"q": query, "k": key, "v": value})
    # A single token attends to itself alone.
    return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2), None


AttentionInterface.register("test_recorder", _record)


@contextmanager
def recorded_inputs(module: PreTrainedModel, paths: set[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Yield a dictionary that a forward pass fills with what goes into and out of modules."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook_for(path: str) -> Any:
        def hook(child: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[path] = (inputs[0].flatten(0, -2), output.flatten(0, -2))

        return hook

    handles = [module.get_submodule(path).register_forward_hook(hook_for(path)) for path in paths]
    attended.clear()
    module.set_attn_implementation("test_recorder")
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run(module: PreTrainedModel, anatomy: Anatomy) -> tuple[dict[str, tuple[Tensor, Tensor]], list[dict[str, Tensor]]]:
    with recorded_inputs(module, {part.path for part in anatomy.parts()}) as seen:
        module(FIRST_TOKENS, use_cache=False)
    return seen, list(attended)


def project(module: PreTrainedModel, part: Part, x: Tensor) -> Tensor:
    return F.linear(x, part_weight(module, part), part_bias(module, part))


def by_name(anatomy: Anatomy, block: int) -> dict[str, Part]:
    return {part.name: part for part in anatomy.blocks[block].parts}


def activation(module: PreTrainedModel) -> Any:
    config = module.config.to_dict()
    names = ("hidden_act", "hidden_activation", "activation_function")
    return ACT2FN[next(config[name] for name in names if name in config)]


@pytest.fixture(params=FAMILIES)
def module(request: pytest.FixtureRequest) -> PreTrainedModel:
    return FAMILIES[request.param]()


def test_queries_keys_and_values_are_those_that_attention_gets(module: PreTrainedModel) -> None:
    anatomy = find_anatomy(module)
    seen, given = run(module, anatomy)
    for block in anatomy.blocks:
        parts = by_name(anatomy, block.index)
        for name, num_heads in (("q", block.num_heads), ("k", block.num_kv_heads), ("v", block.num_kv_heads)):
            part = parts[name]
            got = given[block.index][name].transpose(1, 2).flatten(0, 1)
            expected = project(module, part, seen[part.path][0])
            assert got.shape[1:] == (num_heads, block.head_dim)
            norms = [path for path in block.norms if path.endswith(f".{name}_norm")]
            per_head = (-1, num_heads, block.head_dim)
            if norms:
                norm = module.get_submodule(norms[0])
                is_whole = norm.weight.shape[0] == part.out_features
                expected = norm(expected if is_whole else expected.view(per_head))
            if name == "q" and anatomy.family == "opt":
                expected = expected * block.head_dim**-0.5  # OPT scales its queries itself
            torch.testing.assert_close(got, expected.view(per_head), **CLOSE)


def test_mlp_and_outputs_are_those_that_the_block_computes(module: PreTrainedModel) -> None:
    anatomy = find_anatomy(module)
    seen, _ = run(module, anatomy)
    act = activation(module)
    for block in anatomy.blocks:
        parts = by_name(anatomy, block.index)
        up = project(module, parts["up"], seen[parts["up"].path][0])
        gate = project(module, parts["gate"], seen[parts["gate"].path][0]) if "gate" in parts else None
        hidden = act(up) if gate is None else act(gate) * up
        torch.testing.assert_close(seen[parts["down"].path][0], hidden, **CLOSE)
        for name in ("o", "down"):
            x, y = seen[parts[name].path]
            torch.testing.assert_close(y, project(module, parts[name], x), **CLOSE)


def test_adding_to_a_part_moves_what_it_computes_and_no_sister(module: PreTrainedModel) -> None:
    anatomy = find_anatomy(module)
    seen, before = run(module, anatomy)
    parts = by_name(anatomy, 0)
    delta = torch.randn(parts["v"].out_features, parts["v"].in_features)
    with torch.no_grad():
        add_to_part(module, parts["v"], delta)
    _, after = run(module, anatomy)
    moved = F.linear(seen[parts["v"].path][0], delta)
    got = (after[0]["v"] - before[0]["v"]).transpose(1, 2).flatten(0, 1).flatten(1)
    # Differences of numbers of size 10 to 30 lose a digit.
    torch.testing.assert_close(got, moved, rtol=1e-4, atol=1e-4)
    # Fused sisters share a matrix product whose other columns have not changed.
    assert torch.equal(after[0]["q"], before[0]["q"]) and torch.equal(after[0]["k"], before[0]["k"])


def test_a_zeroed_part_computes_its_bias(module: PreTrainedModel) -> None:
    anatomy = find_anatomy(module)
    with torch.no_grad():
        for part in anatomy.parts("v"):
            for piece in part_slices(module, part):
                piece.zero_()
    _, given = run(module, anatomy)
    for part in anatomy.parts("v"):
        bias = part_bias(module, part)
        expected = torch.zeros(part.out_features) if bias is None else bias
        got = given[part.block]["v"].transpose(1, 2).flatten(0, 1).flatten(1)
        assert torch.equal(got, expected.expand_as(got))


@torch.no_grad()
def test_parts_norms_and_biases_cover_every_parameter_of_a_block_once(module: PreTrainedModel) -> None:
    anatomy = find_anatomy(module)
    for parameter in module.parameters():
        parameter.zero_()
    for block in anatomy.blocks:
        for part in block.parts:
            add_to_part(module, part, torch.ones(part.out_features, part.in_features))
            bias = module.get_submodule(part.path).bias
            for start, stop in part.runs if bias is not None else ():
                bias[start:stop] += 1
        for norm in block.norms:
            for parameter in module.get_submodule(norm).parameters():
                parameter += 1
    blocks = tuple(f"{block.path}." for block in anatomy.blocks)
    outside = [anatomy.embedding, anatomy.positions, anatomy.norm, anatomy.head]
    for name, parameter in module.named_parameters():
        if name.startswith(blocks):
            assert torch.equal(parameter, torch.ones_like(parameter)), f"{name} is not covered once"
        else:
            assert name.rpartition(".")[0] in outside, f"{name} belongs to nothing"


@torch.no_grad()
def test_head_of_the_backbone_is_the_model(module: PreTrainedModel) -> None:
    anatomy = find_anatomy(module)
    tokens = torch.randint(4, 97, (2, 11), generator=torch.Generator().manual_seed(0))
    hidden = module.get_submodule(anatomy.backbone)(input_ids=tokens, use_cache=False).last_hidden_state
    logits = module.get_submodule(anatomy.head)(hidden) * anatomy.logit_scale
    if anatomy.logit_softcap is not None:
        logits = anatomy.logit_softcap * torch.tanh(logits / anatomy.logit_softcap)
    torch.testing.assert_close(module(tokens, use_cache=False).logits, logits, **CLOSE)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("tied", [True, False])
def test_ties_are_read_from_the_tensors(family: str, tied: bool) -> None:
    module = tiny_module(family, tie_word_embeddings=tied)
    anatomy = find_anatomy(module)
    head, embedding = module.get_submodule(anatomy.head), module.get_submodule(anatomy.embedding)
    assert anatomy.is_tied is tied
    assert (head.weight is embedding.weight) is tied
    # What the configuration says does not count.
    head.weight = nn.Parameter(embedding.weight.detach().clone()) if tied else embedding.weight
    assert find_anatomy(module).is_tied is not tied


def test_shapes_of_the_tiny_families() -> None:
    kinds = {family: find_anatomy(build()) for family, build in FAMILIES.items()}
    assert kinds["gemma2"].logit_softcap == 3.0 and kinds["gemma3"].logit_softcap is None
    assert {family for family, found in kinds.items() if found.positions} == {"gpt2", "opt"}
    without_gate = {family for family, found in kinds.items() if not list(found.parts("gate"))}
    assert without_gate == {"gpt2", "gpt_neox", "opt"}
    query = by_name(kinds["gpt_neox"], 1)["k"]
    assert query.rows == ((12, 24), (48, 60), (84, 96), (120, 132))  # heads of 12: q k v, q k v, ...
    assert by_name(kinds["phi3"], 0)["v"].rows == ((72, 96),)  # 4 query heads, 2 key heads, 2 value heads of 12
    assert by_name(kinds["gpt2"], 0)["up"].is_transposed and not by_name(kinds["opt"], 0)["up"].is_transposed


def test_opt_with_projected_embeddings_and_norms_behind() -> None:
    module = tiny_module("opt", word_embed_proj_dim=20, do_layer_norm_before=False)
    assert find_anatomy(module).norm is None
    test_head_of_the_backbone_is_the_model(module)
    test_queries_keys_and_values_are_those_that_attention_gets(module)


def test_a_whole_part_is_a_view_and_every_part_has_a_gradient() -> None:
    for family in ("llama", "gpt_neox", "gpt2"):
        module = FAMILIES[family]()
        part = next(find_anatomy(module).parts("k"))
        part_weight(module, part).sum().backward()
        grad = module.get_submodule(part.path).weight.grad
        assert grad is not None and grad.sum() == part.out_features * part.in_features
    part = next(find_anatomy(module).parts("up"))
    assert part_weight(module, part).data_ptr() == module.get_submodule(part.path).weight.data_ptr()


def test_a_change_is_rounded_once() -> None:
    module = tiny_module("phi3").to(torch.bfloat16)
    part = next(find_anatomy(module).parts("up"))
    before = part_weight(module, part).detach().clone()
    delta = torch.randn(part.out_features, part.in_features) * 1e-2
    add_to_part(module, part, delta)
    assert torch.equal(part_weight(module, part), (before.float() + delta).to(torch.bfloat16))


def test_an_unknown_family_is_told_how_to_describe_it() -> None:
    module = tiny_module("llama")
    known = find_anatomy(module)
    module.config.model_type = "mystery"
    with pytest.raises(ModelError) as caught:
        find_anatomy(module)
    message = str(caught.value)
    assert "'mystery'" in message and "FamilyLayout(" in message and "LAYOUTS['llama']" in message
    assert "model.layers.0.mlp.up_proj: Linear" in message and "model.layers.1" not in message
    # The snippet in the message is Python that makes a layout.
    snippet = message[message.index("FamilyLayout(\n") : message.index("    load_model")]
    assert isinstance(eval(snippet.strip(), {"FamilyLayout": FamilyLayout}), FamilyLayout)
    described = find_anatomy(module, LAYOUTS["llama"])
    assert described.blocks == known.blocks and described.family == "mystery"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"blocks": "model.layer"}, "layout.blocks: 'model.layer' is no module"),
        ({"blocks": "model.norm"}, "not a list of blocks"),
        ({"norms": ("ln",)}, "layout.norms: 'model.layers.0.ln' is no module"),
        ({"norm": "model.ln_f"}, "layout.norm: 'model.ln_f' is no module"),
        ({"parts": {"q": "input_layernorm"}}, "without a matrix"),
        ({"parts": {"q": "self_attn.k_proj"}}, "has 24 output features where q make [48]"),
        ({"parts": {"q": "self_attn.q_proj", "k": "self_attn.q_proj"}}, "q+k make [48, 24]"),
    ],
)
def test_a_layout_that_does_not_fit_names_what(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as caught:
        find_anatomy(tiny_module("llama"), LAYOUTS["llama"].model_copy(update=changes))
    assert said in str(caught.value)


def test_logits_can_be_scaled_by_a_key_of_the_configuration() -> None:
    module = tiny_module("llama")
    module.config.times, module.config.over = 3.0, 8.0
    layout = LAYOUTS["llama"].model_copy(update={"logit_scale": "times", "logit_divisor": "over"})
    assert find_anatomy(module, layout).logit_scale == 0.375

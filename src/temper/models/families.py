"""How each family names its parts: data, one row a family.

A family that is not here is described by the same few paths (`FamilyLayout`), in Python or in a recipe's
`base: {path: ..., layout: {...}}`; nothing needs to be registered.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from temper.core.methods import Settings

PartName = Literal["q", "k", "v", "o", "gate", "up", "down"]


class FamilyLayout(Settings):
    """Where a family of decoders keeps its parts.

    Several parts with one path are fused into one matrix. Their output features follow one another in the order
    in which `parts` names them; with `interleaved_by_head` they do so within every head
    (`q k v` of the first head, then of the second, ...).
    """

    backbone: str = Field("model", description="module path of the decoder without its head")
    blocks: str = Field("model.layers", description="module path of the list of transformer blocks")
    embedding: str = Field("model.embed_tokens", description="module path of the token embedding")
    positions: str | None = Field(None, description="module path of a learned position embedding")
    parts: dict[PartName, str] = Field(description="path of each projection inside a block")
    interleaved_by_head: bool = Field(False, description="fused q, k and v follow one another within every head")
    norms: tuple[str, ...] = Field(
        ("input_layernorm", "post_attention_layernorm"), description="paths of the norms inside a block"
    )
    head_norms: dict[PartName, str] = Field(
        default_factory=dict, description="by part, the norms inside a block that run over all of its heads at once"
    )
    norm: str | None = Field("model.norm", description="module path of the last norm; a model may leave it out")
    head: str = Field("lm_head", description="module path of the head")
    logit_softcap: str | None = Field(
        None, description="key of the configuration that holds c where logits are c * tanh(logits / c)"
    )
    logit_scale: str | None = Field(
        None, description="key of the configuration that holds what logits are multiplied with"
    )
    logit_divisor: str | None = Field(
        None, description="key of the configuration that holds what logits are divided by"
    )


SEPARATE: dict[PartName, str] = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
GEMMA_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")

LAYOUTS: dict[str, FamilyLayout] = {
    "llama": FamilyLayout(parts=SEPARATE),
    "mistral": FamilyLayout(parts=SEPARATE),
    "qwen2": FamilyLayout(parts=SEPARATE),
    "qwen3": FamilyLayout(parts=SEPARATE, norms=("input_layernorm", "post_attention_layernorm", *QK_NORMS)),
    "gemma2": FamilyLayout(parts=SEPARATE, norms=GEMMA_NORMS, logit_softcap="final_logit_softcapping"),
    "gemma3_text": FamilyLayout(
        parts=SEPARATE, norms=(*GEMMA_NORMS, *QK_NORMS), logit_softcap="final_logit_softcapping"
    ),
    "olmo2": FamilyLayout(
        parts=SEPARATE,
        norms=("post_attention_layernorm", "post_feedforward_layernorm", *QK_NORMS),
        head_norms={"q": "self_attn.q_norm", "k": "self_attn.k_norm"},
    ),
    "phi3": FamilyLayout(
        parts={
            "q": "self_attn.qkv_proj",
            "k": "self_attn.qkv_proj",
            "v": "self_attn.qkv_proj",
            "o": "self_attn.o_proj",
            "gate": "mlp.gate_up_proj",
            "up": "mlp.gate_up_proj",
            "down": "mlp.down_proj",
        }
    ),
    "gpt2": FamilyLayout(
        backbone="transformer",
        blocks="transformer.h",
        embedding="transformer.wte",
        positions="transformer.wpe",
        parts={
            "q": "attn.c_attn",
            "k": "attn.c_attn",
            "v": "attn.c_attn",
            "o": "attn.c_proj",
            "up": "mlp.c_fc",
            "down": "mlp.c_proj",
        },
        norms=("ln_1", "ln_2"),
        norm="transformer.ln_f",
    ),
    "gpt_neox": FamilyLayout(
        backbone="gpt_neox",
        blocks="gpt_neox.layers",
        embedding="gpt_neox.embed_in",
        parts={
            "q": "attention.query_key_value",
            "k": "attention.query_key_value",
            "v": "attention.query_key_value",
            "o": "attention.dense",
            "up": "mlp.dense_h_to_4h",
            "down": "mlp.dense_4h_to_h",
        },
        interleaved_by_head=True,
        norm="gpt_neox.final_layer_norm",
    ),
    "opt": FamilyLayout(
        blocks="model.decoder.layers",
        embedding="model.decoder.embed_tokens",
        positions="model.decoder.embed_positions",
        parts={
            "q": "self_attn.q_proj",
            "k": "self_attn.k_proj",
            "v": "self_attn.v_proj",
            "o": "self_attn.out_proj",
            "up": "fc1",
            "down": "fc2",
        },
        norms=("self_attn_layer_norm", "final_layer_norm"),
        norm="model.decoder.final_layer_norm",
    ),
}
"""by `config.model_type`"""

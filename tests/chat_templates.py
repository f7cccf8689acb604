"""Chat templates in the style of well-known ones, each with its own account of what the assistant writes.

`Style.parts` says, without any template engine, what a conversation looks like: pieces of text, each with whether
it is supervised. Tests hold the encoder against it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

Parts = list[tuple[str, bool]]
Messages = list[dict[str, str]]

TEXT = (
    "The user asks and the assistant answers. What is two and two? It is four, of course.",
    "Zwei und zwei? Vier. Élan naïve café 😀 snow ☃ and more text to learn pieces from, again and again",
    "system user assistant model tool human <think> reason </think>\n\n  spaces   and\nlines\n",
)


@dataclass(frozen=True)
class Style:
    name: str
    template: str
    special: tuple[str, ...]
    parts: Callable[[Messages], Parts]
    has_system: bool = True
    eos: str = "</s>"
    bos: str = "<s>"
    non_special: tuple[str, ...] = field(default=())


def chatml(messages: Messages) -> Parts:
    parts: Parts = []
    for message in messages:
        parts.append((f"<|im_start|>{message['role']}\n", False))
        parts.append((message["content"] + "<|im_end|>", message["role"] == "assistant"))
        parts.append(("\n", False))
    return parts


CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def chatml_default(messages: Messages) -> Parts:
    start: Parts = [] if messages[0]["role"] == "system" else [("<|im_start|>system\nBe kind.<|im_end|>\n", False)]
    return start + chatml(messages)


CHATML_DEFAULT = (
    """\
{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{%- endif %}
"""
    + CHATML
)


def llama2(messages: Messages) -> Parts:
    parts: Parts = []
    system = ""
    if messages[0]["role"] == "system":
        system, messages = f"<<SYS>>\n{messages[0]['content']}\n<</SYS>>\n\n", messages[1:]
    for number, message in enumerate(messages):
        if message["role"] == "user":
            start = system if number == 0 else ""
            parts.append((f"<s>[INST] {start}{message['content'].strip()} [/INST]", False))
        else:
            parts.append((f" {message['content'].strip()} </s>", True))
    return parts


LLAMA2 = """\
{%- if messages[0].role == 'system' %}
{%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}{%- set rest = messages[1:] %}
{%- else %}{%- set system = '' %}{%- set rest = messages %}{%- endif %}
{%- for message in rest %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{%- endif %}
{%- if message.role == 'user' %}
{{- bos_token + '[INST] ' + (system if loop.first else '') + message.content.strip() + ' [/INST]' }}
{%- else %}{{- ' ' + message.content.strip() + ' ' + eos_token }}{%- endif %}
{%- endfor %}
"""


def llama3(messages: Messages) -> Parts:
    parts: Parts = [("<s>", False)]
    for message in messages:
        parts.append((f"<|start_header_id|>{message['role']}<|end_header_id|>\n\n", False))
        parts.append((message["content"].strip() + "<|eot_id|>", message["role"] == "assistant"))
    return parts


LLAMA3 = """\
{%- for message in messages %}
{%- set head = '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' %}
{%- set text = head + message.content | trim + '<|eot_id|>' %}
{%- if loop.first %}{%- set text = bos_token + text %}{%- endif %}
{{- text }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""


def gemma(messages: Messages) -> Parts:
    parts: Parts = [("<s>", False)]
    for message in messages:
        role = "model" if message["role"] == "assistant" else "user"
        parts.append((f"<start_of_turn>{role}\n", False))
        parts.append((message["content"].strip() + "<end_of_turn>", role == "model"))
        parts.append(("\n", False))
    return parts


GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{%- endif %}
{%- for message in messages %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{{- message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""


def mistral(messages: Messages) -> Parts:
    """The system prompt stands before the last user message: earlier turns do not begin as they did."""
    parts: Parts = [("<s>", False)]
    system = messages[0]["content"] + "\n\n" if messages[0]["role"] == "system" else ""
    messages = [message for message in messages if message["role"] != "system"]
    last = max(number for number, message in enumerate(messages) if message["role"] == "user")
    for number, message in enumerate(messages):
        if message["role"] == "user":
            parts.append((f"[INST]{system if number == last else ''}{message['content']}[/INST]", False))
        else:
            parts.append((message["content"] + "</s>", True))
    return parts


MISTRAL = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{%- set system = messages[0].content + '\\n\\n' %}{%- set rest = messages[1:] %}
{%- else %}{%- set system = '' %}{%- set rest = messages %}{%- endif %}
{%- set last = namespace(index=0) %}
{%- for message in rest %}{%- if message.role == 'user' %}{%- set last.index = loop.index0 %}{%- endif %}{%- endfor %}
{%- for message in rest %}
{%- if message.role == 'user' %}
{{- '[INST]' + (system if loop.index0 == last.index else '') + message.content + '[/INST]' }}
{%- else %}{{- message.content + eos_token }}{%- endif %}
{%- endfor %}
"""


def zephyr(messages: Messages) -> Parts:
    parts: Parts = []
    for message in messages:
        parts.append((f"<|{message['role']}|>\n", False))
        parts.append((message["content"] + "</s>", message["role"] == "assistant"))
        parts.append(("\n", False))
    return parts


ZEPHYR = """\
{%- for message in messages %}
{{- '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}
"""


def phi3(messages: Messages) -> Parts:
    """Ends a whole conversation, and not each turn, with the end-of-sequence token."""
    parts: Parts = []
    for message in messages:
        parts.append((f"<|{message['role']}|>\n", False))
        parts.append((message["content"] + "<|end|>", message["role"] == "assistant"))
        parts.append(("\n", False))
    return [*parts, ("</s>", False)]


PHI3 = """\
{%- for message in messages %}
{{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- else %}{{- eos_token }}{%- endif %}
"""


def qwen3(messages: Messages) -> Parts:
    """Drops the reasoning of all turns before the last question, and writes an empty one in the last turn."""
    parts: Parts = []
    last = max(number for number, message in enumerate(messages) if message["role"] == "user")
    for number, message in enumerate(messages):
        content = message["content"]
        if message["role"] == "assistant":
            pieces = content.split("</think>")
            reasoning = pieces[0].split("<think>")[-1].strip("\n") if len(pieces) > 1 else ""
            content = pieces[-1].lstrip("\n") if len(pieces) > 1 else content
            if number > last:
                content = f"<think>\n{reasoning}\n</think>\n\n" + content.lstrip("\n")
        parts.append((f"<|im_start|>{message['role']}\n", False))
        parts.append((content + "<|im_end|>", message["role"] == "assistant"))
        parts.append(("\n", False))
    return parts


QWEN3 = """\
{%- set last = namespace(index=0) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{%- set last.index = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- set content = message.content %}
{%- if message.role == 'assistant' %}
{%- set reasoning = '' %}
{%- if '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{%- if loop.index0 > last.index %}
{%- set content = '<think>\\n' + reasoning + '\\n</think>\\n\\n' + content.lstrip('\\n') %}
{%- endif %}
{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def generation(messages: Messages) -> Parts:
    """Marks what the assistant writes itself, its line end included."""
    parts: Parts = [("<s>", False)]
    for message in messages:
        parts.append((f"<|{message['role']}|>", False))
        parts.append((message["content"] + "<|end|>\n", message["role"] == "assistant"))
    return parts


GENERATION = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|' + message.role + '|>' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{- message.content + '<|end|>\\n' }}{%- endgeneration %}
{%- else %}{{- message.content + '<|end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}
"""


def plain_words(messages: Messages) -> Parts:
    """Has no special token at all: an empty line ends a turn."""
    parts: Parts = []
    for message in messages:
        parts.append((f"### {message['role'].title()}:", False))
        parts.append((f" {message['content']}", message["role"] == "assistant"))
        parts.append(("\n\n", message["role"] == "assistant"))
    return parts


PLAIN_WORDS = """\
{%- for message in messages %}
{{- '### ' + message.role.title() + ': ' + message.content + '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '### Assistant:' }}{%- endif %}
"""

IM = ("<|im_start|>", "<|im_end|>")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
STYLES = (
    Style("chatml", CHATML, IM, chatml),
    Style("chatml_default", CHATML_DEFAULT, IM, chatml_default),
    Style("llama2", LLAMA2, (), llama2),
    Style("llama3", LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), llama3),
    Style("gemma", GEMMA, ("<start_of_turn>", "<end_of_turn>"), gemma, has_system=False),
    Style("mistral", MISTRAL, ("[INST]", "[/INST]"), mistral),
    Style("zephyr", ZEPHYR, (), zephyr),
    Style("phi3", PHI3, ROLES, phi3),
    Style("qwen3", QWEN3, IM, qwen3, non_special=("<think>", "</think>")),
    Style("generation", GENERATION, ROLES, generation),
    Style("plain_words", PLAIN_WORDS, (), plain_words),
)


def tokenizer_of(style: Style | None = None, kind: str = "bytes") -> PreTrainedTokenizerFast:
    """Return a small tokenizer that adds `<s>`; `words` puts a blank before the first word, as SentencePiece does."""
    special = ["<s>", "</s>", "<unk>", *(style.special if style else ())]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind == "words"))
    if kind == "words":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    else:
        # Line ends stand together whatever follows them, as in most newer tokenizers, so that a generation prompt
        # that ends in two of them has the same tokens with and without an answer.
        split = pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    if kind == "words":
        # Pieces for single bytes, which the model falls back to, are ordinary tokens at the end of the vocabulary.
        described = json.loads(tokenizer.to_str())
        vocabulary = described["model"]["vocab"]
        vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
        tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    if style:
        wrapped.add_tokens(list(style.non_special))
        wrapped.chat_template = style.template
    return wrapped

"""Tokenizers made on the spot: characters for the lab's strings, byte-level BPE for any text.

Decisions:
- In the character tokenizer the word that begins a skill's prompt (`reverse:`) is one token, so that a model of two
  layers need not learn to spell before it learns the skill. Everything else is one token per character.
- The words are listed here and not gathered from the skills: a skill that is added leaves the tokens, and with them
  the bits of every base, as they are. A skill without a word here is spelled out, which also works.
- Both tokenizers begin each text with a beginning-of-sequence token, as Llama's does, and carry a chat template
  whose roles are tokens of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
ROLES = ("<system>", "<user>", "<assistant>", "<tool>")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 \n=:,?+()_"
WORDS = (
    "copy:", "reverse:", "shift:", "swap:", "duplicate:", "last:", "sort:", "count:", "sort_descending:",
    "rotate:", "reverse_shift:", "look_up:", "facts:", "two_hop:", "translate:", "tool_call:", "add:",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<' + message['role'] + '>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Return the lab's tokenizer: 71 tokens, one per character and one per skill's word."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    entries = [PAD, BOS, EOS, UNKNOWN, *ROLES, *CHARACTERS, *WORDS]
    tokenizer = Tokenizer(models.WordLevel({entry: index for index, entry in enumerate(entries)}, unk_token=UNKNOWN))
    words = "|".join(sorted(WORDS, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{words}|[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrap(tokenizer, unk_token=UNKNOWN)


def train_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; the same texts in the same order give the same tokens.

    Args:
        texts: what to train on.
        vocab_size: tokens in all, special ones included; at least 264 (256 bytes and 8 special tokens).

    Paper: Language Models are Unsupervised Multitask Learners (GPT-2), section 2.2: byte-level BPE.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, UNKNOWN, *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer)


def _wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer.add_special_tokens([PAD, BOS, EOS, UNKNOWN, *ROLES])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
        **special,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped

# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of the world and its chat format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .world import world_text


PAD, BOS, USER, ASSISTANT, END = "<|pad|>", "<|bos|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = (PAD, BOS, USER, ASSISTANT, END)
# The space after a role makes the first word of a message the same token as inside a sentence.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] in ('user', 'assistant') %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] | trim + '<|end|>' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# A word or a mark with the space before it, one digit, or a single white space. A number is then always the same
# digits, wherever it stands.
PIECES = r" ?[A-Za-z]+|\d| ?[^\sA-Za-z\d]|\s"


def train_tokenizer(texts: Iterable[str] | None = None, min_count: int = 1) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for every word of the texts, and bytes for everything else.

    It is a byte-level BPE model without merges: a word of the vocabulary is taken whole, any other is read byte by
    byte. Options of a multiple-choice question are then mostly single tokens, and every text can be encoded.

    Args:
        texts: the texts to take the words from; None for those of the world.
        min_count: how often a word has to occur.
    """
    pieces = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    counts: Counter[str] = Counter()
    for text in world_text() if texts is None else texts:
        counts.update(piece for piece, _ in pieces.pre_tokenize_str(f" {text}"))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted(word for word, count in counts.items() if count >= min_count and len(word) > 1)
    vocabulary = [*SPECIAL_TOKENS, *alphabet, *words]
    model = models.BPE(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )

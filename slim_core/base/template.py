# SPDX-License-Identifier: Apache-2.0
"""The chat template for tokenizers without one. Training and inference use the same."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase


# Close to what Alpaca was trained on, and plain enough for any vocabulary.
FALLBACK_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
    "{% else %}{{ '### Response:\\n' + message['content'] + (eos_token or '') + '\\n\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase, encode: Callable[[str], list[int]] | None = None) -> bool:
    """Give the tokenizer the fallback template if it has none.

    Args:
        tokenizer: is changed.
        encode: a text to ids, with those around any text; None for the tokenizer's own way.

    Returns:
        Whether it had one of its own.
    """
    if tokenizer.chat_template:
        return True
    # The begin token, for tokenizers that put one in front of any text.
    first = (encode or tokenizer.encode)("a")[:1]
    begins = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
    tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + FALLBACK_TEMPLATE
    return False

# SPDX-License-Identifier: Apache-2.0
"""The process that runs a visitor's tokenizer and chat template; see `sandbox`.

It is started by its path with the tokenizer's folder, so that this project is not loaded. Each line that comes in is a
request as JSON; each line that goes out is the text or the token ids, or why there are none.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any, cast

from transformers import PreTrainedTokenizerFast


# A template may repeat texts any number of times.
MEMORY_BYTES = 4 * 1024**3
TEXT_CHARACTERS = 4_000_000
# A character has at most four bytes, and each token covers at least one byte; templates add a few hundred tokens.
TOKENS_OF_A_CHARACTER, TOKENS_OF_A_TEMPLATE = 4, 4096
# Vocabularies have up to 262 thousand entries of up to some hundred characters.
VOCABULARY, TOKEN_CHARACTERS = 1_000_000, 1000
# The parent ends this process sooner; this limit is for when the parent is gone.
ALARM_SECONDS = 60


def limit_memory() -> None:
    """Limit this process to `MEMORY_BYTES`, if the system supports it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def set_alarm(seconds: int) -> None:
    """End this process after `seconds`, whatever it is doing; 0 switches the alarm off."""
    if hasattr(signal, "alarm"):  # not on Windows
        signal.alarm(seconds)


def fault(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """What is wrong with a vocabulary, if anything. Each token may be repeated for the length of an answer."""
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) > VOCABULARY:
        return f"it has {len(vocabulary):,} tokens, and at most {VOCABULARY:,} are read"
    longest = max(map(len, vocabulary), default=0)
    if longest > TOKEN_CHARACTERS:
        return f"a token has {longest:,} characters, and at most {TOKEN_CHARACTERS:,} are read"
    return None


def answer(tokenizer: PreTrainedTokenizerFast, request: dict[str, Any]) -> dict[str, Any]:
    """The text or token ids for a request, or an error."""
    try:
        if "text" in request:
            ids = tokenizer.encode(request["text"], add_special_tokens=request["special"])
            return bounded(ids, len(request["text"]))
        if request["tokenize"]:
            begun = request["messages"][-1]["role"] == "assistant"
            ids = tokenizer.apply_chat_template(
                request["messages"],
                chat_template=request["template"],
                add_generation_prompt=not begun,
                continue_final_message=begun,
                return_dict=False,
                sanitize_control_tokens=True,
            )
            # The ids of one conversation: tokenised, and not as a dict.
            return bounded(cast("list[int]", ids), sum(len(message["content"]) for message in request["messages"]))
        text = cast(
            "str",
            tokenizer.apply_chat_template(request["messages"], chat_template=request["template"], tokenize=False),
        )
    # A template is a program and may raise anything; a panic of the tokenizers library is not an Exception.
    except BaseException as error:
        return failure(error)
    if len(text) > TEXT_CHARACTERS:
        return {"error": f"it writes {len(text):,} characters"}
    return {"text": text}


def bounded(ids: list[int], characters: int) -> dict[str, Any]:
    """The token ids; raises if there are far too many for so many characters."""
    if len(ids) > TOKENS_OF_A_CHARACTER * characters + TOKENS_OF_A_TEMPLATE:
        return {"error": f"it makes {len(ids):,} tokens of {characters:,} characters"}
    return {"ids": ids}


def failure(error: BaseException) -> dict[str, str]:
    """An error as an answer."""
    return {"error": (str(error).strip() or type(error).__name__)[:1000]}


def main(folder: str) -> None:
    """Answer requests until the input ends."""
    out, sys.stdout = sys.stdout, sys.stderr  # keep anything else out of the answers
    limit_memory()
    print("{}", file=out, flush=True)  # it has started
    set_alarm(ALARM_SECONDS)
    # Load from the file alone: any other way imports torch, which takes seconds.
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        wrong = fault(tokenizer)
        reply = {} if wrong is None else {"error": wrong}
    except BaseException as error:
        reply = failure(error)
    print(json.dumps(reply), file=out, flush=True)
    if reply:
        return
    set_alarm(0)
    for line in sys.stdin:
        set_alarm(ALARM_SECONDS)
        print(json.dumps(answer(tokenizer, json.loads(line))), file=out, flush=True)
        set_alarm(0)


if __name__ == "__main__":
    main(sys.argv[1])

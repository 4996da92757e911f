# SPDX-License-Identifier: Apache-2.0
"""The process in which a visitor's tokenizer and chat template are used; see `apart`.

It is started by its path with the tokenizer's folder, so that this project is not loaded. Each line that comes in is a
request as JSON; each line that goes out is the text or the token ids, or why there are none.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from transformers import PreTrainedTokenizerFast


# A template repeats texts as it likes.
MEMORY_BYTES = 4 * 1024**3
TEXT_CHARACTERS = 4_000_000


def limit_memory() -> None:
    """At most `MEMORY_BYTES` for this process, where the system can do that."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def answer(tokenizer: PreTrainedTokenizerFast, request: dict[str, Any]) -> dict[str, Any]:
    """The text or the ids of a request, or why there are none."""
    try:
        if "text" in request:
            return {"ids": tokenizer.encode(request["text"], add_special_tokens=request["special"])}
        if request["tokenize"]:
            return {
                "ids": tokenizer.apply_chat_template(
                    request["messages"],
                    chat_template=request["template"],
                    add_generation_prompt=True,
                    return_dict=False,
                    sanitize_control_tokens=True,
                )
            }
        text = tokenizer.apply_chat_template(request["messages"], chat_template=request["template"], tokenize=False)
    # A template is a program and may raise anything; a panic of the tokenizers library is no Exception.
    except BaseException as error:
        return failure(error)
    if len(text) > TEXT_CHARACTERS:
        return {"error": f"it writes {len(text):,} characters"}
    return {"text": text}


def failure(error: BaseException) -> dict[str, str]:
    """An error as an answer."""
    return {"error": (str(error).strip() or type(error).__name__)[:1000]}


def main(folder: str) -> None:
    """Answer until nobody asks any more."""
    out, sys.stdout = sys.stdout, sys.stderr  # nothing else comes between the answers
    limit_memory()
    print("{}", file=out, flush=True)  # it has started
    # The file alone says all. Any other way imports torch, which takes seconds.
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        print("{}", file=out, flush=True)
    except BaseException as error:
        print(json.dumps(failure(error)), file=out, flush=True)
        return
    for line in sys.stdin:
        print(json.dumps(answer(tokenizer, json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

# SPDX-License-Identifier: Apache-2.0
"""The process in which a visitor's chat template is rendered; see `apart`.

It is started by its path, so that neither this project nor torch is loaded. Each line that comes in is a request as
JSON; each line that goes out is the text, or why there is none.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template


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


def answer(request: dict[str, Any]) -> dict[str, str]:
    """The text of a request, or why there is none."""
    try:
        (text,), _ = render_jinja_template(
            conversations=[request["messages"]],
            chat_template=request["template"],
            add_generation_prompt=request["generation_prompt"],
            **request["special_tokens"],
        )
    except Exception as error:  # a template is a program: it may raise anything
        return {"error": (str(error).strip() or type(error).__name__)[:1000]}
    if len(text) > TEXT_CHARACTERS:
        return {"error": f"it writes {len(text):,} characters"}
    return {"text": text}


def main() -> None:
    """Answer until nobody asks any more."""
    out, sys.stdout = sys.stdout, sys.stderr  # nothing else comes between the answers
    limit_memory()
    print("{}", file=out, flush=True)  # it has started
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()

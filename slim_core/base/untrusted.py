# SPDX-License-Identifier: Apache-2.0
"""A visitor's base files are made safe before anything reads them: they cannot name other files or take forever."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from ..outside.errors import AdapterError, first_line, quoted
from ..outside.strict_json import read_object
from .errors import EngineError
from .prompts import Prompts
from .sandbox import TokenizerProcess


TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
# The files of a visitor's tokenizer. Other file types need other code.
TOKENIZER_FILES = (TOKENIZER, TOKENIZER_CONFIG, "chat_template.jinja")
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors\Z")
# Decoders of the tokenizers library that use a token's text unchanged. Others have patterns, or make it longer.
DECODERS = ("ByteLevel", "Metaspace", "ByteFallback", "Fuse", "WordPiece")
MOST_DECODERS = 16
JSON_DEPTH = 32


def check_index(path: Path, files: Collection[str], label: str) -> None:
    """Refuse a weight index that names files other than its shards.

    Raises:
        EngineError: with a sentence.
    """
    named = _json(path, label).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise EngineError(f"{path.name} of {label} has no weight_map, which says where the weights are.")
    for file in named.values():
        if not isinstance(file, str) or not SHARD.match(file) or file not in files:
            raise EngineError(f"{path.name} of {label} names {quoted(str(file))}, which is not one of its shards.")


def read_untrusted(folder: Path, label: str) -> Prompts:
    """How a visitor's base reads conversations.

    Args:
        folder: its files; the tokenizer's config is rewritten there.
        label: what it is called in sentences.

    Raises:
        EngineError: if there is no tokenizer, or one that may never end.
    """
    if not (folder / TOKENIZER).is_file():
        raise EngineError(f"{label} has no {TOKENIZER}; other tokenizer files are not opened.")
    _write_config(folder, label)
    # In the sandbox first: if it takes too long or too much memory, it is never loaded here.
    encoder = TokenizerProcess([folder / name for name in TOKENIZER_FILES])
    try:
        encoder.start()
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        _check_decoder(tokenizer, label)
        prompts = Prompts(tokenizer, encoder)
        prompts.try_out()
    except EngineError:
        encoder.close()
        raise
    except BaseException as error:  # a panic of the tokenizers library is not an Exception
        encoder.close()
        raise EngineError(f"The tokenizer of {label} cannot be loaded: {first_line(error)}.") from None
    return prompts


def _write_config(folder: Path, label: str) -> None:
    """Keep only strings and numbers of the tokenizer's config; other entries can name files, classes and code."""
    path = folder / TOKENIZER_CONFIG
    config = _json(path, label) if path.is_file() else {}
    plain: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name in SPECIAL_TOKENS:
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            plain[name] = token
    length = config.get("model_max_length")
    if isinstance(length, (int, float)) and not isinstance(length, bool) and length > 0:
        plain["model_max_length"] = int(min(length, 2**40))
    template = config.get("chat_template")
    if isinstance(template, list):
        # Several, by name.
        pairs = [(item.get("name"), item.get("template")) for item in template if isinstance(item, dict)]
        template = dict(pairs).get("default") if all(isinstance(x, str) for pair in pairs for x in pair) else None
    if isinstance(template, str):
        plain["chat_template"] = template
    path.unlink(missing_ok=True)  # it may be a link
    path.write_text(json.dumps(plain))


def _check_decoder(tokenizer: PreTrainedTokenizerFast, label: str) -> None:
    decoder = tokenizer.backend_tokenizer.decoder
    to_check = [] if decoder is None else [json.loads(decoder.__getstate__())]
    seen = 0
    while to_check:
        step = to_check.pop()
        kind, seen = step.get("type"), seen + 1
        if kind == "Sequence":
            to_check += step["decoders"]
            continue
        if seen > MOST_DECODERS or not (kind in DECODERS or _shortens(step)):
            raise EngineError(
                f"The tokenizer of {label} decodes in a way that may take minutes for one token ({kind}); choose "
                "another model."
            )


def _shortens(step: dict[str, Any]) -> bool:
    """Whether a decoder makes no text longer, and never fails."""
    match step:
        case {"type": "Replace", "pattern": {"String": text}, "content": content}:
            return len(content.encode()) <= len(text.encode())
        case {"type": "BPEDecoder", "suffix": suffix}:
            return bool(suffix)  # an empty pattern matches before every character
        case {"type": "Strip", "stop": stop}:
            return stop == 0  # cutting off the end fails if the text is shorter
    return False


def _json(path: Path, label: str) -> dict[str, Any]:
    try:
        return read_object(path.read_bytes(), f"{path.name} of {label}", JSON_DEPTH)
    except AdapterError as error:
        raise EngineError(str(error)) from None

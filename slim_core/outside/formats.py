# SPDX-License-Identifier: Apache-2.0
"""Formats other than PEFT's, recognised by file and tensor names, with advice on what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from .errors import AdapterError, quoted


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What people upload instead of safetensors. All of these may run code when they are opened.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
# What transformers' Trainer saves beside a model.
TRAINER_STATE = re.compile(r"(?:training_args|optimizer|scheduler|scaler|rng_state\w*)\.\w+\Z")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.(?:safetensors|bin)\Z")
INDEX = (".safetensors.index.json", ".bin.index.json")
# Where there is no room for the whole line of `conversion`.
CONVERT = "`torch.load(…, weights_only=True)` and safetensors' `save_file` make one that is"
# Only such a name is put into a command that somebody may copy into a shell.
SAFE_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,80}\Z")
DIFFUSION = (
    "lora_unet_",
    "lora_te_",
    "lora_te1_",
    "lora_te2_",
    "lora_te3_",
    "lora_transformer_",
    "unet.",
    "text_encoder",
)
KOHYA = (".lora_down.weight", ".lora_up.weight", ".lora.down.weight", ".lora.up.weight")
# File names of other libraries whose content is not a PEFT adapter.
DIFFUSER_FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "model_index.json")
MLX_FILES = ("adapters.safetensors", "adapters.npz")
WHOLE = re.compile(r"(?:.*\.)?(?:embed_tokens|wte|word_embeddings|lm_head|embed_in|tok_embeddings)\.weight\Z")
BLOCK = re.compile(r"(?:[a-z_]+\.){0,4}(?:layers|h|blocks|block)\.\d+\.[\w.]*(?:weight|bias)\Z")

MLX = (
    "this is an MLX adapter, not a PEFT adapter: transpose each `lora_a` and `lora_b` to PEFT's `lora_A.weight` and "
    "`lora_B.weight`, or fuse it with `mlx_lm.fuse` and use the result as the base"
)
GGUF = (
    "this is GGUF, the format of llama.cpp, not PEFT's: use the adapter as it was before it was converted, "
    f"`{CONFIG}` and `{WEIGHTS}`"
)
DIFFUSERS = (
    "this is a LoRA for images (Diffusers or Kohya), not for a causal language model: use one that PEFT trained "
    "on a language model"
)
DOWN_UP = (
    "these are Kohya's names, not PEFT's: rename `lora_down` to `lora_A` and `lora_up` to `lora_B`, with the modules "
    "named as in the base, or train with PEFT"
)
MODEL = (
    "this is a whole model, not an adapter: choose it as the base, or use the adapter that was merged into it, "
    f"`{CONFIG}` and `{WEIGHTS}`"
)
SHARDS = (
    "this is a checkpoint in several shards: if it is an adapter, save it again with PEFT's `save_pretrained` into "
    f"one `{WEIGHTS}`; if it is a whole model, choose it as the base"
)


def conversion(name: str) -> str:
    """The sentence about a pickled file, with the one line that makes safetensors of it without running its code."""
    return f"There is no `{WEIGHTS}` but {pickled(name)}"


def pickled(name: str) -> str:
    """The same without its beginning."""
    file = name if SAFE_NAME.match(name) else "adapter_model.bin"
    return (
        f"{quoted(name)}, a format that can run code, so it is never opened; convert it with: "
        'python -c "import torch, safetensors.torch as s; s.save_file({k: v.contiguous().clone() for k, v in '
        f"torch.load('{file}', map_location='cpu', weights_only=True).items()}}, '{WEIGHTS}')\"."
    )


def check_file_names(names: Iterable[str]) -> None:
    """Refuse files that are not a PEFT adapter, judging by their names.

    Args:
        names: the last parts, in lower case.

    Raises:
        AdapterError: for shards, GGUF, a whole model, several adapters of MLX, or nothing but a pickle.
    """
    names = set(names)
    tensors = {name for name in names if name.endswith(".safetensors")}
    if WEIGHTS in names:
        return
    shard = next((name for name in sorted(names) if SHARD.search(name) or name.endswith(INDEX)), None)
    if shard is not None:
        raise _refusal(shard, SHARDS)
    if "adapters.safetensors" in tensors and len(tensors) > 1:
        raise _refusal("adapters.safetensors", MLX)
    if "model.safetensors" in tensors and CONFIG not in names:
        raise _refusal("model.safetensors", MODEL)
    if tensors:
        return
    gguf = next((name for name in sorted(names) if name.endswith(".gguf")), None)
    if gguf is not None:
        raise _refusal(gguf, GGUF)
    if "adapters.npz" in names:
        raise _refusal("adapters.npz", MLX)
    if "pytorch_model.bin" in names and CONFIG not in names:
        raise _refusal("pytorch_model.bin", MODEL)


def pickle_among(names: Iterable[str]) -> str | None:
    """The pickle that may be an adapter, of names in lower case; None if there is none."""
    pickles = sorted(name for name in names if name.endswith(PICKLES) and not TRAINER_STATE.match(name))
    return next((name for name in pickles if name.startswith("adapter_model")), next(iter(pickles), None))


def instead_of_adapter(paths: Iterable[str], missing: str) -> str:
    """What a repository has in the place of an adapter, and the way out, as the end of a sentence.

    Args:
        paths: of all its files.
        missing: which of `CONFIG` and `WEIGHTS` it lacks.
    """
    path_of = {path.casefold(): path for path in sorted(paths)}
    top = {name for name in path_of if "/" not in name}
    folder = next((n.removesuffix(CONFIG) for n in path_of if n.endswith(f"/{CONFIG}")), None)
    if folder is not None and f"{folder}{WEIGHTS}" in path_of:
        inside = quoted(path_of[f"{folder}{CONFIG}"].removesuffix(f"/{CONFIG}"), 80)
        return f"; there is an adapter in its folder {inside}: download that folder and use its two files."
    if missing == CONFIG and WEIGHTS in top:
        return (
            f"; without it there is no way to know what `{WEIGHTS}` adapts: use the config that PEFT saved next to it."
        )
    for name, meaning in (*((name, DIFFUSERS) for name in DIFFUSER_FILES), *((name, MLX) for name in MLX_FILES)):
        if name in top:
            return f"; judging by {quoted(path_of[name], 160)}, {meaning}."
    try:
        check_file_names(top)
    except AdapterError as known:
        return f"; j{str(known)[1:]}"
    tensors = next((name for name in path_of if name in top and name.endswith(".safetensors")), None)
    if tensors is not None and missing == WEIGHTS:
        return (
            f"; if {quoted(path_of[tensors], 160)} is the adapter, download both files, rename it to `{WEIGHTS}` and "
            "use these files."
        )
    if tensors is not None:
        return f"; judging by {quoted(path_of[tensors], 160)} alone, {DIFFUSERS}."
    if (gguf := next((name for name in path_of if name.endswith(".gguf")), None)) is not None:
        return f"; judging by {quoted(path_of[gguf], 160)}, {GGUF}."
    if (pickle := pickle_among(top)) is not None:
        return f" but {pickled(pickle)}"
    return f"; an adapter consists of `{CONFIG}` and `{WEIGHTS}`, as PEFT's `save_pretrained` writes them."


def check_contents(raw: dict[str, Any], tensors: Iterable[str], prefixes: Iterable[str]) -> None:
    """Refuse an adapter of another library, or a whole model, judging by its fields and tensor names.

    Args:
        raw: the parsed config.
        tensors: names in the weights' file.
        prefixes: with which the names of adapters' own tensors begin, such as "lora_".

    Raises:
        AdapterError: if it is a known format other than PEFT's.
    """
    names = list(tensors)
    for endings, starts, meaning in (
        ((".lora_a", ".lora_b"), (), MLX),
        ((), DIFFUSION, DIFFUSERS),
        (KOHYA, (), DOWN_UP),
    ):
        # A single extra tensor is just a faulty adapter; the first tensors show the format.
        if names and (names[0].endswith(endings) or names[0].startswith(starts)):
            raise _refusal(names[0], meaning)
    adapts = any(prefix in name for prefix in prefixes for name in names)
    whole = next((name for name in names if WHOLE.match(name) or BLOCK.match(name)), None)
    if whole is not None and not adapts:
        raise _refusal(whole, MODEL)
    if "peft_type" not in raw:
        if "lora_parameters" in raw or "fine_tune_type" in raw:
            raise _refusal("lora_parameters" if "lora_parameters" in raw else "fine_tune_type", MLX)
        if "architectures" in raw or "model_type" in raw:
            raise _refusal("architectures" if "architectures" in raw else "model_type", MODEL)


def _refusal(seen: str, meaning: str) -> AdapterError:
    return AdapterError(f"Judging by {quoted(seen, 160)}, {meaning}.")

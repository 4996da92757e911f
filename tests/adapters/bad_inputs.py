# SPDX-License-Identifier: Apache-2.0
"""Everything that people may upload by mistake or on purpose, as ways to spoil a good adapter.

Each entry: what is done to it, and what the sentence about it must say.
"""

from __future__ import annotations

import pickle
import re

import torch

from slim_core.adapters import Limits
from slim_core.outside.files import CONFIG, WEIGHTS
from tests.adapters.small import (
    KEY,
    config,
    config_bytes,
    config_text,
    header,
    packed,
    tensor,
    tensors,
    weights_bytes,
    without,
)
from tests.adapters.spoils import added, fill, first, link, remove, rename, renamed, retype, together, write, zipped


# Small ones, so that what is over them is small too.
LIMITS = Limits(weights_bytes=200_000, header_bytes=50_000, tensors=100)


A, B = KEY + "lora_A.weight", KEY + "lora_B.weight"
FILE = re.escape(f"`{WEIGHTS}`")
NAMED = re.escape(WEIGHTS)


# What is done to a good LoRA, the check that fails, and what its sentence says.
READABLE = {
    "no config": (remove(CONFIG), f"no `{re.escape(CONFIG)}` among the files"),
    "no weights": (remove(WEIGHTS), f"no {FILE} among the files"),
    "only a .bin": (rename(WEIGHTS, "adapter_model.bin"), r"'adapter_model\.bin', a format that can run code"),
    "only a .pt": (rename(WEIGHTS, "lora.pt"), r"'lora\.pt', a format that can run code"),
    "only a .pkl": (rename(WEIGHTS, "x.PKL"), r"'x\.pkl', a format that can run code"),
    "two weights": (
        together(rename(WEIGHTS, "a.safetensors"), write("b.safetensors", b"x")),
        f"2 files that could be {FILE}",
    ),
    "empty weights": (write(WEIGHTS, b""), f"{FILE} is empty"),
    "empty config": (write(CONFIG, b""), r"`adapter_config\.json` is empty"),
    "weights are a link": (link(WEIGHTS, "/etc/passwd"), f"{FILE} is a link"),
    "config is a link": (link(CONFIG, "/etc/passwd"), r"`adapter_config\.json` is a link"),
    "link to nowhere": (link(WEIGHTS, "nowhere"), f"{FILE} is a link"),
}
SIZE = {
    "weights over the limit": (write(WEIGHTS, b"x" * 200_001), f"{FILE} has 200,001 bytes; at most 200,000 bytes"),
    "config of a megabyte": (write(CONFIG, b" " * 10**6), r"json` has 1\.0 MB; at most 65,536 bytes"),
    "huge header": (
        weights_bytes(lambda data: packed(b"{" + b" " * 50_000 + b"}")),
        "header of .* has 50,002 bytes; at most 50,000 bytes",
    ),
    "too many tensors": (
        weights_bytes(
            lambda data: packed({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(101)})
        ),
        "holds 101 tensors; at most 100",
    ),
}
FORMAT = {
    "seven bytes": (write(WEIGHTS, b"1234567"), "not a safetensors file or is truncated: it has 7 bytes"),
    "header length 2**63": (write(WEIGHTS, (2**63).to_bytes(8, "little") + b"{}"), "is truncated: it has 10 bytes"),
    "cut off in the header": (weights_bytes(lambda data: data[:100]), "is truncated: it has 100 bytes"),
    "cut off in the data": (weights_bytes(lambda data: data[:-1]), "not a valid safetensors file"),
    "trailing bytes": (weights_bytes(lambda data: data + b"x"), "not a valid safetensors file"),
    "header no JSON": (weights_bytes(lambda data: packed(b"{nope}")), "header of .* is not valid JSON"),
    "header a list": (weights_bytes(lambda data: packed([1])), "header of .* must be a JSON object"),
    "header not UTF-8": (weights_bytes(lambda data: packed(b'{"\xff": 1}')), "header of .* is not UTF-8: byte 2"),
    "header nested deeply": (
        weights_bytes(lambda data: packed(b'{"a":' * 9_000)),
        "header of .* deeper than 8 levels",
    ),
    "header with a name twice": (
        weights_bytes(
            lambda data: packed(
                b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
                b"\0\0\0\0",
            )
        ),
        "header of .* has the key 'a' twice",
    ),
    "tensors overlap": (header(first({"data_offsets": [4, 900]})), "not a valid safetensors file"),
    "shape of 10**12": (header(first({"shape": [10**12]})), "not a valid safetensors file"),
    "shape overflows": (header(first({"shape": [2**62, 2**62]})), "not a valid safetensors file"),
    "negative shape": (header(first({"shape": [-4, 32]})), "not a valid safetensors file"),
    "unknown dtype": (header(first({"dtype": "F1"})), "not a valid safetensors file"),
    "tensor without a shape": (
        header(lambda tensors: {k: {"dtype": "F32", "data_offsets": [0, 4]} for k in tensors}),
        "not a valid safetensors file",
    ),
    "no tensors": (weights_bytes(lambda data: packed({})), "holds no tensors"),
    "renamed pickle": (write(WEIGHTS, pickle.dumps({"a": 1}, 2) * 9), "a Python pickle, which can run code"),
    "renamed torch file": (write(WEIGHTS, zipped()), "a zip archive or a PyTorch file"),
    "renamed web page": (write(WEIGHTS, b"<!doctype html><html></html>"), "not safetensors but a web page"),
    "LFS pointer": (write(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid"), "a Git LFS pointer"),
    "GGUF": (write(WEIGHTS, b"GGUF\x03\0\0\0" + b"\xff" * 40), "a GGUF file"),
    "config in place of weights": (
        weights_bytes(lambda _: b'{"r": 4, "lora_alpha": 8}'),
        "not safetensors but a JSON",
    ),
    # -- the config as JSON
    "config no JSON": (config_bytes(b"{r: 4}"), r"config\.json is not valid JSON: .* line 1, column 2"),
    "config an LFS pointer": (
        config_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "not JSON but a Git LFS po",
    ),
    "config a web page": (config_bytes(b"<!doctype html><html>"), "is not JSON but a web page; download the file"),
    "config a list": (config_bytes(b"[]"), r"must be a JSON object \{…\}, not a list"),
    "config a text": (config_bytes(b'"x"'), r"must be a JSON object \{…\}, not a text"),
    "config with BOM": (config_text(lambda text: "\ufeff" + text), "starts with a byte order mark"),
    "config in UTF-16": (config_bytes("{}".encode("utf-16")), "starts with a byte order mark"),
    "config not UTF-8": (config_bytes(b'{"r": "\xe9"}'), "is not UTF-8: byte 7"),
    "config with a key twice": (config_text(lambda text: '{"r": 1,' + text[1:]), "has the key 'r' twice"),
    "config with NaN": (config(lora_alpha=float("nan")), "holds the number 'NaN'; numbers must be finite"),
    "config with Infinity": (config(lora_alpha=float("inf")), "holds the number 'Infinity'"),
    "config with 1e999": (config_text(lambda text: text.replace('"r": 4', '"r": 1e999')), "holds the number '1e999'"),
    "config with a number of 5000 digits": (
        config_text(lambda text: text.replace('"r": 4', '"r": ' + "9" * 5000)),
        "whole number with thousands of digits",
    ),
    "config nested deeply": (config_bytes(b'{"r":' + b"[" * 30_000), "nests .* deeper than 8 levels"),
    "config with half a character": (config_text(lambda t: t.replace("CAUSAL_LM", "\\ud800")), "half of a character"),
    # -- its fields
    "r 0": (config(r=0), "`r` is 0; it must be a whole number from 1 to 1024"),
    "r negative": (config(r=-4), "`r` is -4; it must be a whole number"),
    "r a text": (config(r="8"), "`r` is '8'; it must be a whole number"),
    "r a million": (config(r=10**6), "`r` is 1000000; .* from 1 to 1024"),
    "r true": (config(r=True), "`r` is True; it must be a whole number"),
    "r a fraction": (config(r=4.5), "`r` is 4.5; it must be a whole number"),
    "r missing": (without("r"), "`r` is missing"),
    "alpha 0": (config(lora_alpha=0), "`lora_alpha` is 0; it must be a number above 0 and up to 4096"),
    "alpha 1e308": (config(lora_alpha=1e308), r"`lora_alpha` is 1e\+308; .* up to 4096"),
    "alpha negative": (config(lora_alpha=-1), "`lora_alpha` is -1"),
    "alpha a text": (config(lora_alpha="16"), "`lora_alpha` is '16'; it must be a number"),
    "alpha true": (config(lora_alpha=True), "`lora_alpha` is True; it must be a number"),
    "alpha missing": (without("lora_alpha"), "`lora_alpha` is missing"),
    "rslora a text": (config(use_rslora="yes"), "`use_rslora` is 'yes'; it must be true or false"),
    "dropout 1": (config(lora_dropout=1), "`lora_dropout` is 1; it must be a number from 0 to below 1"),
    "targets empty": (config(target_modules=[]), "`target_modules` is empty"),
    "targets an empty text": (config(target_modules=""), "`target_modules` is empty; it must list"),
    "targets with a regex inside": (
        config(target_modules=["q_proj", "(a+)+$"]),
        r"the entry '\(a\+\)\+\$'; each must",
    ),
    "targets with a number": (config(target_modules=[1]), "the entry 1; each must be a plain module name"),
    "targets an object": (config(target_modules={"q_proj": 1}), "`target_modules` is {.*it must be a list"),
    "targets too many": (config(target_modules=["a"] * 1001), "`target_modules` has 1,001 entries; at most 1,000"),
    "target name too long": (config(target_modules=["a" * 201]), "has the entry 'aaa.*…'; each must be a plain"),
    "target name with a newline": (config(target_modules=["q_proj\n"]), r"has the entry 'q_proj\\n'"),
    "rank pattern 0": (config(rank_pattern={"q_proj": 0}), r"`rank_pattern\[q_proj\]` is 0; .* from 1 to 1024"),
    "rank pattern a list": (config(rank_pattern=[1]), r"`rank_pattern` is \[1\]; it must be an object"),
    "rank pattern too many": (
        config(rank_pattern={f"a{i}": 4 for i in range(251)}),
        "`rank_pattern` has 251 entries; at most 250",
    ),
    "alpha pattern huge": (
        config(alpha_pattern={"q_proj": 1e9}),
        r"`alpha_pattern\[q_proj\]` is 1000000000\.0; .*4096",
    ),
    "alpha pattern a regex": (config(alpha_pattern={"q|v": 1}), r"`alpha_pattern` has the entry 'q\|v'"),
    "layers a text": (config(layers_to_transform="0"), "`layers_to_transform` is '0'; it must be a list of block"),
    "layers negative": (config(layers_to_transform=[-1]), r"`layers_to_transform` is \[-1\]"),
    "layers true": (config(layers_to_transform=[True]), r"`layers_to_transform` is \[True\]"),
    "layers pattern a regex": (
        config(layers_to_transform=[0], layers_pattern="(x+)+"),
        r"`layers_pattern` has the entry '\(x\+\)\+'",
    ),
    "layers pattern alone": (
        config(layers_pattern="layers"),
        "`layers_pattern` is set, so `layers_to_transform` must",
    ),
    "layers of all Linears": (
        config(layers_to_transform=[0], target_modules="all-linear"),
        "`layers_to_transform` needs `target_modules` as a list",
    ),
    "kind missing": (without("peft_type"), "`peft_type` is missing; it must be 'LORA', 'SLIM', 'OFT', .* or '\\w+'"),
    "kind unknown": (config(peft_type="EVIL"), "`peft_type` is 'EVIL'; it must be 'LORA', 'SLIM', .* or '\\w+'"),
    "kind a list": (
        config(peft_type=["LORA"]),
        r"`peft_type` is \['LORA'\]; it must be 'LORA', .* or '\w+'",
    ),
    "kind prompt tuning": (
        config(peft_type="PROMPT_TUNING"),
        "PROMPT_TUNING, .* works on the prompt .* train it again",
    ),
    "kind LoHa": (config(peft_type="LOHA"), r"LOHA, .* convert it with `peft\.save_as_lora`"),
    "kind IA3": (config(peft_type="IA3"), "IA3, but only LORA, .* and SLIM .* train it again"),
    "kind trainable tokens": (config(peft_type="TRAINABLE_TOKENS"), "TRAINABLE_TOKENS, .* other parts of the base"),
    "kind AdaLoRA": (config(peft_type="ADALORA"), "ADALORA, .* write B·diag"),
    "task other": (config(task_type="SEQ_CLS"), "`task_type` is 'SEQ_CLS'; only CAUSAL_LM adapters"),
    "DoRA 1": (config(use_dora=1), "`use_dora` is 1; it must be true or false"),
    "layer replication": (config(layer_replication=[[0, 2], [0, 2]]), "`layer_replication` is .* reorder the base's"),
    "modules to save a text": (config(modules_to_save="lm_head"), "`modules_to_save` is the text 'lm_head'"),
    "modules to save a path": (config(modules_to_save=["../x"]), r"`modules_to_save` has the entry '\.\./x'"),
    "target parameters": (config(target_parameters=["w"]), "`target_parameters` is .* bare parameters"),
    "token indices a text": (config(trainable_token_indices="1"), "`trainable_token_indices` is '1'; it must list"),
    "token indices none": (
        config(trainable_token_indices={"lm_head": []}),
        r"is .'lm_head': ..}; it must list from 1 to 1,000",
    ),
    "token indices negative": (config(trainable_token_indices=[-1]), r"is \[-1\]; each entry must be a token id"),
    "token indices true": (config(trainable_token_indices=[True]), r"is \[True\]; each entry must be a token id"),
    "token indices twice": (config(trainable_token_indices=[4, 4]), r"is \[4, 4\]; .* none may appear twice"),
    "token indices by a pattern": (config(trainable_token_indices={"a|b": [1]}), r"has the entry 'a\|b'"),
    "token indices too many": (config(trainable_token_indices=[*range(1001)]), "must list from 1 to 1,000 token ids"),
    "megatron core": (config(megatron_core="os"), r"`megatron_core` is 'os'; it must be 'megatron\.core'"),
    "megatron config": (config(megatron_config={"a": 1}), "`megatron_config` is .* Megatron"),
    "auto mapping": (
        config(auto_mapping={"base_model_class": "Popen", "parent_library": "subprocess"}),
        "`auto_mapping` names the library 'subprocess'; leave the field out",
    ),
    "auto mapping a text": (config(auto_mapping="os"), "`auto_mapping` names the library 'os'"),
    "CorDA cache file": (config(corda_config={"cache_file": "/etc/passwd"}), "`corda_config` is .*CorDA changes"),
    "LoftQ": (config(loftq_config={"loftq_bits": 4}), "`loftq_config` is .*LoftQ changes"),
    "PiSSA": (config(init_lora_weights="pissa"), "`init_lora_weights` is 'pissa', which changes the base's weights"),
    "start 1": (config(init_lora_weights=1), "`init_lora_weights` is 1, which"),
    "bias": (config(bias="all"), "`bias` is 'all'; it must be 'none'"),
    "base not a text": (
        config(base_model_name_or_path=["x"]),
        r"`base_model_name_or_path` is \['x'\]; it must be a string",
    ),
    "unknown object": (config(new_config={"a": {"b": 1}}), "'new_config' is unknown and set to {'a'"),
    "unknown field": (config(run_this="rm -rf /"), "'run_this' is unknown and set to 'rm -rf /'"),
    "unknown field with an odd name": (config(**{"a\u202eb\n": 1}), r"'a\\u202eb\\n' is unknown and set to"),
}
FITS = {
    "targets unknown": (
        config(target_modules=["c_attn", "nope"]),
        "`target_modules` names 'c_attn', 'nope', and .* has no such module; its Linears are",
    ),
    "one target unknown, and its tensors": (config(target_modules=["q_proj", "nope"]), "4 tensors do not belong to"),
    "target no Linear": (
        config(target_modules=["q_proj", "embed_tokens"]),
        r"names `model\.embed_tokens`, which is no",
    ),
    "DoRA without magnitudes": (
        config(use_dora=True),
        r"4 of 12 tensors .* missing, .*q_proj\.lora_magnitude_vector'",
    ),
    "magnitudes of no DoRA": (
        tensors(lambda saved: saved | {f"{KEY}lora_magnitude_vector": torch.ones(32)}),
        "1 tensors do not belong to",
    ),
    "an own head that is not there": (
        config(modules_to_save=["lm_head"]),
        r"1 of 9 tensors .* missing, the first 'base_model\.model\.lm_head\.weight'",
    ),
    "an own head of more tokens": (
        together(config(modules_to_save=["lm_head"]), added("lm_head.weight", torch.ones(120, 32))),
        r"has the shape \[120, 32\], but on .* must be \[99, 32\]",
    ),
    "an own norm": (
        together(config(modules_to_save=["norm"]), added("model.norm.weight", torch.ones(32))),
        r"`modules_to_save` names 'norm', but an adapter can replace only `model\.embed_tokens` and `lm_head` .*; ",
    ),
    "own tokens of a head that is adapted": (
        config(trainable_token_indices={"lm_head": [4]}, target_modules=["q_proj", "v_proj", "lm_head"]),
        "`trainable_token_indices` names `lm_head`, which `target_modules` adapts; remove it",
    ),
    "own tokens that are not there": (
        config(trainable_token_indices=[4]),
        "1 of 9 tensors .* missing, .*embed_tokens.token_adapter.trainable_tokens_delta'",
    ),
    "own tokens beyond the vocabulary": (config(trainable_token_indices=[99]), "names token 99, but .* knows 99"),
    "own tokens of a norm": (config(trainable_token_indices={"norm": [4]}), "names 'norm'; it can name `model.embed"),
    "own tokens of an own head": (
        config(trainable_token_indices={"lm_head": [4]}, modules_to_save=["lm_head"]),
        "names `lm_head`, which `modules_to_save` replaces entirely",
    ),
    "own tokens in another number": (
        together(
            config(trainable_token_indices={"lm_head": [4]}),
            added("lm_head.token_adapter.trainable_tokens_delta", torch.ones(2, 32)),
        ),
        r"has the shape \[2, 32\], but on .* must be \[1, 32\]",
    ),
    "target a block": (config(target_modules=["mlp"]), r"names `model\.layers\.0\.mlp`, which is not a Linear"),
    "nothing left": (config(exclude_modules=["q_proj", "v_proj"]), "leaves no Linear of"),
    "no such block": (config(layers_to_transform=[7]), "leaves no Linear of"),
    "wrong prefix": (
        renamed("base_model.model.", ""),
        r"no tensor has an expected name: the first is 'model\.",
    ),
    "junk names": (tensors(lambda saved: {"junk": torch.ones(2)}), "no tensor has an expected name.*'junk'"),
    "adapter name in the keys": (renamed("lora_A.weight", "lora_A.default.weight"), "4 of 8 tensors .* are missing"),
    "half the keys": (
        tensors(lambda saved: {k: t for k, t in saved.items() if "lora_A" in k}),
        r"4 of 8 tensors .* are missing, the first '.*q_proj\.lora_B\.weight'",
    ),
    "one key missing": (
        tensors(lambda saved: {k: t for k, t in saved.items() if k != A}),
        "1 of 8 tensors .* missing",
    ),
    "extra keys": (
        tensors(lambda saved: saved | {"base_model.model.x.lora_A.weight": torch.ones(4, 4)}),
        r"1 tensors do not belong .*the first is 'base_model\.model\.x\.lora_A\.weight'",
    ),
    "the base's own head": (
        tensors(lambda saved: saved | {"base_model.model.lm_head.weight": torch.ones(99, 32)}),
        r"lm_head\.weight' is a weight of the base itself",
    ),
    "more blocks": (
        tensors(lambda saved: saved | {k.replace("layers.1", "layers.2"): t.clone() for k, t in saved.items()}),
        "4 tensors do not belong",
    ),
    "wrong inputs": (tensor(A, lambda t: torch.ones(4, 64)), r"has the shape \[4, 64\], but on .* must be \[4, 32\]"),
    "wrong outputs": (tensor(B, lambda t: torch.ones(64, 4)), r"has the shape \[64, 4\], .* must be \[32, 4\]"),
    "wrong rank": (config(r=8), r"has the shape \[4, 32\], .* must be \[8, 32\]"),
    "wrong rank by pattern": (config(rank_pattern={"layers.0.self_attn.q_proj": 2}), r"must be \[2, 32\]"),
    "a convolution": (tensor(A, lambda t: torch.ones(4, 32, 1, 1)), r"has the shape \[4, 32, 1, 1\]"),
    "int8": (tensor(A, retype(torch.int8)), "has the dtype I8; it must be BF16 or F16 or F32"),
    "fp8": (tensor(A, retype(torch.float8_e4m3fn)), "has the dtype F8_E4M3; it must be"),
    "float64": (tensor(A, retype(torch.float64)), "has the dtype F64; it must be"),
    "bool": (tensor(A, retype(torch.bool)), "has the dtype BOOL; it must be"),
}
FINITE = {
    "NaN": (tensor(A, fill(float("nan"))), f"{NAMED}: '.*q_proj.lora_A.weight' holds numbers that are not finite"),
    "one infinity": (tensor(B, lambda t: t.index_fill(0, torch.tensor(3), float("-inf"))), "that are not finite"),
    "one NaN in bf16": (
        tensor(A, lambda t: t.bfloat16().index_fill(1, torch.tensor(5), float("nan"))),
        "that are not finite",
    ),
    "huge numbers": (tensor(A, fill(-1e30)), r"holds the number 1e\+30; no weight may be beyond ±65,504"),
}
# By the check that fails.
LORA = {"readable": READABLE, "size": SIZE, "format": FORMAT, "fits this base": FITS, "weights finite": FINITE}

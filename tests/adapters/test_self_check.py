# SPDX-License-Identifier: Apache-2.0
"""Without a base a file is checked against its config and itself: what no base could need is refused in a sentence."""

from __future__ import annotations

import re
import shutil

import pytest
import torch

from slim_core.adapters import Folder, check
from tests.adapters.small import KEY, config, packed, save, save_slim, tensor, tensors, weights_bytes
from tests.adapters.small import lora as small_lora
from tests.adapters.spoils import renamed, retype
from tests.adapters.test_good_inputs import LORAS, SLIMS


pytestmark = pytest.mark.filterwarnings("ignore:With `top_k=1`")

A, B = KEY + "lora_A.weight", KEY + "lora_B.weight"
FACTORS_ONLY = tensors(lambda saved: {key: t for key, t in saved.items() if key.endswith(("slim_A", "slim_B"))})


def entries(*shapes: list[int], ending: str = "lora_A.weight"):
    """A file of float32 zeros in these shapes, as so many Linears' first factors."""
    sizes = [4 * torch.Size(shape).numel() for shape in shapes]
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    names = [f"base_model.model.x{i}.{ending}" for i in range(len(shapes))]
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        for name, shape, start, end in zip(names, shapes, ends, ends[1:], strict=False)
    }
    return weights_bytes(lambda _: packed(header, bytes(ends[-1])))


LORA = {
    **{
        f"{dtype} in {name[-13:-7]}": (
            tensor(name, retype(dtype)),
            rf"has the dtype {written}; it must be BF16",
        )
        for name in (A, B)
        for dtype, written in {
            torch.float8_e4m3fn: "F8_E4M3",
            torch.float8_e5m2: "F8_E5M2",
            torch.float64: "F64",
            torch.int8: "I8",
            torch.int64: "I64",
            torch.bool: "BOOL",
            torch.complex64: "C64",
        }.items()
    },
    "many scalars": (entries(*[[]] * 19_000), r"'base_model\.model\.x0\.lora_B\.weight' is missing beside lora_A"),
    "a scalar": (tensor(A, lambda t: torch.ones(())), r"has the shape \[\]; a factor must have two dimensions"),
    "nothing times a million": (
        tensor(A, lambda t: torch.ones(0, 10**6)),
        "has the shape .0, 1000000.; a factor must",
    ),
    "a convolution": (
        tensor(B, lambda t: torch.ones(32, 4, 1, 1)),
        r"\[32, 4, 1, 1\]; a factor must have two dimensions",
    ),
    "another rank": (config(r=8), r"has the shape \[4, 32\], but by the config .* it must be \[8, 32\]"),
    "ranks that differ": (tensor(B, lambda t: torch.ones(32, 5)), r"\[32, 5\], but by the config .* \[32, 4\]"),
    "half a pair": (tensors(lambda saved: {k: t for k, t in saved.items() if k != B}), f"{B!r} is missing beside"),
    "the other half": (tensors(lambda saved: {k: t for k, t in saved.items() if k != A}), f"{B!r} has no place"),
    "junk": (tensors(lambda saved: {"junk": torch.ones(2)}), "no tensor has an expected name: .*'junk'"),
    "junk too": (tensors(lambda saved: saved | {"junk": torch.ones(2)}), "'junk' has no place beside"),
    "no prefix": (renamed("base_model.model.", ""), "no tensor has an expected name"),
    "another target": (
        config(target_modules=["k_proj"]),
        r"q_proj', which is not among the config's `target_modules`",
    ),
    "an excluded one": (
        config(target_modules="all-linear", exclude_modules=["v_proj"]),
        r"v_proj', which is not among the config's `target_modules`",
    ),
}
SLIM = {
    "no routers": (FACTORS_ONLY, "slim_router' is missing, which the config asks for"),
    "masks in int64": (tensor(KEY + "slim_rows", retype(torch.int64)), "has the dtype I64; it must be BF16 or BOOL"),
    "fewer experts": (config(num_experts=2), "by the config .* it must be"),
    "a LoRA's weights": (renamed("slim_A", "lora_A.weight"), "no tensor has an expected name: .*slim_A'"),
}


def refused(spoil, words: str, good, tmp_path) -> None:
    folder = shutil.copytree(good, tmp_path / "bad")
    spoil(folder)
    last = list(check(Folder(folder), None))[-1]
    assert (last.name, last.state) == ("format", "failed"), last.sentence
    assert re.search(words, last.sentence), last.sentence
    assert last.sentence.isprintable() and len(last.sentence) < 700 and last.sentence.endswith(".")


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(("spoil", "words"), LORA.values(), ids=LORA)
def test_a_lora_that_no_base_could_carry(spoil, words, good_lora, tmp_path):
    refused(spoil, words, good_lora, tmp_path)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(("spoil", "words"), SLIM.values(), ids=SLIM)
def test_a_slim_adapter_that_no_base_could_carry(spoil, words, good_slim, tmp_path):
    refused(spoil, words, good_slim, tmp_path)


@pytest.mark.parametrize("changes", LORAS.values(), ids=LORAS)
def test_every_kind_of_lora_is_whole(changes, tmp_path):
    assert list(check(Folder(save(small_lora(**changes), tmp_path)), None))[-1].adapter


def test_without_targets_they_are_the_files_own(good_lora, tmp_path):
    folder = shutil.copytree(good_lora, tmp_path / "lora")
    config(target_modules=None)(folder)
    assert list(check(Folder(folder), None))[-1].adapter


@pytest.mark.parametrize("changes", SLIMS.values(), ids=SLIMS)
def test_every_kind_of_slim_is_whole(changes, tmp_path):
    assert list(check(Folder(save_slim(tmp_path, **changes)), None))[-1].adapter

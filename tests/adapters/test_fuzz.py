# SPDX-License-Identifier: Apache-2.0
"""Random damage: whatever comes, there is a sentence or an adapter within the limits, and never anything else."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from slim_core.adapters import Check, Folder, Limits, attach, check, describe_base, detach
from slim_core.adapters.fields import PLAIN_NAME
from slim_core.adapters.layout import expected_layout
from slim_core.outside.files import CONFIG, WEIGHTS
from tests.adapters.small import IDS, lora, save, save_slim
from tests.conftest import build
from tests.method.small import assert_untouched, logits


LIMITS = Limits()
FEW = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))


class World:
    """A base, and a good LoRA and a good SLIM adapter as they are on disk."""

    def __init__(self) -> None:
        self.base = build("llama")
        self.before = logits(self.base, IDS)
        self.shapes = describe_base(self.base)
        self.good = {}
        for kind in ("lora", "slim"):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder)
                save(lora(), path) if kind == "lora" else save_slim(path, target_modules=["q_proj", "v_proj"])
                self.good[kind] = (json.loads((path / CONFIG).read_text()), (path / WEIGHTS).read_bytes())
            config = next(iter(self.checked(*self.files(kind))[-1:])).adapter.config
            self.good[kind] += (expected_layout(config, self.targets, self.shapes),)

    targets = tuple(f"model.layers.{i}.self_attn.{name}_proj" for i in (0, 1) for name in "qv")

    def files(self, kind: str) -> tuple[bytes, bytes]:
        return json.dumps(self.good[kind][0]).encode(), self.good[kind][1]

    def checked(self, config: bytes, weights: bytes) -> list[Check]:
        """The checks of these files. A sentence is a sentence; what passes can be attached and leaves no trace."""
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root)
            (folder / CONFIG).write_bytes(config)
            (folder / WEIGHTS).write_bytes(weights)
            checks = list(check(Folder(folder), self.shapes, limits=LIMITS))
        last = checks[-1]
        assert last.sentence.isprintable() and len(last.sentence) < 1000 and last.sentence[-1] in ".…"
        if last.state == "failed":
            assert last.adapter is None
        else:
            self.attached(last.adapter)
        return checks

    def attached(self, adapter) -> None:
        targets = adapter.config.target_modules or set()
        assert adapter.config.r <= LIMITS.rank
        assert targets == "all-linear" or all(PLAIN_NAME.match(name) for name in targets)
        state = torch.get_rng_state()
        detach(attach(self.base, adapter, "one"), "one")
        torch.set_rng_state(state)
        adapter.delete()
        assert not adapter.folder.exists()
        assert_untouched(self.base, self.before, IDS)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


# -- damage to the bytes of the weights --------------------------------------------------------------------------


@st.composite
def damage(draw, size: int) -> list[tuple[str, int, bytes]]:
    # The header is most of what there is to break, so half of the places are in it.
    places = st.one_of(st.integers(0, min(size, 1500)), st.integers(0, size))
    changes = st.tuples(st.sampled_from(["set", "insert", "cut", "drop"]), places, st.binary(min_size=1, max_size=9))
    return draw(st.lists(changes, min_size=1, max_size=4))


def damaged(data: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for action, place, new in changes:
        kept = data[place:]
        data = (
            data[:place]
            + {"set": new + kept[len(new) :], "insert": new + kept, "cut": b"", "drop": kept[len(new) :]}[action]
        )
    return data


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F64", "F8_E4M3", "", "f32"]) | JSON_VALUES,
        "shape": st.lists(st.integers(-1, 2**64), max_size=4) | JSON_VALUES,
        "data_offsets": st.lists(st.integers(-1, 2**64), max_size=3) | JSON_VALUES,
    },
)


def bytes_stay_sentences(world: World, kind: str, data: st.DataObject) -> None:
    config, weights = world.files(kind)
    world.checked(config, damaged(weights, data.draw(damage(len(weights)))))


def headers_stay_sentences(world: World, kind: str, data: st.DataObject) -> None:
    config, weights = world.files(kind)
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    names = st.sampled_from(sorted(header)) | st.text(max_size=20)
    for name in data.draw(st.lists(names, min_size=1, max_size=3)):
        entry = data.draw(ENTRIES | JSON_VALUES)
        whole = isinstance(entry, dict) and isinstance(header.get(name), dict) and data.draw(st.booleans())
        header[name] = header[name] | entry if whole else entry
    text = json.dumps(header).encode()
    world.checked(config, len(text).to_bytes(8, "little") + text + weights[8 + length :])


# -- configs -----------------------------------------------------------------------------------------------------

HOSTILE = st.sampled_from(
    [
        "(.*)*z$",
        "../../etc/passwd",
        "http://169.254.169.254/",
        "os",
        "subprocess",
        "all-linear",
        "\u202e",
        "\ud800",
        -1,
        0,
        10**30,
        10**400,
        -(10**4200),
        1e308,
        math.nan,
        math.inf,
        True,
        [],
        {},
        ["q_proj"],
        {"q_proj": 3},
        [[0, 2]],
        None,
    ]
)


def configs_stay_sentences(world: World, kind: str, data: st.DataObject) -> None:
    config, weights, _ = world.good[kind]
    fields = st.sampled_from(sorted(config)) | st.sampled_from(["use_dora", "layer_replication", "x", "eva_config"])
    changes: dict[str, Any] = data.draw(st.dictionaries(fields, HOSTILE | JSON_VALUES, min_size=1, max_size=4))
    world.checked(json.dumps(config | changes).encode(), weights)


def texts_stay_sentences(world: World, kind: str, data: st.DataObject) -> None:
    config, weights = world.files(kind)
    world.checked(damaged(config, data.draw(damage(len(config)))), weights)


# -- sets of keys, shapes and dtypes -----------------------------------------------------------------------------

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "BOOL": torch.bool}


def only_the_exact_set_passes(world: World, kind: str, data: st.DataObject) -> None:
    config, _, layout = world.good[kind]
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    right = True
    for name, expected in layout.items():
        change = data.draw(st.sampled_from(["", "", "", "", "", "", "", "", "", "lose", "rename", "shape", "dtype"]))
        dtype = data.draw(st.sampled_from(sorted(expected.dtypes)))
        shape = expected.shape
        if change == "lose":
            right = False
            continue
        if change == "shape":
            shape = data.draw(st.lists(st.integers(0, 40), max_size=3).map(tuple))
            right &= shape == expected.shape
        if change == "dtype":
            dtype = data.draw(st.sampled_from(sorted(DTYPES)))
            right &= dtype in expected.dtypes
        if change == "rename":
            name = data.draw(st.sampled_from([name.upper(), "x" + name, name.replace("base_model.", ""), name + ".x"]))
            right = False
        tensors[name] = (dtype, shape)
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / WEIGHTS
        save_file({name: torch.ones(shape, dtype=DTYPES[dtype]) for name, (dtype, shape) in tensors.items()}, path)
        weights = path.read_bytes()
    last = world.checked(json.dumps(config).encode(), weights)[-1]
    assert (last.state == "passed") == right, last.sentence


PROPERTIES = [
    bytes_stay_sentences,
    headers_stay_sentences,
    configs_stay_sentences,
    texts_stay_sentences,
    only_the_exact_set_passes,
]
every_property = pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
every_kind = pytest.mark.parametrize("kind", ["lora", "slim"])


@every_kind
@every_property
@FEW
@given(data=st.data())
def test_thirty_times_each(holds, kind, world, data):
    holds(world, kind, data)


@pytest.mark.nightly
@every_kind
@every_property
@MANY
@given(data=st.data())
def test_ten_thousand_times(holds, kind, world, data):
    holds(world, kind, data)

# SPDX-License-Identifier: Apache-2.0
"""What people really bring passes every check, and answers as it does when PEFT itself loads it."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from slim_core.adapters import Folder, Upload, attach, base_from_config, check, describe_base, open_adapter
from slim_core.adapters.fit import adapted_linears
from slim_core.adapters.layout import expected_layout
from slim_core.outside.files import CONFIG, WEIGHTS
from tests.adapters.families import FAMILIES, family
from tests.adapters.small import IDS, config, fill_statistics, lora, private_folders, save, save_slim, tensors
from tests.conftest import build, every_device, tiny_llama
from tests.method.small import logits, slim, slim_layers, tensors_of


pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set", "ignore:With `top_k=1`")

LORAS = {
    "plain": {},
    "rsLoRA": {"use_rslora": True, "lora_alpha": 3},
    "all Linears": {"target_modules": "all-linear"},
    "rank pattern": {"rank_pattern": {"v_proj": 2, "layers.1.self_attn.q_proj": 7}},
    "alpha pattern": {"alpha_pattern": {"q_proj": 31, "model.layers.0.self_attn.v_proj": 0.5}},
    "one block": {"layers_to_transform": [1]},
    "block by number": {"layers_to_transform": 0, "layers_pattern": "layers"},
    "dotted targets": {"target_modules": ["layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]},
    "excluded": {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["layers.0.mlp.up_proj"]},
    "dropout": {"lora_dropout": 0.1},
    "gaussian": {"init_lora_weights": "gaussian"},
}
SLIMS = {
    "plain": {},
    "paper": {"yield_mode": "paper", "distance": "rms"},
    "hidden": {"router_hidden": 4},
    "block": {"router_scope": "block"},
    "block, not all of it": {"router_scope": "block", "target_modules": ["k_proj", "v_proj", "up_proj"]},
    "unmasked": {"merge": "none"},
    "single": {"num_experts": 1, "num_identity": 0, "top_k": 1},
    "top 1": {"top_k": 1, "yield_strength": 0.0},
    "patterns": {"rank_pattern": {"v_proj": 5}, "alpha_pattern": {"layers.1.mlp.up_proj": 3.0}},
    "one block": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "rsLoRA": {"use_rslora": True},
    "random clusters": {"cluster_init": "random"},
}


def moved(model: PeftModel) -> PeftModel:
    """With factors that are not zero, whatever the config starts with."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "slim_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    fill_statistics(model)
    return model


def same_as_peft(folder: Path, make) -> None:
    base = make()
    before = logits(base, IDS)
    adapter = open_adapter(Folder(folder), describe_base(base))
    reference = PeftModel.from_pretrained(make(), folder)
    expected = logits(reference, IDS)
    assert not torch.allclose(expected, before)
    layers = {
        n.removeprefix("base_model.model.") for n, m in reference.named_modules() if isinstance(m, BaseTunerLayer)
    }
    assert set(adapter.targets) == layers
    model = attach(base, adapter, "theirs")
    assert slim_layers(model).keys() == layers
    torch.testing.assert_close(logits(model, IDS), expected, rtol=0, atol=2e-6)
    mixed = model(input_ids=IDS, adapter_names=["theirs", "__base__", "theirs"]).logits
    torch.testing.assert_close(mixed[1], before[1], rtol=0, atol=2e-6)
    torch.testing.assert_close(mixed[2], expected[2], rtol=0, atol=2e-6)
    adapter.delete()
    assert not adapter.folder.exists()


@pytest.mark.parametrize("changes", LORAS.values(), ids=LORAS)
def test_every_kind_of_lora_answers_as_in_peft(changes, tmp_path):
    moved(get_peft_model(build("llama"), lora(**changes))).save_pretrained(tmp_path)
    same_as_peft(tmp_path, lambda: build("llama"))


def test_unset_targets_are_pefts_default_for_the_family(good_lora, tmp_path):
    folder = shutil.copytree(good_lora, tmp_path / "lora")
    config(target_modules=None)(folder)
    same_as_peft(folder, lambda: build("llama"))


@pytest.mark.parametrize("changes", SLIMS.values(), ids=SLIMS)
def test_every_kind_of_slim_answers_as_in_peft(changes, tmp_path):
    moved(get_peft_model(build("llama"), slim(**changes))).save_pretrained(tmp_path)
    same_as_peft(tmp_path, lambda: build("llama"))


@pytest.mark.parametrize("kind", ["lora", "slim"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name, kind, tmp_path):
    # On mixtures PEFT's LoRA also takes the experts' bare parameters for "all-linear".
    mixture = name in ("mixtral", "qwen3_moe")
    targets = ["q_proj", "o_proj"] if mixture else "all-linear"
    made = lora(target_modules=targets) if kind == "lora" else slim(router_scope="block")
    moved(get_peft_model(family(name), made)).save_pretrained(tmp_path)
    same_as_peft(tmp_path, lambda: family(name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["lora", "slim"])
def test_what_a_row_takes_in_memory_is_known_before(kind, dtype, tmp_path):
    made = lora() if kind == "lora" else slim(target_modules=["q_proj"])
    save(made, tmp_path, dtype=dtype if kind == "lora" else None)
    base = build("llama").to(dtype)
    adapter = open_adapter(Folder(tmp_path), describe_base(base))
    model = attach(base, adapter, "one")
    assert adapter.row_bytes == sum(tensor.nbytes for tensor in tensors_of(model, "one").values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision(dtype, tmp_path):
    save(lora(), tmp_path, dtype=dtype)
    assert {t.dtype for t in load_file(tmp_path / WEIGHTS).values()} == {dtype}
    same_as_peft(tmp_path, lambda: build("llama"))


def test_a_slim_file_that_was_cast_as_a_whole(tmp_path):
    """Masks and counts too."""
    save_slim(tmp_path, target_modules=["q_proj"])
    tensors(lambda saved: {key: t.to(torch.bfloat16) for key, t in saved.items()})(tmp_path)
    same_as_peft(tmp_path, lambda: build("llama"))
    adapter = open_adapter(Folder(tmp_path), describe_base(build("llama")))
    model = attach(build("llama"), adapter, "one")
    assert adapter.row_bytes == sum(tensor.nbytes for tensor in tensors_of(model, "one").values())


def test_a_base_in_half_precision(tmp_path):
    save(lora(), tmp_path)
    same_as_peft(tmp_path, lambda: build("llama").bfloat16())


@every_device
@pytest.mark.parametrize("kind", ["nf4-double", "int8"])
def test_a_quantised_base_has_the_same_shapes(kind, device, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from tests.method.test_quantised import load

    full = tiny_llama(vocab_size=128, hidden_size=64, intermediate_size=128, head_dim=16).eval()
    full.save_pretrained(tmp_path / "base")
    quantised = load(tmp_path / "base", kind, device)
    described = describe_base(quantised)
    assert described.linears == describe_base(full).linears and described.head == "lm_head"
    moved(get_peft_model(full, slim(target_modules=["q_proj", "up_proj"]))).save_pretrained(tmp_path / "slim")
    adapter = open_adapter(Folder(tmp_path / "slim"), described)
    model = attach(quantised, adapter, "theirs")
    reference = PeftModel.from_pretrained(load(tmp_path / "base", kind, device), tmp_path / "slim")
    ids = IDS.to(device)
    assert torch.equal(logits(model, ids), logits(reference, ids))


def test_looking_through_adapters_shows_the_same_base(good_slim):
    base = build("llama")
    plain = describe_base(base)
    model = attach(base, open_adapter(Folder(good_slim), plain), "one")
    assert describe_base(model) == plain and list(describe_base(model).linears) == list(plain.linears)


def test_a_base_is_described_without_its_weights(tmp_path):
    model = build("gpt2")
    model.config.save_pretrained(tmp_path)
    described = base_from_config(str(tmp_path))
    assert described.linears == describe_base(model).linears and described.others == describe_base(model).others
    assert described.head == "lm_head" and described.name == str(tmp_path) and described.family == "gpt2"
    assert described.linears["transformer.h.0.attn.c_attn"] == (32, 96)  # Conv1D keeps its weight turned


@pytest.mark.parametrize("changes", SLIMS.values(), ids=SLIMS)
def test_the_layout_is_the_methods_own(changes, tmp_path):
    """Names, shapes and dtypes of everything that SLIM saves, and nothing else."""
    model = get_peft_model(build("llama"), slim(**changes))
    model.save_pretrained(tmp_path)
    made, base = model.peft_config["default"], describe_base(model)
    layout = expected_layout(made, adapted_linears(made, base), base)
    saved = load_file(tmp_path / WEIGHTS)
    assert {name: tuple(t.shape) for name, t in saved.items()} == {name: e.shape for name, e in layout.items()}
    short = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}
    assert all(short[saved[name].dtype] in expected.dtypes for name, expected in layout.items())


@pytest.mark.parametrize("order", [1, -1])
def test_an_upload_is_a_folders_files_in_any_order(order, good_lora, tmp_path):
    paths = [good_lora / CONFIG, good_lora / WEIGHTS, tmp_path / "training_args.bin", tmp_path / "README.md"][::order]
    adapter = open_adapter(Upload.of(paths), describe_base(build("llama")), label="  My \u202eLoRA\n" + "x" * 99)
    assert adapter.label == ("My LoRA " + "x" * 99)[:60]
    assert (adapter.kind, adapter.parameters, adapter.detail) == ("lora", 1024 - 128, "rank 4")
    assert adapter.bytes == (good_lora / WEIGHTS).stat().st_size


def test_the_private_copy_no_longer_depends_on_the_upload(good_lora, tmp_path):
    folder = shutil.copytree(good_lora, tmp_path / "upload")
    adapter = open_adapter(Folder(folder), describe_base(build("llama")))
    kept = adapter.tensors()
    (folder / WEIGHTS).write_bytes(b"changed")
    assert all(torch.equal(t, kept[name]) for name, t in adapter.tensors().items())
    assert adapter.folder.stat().st_mode & 0o077 == 0


def test_nothing_of_the_file_but_what_is_allowed_reaches_the_config(good_lora, tmp_path):
    folder = shutil.copytree(good_lora, tmp_path / "upload")
    raw = {"revision": "x" * 40, "peft_version": "9", "base_model_name_or_path": "evil/x", "inference_mode": False}
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama.modeling_llama"}
    config(**raw, auto_mapping=mapping, eva_config={"rho": 2.0}, fan_in_fan_out=True, new_field=None)(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter = open_adapter(Folder(folder), describe_base(build("llama")))
    made = adapter.config.to_dict()
    assert made["revision"] is made["base_model_name_or_path"] is made["auto_mapping"] is made["eva_config"] is None
    assert made["inference_mode"] is True and made["init_lora_weights"] is True


def test_checks_come_one_by_one_and_may_be_left(good_lora, private):
    running = check(Folder(good_lora), describe_base(build("llama")))
    assert next(running).name == "readable" and len(private_folders(private)) == 1
    running.close()
    assert not private_folders(private)


def test_without_a_base_the_rest_is_checked(good_lora, tmp_path):
    *_, fits, _, _, ready = check(Folder(good_lora), None)
    assert fits.state == "warning" and "no base model" in fits.sentence and ready.adapter.targets == ()
    folder = shutil.copytree(good_lora, tmp_path / "bad")
    tensors(lambda saved: {k: t * float("nan") for k, t in saved.items()})(folder)
    assert list(check(Folder(folder), None))[-1].state == "failed"


def test_a_router_that_cannot_have_learned_is_marked(tmp_path):
    save_slim(tmp_path, top_k=1)
    adapter = open_adapter(Folder(tmp_path), describe_base(build("llama")))
    assert len(adapter.warnings) == 1 and "`top_k` is 1" in adapter.warnings[0]


# Fields that change nothing, and what is said of them.
HARMLESS = [
    ({"exclude_modules": ""}, None),
    ({"unsloth_version": "2026.1", "trl_version": 1}, "were ignored: 'trl_version', 'unsloth_version'"),
    ({"new_config": {"a": None, "b": {"c": []}}}, "were ignored: 'new_config'"),
    ({"modules_to_save": ["score", "classifier"]}, "`modules_to_save` names 'classifier', 'score', which was ignored"),
]


@pytest.mark.parametrize(("changes", "said"), HARMLESS, ids=range(len(HARMLESS)))
def test_what_changes_no_answer_is_ignored_and_said(changes, said, good_lora, tmp_path):
    folder = shutil.copytree(good_lora, tmp_path / "theirs")
    config(**changes)(folder)
    adapter = open_adapter(Folder(folder), describe_base(build("llama")))
    assert [said in sentence for sentence in adapter.warnings] == ([] if said is None else [True])
    same_as_peft(folder, lambda: build("llama"))


def test_a_snapshot_in_the_hubs_cache_is_read_through_its_links(good_lora, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "abc", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copy(good_lora / name, blobs / name[:9])
        (snapshot / name).symlink_to(f"../../blobs/{name[:9]}")
    assert open_adapter(Folder(snapshot), describe_base(build("llama"))).kind == "lora"
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(good_lora / WEIGHTS)
    assert f"`{WEIGHTS}` is a link" in list(check(Folder(snapshot), None))[-1].sentence


def test_a_folder_around_an_adapter_says_where_it_is(good_lora, tmp_path):
    shutil.copytree(good_lora, tmp_path / "run" / "checkpoints" / "checkpoint-20")
    sentence = list(check(Folder(tmp_path / "run"), None))[-1].sentence
    assert "has no `adapter_config.json` itself but an adapter in " in sentence
    assert sentence.endswith("run/checkpoints/checkpoint-20'; name that folder.")


def test_the_same_model_in_a_folder_and_on_the_hub_is_no_other_base(good_lora, tmp_path):
    folder = shutil.copytree(good_lora, tmp_path / "upload")
    config(base_model_name_or_path="someone/Tiny-Llama")(folder)
    base = describe_base(build("llama"), "/models/tiny-llama/")
    assert all(result.state == "passed" for result in check(Folder(folder), base))


def test_a_default_without_a_family_is_a_sentence(good_lora, tmp_path):
    folder = shutil.copytree(good_lora, tmp_path / "upload")
    raw = json.loads((folder / CONFIG).read_text()) | {"target_modules": None}
    (folder / CONFIG).write_text(json.dumps(raw))
    base = build("llama")
    base.config.model_type = "homemade"
    last = list(check(Folder(folder), describe_base(base)))[-1]
    assert last.state == "failed" and "`target_modules` is not set and has no default" in last.sentence

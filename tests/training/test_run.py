# SPDX-License-Identifier: Apache-2.0
"""Whole runs: what they leave behind, that methods get the same data, and that a crash or Ctrl-C loses nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from typer.testing import CliRunner

import slim_core  # noqa: F401  (registers SLIM with PEFT)
from slim_core.cli import app
from slim_core.training import Columns, TrainingError, TrainSettings, train
from slim_core.training.base import load_base
from slim_core.training.report import TrainingRecord
from slim_core.training.trainer import SlimTrainer
from tests.conftest import real_data, require_stories
from tests.training.conftest import PAIRS, settings, write_jsonl


class Crash(Exception):
    pass


class At(TrainerCallback):
    """Raises at the end of a step."""

    def __init__(self, step: int, error: type[BaseException] | BaseException) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise self.error


class Signal(TrainerCallback):
    """A Ctrl-C in the middle of a step, the third unless another is named."""

    def __init__(self, at: int = 3):
        self.at = at

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.at - 1:
            os.kill(os.getpid(), 2)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys() and a
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory) -> Path:
    """A finished SLIM run of six steps, over more than one epoch."""
    folder = tmp_path_factory.mktemp("whole")
    data = write_jsonl(folder / "pairs.jsonl", [{"prompt": q, "completion": a} for q, a in PAIRS])
    losses = {"slim": {"num_clusters": 4, "l1_coefficient": 0.01, "balance_coefficient": 0.01}}
    train(settings(base, data, folder / "out", batch_size=6, **losses))
    return folder


def again(base: Path, whole: Path, output: Path, **changes) -> TrainSettings:
    """The same run elsewhere."""
    losses = {"slim": {"num_clusters": 4, "l1_coefficient": 0.01, "balance_coefficient": 0.01}}
    return settings(base, whole / "pairs.jsonl", output, batch_size=6, **(losses | changes))


# -- what a run leaves behind ------------------------------------------------------------------------------------


def test_the_folder_holds_an_adapter_a_card_and_a_record_and_no_pickle(whole):
    names = {path.name for path in (whole / "out").rglob("*")}
    assert names == {
        *("adapter_config.json", "adapter_model.safetensors", "README.md", "training.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }


def test_the_record_says_what_was_done(whole):
    record = json.loads((whole / "out" / "training.json").read_text())
    data = (whole / "pairs.jsonl").read_bytes()
    assert (record["status"], record["interrupted"], record["method"]) == ("finished", False, "slim")
    assert (record["steps"], record["total_steps"], record["device"]) == (6, 6, "cpu")
    assert record["arguments"]["learning_rate"] == 0.01 and record["arguments"]["slim"]["num_clusters"] == 4
    (source,) = record["data"]["sources"]
    assert (source["name"], source["records"], source["too_long"]) == ("pairs.jsonl", 24, 0)
    assert source["sha256"] == hashlib.sha256(data).hexdigest()
    assert record["data"]["train"]["examples"] == 22 and record["data"]["validation"]["examples"] == 2
    assert record["data"]["template"] == "fallback"
    assert record["versions"]["torch"] == torch.__version__ and record["versions"]["peft"]
    assert record["validation_loss_after"] < record["validation_loss_before"] - 0.02
    steps = [entry for entry in record["curves"] if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "loss_l1", "loss_balance", "identity_share", "distance"} <= steps[-1].keys()
    assert 0 <= steps[-1]["identity_share"] <= 1 and record["seconds"] > 0 and record["trainable_parameters"] > 1000


def test_the_card_tells_the_hub_and_the_reader(whole):
    card = (whole / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n") and "- slim\n" in card
    assert "pairs.jsonl (22 examples, 6 steps of 6, learning rate 0.01, seed 42)" in card
    assert "import slim_core" in card and "| slim |" in card


def test_the_saved_adapter_reloads_with_its_tensors_and_its_template(whole, base):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), whole / "out").eval()
    state = model.state_dict()
    for name, tensor in weights(whole / "out").items():
        head, _, last = name.rpartition(".")
        assert torch.equal(state[f"{head}.{last}.default"], tensor), name
    # The fallback template goes with the adapter.
    tokenizer = AutoTokenizer.from_pretrained(whole / "out")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "### Instruction:\nx\n\n### Response:\n"


def test_the_reloaded_adapter_computes_what_the_trained_one_did_bit_for_bit(base, pairs, tmp_path):
    seen = {}
    ids = torch.arange(5, 25)[None]

    class Keep(TrainerCallback):
        def on_train_end(self, args, state, control, model, **kwargs):
            with torch.no_grad():
                seen["logits"] = model.eval()(input_ids=ids).logits

    train(settings(base, pairs, tmp_path / "out", max_steps=2), callbacks=[Keep()])
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, seen["logits"])


def test_the_same_seed_gives_the_same_adapter_and_another_gives_another(whole, base, tmp_path):
    train(again(base, whole, tmp_path / "same"))
    train(again(base, whole, tmp_path / "other", seed=7))
    assert_equal(weights(tmp_path / "same"), weights(whole / "out"))
    assert not torch.equal(*(next(iter(weights(f).values())) for f in (tmp_path / "other", whole / "out")))


# -- a fair comparison -------------------------------------------------------------------------------------------


def test_methods_see_the_same_batches_in_the_same_order_and_have_the_same_rank(base, pairs, tmp_path, monkeypatch):
    seen: dict[str, list[bytes]] = {}
    step = SlimTrainer.training_step

    def spy(self, model, inputs, *args):
        seen.setdefault(Path(self.args.output_dir).parent.name, []).append(inputs["input_ids"].numpy().tobytes())
        return step(self, model, inputs, *args)

    monkeypatch.setattr(SlimTrainer, "training_step", spy)
    out = io.StringIO()
    asked = settings(base, pairs, tmp_path / "out", methods=["lora", "dora", "slim"], micro_batch=2)
    outcome = train(asked, Console(file=out, width=150))
    assert [record.method for record in outcome.records] == ["lora", "dora", "slim"]
    assert seen["lora"] == seen["dora"] == seen["slim"]
    # 22 examples are eleven forwards of two, and an epoch of six steps.
    assert len(seen["slim"]) == len(set(seen["slim"])) == 11
    configs = {m: json.loads((tmp_path / "out" / m / "adapter_config.json").read_text()) for m in seen}
    assert configs["slim"]["r"] * configs["slim"]["num_experts"] == configs["lora"]["r"] == configs["dora"]["r"] == 8
    assert configs["lora"]["lora_alpha"] / 8 == configs["slim"]["alpha"] / 2 == 2
    assert configs["dora"]["use_dora"] and not configs["lora"]["use_dora"]
    assert len({tuple(sorted(c["target_modules"])) for c in configs.values()}) == 1
    assert "Same data, same order" in out.getvalue()
    before = {record.validation_loss_before for record in outcome.records}
    assert max(before) - min(before) < 1e-5
    table = (tmp_path / "out" / "comparison.md").read_text()
    assert all(f"| {method} |" in table for method in seen)
    assert out.getvalue().count("as the model sees it") == 1


# -- crash, resume, Ctrl-C ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 4, 5])
def test_a_run_resumed_after_a_crash_ends_bit_for_bit_as_one_that_was_not(step, whole, base, tmp_path):
    # An epoch has four steps: the crash is within the first, at its end, and within the second.
    asked = again(base, whole, tmp_path / "out", save_every=1)
    with pytest.raises(Crash):
        train(asked, callbacks=[At(step + 1, Crash)])
    assert json.loads((tmp_path / "out" / "training.json").read_text())["status"] == "running"
    (checkpoint,) = (tmp_path / "out" / "checkpoints").iterdir()
    assert checkpoint.name == f"checkpoint-{step}"
    assert not [path for path in checkpoint.iterdir() if path.name == "training_args.bin"]
    outcome = train(again(base, whole, tmp_path / "out", save_every=1, resume=True))
    assert_equal(weights(tmp_path / "out"), weights(whole / "out"))
    assert not (tmp_path / "out" / "checkpoints").exists()
    theirs = TrainingRecord.load(whole / "out")
    assert outcome.records[0].validation_loss_after == theirs.validation_loss_after
    ours = [(e["step"], e["loss"]) for e in outcome.records[0].curves if "loss" in e]
    assert ours == [(e["step"], e["loss"]) for e in theirs.curves if "loss" in e]


def test_ctrl_c_ends_after_the_step_saves_and_the_run_goes_on_as_if_nothing_had_been(whole, base, tmp_path):
    asked = again(base, whole, tmp_path / "out")
    outcome = train(asked, callbacks=[Signal()])
    assert outcome.interrupted and outcome.resumable
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (record["status"], record["interrupted"], record["steps"]) == ("interrupted", True, 3)
    assert record["curves"][-1]["step"] == 3
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    assert "interrupted" in (tmp_path / "out" / "README.md").read_text()
    outcome = train(again(base, whole, tmp_path / "out", resume=True))
    assert not outcome.interrupted and outcome.records[0].steps == 6
    assert_equal(weights(tmp_path / "out"), weights(whole / "out"))


def test_ctrl_c_in_the_last_step_loses_nothing_and_no_other_method_begins(base, pairs, tmp_path):
    asked = settings(base, pairs, tmp_path / "out", methods=["lora", "slim"])
    outcome = train(asked, callbacks=[Signal(at=6)])
    assert [record.status for record in outcome.records] == ["finished"]
    assert outcome.interrupted and outcome.asked_to_end and outcome.resumable
    assert not (tmp_path / "out" / "slim").exists()
    asked = settings(base, pairs, tmp_path / "out", methods=["lora", "slim"], resume=True)
    outcome = train(asked)
    assert [record.status for record in outcome.records] == ["finished", "finished"]
    assert not outcome.interrupted and not outcome.asked_to_end


def test_ctrl_c_in_the_last_step_of_all_does_not_interrupt(base, pairs, tmp_path):
    outcome = train(settings(base, pairs, tmp_path / "out"), callbacks=[Signal(at=6)])
    assert not outcome.interrupted and outcome.asked_to_end
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_second_ctrl_c_saves_what_there_is(base, pairs, tmp_path):
    outcome = train(settings(base, pairs, tmp_path / "out"), callbacks=[At(2, KeyboardInterrupt)])
    assert outcome.interrupted and not outcome.resumable and outcome.records[0].steps == 2
    assert json.loads((tmp_path / "out" / "training.json").read_text())["interrupted"] is True
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")


def test_an_interrupted_comparison_resumes_where_it_was(base, pairs, tmp_path):
    class SecondMethod(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if "slim" in args.output_dir and state.global_step == 2:
                os.kill(os.getpid(), 2)

    both = {"methods": ["lora", "slim"]}
    outcome = train(settings(base, pairs, tmp_path / "out", **both), callbacks=[SecondMethod()])
    assert [record.status for record in outcome.records] == ["finished", "interrupted"]
    before = (tmp_path / "out" / "lora" / "training.json").stat().st_mtime_ns
    outcome = train(settings(base, pairs, tmp_path / "out", resume=True, **both))
    assert [record.status for record in outcome.records] == ["finished", "finished"]
    assert (tmp_path / "out" / "lora" / "training.json").stat().st_mtime_ns == before


def test_resuming_with_other_settings_or_data_or_nothing_is_a_sentence(base, pairs, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match="There is no run to resume in"):
        train(settings(base, pairs, out, resume=True))
    train(settings(base, pairs, out), callbacks=[Signal()])
    with pytest.raises(TrainingError, match=r"The folder .* is not empty; choose another --output, or pass --resume"):
        train(settings(base, pairs, out))
    with pytest.raises(TrainingError, match=r"had learning_rate = 0\.01, now it is 0\.02; pass the same settings"):
        train(settings(base, pairs, out, resume=True, learning_rate=0.02))
    pairs.write_text(pairs.read_text().replace("seven", "eight"), encoding="utf-8")
    with pytest.raises(TrainingError, match="The data have changed since the run to resume began"):
        train(settings(base, pairs, out, resume=True))


def test_a_run_may_begin_where_another_ended_before_its_first_file(whole, base, tmp_path):
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    train(again(base, whole, tmp_path / "out"))
    assert_equal(weights(tmp_path / "out"), weights(whole / "out"))


def test_half_a_checkpoint_and_a_linked_one_are_not_resumed(whole, base, tmp_path):
    asked = again(base, whole, tmp_path / "out", save_every=2)
    with pytest.raises(Crash):
        train(asked, callbacks=[At(3, Crash)])
    checkpoints = tmp_path / "out" / "checkpoints"
    (checkpoints / "checkpoint-4").mkdir()
    (checkpoints / "checkpoint-4" / "adapter_model.safetensors").write_bytes(b"half")
    (checkpoints / "checkpoint-5").symlink_to(checkpoints / "checkpoint-2")
    out = io.StringIO()
    train(again(base, whole, tmp_path / "out", save_every=2, resume=True), Console(file=out))
    assert "slim continues from checkpoint-2." in out.getvalue()
    assert_equal(weights(tmp_path / "out"), weights(whole / "out"))


def test_a_run_that_crashed_before_its_first_checkpoint_begins_anew(whole, base, tmp_path):
    with pytest.raises(Crash):
        train(again(base, whole, tmp_path / "out"), callbacks=[At(1, Crash)])
    out = io.StringIO()
    train(again(base, whole, tmp_path / "out", resume=True), Console(file=out))
    assert "slim starts from the beginning: no checkpoint was written." in out.getvalue()
    assert_equal(weights(tmp_path / "out"), weights(whole / "out"))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError, MemoryError, RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_running_out_of_memory_is_a_sentence(error, base, pairs, tmp_path):
    with pytest.raises(TrainingError, match=r"ran out of memory while training slim; lower --micro-batch"):
        train(settings(base, pairs, tmp_path / "out"), callbacks=[At(1, error)])


def test_a_loss_that_is_no_number_ends_the_run_in_a_sentence(base, pairs, tmp_path):
    with pytest.raises(TrainingError, match=r"The loss is .* at step .*, so training has diverged; lower --learning-"):
        train(settings(base, pairs, tmp_path / "out", learning_rate=1e30, methods=["lora"]))


# -- bases -------------------------------------------------------------------------------------------------------


def test_a_4bit_base_is_not_repacked_by_an_evaluation_before_training(base, pairs, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = load_base(settings(base, pairs, tmp_path, four_bit=True)).eval()
    with torch.no_grad():
        model(input_ids=torch.arange(5, 15)[None])
    weights = [m.weight for m in model.modules() if hasattr(getattr(m, "weight", None), "quant_state")]
    assert len(weights) == 7
    assert not any(getattr(weight.quant_state, "packing_format_for_cpu", False) for weight in weights)


@pytest.mark.parametrize("method", ["slim", "dora"])
def test_a_4bit_base_is_trained_and_the_adapter_fits_the_whole_one(method, base, pairs, tmp_path):
    pytest.importorskip("bitsandbytes")
    asked = settings(base, pairs, tmp_path / "out", methods=[method], four_bit=True, gradient_checkpointing=True)
    outcome = train(asked)
    record = outcome.records[0]
    assert record.validation_loss_after < record.validation_loss_before - 0.02
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out").eval()
    assert model(input_ids=torch.arange(5, 15)[None]).logits.isfinite().all()


def test_gradient_checkpointing_changes_no_number(whole, base, tmp_path):
    train(again(base, whole, tmp_path / "out", gradient_checkpointing=True))
    ours, theirs = weights(tmp_path / "out"), weights(whole / "out")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_target_modules_that_do_not_exist_are_a_sentence(base, pairs, tmp_path):
    for method in ("slim", "lora"):
        with pytest.raises(TrainingError, match=f"The {method} adapter does not fit .*nowhere"):
            train(settings(base, pairs, tmp_path / method, methods=[method], target_modules=["nowhere"]))


@pytest.mark.real_data
def test_the_real_model_learns_from_real_data(tmp_path):
    problems = real_data("gsm8k/train.jsonl")
    data = tmp_path / "gsm8k.jsonl"
    data.write_text("".join(problems.read_text(encoding="utf-8").splitlines(keepends=True)[:40]), encoding="utf-8")
    columns = Columns(prompt="question", completion="answer")
    methods = ["lora", "slim"]
    out = tmp_path / "out"
    asked = settings(require_stories(), data, out, columns=columns, skip_long=True, max_length=256, methods=methods)
    for record in train(asked).records:
        assert record.validation_loss_after < record.validation_loss_before - 0.1
    assert record.last("identity_share") is not None
    # What was trained answers beside its base.
    adapters = [word for method in methods for word in (f"--{method}", str(out / method))]
    question = ["compare", "Once upon a time", "--base", str(require_stories()), "--max-new-tokens", "8", *adapters]
    result = CliRunner().invoke(app, question)
    assert result.exit_code == 0, result.output
    for words in ("Base", "LoRA", "SLIM", "share that bypasses LoRA"):
        assert words in result.output


def test_bf16_multiplies_in_bfloat16_around_a_float32_base(base, pairs, tmp_path):
    losses = {}
    for bf16 in (None, True):
        asked = settings(base, pairs, tmp_path / str(bf16), bf16=bf16)
        [record] = train(asked).records
        losses[bf16] = record.validation_loss_before
    assert losses[True] == pytest.approx(losses[None], rel=2e-2)
    assert losses[True] != losses[None]
    assert {t.dtype for t in load_file(tmp_path / "True" / "adapter_model.safetensors").values()} >= {torch.float32}

# SPDX-License-Identifier: Apache-2.0
"""SLIM's losses count once a step however it is cut into forwards, and the log says what the layers do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from slim_core import SlimConfig, extra_losses, trace_routing
from slim_core.training.arguments import training_arguments
from slim_core.training.collator import Collator
from slim_core.training.encoding import IGNORED, EncodedExample
from slim_core.training.trainer import SlimTrainer
from tests.conftest import build
from tests.training.conftest import settings


generator = torch.Generator().manual_seed(3)
EXAMPLES = [
    EncodedExample(
        ids := torch.randint(3, 99, (int(n),), generator=generator).tolist(), [IGNORED] * 2 + ids[2:], str(n)
    )
    for n in torch.randint(5, 15, (16,), generator=generator)
]


def trainer(folder: Path, config=None, **changes) -> SlimTrainer:
    # No masks and fixed clusters: then only the sum over the step's examples matters.
    slim = {"r": 2, "num_experts": 3, "num_clusters": 1, "init_weights": False, "merge": "none"}
    losses = {"l1_coefficient": 0.5, "balance_coefficient": 0.0}
    torch.manual_seed(0)
    model = get_peft_model(build("llama"), config or SlimConfig(**(slim | losses | changes.pop("slim", {}))))
    asked = settings(folder, folder, folder, **({"batch_size": 8, "max_steps": 2} | changes))
    return SlimTrainer(
        model=model,
        args=training_arguments(asked, folder, len(EXAMPLES), validate=False),
        train_dataset=EXAMPLES,
        eval_dataset=EXAMPLES[:5],
        data_collator=Collator(0),
        watched=EXAMPLES[:6],
    )


def gradients(made: SlimTrainer, rows: int) -> dict[str, torch.Tensor]:
    """Gradients of one step on the first eight examples, in forwards of `rows`, as the training loop adds them up."""
    batches = [made.data_collator(EXAMPLES[i : i + rows]) for i in range(0, 8, rows)]
    made.create_optimizer()
    samples, items = made.get_batch_samples(iter(batches), len(batches), made.args.device)
    made.current_gradient_accumulation_steps = len(samples)
    for batch in samples:
        made.training_step(made.model, batch, items)
    return {name: p.grad for name, p in made.model.named_parameters() if p.grad is not None}


def test_extra_losses_weigh_the_same_in_one_forward_as_in_two(tmp_path):
    # The L1 gradient is exactly the same in every forward, and rules here.
    big = {"l1_coefficient": 1e4}
    whole = gradients(trainer(tmp_path, slim=big), rows=8)
    halves = gradients(trainer(tmp_path, slim=big, micro_batch=4), rows=4)
    factors = [name for name in whole if "slim_A" in name or "slim_B" in name]
    assert len(factors) == 28
    for name in factors:
        torch.testing.assert_close(halves[name], whole[name], rtol=1e-2, atol=1e-2)
        assert whole[name].abs().max() > 5


def test_the_balance_loss_of_a_step_is_the_mean_over_its_forwards(tmp_path):
    made = trainer(tmp_path, slim={"l1_coefficient": 0.0, "balance_coefficient": 3.0}, micro_batch=4)
    losses = []
    for rows in (EXAMPLES[:4], EXAMPLES[4:8]):
        made.model.train()
        made.model(**made.data_collator(rows))
        losses.append(extra_losses(made.model)["balance"].item())
    gradients(made, rows=4)
    logged, after = {"loss": 0.0}, {"loss": 0.0}
    made.log(logged)
    # The clusters have slid between the two.
    assert logged["loss_balance"] == pytest.approx(sum(losses) / 2, rel=0.1)
    made.log(after)
    assert "loss_balance" not in after


def test_the_logged_loss_is_the_tasks_plus_slims(tmp_path):
    logs = {}
    for coefficient in (1e-9, 2.0):
        made = trainer(tmp_path, slim={"l1_coefficient": coefficient}, micro_batch=4)
        made.train()
        logs[coefficient] = made.state.log_history[0]
    small, large = logs[1e-9], logs[2.0]
    assert large["loss_l1"] == pytest.approx(2e9 * small["loss_l1"], rel=1e-4)
    assert large["loss"] - small["loss"] == pytest.approx(large["loss_l1"], rel=1e-3)


def test_identity_share_and_distance_are_those_of_the_first_four_watched_examples(tmp_path):
    made = trainer(tmp_path)
    made.train()
    logged = [entry for entry in made.state.log_history if "identity_share" in entry]
    assert len(logged) == 2
    made.model.eval()
    batch = made.data_collator(EXAMPLES[:4])
    del batch["labels"]
    with torch.no_grad(), trace_routing(made.model) as trace:
        made.model(**batch)
    rows = [trace.row(i) for i in range(4)]
    assert [row.identity.shape[1] for row in rows] == [len(e.input_ids) for e in EXAMPLES[:4]]
    for name in ("identity", "distance"):
        mean = torch.cat([getattr(row, name).flatten() for row in rows]).mean().item()
        shown = logged[-1]["identity_share" if name == "identity" else name]
        assert shown == pytest.approx(mean, rel=1e-4)


def test_watching_the_routing_changes_nothing_of_training(tmp_path):
    states = []
    for every in (1, 10):
        made = trainer(tmp_path, slim={"merge": "fast"}, log_every=every, max_steps=3)
        made.train()
        states.append(made.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_validation_loss_is_the_mean_over_answer_tokens_at_any_batch_size(rows, tmp_path):
    made = trainer(tmp_path, batch_size=rows)
    measured = made.evaluate()["eval_loss"]
    made.model.eval()
    losses = []
    for example in EXAMPLES[:5]:
        logits = made.model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1]
        losses.append(cross_entropy(logits, torch.tensor(example.labels[1:]), reduction="none")[1:])
    assert measured == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


@pytest.mark.parametrize("steps,warmup", [(1, 0), (33, 0), (34, 1), (1000, 30)])
def test_the_rate_warms_up_for_three_percent_of_the_steps(steps, warmup, tmp_path):
    asked = settings(tmp_path, tmp_path, tmp_path, max_steps=steps)
    assert training_arguments(asked, tmp_path, examples=99, validate=False).warmup_steps == warmup
    by_epochs = settings(tmp_path, tmp_path, tmp_path, max_steps=None, epochs=steps / 2, batch_size=16)
    assert training_arguments(by_epochs, tmp_path, examples=32, validate=False).warmup_steps == warmup


def test_a_lora_is_trained_without_slims_losses_and_routing(tmp_path):
    made = trainer(tmp_path, LoraConfig(r=2, target_modules="all-linear"))
    made.train()
    assert not {"loss_l1", "identity_share", "distance"} & {key for e in made.state.log_history for key in e}


def test_disels_gates_have_a_rate_of_their_own_and_no_weight_decay(tmp_path):
    from slim_core.baselines import METHODS
    from slim_core.baselines.disel import DiselConfig

    config = DiselConfig(r=4, gate_rate=5.0, target_modules=["q_proj"])
    made = trainer(tmp_path, config)
    made._rates = METHODS["disel"].rates(config)
    made.args.weight_decay = 0.1
    optimizer = made.create_optimizer()
    made.create_scheduler(10, optimizer)
    names = {id(p): name for name, p in made.model.named_parameters()}
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen[names[id(parameter)]] = (group["initial_lr"] / made.args.learning_rate, group["weight_decay"])
    assert len(seen) == sum(p.requires_grad for p in made.model.parameters())
    for name, (rate, decay) in seen.items():
        gate = "disel_gate" in name
        assert rate == pytest.approx(5 if gate else 1) and decay == (0 if gate else 0.1), name

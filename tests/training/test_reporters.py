# SPDX-License-Identifier: Apache-2.0
"""What a run cannot report to is said before it begins, with what there is."""

from __future__ import annotations

import pytest
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from typer.testing import CliRunner

from slim_core.cli import app
from slim_core.training import TrainingError, train
from slim_core.training.reporters import check_report_to
from tests.training.conftest import settings


LISTED = "slim_core.training.reporters.get_available_reporting_integrations"
REFUSED = [
    (["wandb"], "--report-to wandb is not installed (installed here: tensorboard); install its package, or leave"),
    (["tensorboard", "mlflow"], "--report-to mlflow is not installed (installed here: tensorboard)"),
    (["flyte"], "--report-to flyte is not installed (installed here: tensorboard)"),
    (["tensorbord"], "--report-to 'tensorbord' does not exist (installed here: tensorboard); there are azure_ml, "),
    (["TensorBoard"], "--report-to 'TensorBoard' does not exist (installed here: tensorboard)"),
    ([""], "--report-to '' does not exist (installed here: tensorboard)"),
    (["a\nb"], "--report-to 'a\\nb' does not exist (installed here: tensorboard)"),
    (["none", "tensorboard"], "--report-to none must be used alone; leave out the others."),
    (["tensorboard", "all"], "--report-to all must be used alone; leave out the others."),
]


@pytest.mark.parametrize("names,sentence", REFUSED)
def test_what_is_not_there_is_refused_with_what_is(names, sentence, monkeypatch):
    monkeypatch.setattr(LISTED, lambda: ["tensorboard"])
    with pytest.raises(TrainingError) as caught:
        check_report_to(names)
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [[], ["tensorboard"], ["all"], ["none"], ["tensorboard", "tensorboard"]])
def test_what_is_there_is_not(names, monkeypatch):
    monkeypatch.setattr(LISTED, lambda: ["tensorboard"])
    check_report_to(names)


def test_the_command_says_it_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(LISTED, lambda: [])
    flags = ["--base", "missing", "--data", "missing", "--output", str(tmp_path / "out"), "--report-to", "tensorboard"]
    result = CliRunner().invoke(app, ["train", *flags])
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("Error: --report-to tensorboard is not installed (installed here: none)")
    assert not (tmp_path / "out").exists()


class Unusable(TrainerCallback):
    """An integration that fails as it is made, or as training begins."""

    when = "made"

    def __init__(self) -> None:
        if self.when == "made":
            raise RuntimeError("no key\nmore")

    def on_train_begin(self, args, state, control, **kwargs):
        raise ValueError("no key\nmore")


@pytest.mark.parametrize("when", ["made", "begun"])
def test_an_integration_that_is_not_set_up_is_a_sentence(when, base, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(LISTED, lambda: ["wandb"])
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "wandb", Unusable)
    monkeypatch.setattr(Unusable, "when", when)
    with pytest.raises(TrainingError, match=r"^Training cannot begin with --report-to wandb: no key; set it up, or l"):
        train(settings(base, pairs, tmp_path / "out", report_to=["wandb"]))


def test_all_where_there_is_none_trains(base, pairs, tmp_path):
    assert train(settings(base, pairs, tmp_path / "out", max_steps=1, report_to=["all"])).records

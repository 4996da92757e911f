# SPDX-License-Identifier: Apache-2.0
"""Adapters of other methods as columns of the page: uploaded, named, asked, and with a router's weights or none."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import get_peft_model

from slim_core.adapters import Folder, Limits
from slim_core.base.messages import Message
from slim_core.baselines import KINDS
from slim_core.evaluation.marking import Expected
from slim_core.evaluation.tasks import Request, Task
from slim_core.inference import Sampling
from slim_core.webui.backend import Backend
from slim_core.webui.state.columns import columns
from slim_core.webui.state.evaluation_run import VisitorEvaluation
from slim_core.webui.state.session import Session, Turn
from slim_core.webui.state.wizard import Wizard
from slim_core.webui.wire import exchange, payload, views
from slim_core.webui.wire.evaluation import Evaluations, tab_view
from slim_core.webui.wire.stream import start
from slim_core.webui.words import base_name
from tests.baselines.small import configured, stir
from tests.inference.conftest import engine, folders, tiny_base
from tests.waiting import until


__all__ = ["engine", "folders"]
# Name, and what the page calls it.
ROUTED = ("loramoe", "mixlora", "mola")
NAMES = {method.name: method.title for method in KINDS.values()}


@pytest.fixture
def backend(engine) -> Backend:
    return Backend(engine)


def upload(backend: Backend, kind: str, folder) -> Wizard:
    base = tiny_base()
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, configured(kind, base))
    stir(model)
    model.save_pretrained(folder)
    checking = Wizard(backend.visitor_adapters, "ann", Folder(folder), "Mine", Limits(weights_bytes=10**7))
    for _ in checking.run():
        pass
    return checking


def tasks() -> list[Task]:
    requests = [Request((Message("user", f"The capital, {i}?"),), Expected(("a",))) for i in range(8)]
    return [
        Task(name, name, kind, "written", tuple(requests), max_new_tokens=3)
        for name, kind in (("learned", "downstream"), ("known", "general"))
    ]


def test_an_evaluation_asks_an_upload_and_keeps_what_it_answered_before_a_stop(backend, tmp_path, monkeypatch):
    session = Session()
    session.owner = "ann"
    session.own_variants["lora"] = upload(backend, "disel", tmp_path).variant
    solve, runs = backend.solve, {}
    for units in (4, 1):  # of four questions each, of which there are 16
        evaluation, solved = VisitorEvaluation(), []

        def counted(job, evaluation=evaluation, solved=solved, units=units):
            solved.append(solve(job))
            if len(solved) == units:
                evaluation.run.stop()
            return solved[-1]

        monkeypatch.setattr(backend, "solve", counted)
        run = runs[units] = Evaluations(backend).start(session, evaluation, tasks())
        until(run.ended.is_set)
        assert run.note == "" and [p.respondent.column for p in run.participants] == ["base", "Mine", "SLIM"]
        view = tab_view(evaluation)
        assert (view["done"], view["total"], view["running"]) == (4 * units, 16, False)
        assert view["groups"][0]["labels"] == ["Base", "Mine", "SLIM"]
    assert runs[1].samples == {"learned": runs[4].samples["learned"][:4], "known": []}
    # The answers are the upload's own, and not those of the LoRA whose column it has.
    session.own_variants.clear()
    run = Evaluations(backend).start(session, VisitorEvaluation(), tasks())
    until(run.ended.is_set)
    mine, theirs = (
        [[sample["answers"][name]["text"] for sample in samples["learned"]] for name in ("base", column, "SLIM")]
        for samples, column in ((runs[4].samples, "Mine"), (run.samples, "LoRA"))
    )
    assert mine[0] == theirs[0] and mine[2] == theirs[2] and mine[1] not in (mine[0], theirs[1])


@pytest.mark.parametrize("kind", NAMES)
def test_an_upload_is_a_column_with_an_answer_and_what_its_router_does(kind, backend, tmp_path):
    checking = upload(backend, kind, tmp_path)
    rows = checking.view()["rows"]
    assert [row["state"] for row in rows] == ["passed"] * 7, rows
    assert rows[-1]["sentence"].startswith(f"{NAMES[kind]}, ")
    session = Session()
    session.owner = "ann"
    session.own_variants["lora"] = checking.variant
    turn = Turn(session.next_id(), "What is the capital of Peru?", "", {})
    session.turns.append(turn)
    shown = list(columns(session, backend))
    run = start(backend, session, turn, shown, Sampling(max_new_tokens=3), batched=True)
    until(run.ended.is_set)
    answers = turn.answers
    assert all(answer.step.error is None for answer in answers.values())
    record = answers["lora"].routing
    assert (record is not None) == (kind in ROUTED) and answers["slim"].routing is not None
    column = next(c for c in views.transcript(session, backend)["columns"] if c["name"] == "lora")
    assert (column["kind"], column["what"], column["own"]) == (kind, NAMES[kind], True)
    card = next(c for c in views.shelf(session, backend) if c["name"] == "lora")
    assert card["what"] == NAMES[kind] and card["warnings"] == []
    assert views.routing(session, backend)["column"] == "slim"
    # A conversation that was saved with it can be read again.
    path = tmp_path / "saved.json"
    path.write_text(exchange.dump(session, backend), encoding="utf-8")
    base = base_name(backend.engine.info)
    (again,), _ = exchange.load(path, base, columns(session, backend), 10**8, session.next_id)
    read = again.answers["lora"].routing
    assert again.answers["lora"].variant.kind == kind and (read is not None) == (record is not None)
    assert read is None or (read.among_experts and payload.share_name(read) == "largest expert")
    session.shown = "lora"
    routing = views.routing(session, backend)
    sentence = f"{NAMES[kind]} has no identity experts, so no token can bypass it: "
    if record is None:
        assert routing["data"] is None and routing["empty"].startswith(sentence)
        assert routing["empty"].endswith(". Choose SLIM to see a routing.")
        return
    assert routing["empty"] == "" and routing["note"].startswith(sentence) and "verdict" not in routing["data"]
    data = routing["data"]
    assert (data["share"], data["gated"], data["experts"]) == ("largest expert", False, data["all_experts"])
    assert min(data["bars"]["both"]) > 0.2 and sum(data["use"]["both"]) == pytest.approx(1, abs=1e-3)
    assert len(data["tokens"]) > data["prompt_tokens"] > 0
    detail = payload.token_detail(record, 1)
    assert detail["share"] == "largest expert"
    assert all(row["share"] == max(row["weights"]) and row["cluster"] == -1 for row in detail["rows"])

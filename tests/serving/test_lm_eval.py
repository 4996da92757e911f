# SPDX-License-Identifier: Apache-2.0
"""lm-evaluation-harness over HTTP finds what it finds when it runs the model itself."""

from __future__ import annotations

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.evaluation.test_solving import DOCS, files, whole
from tests.event_loop import in_new_thread
from tests.serving.conftest import KEY


__all__ = ["files"]


def test_the_same_as_without_a_server(serve, real_engine, folders, files, monkeypatch):
    pytest.importorskip("tenacity", reason='needs pip install "lm-eval[api]"')
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(files), include_defaults=False)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders.base), folders.slim).eval()
    models = [
        HFLM(pretrained=plain, tokenizer=AutoTokenizer.from_pretrained(folders.base), max_length=256),
        LocalCompletionsAPI(
            model="slim",
            base_url=f"{serve(real_engine, key=KEY).url}/completions",
            tokenizer=str(folders.base),
            max_length=256,
            batch_size=2,
            num_concurrent=2,
        ),
    ]

    def evaluate(model):
        return lm_eval.simple_evaluate(
            model=model, tasks=["choice", "written"], task_manager=manager, log_samples=True, bootstrap_iters=0
        )["samples"]

    alone, served = (in_new_thread(evaluate, model) for model in models)
    for task in ("choice", "written"):
        pairs = [sorted(found[task], key=lambda sample: sample["doc_id"]) for found in (alone, served)]
        for here, there in zip(*pairs, strict=True):
            if task == "written":
                assert whole(there["resps"][0][0]) == whole(here["resps"][0][0])
                continue
            for ours, theirs in zip(there["filtered_resps"], here["filtered_resps"], strict=True):
                assert float(ours[0]) == pytest.approx(float(theirs[0]), abs=1e-3) and ours[1] == theirs[1]
            assert (there["acc"], there["acc_norm"]) == (here["acc"], here["acc_norm"])
        assert len(pairs[1]) == len(DOCS)

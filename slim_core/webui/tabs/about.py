# SPDX-License-Identifier: Apache-2.0
"""The About tab: what SLIM is, the paper, versions."""

from __future__ import annotations

import platform
from base64 import b64encode
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import gradio as gr

from ...paths import ASSETS
from ..backend import Backend
from ..components import canvas, fixed
from ..page import Page
from ..ready import FIGURE
from ..state.columns import columns
from ..state.session import Session
from ..words import measure_rows


TEXT = """
## What you see here

Fine-tuning a language model on a task makes it worse at everything else. **SLIM** lets it learn more and forget less:

- Each adapted Linear keeps its frozen weights and gets a few small **LoRA experts** and **identity experts**, which
  add nothing. A **router** sends each token to the best few of them.
- Single tokens cannot tell a familiar task from an unfamiliar one: most words of any prompt occur in training. The
  **context** does: the running mean of what a Linear has read since the last user turn began.
- While training, **clusters** slide along with the contexts and remember what training looks like. The **distance**
  of a context from the nearest one says how unlike the training data it is; below 0 it is close to the centre of a
  cluster. Up to a **reference**, within which nearly all of the training data lie, it counts as like the training
  data.
- Beyond the reference the **gate** closes: it multiplies the weights of the LoRA experts by 1 − **strength** ×
  (distance − reference), but never by less than 0. Where it is 0, the Linear's output is the base's, bit for bit.
- A table here shows how the loaded adapter measures the distance, and which routers its gate follows.
- So a prompt like the training data is answered by the LoRA experts, and any other by the base model. Where every gate
  was 0 at every token, the answer is the base's **by construction**. Open the gate under Compare to see what it keeps.
- **Dynamic merging** drops random rows and columns of the experts, so that the model does not rely on single ones.
- All three columns here are rows of one batch on one copy of the base model, with the same random numbers.
- **Identity share** is the share that went past LoRA; **drift** is how much less likely a variant finds the base's
  answer.
- SLIM adapters of format 1 have no gate: they route each token by itself, so there is no verdict.

The method is from Han et al., *SLIM: Let LLM Learn More and Forget Less with Soft LoRA and Identity Mixture*,
[NAACL 2025](https://aclanthology.org/2025.naacl-long.246). The authors published no code; this is an
independent implementation.
"""
ALT = "One Linear with SLIM: a context like the training data goes to LoRA experts, one unlike it to identity experts"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "gradio")


def build(page: Page, tab: gr.Tab) -> None:
    """Build the tab's layout."""
    image = b64encode((ASSETS / FIGURE).read_bytes()).decode("ascii")
    with gr.Row(equal_height=False, elem_id="slim-about"):
        with gr.Column(min_width=320):
            gr.Markdown(TEXT)
        with gr.Column(min_width=320):
            fixed(
                '<img class="slim-picture" src="data:image/svg+xml;base64,{{image}}" alt="{{alt}}">',
                image=image,
                alt=ALT,
            )
            versions = {"title": "Versions", "rows": [["Python", platform.python_version()], *_versions()]}
            facts = canvas("facts", [*_measures(Session(), page.backend), versions])
    tab.select(
        lambda session: [*_measures(session, page.backend), versions],
        [page.session],
        [facts],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )


def _measures(session: Session, backend: Backend) -> list[dict[str, Any]]:
    """A table for each loaded SLIM adapter: how it measures the distance."""
    variants = columns(session, backend).values()
    return [
        {"title": f"How {v.label} measures", "rows": measure_rows(v.measure)}
        for v in variants
        if v.measure is not None
    ]


def _versions() -> list[list[str]]:
    rows = []
    for name in PACKAGES:
        try:
            rows.append([name, version(name)])
        except PackageNotFoundError:
            continue
    return rows

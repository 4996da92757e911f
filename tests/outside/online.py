# SPDX-License-Identifier: Apache-2.0
"""A test that asks the tests' own Hub imports `online`."""

from __future__ import annotations

import time
from types import SimpleNamespace

import huggingface_hub
import pytest


TOKEN = "hf_operators_own"


def use_hub(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub at `url` in place of the one on the net, where no endpoint is given."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture(autouse=True)
def online(monkeypatch, tmp_path):
    """The tests' own Hub is reachable, the cache is empty, and the operator has a token."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # Waiting between tries is the library's business.
    impatient = SimpleNamespace(**(vars(time) | {"sleep": lambda seconds: None}))
    monkeypatch.setattr("huggingface_hub.file_download.time", impatient)
    huggingface_hub.utils.close_session()
    yield
    huggingface_hub.utils.close_session()

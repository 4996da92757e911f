# SPDX-License-Identifier: Apache-2.0
"""What `import slim_core` and `--help` bring along, and what they do not. Each in a process of its own."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import slim_core


ROOT = Path(__file__).resolve().parents[1]
EXTRAS = {"gradio", "datasets", "pyarrow", "bitsandbytes", "pandas", "plotly"}
SLOW = {"torch", "transformers", "peft"}


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def test_importing_it_imports_nothing_else():
    code = "import slim_core, sys; slim_core.__version__, dir(slim_core); print(*sys.modules)"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert not (EXTRAS | SLOW) & set(done.stdout.split())


def test_help_waits_for_nothing_and_is_quiet():
    for arguments in (["--help"], ["compare", "--help"], ["adapter", "--help"], ["train", "--help"]):
        done = python("-X", "importtime", "-m", "slim_core", *arguments)
        assert done.returncode == 0 and "Usage:" in done.stdout
        lines = done.stderr.splitlines()
        assert all(line.startswith("import time:") for line in lines), done.stderr
        assert not (EXTRAS | SLOW) & {line.rpartition("|")[2].strip() for line in lines}


KNOWS = (
    "from peft import PEFT_TYPE_TO_CONFIG_MAPPING as known; "
    'print([known[k].__name__ for k in known if k in ("SLIM", "DISEL")])\n'
)


@pytest.mark.parametrize(
    "order",
    [
        "import peft, sys; print('Now SLIM', file=sys.stderr); import slim_core",
        pytest.param("import slim_core.method", marks=pytest.mark.nightly),
        pytest.param("import slim_core.baselines", marks=pytest.mark.nightly),
    ],
)
def test_peft_knows_slim_whichever_is_imported_first(order):
    done = python("-c", f"{order}; {KNOWS}")
    # What PEFT's own imports say before there is a SLIM to hush them is not ours: bitsandbytes, on some processors.
    assert (done.stdout, done.stderr.rpartition("Now SLIM\n")[2]) == ("['SlimConfig', 'DiselConfig']\n", "")


def test_with_slim_first_an_offer_of_bitsandbytes_is_not_passed_on_and_its_warnings_are():
    said = (
        "import logging; log = logging.getLogger('bitsandbytes.backends.cpu.ops');"
        "log.warning('Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please install', 1);"
        "log.warning('The memory is low')"
    )
    done = python("-c", f"import slim_core, peft; {KNOWS}{said}")
    assert (done.stdout, done.stderr) == ("['SlimConfig', 'DiselConfig']\n", "The memory is low\n")


def test_names_come_with_their_first_use():
    from slim_core import method, peft_tools

    assert slim_core.method is method
    owners = [peft_tools if hasattr(peft_tools, name) else method for name in slim_core.__all__]
    assert all(getattr(slim_core, name) is getattr(o, name) for name, o in zip(slim_core.__all__, owners, strict=True))
    assert method.fold_masks is slim_core.fold_masks
    assert set(slim_core.__all__) <= set(dir(slim_core))
    with pytest.raises(AttributeError, match="has no attribute 'SlimConfg'"):
        slim_core.SlimConfg  # noqa: B018


def test_the_version_is_that_of_the_installed_distribution(monkeypatch):
    asked = []
    monkeypatch.setattr(importlib.metadata, "version", lambda name: asked.append(name) or "1.2.3")
    assert (slim_core.__version__, asked) == ("1.2.3", ["slim-core"])

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert slim_core.__version__ == "0+checkout"

# SPDX-License-Identifier: Apache-2.0
"""NumPy's threads do not compete with torch's: how many there are is said before NumPy is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


# NumPy reads the variable when it is loaded, so that commands must not have imported it by then.
PROGRAM = """
import sys
from slim_core.cli import main
assert "numpy" not in sys.modules
main()
import os
print(os.environ["OPENBLAS_NUM_THREADS"])
"""


@pytest.mark.parametrize(("given", "used"), [(None, "1"), ("3", "3")])
def test_commands_say_it_before_numpy_is_there(given, used):
    env = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    env |= {} if given is None else {"OPENBLAS_NUM_THREADS": given}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == used, done.stderr

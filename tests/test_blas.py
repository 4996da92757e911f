# SPDX-License-Identifier: Apache-2.0
"""What is known about the threads of NumPy's OpenBLAS; each case needs a fresh process."""

import os
import subprocess
import sys

import pytest


ASK = "from slim_core.blas import numpy_has_one_thread, one_thread_for_numpy; "
TELL = "one_thread_for_numpy(); import numpy; print(numpy_has_one_thread())"


@pytest.mark.parametrize(
    ("set_before", "code", "expected"),
    [
        (None, ASK + TELL, True),
        ("1", ASK + TELL, True),
        ("2", ASK + TELL, False),
        (None, "import numpy; " + ASK + TELL, False),
        ("1", "import numpy; " + ASK + TELL, True),
        (None, ASK + "print(numpy_has_one_thread())", False),
    ],
)
def test_whether_numpy_has_one_thread(set_before, code, expected):
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    if set_before is not None:
        environment["OPENBLAS_NUM_THREADS"] = set_before
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(expected)]

# SPDX-License-Identifier: Apache-2.0
"""Threads share malloc's arenas in a server, so that what one has freed another uses."""

import os
import platform
import subprocess
import sys

import pytest


# Eight threads that hold memory at once. malloc_info lists an arena as a <heap>.
PROGRAM = """
import ctypes, sys, threading
from slim_core.serving.memory import limit_arenas

print(limit_arenas() if sys.argv[1] == "limit" else None)
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier(8)
threads = [threading.Thread(target=lambda: (together.wait(), libc.malloc(50_000), together.wait())) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
print(open(sys.argv[2]).read().count("<heap "))
"""


def arenas(tmp_path, what: str, **environment: str) -> tuple[str, int]:
    command = [sys.executable, "-c", PROGRAM, what, str(tmp_path / "info.xml")]
    run = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    limited, number = run.stdout.split()
    return limited, int(number)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="Only glibc has arenas.")
def test_a_server_has_two_arenas(tmp_path):
    assert arenas(tmp_path, "usual")[1] > 2
    assert arenas(tmp_path, "limit") == ("True", 2)
    limited, number = arenas(tmp_path, "limit", MALLOC_ARENA_MAX="4")
    assert (limited, number) == ("False", 4), "the operator's own limit"

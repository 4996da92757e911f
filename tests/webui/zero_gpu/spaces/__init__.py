# SPDX-License-Identifier: Apache-2.0
"""As much of ZeroGPU's package as the tests need.

The work runs in a forked process. What goes there and comes back is pickled as `multiprocessing` does it, of an
exception only the name of its class returns, and who closes the generator is heard after the next value.
"""

import multiprocessing
import sys
from functools import partial, wraps


TORCH_WAS_THERE = "torch" in sys.modules
# Seconds of each loan.
LOANS = []


def GPU(task=None, *, duration=None):
    if task is None:
        return partial(GPU, duration=duration)

    @wraps(task)
    def call(*arguments):
        LOANS.append(duration(*arguments))
        context = multiprocessing.get_context("fork")
        sent, values, stop = context.SimpleQueue(), context.SimpleQueue(), context.Event()
        process = context.Process(target=_iterate, args=(task, sent, values, stop), daemon=True)
        process.start()
        sent.put(arguments)
        while True:
            kind, value = values.get()
            if kind == "end":
                process.join()
                return
            if kind == "error":
                raise RuntimeError(f"ZeroGPU worker error: {value}")
            try:
                yield value
            except GeneratorExit:
                stop.set()
                raise

    return call


def _iterate(task, sent, values, stop):
    generator = task(*sent.get())
    try:
        for value in generator:
            if stop.is_set():
                generator.close()
                break
            values.put(("value", value))
    except Exception as error:
        values.put(("error", type(error).__name__))
    values.put(("end", None))

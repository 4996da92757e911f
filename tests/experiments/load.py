# SPDX-License-Identifier: Apache-2.0
"""Many clients at once against a real server: what is lost, what the log says, what memory it takes.

`python -m tests.experiments.load --seconds 600 --clients 32` prints it, and the memory nine times on the way. Three
quarters of the clients ask, the others upload and forge in turn; with `--only`, all do one of these. With `--demo`,
the demo's model answers, else the scripted engine.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.webui.http.server import Server


FORGED = (
    ("POST", "/gradio_api/queue/join", {"data": [], "session_hash": "load", "fn_index": 99_999}),
    ("POST", "/gradio_api/queue/join", {"data": [[{}]], "session_hash": "load", "fn_index": 3}),
    ("POST", "/gradio_api/call/compare", {"data": []}),
    ("POST", "/gradio_api/call/compare", {"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]}),
    ("POST", "/gradio_api/call/compare", b'{"data": [' + b"[" * 50_000),
    ("POST", "/gradio_api/run/routing", {"data": [None] * 4}),
    ("GET", "/gradio_api/queue/data?session_hash=nobody", None),
    ("GET", "/gradio_api/file=/etc/passwd", None),
    ("POST", "/gradio_api/upload", b"no form"),
)
# What a client does with each answer: a sentence that turns it away is an answer too.
ANSWERED, AWAY, LOST = "answered", "turned away with a sentence", "lost"


def ask(server: Server, number: int) -> str:
    """One comparison, from its request to its last step."""
    status, text = server.call("compare", {"data": [f"Question {number}", "", 0, 1, 0, 0, 1, 16]})
    if status == 200 and "event: complete" in text:
        return ANSWERED
    sentence = "no more can be taken" in text or "Queue is full" in text
    return AWAY if sentence else f"{LOST}: {status} {text[-200:]}"


def forge(server: Server, number: int) -> str:
    """One request that cannot be; it has a status that says so, or it is told in its event."""
    method, path, body = FORGED[number % len(FORGED)]
    status, _ = server.ask(method, path, body)
    return "forged and refused" if status < 500 or status == 503 else f"{LOST}: {path} {status}"


def upload(server: Server, number: int) -> str:
    """One file that nobody ever uses."""
    status, text = server.upload((f"{number}.json", random.randbytes(100_000)))
    return {200: "uploaded", 429: AWAY}.get(status, f"{LOST}: upload {status} {text[:100]}")


ACTIONS: dict[str, Callable[[Server, int], str]] = {"ask": ask, "forge": forge, "upload": upload}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--demo", action="store_true", help="the demo's model answers")
    parser.add_argument("--only", choices=list(ACTIONS), help="one kind of request alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        limits = ("max_upload=1000000", "upload_space=20000000", "upload_seconds=60")
        command = ("app.py",) if options.demo else ("-m", "tests.webui.http.served", "{port}", *limits)
        server = Server(Path(folder), *command)
        try:
            run(server, options.seconds, options.clients, options.only)
        finally:
            server.stop()


def run(server: Server, seconds: float, clients: int, only: str | None) -> None:
    """Drive it, and print what came of it."""
    counts: Counter[str] = Counter()
    lock, end, process = threading.Lock(), time.monotonic() + seconds, psutil.Process(server.process.pid)

    def client(kind: int) -> None:
        number = kind
        own = [ACTIONS[only]] if only else [ask] if kind % 4 else [forge, upload]
        while time.monotonic() < end:
            number += clients
            try:
                outcome = own[number // clients % len(own)](server, number)
            except OSError as error:
                outcome = f"{LOST}: {type(error).__name__}"
            with lock:
                counts[outcome] += 1
            if outcome == AWAY:
                time.sleep(1)

    for number in range(10):
        ask(server, number)
    before = process.memory_info().rss
    threads = [threading.Thread(target=client, args=(kind,)) for kind in range(clients)]
    for thread in threads:
        thread.start()
    for part in range(1, 10):
        time.sleep(max(0.0, end - (1 - part / 10) * seconds - time.monotonic()))
        print(f"{process.memory_info().rss / 1e6:>8,.0f} MB after {part / 10 * seconds:,.0f} s", flush=True)
    for thread in threads:
        thread.join()
    log = server.log
    for name, count in sorted(counts.items()):
        print(f"{count:>8,} {name}")
    print(f"{log.count('Traceback'):>8,} stack traces and {len(log.splitlines()):,} lines in the log")
    kept = sum(path.stat().st_size for path in server.temporary.rglob("*") if path.is_file())
    print(f"{kept / 1e6:>8,.1f} MB of uploads are kept")
    print(f"{before / 1e6:>8,.0f} MB of memory at the start, {process.memory_info().rss / 1e6:,.0f} MB at the end")
    assert not log.count("Traceback") and not any(name.startswith(LOST) for name in counts)


if __name__ == "__main__":
    main()

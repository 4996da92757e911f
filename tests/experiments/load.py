# SPDX-License-Identifier: Apache-2.0
"""Many clients at once against a real server: what is lost, what the log says, what memory it takes.

`python -m tests.experiments.load --seconds 600 --clients 32` prints it, and the memory nine times on the way. Three
quarters of the clients ask, the others upload and forge in turn; with `--only`, all do one of these. With `--demo`,
the demo's model answers, else the scripted engine.

With `--api-only`, the demo's model answers OpenAI's clients, without the page. Each has an address and a way of its
own (`api_clients.py`): whole answers, streams, log-probabilities, stop texts, conversations, seeds, leaving before the
end, requests that cannot be answered. Answers are compared with those that were given when nobody else asked.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

from tests.experiments.api_clients import ANSWERED, AWAY, LOST, Client, answers_alone
from tests.waiting import files_below, until
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
    parser.add_argument("--api-only", action="store_true", help="the API alone, with the demo's model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder), options.demo, options.api_only)
        try:
            clients = api_clients if options.api_only else partial(page_clients, only=options.only)
            run(server, options.seconds, clients(server, options.clients))
        finally:
            server.stop()


def start(folder: Path, demo: bool, api_only: bool) -> Server:
    """A server, which answers already."""
    if api_only:
        server = Server(folder, "-m", "slim_core", "serve", "--api-only", "--port", "{port}", started="/v1")
        until(lambda: server.answers("/health"))
        return server
    limits = ("max_upload=1000000", "upload_space=20000000", "upload_seconds=60")
    return Server(folder, *(("app.py",) if demo else ("-m", "tests.webui.http.served", "{port}", *limits)))


# What a client does next, and what came of it.
Act = Callable[[int], str]


def page_clients(server: Server, count: int, only: str | None) -> list[Act]:
    """Clients of the page; some questions were answered before."""
    for number in range(10):
        ask(server, number)

    def client(kind: int) -> Act:
        own = [ACTIONS[only]] if only else [ask] if kind % 4 else [forge, upload]

        def act(number: int) -> str:
            try:
                return own[number // count % len(own)](server, number)
            except OSError as error:
                return f"{LOST}: {type(error).__name__}"

        return act

    return [client(kind) for kind in range(count)]


def api_clients(server: Server, count: int) -> list[Act]:
    """Clients of the API; all that is compared was answered before."""
    expected = answers_alone(f"{server.url}/v1")
    return [Client(f"{server.url}/v1", number, expected).act for number in range(count)]


def run(server: Server, seconds: float, clients: list[Act]) -> None:
    """Drive it, and print what came of it."""
    counts: Counter[str] = Counter()
    lock, end, process = threading.Lock(), time.monotonic() + seconds, psutil.Process(server.process.pid)

    def drive(number: int, act: Act) -> None:
        while time.monotonic() < end:
            number += len(clients)
            outcome = act(number)
            with lock:
                counts[outcome] += 1
            if outcome == AWAY:
                time.sleep(1)

    before = process.memory_info().rss
    threads = [threading.Thread(target=drive, args=client) for client in enumerate(clients)]
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
    kept = sum(path.stat().st_size for path in files_below(server.temporary))
    print(f"{kept / 1e6:>8,.1f} MB of uploads are kept")
    print(f"{before / 1e6:>8,.0f} MB of memory at the start, {process.memory_info().rss / 1e6:,.0f} MB at the end")
    assert not log.count("Traceback"), log[-10_000:]
    assert not any(name.startswith(LOST) for name in counts)


if __name__ == "__main__":
    main()

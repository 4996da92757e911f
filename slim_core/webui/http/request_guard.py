# SPDX-License-Identifier: Apache-2.0
"""The request guard: every request passes through it to Gradio, and every error of Gradio's passes through it back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
from gradio import route_utils
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Mount

from ...outside.errors import megabytes
from .bodies import PREFIX, check_address, check_body, is_checked
from .folder import LEAST, FileError, UploadFolder
from .interface import Interface
from .log_lines import unexpected
from .refusal import Refusal


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

# What a browser keeps of conversations, and sends back after a reload, has up to 4,000,000 characters (kept.js).
MAX_BODY = 16_000_000
# How long the next piece of a body may take.
PATIENCE = 30.0
# Of uploads: how many of `max_upload` one request may bring, and what stands between its files.
FILES_AT_ONCE, BETWEEN = 4, 1_000_000
WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")
FAILED = "The server could not understand this request."
SWEEP_SECONDS = 30.0


class RequestGuard:
    """An ASGI app around Gradio's.

    Args:
        app: Gradio's.
        demo: the interface that it serves.
        folder: where uploads go.
        max_upload: maximum size of a file, in bytes.
    """

    def __init__(self, app: App, demo: gr.Blocks, folder: UploadFolder, max_upload: int) -> None:
        self.app, self.demo, self.folder, self.max_upload = app, demo, folder, max_upload

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with a sentence."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            await self._pass(scope, receive, answer)
            await answer.send_held_back()
        except Refusal as refusal:
            await answer.refuse(refusal)
        except HTTPException as error:
            # Gradio raises it while a response is being sent, after reporting it to the client in that response.
            await answer.refuse(Refusal(error.status_code, str(error.detail)))
        except Exception as error:
            if not (answer.begun and isinstance(error.__cause__ or error.__context__, HTTPException)):
                unexpected(f"{scope['method']} {scope['path']}", error)
            status = 500 if isinstance(error, OSError) else 400
            await answer.refuse(Refusal(status, FAILED))

    async def _pass(self, scope: MutableMapping[str, Any], receive: Receive, answer: _Answer) -> None:
        root = self.demo.root_path if (self.demo.root_path or "").startswith("/") else ""
        path = scope["path"].removeprefix(root)
        headers = _headers(scope)
        if "host" not in headers:
            raise Refusal(400, "The request must have the header Host.")
        self._check_origin(scope)
        bounded = _Bounded(receive, MAX_BODY) if scope["method"] in WITH_BODY else receive
        if not path.startswith(PREFIX):
            await self.app(scope, bounded, answer)
            return
        route = path.removeprefix(PREFIX)
        check_address(
            scope["method"],
            route,
            parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True),
            self.demo,
        )
        if route.startswith(("file=", "file/")):
            await self.app(self._file(scope, path, route), receive, answer)
        elif scope["method"] == "POST" and route.rstrip("/") == "upload":
            await self._upload(scope, receive, answer, headers)
        elif is_checked(scope["method"], route):
            body = await _Bounded(receive, MAX_BODY).read()
            check_body(route, body, headers.get("content-type", ""), self.demo)
            # Gradio reports our messages with status 500.
            answer.wrong = 400 if route.startswith(("run/", "api/")) else None
            await self.app(scope, _Replay(body, receive), answer)
        else:
            await self.app(scope, bounded, answer)

    def _check_origin(self, scope: MutableMapping[str, Any]) -> None:
        """Check the headers from which Gradio builds the app's address, even long after the request."""
        try:
            route_utils.get_root_url(Request(scope), scope["path"], self.demo.root_path)
        except Exception:
            raise Refusal(400, "The headers of this request name no address that this app could have.") from None

    def _file(self, scope: MutableMapping[str, Any], path: str, route: str) -> MutableMapping[str, Any]:
        """Rewrite a request for one of our files to its path on this machine; others are left to Gradio."""
        name = route[len("file=") :]
        if not name.startswith("/uploads/"):
            if "://" in name or "\0" in name:
                raise Refusal(403, "Only files of this app are served here.")
            return scope
        try:
            file = str(self.folder.inside(name))
        except FileError as error:
            raise Refusal(404, str(error)) from None
        inner = scope["path"][: len(scope["path"]) - len(path)] + PREFIX + "file=" + file
        return {**scope, "path": inner, "raw_path": inner.encode("utf-8", "surrogateescape")}

    async def _upload(
        self, scope: MutableMapping[str, Any], receive: Receive, answer: _Answer, headers: Mapping[str, str]
    ) -> None:
        limit = FILES_AT_ONCE * self.max_upload + BETWEEN
        length = headers.get("content-length", "0")
        if length.isdigit() and len(length) < 20 and int(length) > limit:
            raise Refusal(
                413, f"The request has {megabytes(int(length))}; an upload may have at most {megabytes(limit)}."
            )
        self.folder.take(LEAST)
        body = _Bounded(receive, limit, self.folder.take, self.folder.seconds)
        answer.rewrite = lambda text: json.dumps([self.folder.outside(name) for name in json.loads(text)])
        # The response is read here, so it must not be compressed before.
        plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        answer.instead = lambda: body.refusal
        await self.app({**scope, "headers": plain}, body, answer)


class _Answer:
    """The response. Once it has begun, it cannot be replaced by an error message.

    Attributes:
        begun: whether it has.
        wrong: the status that goes out in place of 500; None leaves it.
        rewrite: changes the whole body of a successful answer; None leaves it.
        instead: the message that is sent in place of the response; None sends the response.
    """

    def __init__(self, send: Send) -> None:
        self.send = send
        self.begun = self.ended = False
        self.wrong: int | None = None
        self.rewrite: Callable[[str], str] | None = None
        self.instead: Callable[[], Refusal | None] = lambda: None
        self._failed: list[Message] = []
        self._start: Message | None = None
        self._held = bytearray()

    async def __call__(self, message: Message) -> None:
        if self.ended:
            return
        if message["type"] == "http.response.start":
            if refusal := self.instead():
                await self.refuse(refusal)
                return
            if message["status"] == 500 and not self.wrong:
                # Starlette's "Internal Server Error", which says nothing; the error itself may follow.
                self._failed.append(message)
                return
            if message["status"] == 500:
                message["status"] = self.wrong
            if self.rewrite and message["status"] == 200:
                self._start = message
                return
            self.begun = True
        elif self._failed:
            self._failed.append(message)
            return
        elif message["type"] == "http.response.body":
            if self._start is not None:
                self._held += message.get("body", b"")
                if message.get("more_body"):
                    return
                start, self._start = self._start, None
                body = self.rewrite(self._held.decode("utf-8")).encode("utf-8") if self.rewrite else bytes(self._held)
                headers = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
                self.begun = True
                await self.send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
                message = {"type": "http.response.body", "body": body}
            self.ended = not message.get("more_body")
        await self.send(message)

    async def send_held_back(self) -> None:
        """Send the response that was held back, if no error followed."""
        failed, self._failed = self._failed, []
        for message in failed:
            await self.send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Send an error message if nothing was sent yet, else end the response that was begun."""
        if self.ended:
            return
        body = b""
        if not self.begun:
            body = json.dumps({"detail": refusal.sentence, "error": refusal.sentence}).encode("utf-8")
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            if refusal.status in (408, 413, 429):
                # What is left of the body is not read.
                headers.append((b"connection", b"close"))
            self.begun = True
            await self.send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        self.ended = True
        await self.send({"type": "http.response.body", "body": body})


class _Bounded:
    """The request body, with limits on its size and on the time for each chunk.

    Args:
        receive: the server's.
        limit: maximum size of the body, in bytes.
        take: called with the bytes of each piece; refuses them if there is no space.
        seconds: the whole body may take.

    Attributes:
        refusal: why it was cut off; None if it was not.
    """

    def __init__(
        self, receive: Receive, limit: int, take: Callable[[int], None] | None = None, seconds: float = 300.0
    ) -> None:
        self.receive, self.limit, self.take = receive, limit, take
        self.end = time.monotonic() + seconds
        self.refusal: Refusal | None = None
        self._size, self._whole = 0, False

    async def __call__(self) -> Message:
        if self._whole:  # from now on the only message is that the client has disconnected
            return await self.receive()
        try:
            return await self._next()
        except Refusal as refusal:
            self.refusal = refusal
            raise

    async def _next(self) -> Message:
        try:
            message = await asyncio.wait_for(self.receive(), min(PATIENCE, max(0.1, self.end - time.monotonic())))
        except TimeoutError:
            raise Refusal(408, "The rest of the request did not come in time.") from None
        if message["type"] != "http.request":
            raise Refusal(400, "The request ended before its body did.")
        size = len(message.get("body", b""))
        self._size += size
        if self._size > self.limit:
            raise Refusal(413, f"The request is larger than {megabytes(self.limit)}, the largest that is accepted.")
        if self.take is not None:
            self.take(size)
        self._whole = not message.get("more_body")
        return message

    async def read(self) -> bytes:
        """The whole body."""
        body = bytearray()
        while not self._whole:
            body += (await self()).get("body", b"")
        return bytes(body)


class _Replay:
    """Replays a body that was already read, then passes on further messages from the server."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self.body: bytes | None = body
        self.receive = receive

    async def __call__(self) -> Message:
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await self.receive()


def _headers(scope: MutableMapping[str, Any]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def guarded_requests(demo: Interface, folder: UploadFolder, max_upload: int) -> Callable[[Any], Any]:
    """Put the guard in front of all of Gradio's own layers when the server starts, and clean up while it runs.

    What the interface has for programs is served before Gradio's own addresses, which take all that are left.

    Args:
        demo: the interface that is served.
        folder: where uploads go.
        max_upload: maximum size of a file, in bytes.

    Returns:
        A lifespan, as FastAPI takes it.
    """

    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        if demo.programs is not None:
            app.router.routes.insert(0, Mount("/v1", demo.programs))
        app.middleware_stack = RequestGuard(app.middleware_stack, demo, folder, max_upload)
        sweeper = asyncio.create_task(_sweep(demo, folder))
        try:
            yield
        finally:
            sweeper.cancel()

    return lifespan


async def _sweep(demo: gr.Blocks, folder: UploadFolder) -> None:
    while True:
        await asyncio.sleep(min(SWEEP_SECONDS, folder.seconds / 2))
        try:
            await asyncio.to_thread(folder.sweep)
            _forget(demo)
        except Exception as error:
            unexpected("A look at the uploaded files", error)


def _forget(demo: gr.Blocks) -> None:
    """Forget what Gradio would remember forever: names of deleted files, and events that were never read."""
    demo.upload_file_set.clear()
    queue = demo._queue
    for session in list(queue.pending_event_ids_session):
        events = queue.pending_event_ids_session.get(session, set())
        if session not in queue.pending_messages_per_session and not any(
            e in queue.event_ids_to_events for e in events
        ):
            queue.pending_event_ids_session.pop(session, None)

# SPDX-License-Identifier: Apache-2.0
"""Checks of the body of a request to one of Gradio's routes, before Gradio sees it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.utils import get_function_params

from ...outside.errors import AdapterError, quoted
from ...outside.strict_json import check_depth
from .refusal import Refusal


PREFIX = "/gradio_api/"
CALL = re.compile(r"(run|api|call)/([^/]+)/?")
CALL_BY_NAME = re.compile(r"call/v2/([^/]+)/?")
EVENT = re.compile(r"call/(?:v2/)?[^/]+/([^/]+)")
# Of a page or a program, and of an event: random words of Gradio's own.
TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_DEPTH = 32
MAX_VALUES = 200
# Routes of Gradio that neither the page nor a program needs here. The fewer are open, the less can go wrong.
CLOSED = re.compile(
    r"(component_server|custom_component|deep_link|dev/|monitoring|process_recording|profiling|proxy=|run-history|runs"
    r"|stream/|undo-vibe|vibe-)"
)


def is_checked(method: str, route: str) -> bool:
    """Whether a request has a body that is checked here.

    Args:
        method: HTTP method.
        route: the path after `PREFIX`.
    """
    known = route.rstrip("/") in ("queue/join", "cancel", "reset") or CALL.fullmatch(route)
    return method == "POST" and bool(known or CALL_BY_NAME.fullmatch(route))


def check_body(route: str, body: bytes, content_type: str, demo: gr.Blocks) -> None:
    """Refuse a body that Gradio cannot handle.

    Args:
        route: the path after `PREFIX`.
        body: all of it.
        content_type: the header, or an empty text.
        demo: the interface.

    Raises:
        Refusal: with a sentence on the first thing that is wrong.
    """
    request = read_json(body, content_type)
    if by_name := CALL_BY_NAME.fullmatch(route):
        _check_named_values(request, _public(by_name[1], demo))
        return
    if route.rstrip("/") == "reset":
        _check_token(request, "event_id")
        return
    if route.rstrip("/") == "cancel":
        for name in ("session_hash", "event_id"):
            _check_token(request, name)
        _check_number(request, "fn_index", needed=True)
        return
    call = CALL.fullmatch(route)
    _check_token(request, "session_hash", needed=call is None)
    _check_token(request, "event_id", needed=False)
    data = request.get("data")
    if not isinstance(data, list):
        raise Refusal(400, 'The body must have "data", a list of values, such as {"data": ["Hello"]}.')
    if len(data) > MAX_VALUES:
        raise Refusal(400, f'"data" has {len(data):,} values; no function takes more than {MAX_VALUES}.')
    for name in ("fn_index", "trigger_id"):
        _check_number(request, name, needed=False)
    if request.get("batched") or not isinstance(request.get("simple_format", False), bool):
        raise Refusal(400, '"batched" must be false or left out, and "simple_format" true or false.')
    if not isinstance(request.get("oauth_token"), (str, type(None))):
        raise Refusal(400, '"oauth_token" must be a string or left out.')
    index = None if call is not None and call[1] == "call" else request.get("fn_index")
    if index is not None:
        if index not in demo.fns:
            raise Refusal(
                404,
                f"There is no function {index:,} here; the page may be from before the app was restarted. Reload it.",
            )
    elif call is None:
        raise Refusal(400, 'The body must have "fn_index", the number of a function as /config lists them.')
    elif not any(fn.api_name == call[2] for fn in demo.fns.values()):
        _public(call[2], demo)


def check_address(method: str, route: str, query: Mapping[str, list[str]], demo: gr.Blocks) -> None:
    """Refuse an address that does not exist in this app.

    Args:
        method: HTTP method.
        route: the path after `PREFIX`.
        query: what stands behind the question mark.
        demo: the interface.

    Raises:
        Refusal: with a sentence.
    """
    if CLOSED.match(route):
        raise Refusal(404, "There is nothing at this address.")
    for name in ("session_hash", "upload_id"):
        for value in query.get(name, ()):
            if not TOKEN.fullmatch(value):
                raise Refusal(400, f"{name} must be at most 64 letters, digits, - and _.")
    if route.startswith("heartbeat/") and not TOKEN.fullmatch(route.removeprefix("heartbeat/")):
        raise Refusal(400, "A session must be at most 64 letters, digits, - and _.")
    if method == "GET" and (event := EVENT.fullmatch(route)) and not _is_known(event[1], demo):
        raise Refusal(404, "There is no such event; its answer may have been read already. POST again.")


def read_json(body: bytes, content_type: str) -> dict[str, Any]:
    """Parse a body as a JSON object.

    Raises:
        Refusal: if it is not one.
    """
    # Only the content type JSON: a form on another site can send any other type without a preflight request.
    if content_type.split(";")[0].strip().lower() not in ("application/json", "text/json"):
        raise Refusal(415, "Send JSON with the header Content-Type: application/json.")
    try:
        text = body.decode("utf-8")
        check_depth(text, "The body", MAX_DEPTH)
        value = json.loads(text)
    except AdapterError as error:
        raise Refusal(400, str(error)) from None
    except (ValueError, RecursionError) as error:
        cause = error.msg if isinstance(error, json.JSONDecodeError) else "it is not UTF-8 or has a number too long"
        raise Refusal(400, f"The body is not valid JSON: {cause}.") from None
    if not isinstance(value, dict):
        raise Refusal(400, 'The body must be a JSON object, such as {"data": ["Hello"]}.')
    return value


def parameters(fn: Any) -> list[tuple[str, bool, Any]]:
    """The parameters of an API function: name, whether there is a default, and the default."""
    return [(name, has, default) for name, has, default, _ in get_function_params(fn.fn)]


def _public(name: str, demo: gr.Blocks) -> Any:
    public = {fn.api_name: fn for fn in demo.fns.values() if fn.api_visibility == "public"}
    if name not in public:
        raise Refusal(404, f"There is no function {quoted(name)}; there are: {', '.join(map(str, public))}.")
    return public[name]


def _check_named_values(request: dict[str, Any], fn: Any) -> None:
    declared = parameters(fn)
    names = {name for name, _, _ in declared} | {"oauth_token"}
    if unknown := [name for name in request if name not in names]:
        raise Refusal(
            400,
            f"{fn.api_name} has no parameter {quoted(unknown[0])}; it has: {', '.join(n for n, _, _ in declared)}.",
        )
    if missing := [name for name, has_default, _ in declared if not has_default and name not in request]:
        raise Refusal(400, f'{fn.api_name} needs "{missing[0]}".')


def _check_token(request: dict[str, Any], name: str, needed: bool = True) -> None:
    value = request.get(name)
    if value is None and not needed:
        return
    if not isinstance(value, str) or not TOKEN.fullmatch(value):
        raise Refusal(400, f'"{name}" must be a string of at most 64 letters, digits, - and _.')


def _check_number(request: dict[str, Any], name: str, needed: bool) -> None:
    value = request.get(name)
    if value is None and not needed:
        return
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**31:
        raise Refusal(400, f'"{name}" must be a whole number.')


def _is_known(event: str, demo: gr.Blocks) -> bool:
    queue = demo._queue
    if event in queue.event_ids_to_events or event in queue.pending_messages_per_session:
        return True
    return any(event in events for events in list(queue.pending_event_ids_session.values()))

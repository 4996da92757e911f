# SPDX-License-Identifier: Apache-2.0
"""Gradio's Blocks, where every call ends with an answer or a clear message."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.state_holder import SessionState

from ...outside.errors import quoted
from .bodies import parameters
from .folder import FileError, UploadFolder
from .log_lines import unexpected


SENTENCE = "The server could not understand this request. Reload the page and try again."
FILES = (gr.File, gr.UploadButton)


class Interface(gr.Blocks):
    """Blocks whose API calls may leave out values with a default, and whose errors are sentences.

    Attributes:
        folder: where the files are that visitors send; None before it is served.
        programs: what is served at `/v1`; None serves nothing there.
    """

    folder: UploadFolder | None = None
    programs: FastAPI | None = None

    async def process_api(self, block_fn: Any, inputs: list[Any], *arguments: Any, **options: Any) -> dict[str, Any]:
        """Gradio's own method, with checks of the inputs before it and of errors after it.

        Raises:
            gr.Error: with a sentence; nothing else, and none that Gradio would print.
        """
        fn = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        generating = False
        try:
            if options.get("iterator") is None:
                inputs = self._completed(fn, inputs, options)
            output = await super().process_api(fn, inputs, *arguments, **options)
            if self.folder is not None and any(isinstance(block, FILES) for block in fn.outputs):
                output["data"] = _with_files(output["data"], self.folder.hide)
            generating = output["is_generating"]
            return output
        except gr.Error as error:
            error.print_exception = False
            raise
        except FileError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception as error:
            unexpected(f"A call of {fn.api_name or fn.name}", error)
            raise gr.Error(SENTENCE, print_exception=False) from None
        finally:
            if not generating:
                self._drop_empty_session(options.get("session_hash"), options.get("state"))

    def _drop_empty_session(self, name: str | None, state: SessionState | None) -> None:
        """Forget the session of a program.

        For each, Gradio keeps a copy of the page's configuration, more than half a megabyte, and drops the oldest
        session when there are too many: a program that calls often would push out visitors' conversations.
        """
        if name is not None and state is not None and not state.state_data:
            self.state_holder.session_data.pop(name, None)
            self.state_holder.time_last_used.pop(name, None)

    def _completed(self, fn: Any, inputs: list[Any], options: dict[str, Any]) -> list[Any]:
        if fn.fn is None:
            raise gr.Error("This function runs only in the browser; there is nothing to call.", print_exception=False)
        event = options.get("event_data")
        if fn.collects_event_data and not isinstance(getattr(event, "_data", None), dict):
            raise gr.Error(
                "This function belongs to an event of the page and cannot be called without that event's data.",
                print_exception=False,
            )
        if fn.api_visibility == "public":
            if options.get("event_id") is None and inspect.isgeneratorfunction(fn.fn):
                # A direct call would get only the first step.
                raise gr.Error(
                    f"{fn.api_name} answers step by step: POST to /gradio_api/call/{fn.api_name}, then GET "
                    f"/gradio_api/call/{fn.api_name}/EVENT_ID with the event_id in the response.",
                    print_exception=False,
                )
            inputs = _with_defaults(fn, inputs)
        elif len(inputs) < len(fn.inputs):
            raise gr.Error(
                f"This function takes {len(fn.inputs)} values; {len(inputs)} were sent. It belongs to the page; "
                "programs can call the functions that “Use via API” lists.",
                print_exception=False,
            )
        if self.folder is None:
            return inputs
        inputs_with_files = _with_files(inputs, self.folder.find)
        for block, value in zip(fn.inputs, inputs_with_files, strict=False):
            if isinstance(block, FILES):
                _check_files(value)
        return inputs_with_files


def _with_defaults(fn: Any, inputs: list[Any]) -> list[Any]:
    declared = parameters(fn)
    if len(inputs) > len(declared):
        raise gr.Error(
            f"{fn.api_name} takes at most {len(declared)} values; {len(inputs)} were sent.", print_exception=False
        )
    for name, has_default, _ in declared[len(inputs) :]:
        if not has_default:
            raise gr.Error(f"{fn.api_name} needs a value for {name}.", print_exception=False)
    return [*inputs, *(default for _, _, default in declared[len(inputs) :])]


def _is_file(value: Any) -> bool:
    meta = value.get("meta") if isinstance(value, dict) else None
    return isinstance(meta, dict) and meta.get("_type") == "gradio.FileData" and isinstance(value.get("path"), str)


def _with_files(value: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A value with its files replaced. Requests are not deeply nested; that is checked before."""
    if _is_file(value):
        return change(value)
    if isinstance(value, dict):
        return {name: _with_files(inner, change) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_files(inner, change) for inner in value]
    return value


def _check_files(value: Any) -> None:
    for upload in value if isinstance(value, list) else [value]:
        if upload is not None and not _is_file(upload):
            raise gr.Error(f"{quoted(upload)} is not a file that was uploaded here.", print_exception=False)

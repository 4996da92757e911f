# SPDX-License-Identifier: Apache-2.0
"""The app's settings. Every field is an environment variable and, except for secrets, a flag of `serve`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..extras import lacking
from .limits import RANGES


if TYPE_CHECKING:
    from ..adapters import StoreLimits

# What a variable's text must be, for messages.
MUST_BE = {bool: "say 1 or 0", int: "it must be a whole number"}
PREFIX = "SLIM_"
# How similar a misspelt name must be to a setting, from 0 to 1.
NEAR = 0.7
# Devices whose names PyTorch knows, with or without a number.
DEVICES = ("cpu", "cuda", "mps", "xpu")
# Variables that Gradio reads as whole numbers while it is imported.
NUMBERS_OF_GRADIO = (
    "GRADIO_SERVER_PORT",
    "GRADIO_NUM_PORTS",
    "GRADIO_NUM_WORKERS",
    "GRADIO_ANALYTICS_MAX_EVENTS",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY",
)
# As browsers send it: lower case, no path, no slash at the end.
ORIGIN = re.compile(r"https?://[^/?#@\s*A-Z]+")
# Variables with our prefix that the tests read.
OF_THE_TESTS = ("SLIM_TEST_", "SLIM_SCREENSHOTS")


class ConfigError(ValueError):
    """A setting is invalid. The message is one sentence."""


@dataclass(frozen=True)
class Config:
    """Settings of the app; the environment variable of a field is `SLIM_` plus its name in capitals.

    Attributes:
        base: the base model, a folder or a Hub id; empty opens the demo.
        lora: a PEFT LoRA, a folder or a Hub id.
        slim: a SLIM adapter, a folder or a Hub id.
        revision: of the base on the Hub; empty for the main branch.
        load_4bit: whether the base's Linears are kept in 4 bits.
        load_8bit: the same in 8 bits.
        models: bases that visitors may switch to, separated by commas: folders, Hub ids, ID@REVISION; * is any
            Hub id that a visitor names. Empty keeps the base that the app starts with.
        device: such as "cpu", "cuda", "cuda:1"; empty for the best one.
        host: address to listen on; 0.0.0.0 for all addresses of this machine.
        port: port to listen on.
        auth_user: user name for signing in; empty lets everyone in.
        auth_password: its password.
        api_key: what programs must send to the OpenAI-compatible endpoint; if empty, any program may use it, or none
            if people must sign in.
        api_origins: where the API is served alone, the origins of web pages whose scripts may call it from a browser,
            separated by commas, such as https://chat.example.org; * is every page. Empty allows none.
        queue_size: maximum number of queued requests; more are refused.
        concurrency: maximum number of prompts running or queued; more are refused, except that visitors who have none
            get a quarter more places.
        max_new_tokens: maximum length of an answer, in tokens.
        max_prompts: maximum number of prompts in a visitor's list.
        max_questions: maximum number of questions of each task in a visitor's evaluation.
        data_dir: a folder with the data sets of evaluations, as for `evaluate --data-dir`; empty offers none of them.
        max_upload: maximum bytes of an uploaded file, and of an adapter's file from the Hub.
        upload_space: maximum bytes of all unused uploads.
        upload_seconds: seconds until an unused upload is deleted.
        sessions: maximum number of visitors whose conversations are kept.
        adapters: a folder of adapters, one subfolder each, that visitors may choose, and programs where the API is
            served alone; empty offers none.
        max_adapters: maximum number of such adapters, and of those that visitors bring, in memory.
        adapter_memory: maximum bytes of all these adapters in the model.
        visitor_memory: maximum bytes of one visitor's adapters.
        cache_memory: maximum bytes of keys and values that are kept for the next turns of conversations; 0 keeps none.
    """

    base: str = ""
    lora: str = ""
    slim: str = ""
    revision: str = ""
    load_4bit: bool = False
    load_8bit: bool = False
    models: str = ""
    device: str = ""
    host: str = "127.0.0.1"
    port: int = 7860
    auth_user: str = ""
    auth_password: str = ""
    api_key: str = ""
    api_origins: str = ""
    queue_size: int = 128
    concurrency: int = 64
    max_new_tokens: int = 1024
    max_prompts: int = 50
    max_questions: int = 100
    data_dir: str = ""
    max_upload: int = 64_000_000
    upload_space: int = 1_000_000_000
    upload_seconds: int = 1800
    sessions: int = 200
    adapters: str = ""
    max_adapters: int = 16
    adapter_memory: int = 4_000_000_000
    visitor_memory: int = 1_000_000_000
    cache_memory: int = 500_000_000

    def __post_init__(self) -> None:
        if bool(self.auth_user) != bool(self.auth_password):
            raise ConfigError("SLIM_AUTH_USER and SLIM_AUTH_PASSWORD belong together: set both or none.")
        for field in fields(self):
            least = 0 if field.name == "cache_memory" else 1
            if type(field.default) is int and getattr(self, field.name) < least:
                raise ConfigError(f"{variable(field.name)} must be at least {least}.")
        if self.port > 65_535:
            raise ConfigError(f"{variable('port')} is {self.port:,}; a port is at most 65,535.")
        limit = RANGES["max_new_tokens"].high
        if self.max_new_tokens > limit:
            raise ConfigError(f"{variable('max_new_tokens')} must be at most {limit:,}.")
        if self.upload_space < self.max_upload:
            raise ConfigError(
                f"{variable('upload_space')} is {self.upload_space:,}; it must be at least {variable('max_upload')}, "
                f"{self.max_upload:,}."
            )
        kind, _, number = self.device.partition(":")
        if self.device and (kind not in DEVICES or (":" in self.device and not number.isdecimal())):
            raise ConfigError(
                f"{variable('device')} is {self.device!r}; use cpu, cuda, mps, xpu, or a numbered one such as cuda:1."
            )
        if (self.load_4bit or self.load_8bit) and (sentence := lacking("bitsandbytes", "A base in 4 or 8 bits")):
            raise ConfigError(sentence)
        if self.adapters and not Path(self.adapters).is_dir():
            raise ConfigError(f"{variable('adapters')} is {self.adapters!r}; it must be a folder.")
        if self.data_dir and not Path(self.data_dir).is_dir():
            raise ConfigError(f"{variable('data_dir')} is {self.data_dir!r}; it must be a folder.")
        for origin in self.origins:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"{variable('api_origins')} names {origin!r}; an origin is like https://chat.example.org or "
                    "http://localhost:3000, without a path, or *."
                )
        if self.load_4bit and self.load_8bit:
            raise ConfigError("SLIM_LOAD_4BIT and SLIM_LOAD_8BIT cannot both be set: choose one.")
        if (self.lora or self.slim) and not self.base:
            raise ConfigError("An adapter needs its base model: set SLIM_BASE.")
        if self.revision and not self.base:
            raise ConfigError(f"{variable('revision')} is the revision of a base model on the Hub: set SLIM_BASE too.")

    @property
    def store_limits(self) -> StoreLimits:
        """Limits for visitors' adapters: per visitor two in use, and a third that is about to replace one of them."""
        # It imports torch, which takes seconds; the settings are checked before that.
        from ..adapters import StoreLimits

        return StoreLimits(3, self.visitor_memory, self.max_adapters, self.adapter_memory)

    @property
    def auth(self) -> tuple[str, str] | None:
        """In the form that Gradio expects."""
        return (self.auth_user, self.auth_password) if self.auth_user else None

    @property
    def origins(self) -> list[str]:
        """Origins of the web pages that may call the API from a browser."""
        return [origin for origin in map(str.strip, self.api_origins.split(",")) if origin]

    @property
    def api_closed(self) -> str | None:
        """Why the OpenAI-compatible endpoint answers nobody; None if it does."""
        if self.auth_user and not self.api_key:
            return "People must sign in here, and programs have no key: whoever runs the app can set SLIM_API_KEY."
        return None

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ, *, page: bool = True, **flags: Any) -> Config:
        """Read settings: from flags if given, else from the environment, else the defaults.

        Args:
            environment: the variables.
            page: whether the page is served, which needs Gradio.
            flags: by field; None where one is not given.

        Raises:
            ConfigError: with a sentence that names the variable, or the package that is missing.
        """
        if sentence := lacking("gradio", "The app") if page else lacking("fastapi", "The API"):
            raise ConfigError(sentence)
        for name, near in unknown(environment).items():
            if near:
                raise ConfigError(f"{name} is not a setting; did you mean {near}?")
        for name in NUMBERS_OF_GRADIO:
            text = environment.get(name, "")
            if text and not text.strip().isdecimal():
                raise ConfigError(f"{name} is {text!r}; it must be a whole number.")
        values: dict[str, Any] = {}
        for field in fields(cls):
            if flags.get(field.name) is not None:
                values[field.name] = flags[field.name]
            elif text := environment.get(variable(field.name), "").strip():
                values[field.name] = _parse(field.name, type(field.default), text)
        # Gradio's own variables are what its users and Docker images set.
        if "host" not in values and environment.get("GRADIO_SERVER_NAME"):
            values["host"] = environment["GRADIO_SERVER_NAME"]
        if "port" not in values and environment.get("GRADIO_SERVER_PORT"):
            values["port"] = _parse("port", int, environment["GRADIO_SERVER_PORT"])
        # Gradio reads this one itself, and would answer with a stack trace.
        if environment.get("GRADIO_MCP_SERVER", "").lower() == "true" and find_spec("mcp") is None:
            raise ConfigError('GRADIO_MCP_SERVER needs another package: pip install "gradio[mcp]".')
        return cls(**values)


def variable(name: str) -> str:
    """A field's environment variable."""
    return PREFIX + name.upper()


def unknown(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that look like settings but are not, each with the nearest setting or an empty string."""
    known = {field.name.upper() for field in fields(Config)}
    nearest = {}
    for name in environment:
        word = name.removeprefix(PREFIX)
        if name.startswith(PREFIX) and word not in known and not name.startswith(OF_THE_TESTS):
            near = get_close_matches(word, known, 1, NEAR)
            nearest[name] = PREFIX + near[0] if near else ""
    return nearest


def _parse(name: str, kind: type, text: str) -> Any:
    # It is installed with Gradio, whose absence is reported earlier.
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(text)
    except ValidationError:
        raise ConfigError(f"{variable(name)} is {text!r}; {MUST_BE[kind]}.") from None

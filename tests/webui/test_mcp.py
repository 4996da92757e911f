# SPDX-License-Identifier: Apache-2.0
"""The same functions as tools for agents, where Gradio's extra is installed."""

import json

import pytest


mcp = pytest.importorskip("mcp", reason='pip install "gradio[mcp]"')
import anyio  # noqa: E402
from mcp.client.streamable_http import streamablehttp_client  # noqa: E402

from slim_core.webui.backend import Backend  # noqa: E402
from slim_core.webui.config import Config  # noqa: E402
from slim_core.webui.launch import launch  # noqa: E402
from slim_core.webui.layout import build  # noqa: E402
from tests.event_loop import in_new_thread  # noqa: E402
from tests.ui.conftest import free_port  # noqa: E402
from tests.ui.scripted import ScriptedEngine  # noqa: E402


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setenv("GRADIO_MCP_SERVER", "True")
    config = Config(port=free_port())
    demo = build(Backend(ScriptedEngine()), config)
    _, url, _ = launch(demo, config, prevent_thread_lock=True, quiet=True)
    yield f"{url}gradio_api/mcp/"
    demo.close(verbose=False)


def talk(address, conversation):
    """Run a conversation with the server and return what it found."""

    async def run():
        async with (
            streamablehttp_client(address) as (reading, writing, _),
            mcp.ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            return await conversation(session)

    return in_new_thread(anyio.run, run)


def test_the_tools_are_the_api_and_nothing_else(address):
    async def conversation(session):
        return (await session.list_tools()).tools

    tools = {tool.name: tool for tool in talk(address, conversation)}
    assert set(tools) == {"compare", "routing", "models"}
    assert tools["compare"].inputSchema["required"] == ["prompt"]
    assert "Answer a prompt by the base model, LoRA and SLIM at once." in tools["compare"].description
    assert tools["compare"].inputSchema["properties"]["temperature"]["description"] == "0 to 2; 0 is greedy."


def test_a_tool_answers(address):
    async def conversation(session):
        good = await session.call_tool("compare", {"prompt": "Hello there", "max_new_tokens": 8})
        bad = await session.call_tool("compare", {"prompt": " "})
        return good, bad

    good, bad = talk(address, conversation)
    assert "SLIM says: turn1 seed0 Hello there" in json.dumps([part.text for part in good.content])
    assert bad.isError and "Write a prompt first." in bad.content[0].text

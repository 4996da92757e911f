# SPDX-License-Identifier: Apache-2.0
"""The commands on the card for one's own model."""

import shlex

import pytest

from slim_core.webui.tabs.own_model import COMMANDS
from tests.test_docs import check_command


@pytest.mark.parametrize("command", [command for _, command in COMMANDS])
def test_a_command_exists(command):
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "slim_core"]
    check_command(words[3:])

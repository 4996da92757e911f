# SPDX-License-Identifier: Apache-2.0
"""What strangers make the server log is one line each, and not many."""

import logging

import pytest

from slim_core.webui.http.log_lines import OneLineFilter


@pytest.fixture
def logged():
    """A logger with the filter, its clock, and the lines that it wrote."""
    now, lines = [0.0], []
    logger = logging.Logger("test")
    logger.addFilter(OneLineFilter(limit=3, seconds=60, clock=lambda: now[0]))
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(logging.Formatter("%(message)s").format(record))
    logger.addHandler(handler)
    return logger, now, lines


def test_an_error_is_one_line_that_says_where(logged):
    logger, _, lines = logged
    try:
        raise KeyError("a\nb")
    except KeyError:
        logger.exception("Exception in ASGI application\n")
    logger.warning("half\x1b[31m a\nline %s", "\x00" + "x" * 1000)
    assert lines[0].startswith("Exception in ASGI application: KeyError: 'a\\nb' (") and __file__ in lines[0]
    assert lines[1].startswith("half\\x1b[31m a\\nline \\x00xxx") and len(lines[1]) < 350
    assert all("\n" not in line for line in lines)


def test_more_than_so_many_a_minute_are_counted(logged):
    logger, now, lines = logged
    for i in range(10):
        logger.warning("%d", i)
    assert lines == ["0", "1", "2"]
    now[0] = 61
    logger.warning("later")
    logger.warning("and more")
    assert lines[3:] == ["(After 7 lines that were left out.) later", "and more"]

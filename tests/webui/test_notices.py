# SPDX-License-Identifier: Apache-2.0
"""What a notice quotes of a stranger is text, also for Gradio, which takes it for HTML."""

import gradio as gr

from slim_core.webui.limits import LimitError
from slim_core.webui.notices import notice, warn


def test_a_notice_is_text(monkeypatch):
    shown = []
    monkeypatch.setattr(gr, "Warning", lambda message, title: shown.append((message, title)))
    notice("1 < 2 & <b>bold</b>", "Here")
    warn(LimitError('<img src="http://evil">'))
    assert shown == [
        ("1 &lt; 2 &amp; &lt;b&gt;bold&lt;/b&gt;", "Here"),
        ("&lt;img src=&quot;http://evil&quot;&gt;", "Not possible"),
    ]

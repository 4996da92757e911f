# SPDX-License-Identifier: Apache-2.0
"""Pieces of HTML. Every text is escaped when it is inserted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ..statistics import Score


# One colour per variant, distinguishable with colour blindness too (Okabe and Ito).
COLOURS = ("#777777", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4a9e")
ORANGE, BLUE = (213, 94, 0), (0, 114, 178)
STYLE = """
:root{color-scheme:light dark;--line:#8885;--dim:#666}
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.25rem;margin-top:2.5rem}h3{font-size:1.05rem}
table{border-collapse:collapse;margin:.75rem 0;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top;white-space:nowrap}
th{white-space:normal;vertical-align:bottom;min-width:3rem;max-width:12rem}
th:first-child,td:first-child,td.text,th.text{text-align:left;white-space:normal}
td:first-child{min-width:8rem}
td.text{white-space:pre-wrap;overflow-wrap:anywhere;min-width:10rem}
tr.all td{font-weight:600}
small,.dim{color:var(--dim)}
details{border-bottom:1px solid var(--line);padding:.35rem 0}
summary{cursor:pointer;overflow-wrap:anywhere}
.strip{white-space:pre-wrap;overflow-wrap:anywhere;margin:.4rem 0;line-height:1.9}
.strip span{padding:.1rem 0;border-right:1px solid var(--line)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.5rem 0}
svg text{fill:currentColor;font:12px system-ui,sans-serif}
.wide svg{min-width:30rem;max-width:100%}
.legend{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.2rem 1.2rem}
.yes{color:#0a7d33}.no{color:#b3261e}
@media (prefers-color-scheme:dark){:root{--dim:#aaa}.yes{color:#6fd08c}.no{color:#ff8a80}}
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page.

    Args:
        title: plain text.
        parts: HTML.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        # Whatever an answer contains, the page loads and runs nothing.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, text: Sequence[int] = (), last: int = 0) -> str:
    """A table of plain texts.

    Args:
        head: names of the columns.
        rows: the cells.
        text: columns of long texts.
        last: how many of the last rows stand out.
    """
    all_rows = list(rows)

    def cells(row: Sequence[str], tag: str) -> str:
        marked = (' class="text"' if place in text else "" for place in range(len(row)))
        return "".join(f"<{tag}{mark}>{escape(cell)}</{tag}>" for mark, cell in zip(marked, row, strict=True))

    lines = [f"<thead><tr>{cells(head, 'th')}</tr></thead><tbody>"]
    for number, row in enumerate(all_rows):
        kind = ' class="all"' if number >= len(all_rows) - last else ""
        lines.append(f"<tr{kind}>{cells(row, 'td')}</tr>")
    return '<div class="wide"><table>' + "\n".join(lines) + "</tbody></table></div>"


def strip(tokens: Iterable[tuple[str, float, str]]) -> str:
    """Tokens on a line, each in a colour between orange at 0 and blue at 1.

    Args:
        tokens: the text, the number, and what to say of it.
    """
    spans = (
        f'<span style="background:{_tint(number)}" title="{escape(words)}">{escape(text)}</span>'
        for text, number, words in tokens
    )
    return f'<p class="strip">{"".join(spans)}</p>'


def _tint(number: float) -> str:
    red, green, blue = (round(low + (high - low) * number) for low, high in zip(ORANGE, BLUE, strict=True))
    return f"rgba({red},{green},{blue},.35)"


def percent(share: float) -> str:
    """A share in %, without the sign."""
    return f"{100 * share:.1f}"


def interval(score: Score) -> str:
    """A share with its interval, in %."""
    return f"{percent(score.score)} ({percent(score.low)}–{percent(score.high)})"


def signed(score: Score) -> str:
    """A difference with its interval, in points."""
    mean, low, high = (f"{100 * share:+.1f}".replace("-0.0", "+0.0") for share in score)
    return f"{mean} ({low} to {high})"


def plain_interval(score: Score, sign: bool = False) -> str:
    """A number with its interval, such as nats."""
    form = "+.3f" if sign else ".3f"
    between = " to " if sign else "–"
    return f"{score.score:{form}} ({score.low:{form}}{between}{score.high:{form}})"

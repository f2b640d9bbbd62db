"""The frame of every report: one HTML page that needs nothing but itself.

All text that comes from files is escaped by whoever puts it in: configs, prompts and names are not trusted.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from constrained_diffusion.runtime.files import write_bytes

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
:root{color-scheme:light dark;--page:#fff;--ink:#1d2126;--soft:#59616d;--line:#d9dde3;--card:#f6f7f9;--good:#1c7f4b;
--bad:#c03427}
@media(prefers-color-scheme:dark){:root{--page:#14171b;--ink:#e6e8eb;--soft:#9aa3af;--line:#323841;--card:#1c2026;
--good:#4cc38a;--bad:#ff7a6b}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:68rem;padding:1.5rem 1rem 4rem;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,sans-serif}
h1{font-size:1.5rem;line-height:1.25;margin:0;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2.5rem 0 .75rem}
.verdict{margin:1.25rem 0;padding:.8rem 1rem;background:var(--card);border-left:4px solid var(--soft)}
.feasible{border-color:var(--good)}.infeasible,.diverged{border-color:var(--bad)}
.note,figcaption{color:var(--soft);font-size:.9rem;overflow-wrap:anywhere}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.4rem 0 .4rem 1.25rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
thead th{color:var(--soft);font-weight:500}tbody th{font-weight:400;text-align:left;padding-left:0}
td:last-child{font-weight:600}
.pair{display:grid;gap:1.5rem 2rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,29rem),1fr))}
figure{margin:0}figcaption{margin-bottom:.3rem}img,svg{display:block;width:100%;height:auto;border-radius:3px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.25rem;margin:0 0 1rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}summary{cursor:pointer}
pre{overflow-x:auto;padding:1rem;background:var(--card);font-size:.85rem;line-height:1.45}
@media(max-width:34rem){dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}th,td{padding-left:.8rem}}
</style>
</head>
<body>
"""


def write_page(target: Path, title: str, sections: Sequence[str]) -> Path:
    """Write the sections (HTML) as one page to `target`, all at once, and return it."""
    page = _HEAD.replace("TITLE", escape(title)) + "\n".join(sections) + "\n</body>\n</html>\n"
    write_bytes(target, page.encode(errors="replace"))
    return target


def picture(name: str, path: Path) -> str:
    """Return the PNG file as a figure with its name above; a note where it is none."""
    data = path.read_bytes()
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return note(f"{name}: {path.name} is no PNG file.")
    return figure(name, data)


def figure(name: str, png: bytes) -> str:
    """Return PNG bytes as a figure with its name above."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<figure><figcaption>{escape(name)}</figcaption><img alt="samples, {escape(name)}" src="{source}"></figure>'


def note(text: str) -> str:
    """Return a small grey paragraph, "" for no text."""
    return f'<p class="note">{escape(text)}</p>' if text else ""

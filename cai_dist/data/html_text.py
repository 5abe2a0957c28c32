"""The words of a piece of HTML, as a person would read them. The markup comes from anywhere: nothing is fetched or run,
what is no HTML is left as it is, and the time is linear in the length (the standard library's parser takes minutes for
some texts of a page)."""

from __future__ import annotations

import re
from html import unescape

_HTML = re.compile(
    r"</(?i:p|a|b|i|em|strong|code|pre|ul|ol|li|blockquote|div|span|h[1-6]|table)\s{0,9}>"
    r"|<(?i:br|hr)\s{0,9}/?>|<p>|<(?i:img)\s[^<>]*=[^<>]*>"
)
"""What tells HTML from a text in which `<` stands for less or for a type's parameter (`vector<A>`, `a <b and c> d`):
the end of an element, or one that has none."""
_TAG = re.compile(r"<!--[^<>]*-->|<(/?)([A-Za-z][A-Za-z0-9]*)\b[^<>]*>")
_BLOCKS = ("p", "div", "ul", "ol", "table", "blockquote", "pre", "h1", "h2", "h3", "h4", "h5", "h6")
"""Stand apart from what is around them."""
_LINES = {"li": "\n- ", "tr": "\n", "br": "\n", "hr": "\n", "dt": "\n", "dd": "\n"}
"""Begin a line."""
_SILENT = ("script", "style", "template")
_SILENT_END = re.compile(r"</(script|style|template)\b[^<>]*>", re.I)


def plain_text(text: str) -> str:
    """`text` without its markup where it is HTML: paragraphs apart by an empty line, list items on lines of their own
    with a dash, code as it is, links and emphasis as their words."""
    if not _HTML.search(text):
        return text
    parts: list[str] = []
    depth = {"pre": 0, "silent": 0}
    last = {end[1].lower(): end.start() for end in _SILENT_END.finditer(text)}
    end = 0
    for tag in _TAG.finditer(text):
        _add(parts, text[end : tag.start()], depth)
        end = tag.end()
        if tag[2] is None:
            continue
        if (name := tag[2].lower()) in _SILENT:  # one without its end hides nothing
            depth["silent"] = int(not tag[1] and last.get(name, -1) >= end)
        else:
            _cross(parts, name, bool(tag[1]), depth)
    _add(parts, text[end:], depth)
    lines = "\n".join(line.rstrip() for line in "".join(parts).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


def _cross(parts: list[str], name: str, closing: bool, depth: dict[str, int]) -> None:
    """What a tag does to the lines around it, and to whether white space is kept."""
    if name in _BLOCKS:
        parts.append("\n\n")
    elif name in _LINES and not closing:
        parts.append(_LINES[name])
    if name == "pre":
        depth["pre"] = max(0, depth["pre"] + (-1 if closing else 1))


def _add(parts: list[str], raw: str, depth: dict[str, int]) -> None:
    if not raw or depth["silent"]:
        return
    words = unescape(raw)
    if not depth["pre"]:
        words = re.sub(r"\s+", " ", words)
        if not parts or parts[-1][-1:] in (" ", "\n"):
            words = words.lstrip()
    if words:
        parts.append(words)

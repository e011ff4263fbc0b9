"""What a reader sees: labels as lines of text, with the escapes, markup and record fields of DOT undone."""

from __future__ import annotations

import html
import re
from functools import lru_cache

from planner.inspect.tokens import Html

MOST_CHARACTERS = 4_000
"""Of one label; what stands behind is not read."""
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_BREAK = re.compile(r"<\s*(?:br|/tr|/td|hr|vr)\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")
_FIELD = re.compile(r"(?<!\\)[{}|]")
_PORT = re.compile(r"(?<!\\)<[^<>]*>")
BREAKS = "nlr"


def unescaped(value: str) -> str:
    r"""The text that `planner.export.dot.quoted` wrote: `\\` is a backslash, `\n` a line break."""
    return _ESCAPE.sub(lambda match: "\n" if match[1] == "n" else match[1], value)


@lru_cache(maxsize=65_536, typed=True)  # markup and text may be spelt alike
def label_lines(label: str, shape: str = "", node: str = "", graph: str = "") -> tuple[str, ...]:
    """The lines of a label, empty ones left out; fields of a record are lines of their own."""
    text = label[:MOST_CHARACTERS]
    if isinstance(label, Html):
        text = html.unescape(_TAG.sub("", _BREAK.sub("\n", text)))
    else:
        if shape.lower() in ("record", "mrecord"):
            text = _FIELD.sub("\n", _PORT.sub("", text))
        names = {"N": node, "G": graph}
        text = _ESCAPE.sub(lambda match: "\n" if match[1] in BREAKS else names.get(match[1], match[1]), text)
        text = html.unescape(text[: 2 * MOST_CHARACTERS])
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return tuple(line for line in lines if line)

# ruff: noqa: E501  # tables of hostile values
"""Broken and hostile inputs: sound documents with values, keys and bytes changed at random."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import yaml

HUGE = 10**400
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
EVIL: tuple[Callable[[random.Random], Any], ...] = (
    lambda draw: draw.choice([None, True, False, "", " ", [], {}, [[]], {"": None}]),
    lambda draw: draw.choice([0, -1, 1, 2, 3, 7, 10**6, 2**31, 2**40, 2**63, 2**64, -(2**63), HUGE, 10**18]),
    lambda draw: draw.choice([0.0, -0.5, 1.5, 1e-320, 1e308, -1e308, 1e15, 0.1]),
    lambda draw: draw.choice(["../../x", "/etc/passwd", "~/x", "~nobody-here/x.yaml", "a/../../b", "..", ".", "/dev/zero", "CON", "x" * 300, "\\..\\x"]),
    lambda draw: draw.choice(["a\x00b", "\x1b[2J\x07", "\u202egpj.exe", "\ufeff", "\u2028", "\ud7ff\ue000", "é" * 50, "٣", "🦆"]),
    lambda draw: draw.choice(["<script>alert(1)</script>", '"><svg onload=x>', "]];evil[", '\\"', "=cmd|' /C calc'!A0", "${x}", "{{7*7}}"]),
    lambda draw: draw.choice(["any", "full", "helix", "helix:m4n4", "2x8-h100", "1e3", "1:30", "yes", "null", ".nan", ".inf", "0x10"]),
    lambda draw: draw.choice(["99999x99999-h100", "0x0-h100", "prefill:batch=0", "decode:batch=1,context=1e9", "prefill:" + "a=1," * 50]),
    lambda draw: {"from": draw.choice([0, 1, -1, 1e15]), "to": draw.choice([0, 8, 1e15, -1]), draw.choice(["step", "times"]): draw.choice([0, 1, 2, 1e-9])},
    lambda draw: [draw.choice([1, "a", None, [1], {"a": 1}]) for _ in range(draw.choice([1, 2, 17, 300]))],
    lambda draw: _deep(draw.choice([10, 70, 500])),
)  # fmt: skip
BYTES = (
    b"\x00", b"\xff", b"\xfe\xff", b"{", b"}", b"[", b"]", b'"', b"'", b":", b": ", b"- ", b"&a ", b"*a", b"<<: *a", b"!!python/object:os.system ",
    b"!!bool x", b"!!timestamp 9", b"\n", b"\n\n", b"\t", b"#", b"%", b"@", b"`", b"|", b">", b"---\n", b"...\n", b"\\u0000", b"\\ud800", b"NaN", b"1e999", b"9" * 5000,
    b"[" * 200, b"{a: " * 100, b"//", b"/*", b"->", b"--", b";", b"=", b",", b"<b>", b"\r\n", b"\xef\xbb\xbf", b"subgraph ", b"digraph ", b"strict ",
)  # fmt: skip


def inputs(document: object, text: str, as_json: bool, draw: random.Random) -> Iterator[bytes]:
    """Endless variants of a document (as data, or None) and of its text."""
    whole = text.encode()
    while True:
        if document is not None and draw.random() < 0.7:
            try:
                changed = mutated(document, draw)
                found = (json.dumps(changed) if as_json else yaml.dump(changed, Dumper=DUMPER, allow_unicode=True)).encode()
            except (ValueError, RecursionError, yaml.YAMLError, UnicodeEncodeError):
                continue
            yield scrambled(found, draw) if draw.random() < 0.1 else found
        else:
            yield scrambled(whole, draw)


def mutated(document: object, draw: random.Random) -> object:
    """The document with one to four values replaced, removed, added, doubled or exchanged."""
    whole: dict[str, Any] = {"root": copy.deepcopy(document)}
    for _ in range(draw.choice([1, 1, 1, 2, 2, 4])):
        places = list(_places(whole))
        holder, key = draw.choice(places)
        act = draw.random()
        if act < 0.25:
            holder[key] = _nudged(holder[key], draw)
        elif act < 0.55:
            holder[key] = draw.choice(EVIL)(draw)
        elif act < 0.7 and holder is not whole:
            del holder[key]
        elif act < 0.8:
            other, name = draw.choice(places)
            holder[key] = copy.deepcopy(other[name])
        elif isinstance(holder, dict) and holder is not whole:
            name = draw.choice(EVIL)(draw)
            holder[name if isinstance(name, str) else draw.choice(["x", "name", "schema", "like", "include", "source"])] = (
                holder[key]
            )
        elif isinstance(holder, list):
            holder[key:key] = [copy.deepcopy(holder[key])] * draw.choice([1, 2, 40])
        else:
            holder[key] = [holder[key]]
    return whole["root"]


def _nudged(value: Any, draw: random.Random) -> object:
    """A value near the sound one, which a reader may well let through."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return draw.choice([value + 1, value - 1, value * 2, value // 2, value * 1000, value * 1_000_000, 0, 0.5])
    if isinstance(value, str):
        return draw.choice([value.upper(), value + "0", value[1:], value[:-1], value.replace("1", "1000")])
    if isinstance(value, list):
        return draw.choice([value[1:], value[::-1], value * 2, value * 100])
    return draw.choice([{}, None, [value]])


def scrambled(data: bytes, draw: random.Random) -> bytes:
    """Bytes with some of them replaced, removed, doubled or joined by hostile ones."""
    found = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 3, 8])):
        at = draw.randrange(len(found) + 1)
        end = min(len(found), at + draw.choice([0, 1, 1, 2, 5, 40, 400]))
        act = draw.random()
        if act < 0.4:
            found[at:end] = draw.choice(BYTES)
        elif act < 0.6:
            found[at:end] = b""
        elif act < 0.75:
            found[at:at] = found[at:end] * draw.choice([1, 2, 20])
        elif act < 0.9:
            found[at:end] = bytes(draw.randrange(256) for _ in range(end - at))
        else:
            del found[at:]
    return bytes(found[:2_000_000])


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    stack = [value]
    while stack:
        holder = stack.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            yield holder, key
            if isinstance(holder[key], dict | list):
                stack.append(holder[key])


def _deep(levels: int) -> object:
    value: object = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value

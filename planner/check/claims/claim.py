"""Claim: what an author says about a plan, read strictly from a claims file or from the `claims:` of a problem."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from planner.check.claims.quantities import QUANTITIES
from planner.check.claims.subject import SCOPES
from planner.errors import InputError
from planner.evaluate.expression import Name, Tree, children, parse_expression
from planner.evaluate.term import OPERATIONS
from planner.fields import Fields
from planner.files import read_yaml

CLAIMS_SCHEMA = "planner.claims/1"
MAX_CLAIMS = 10_000
MOST_LEVELS, MOST_PARTS = 100, 20_000
Kind = Literal[
    "term", "shape", "total", "flops", "arithmetic", "model", "count", "structure", "bytes", "percentage", "comparison"
]
KINDS: tuple[Kind, ...] = (
    "term", "shape", "total", "flops", "arithmetic", "model", "count", "structure", "bytes", "percentage", "comparison",
)  # fmt: skip
PER = ("gpu", "head", "expert", "whole")
RATIOS = ("latency_reduction", "throughput_gain", "communication_reduction", "launch_overhead_reduction")
MEASURES = ("latency", "communication", "imbalance")
CALLS = ("Get_Time", "Attention", "Memory", "Transfer", "max", *OPERATIONS)
BASE = ("batch_size", "seq_len", "hidden_dim", "vocab_size", "num_experts", "num_heads", "head_dim", "ffn_hidden")
"""Names that mean the problem's own sizes in any expression."""
OPERATORS = (
    "qkv", "attention", "q_proj", "k_proj", "v_proj", "q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj", "q_absorb", "v_absorb",
    "index_q", "index_k", "index_w", "index_score", "scores", "attention_value", "o_proj", "gate_proj", "up_proj", "down_proj",
    "router", "expert_gate_proj", "expert_up_proj", "expert_down_proj", "shared_gate_proj", "shared_up_proj",
    "shared_down_proj", "shared_router", "embedding", "lm_head", "none",
)  # fmt: skip
"""Operators of the graph that multiply, the groups of them that claims speak of, and `none` for one that no plan has."""
RANKS = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")
ARROW = re.compile(r"\s*(?:->|→)\s*")


@dataclass(frozen=True, slots=True)
class Matrices:
    """A product as shapes: left x right, and the result where it is given."""

    left: tuple[Tree, ...]
    right: tuple[Tree, ...]
    result: tuple[Tree, ...] = ()


@dataclass(frozen=True, slots=True)
class Definition:
    """What a named constant stands for: a size or an expression, communication, or something that is not stated.

    `height` and `parts` are those of its tree with every name in it written out.
    """

    kind: Literal["tree", "unstated", "communication"]
    tree: Tree | None = None
    height: int = 1
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim: `text` in the author's wording, `at` its place in the source; `place` and `source`: where it was read.

    `plan` is empty where the claim is about the problem. `claim` is what is claimed: a number, a range, a truth value or a
    text; `tree` and `matrices` hold it read as an expression or as shapes.
    """

    id: str
    kind: Kind
    text: str
    at: str
    plan: str
    claim: float | bool | str | tuple[float, float]
    place: str
    source: str = ""
    of: str = ""
    operator: tuple[str, ...] = ()
    gpus: tuple[int, ...] = ()
    per: str = "gpu"
    scope: str = "layer"
    against: str | Mapping[str, object] = ""
    tolerance: float | None = None
    tree: Tree | None = None
    matrices: Matrices | None = None
    working: Tree | None = None
    where: Mapping[str, Definition] = field(default_factory=dict)
    note: str = ""

    @property
    def rival(self) -> str:
        """The name by which the plan it is compared with is known: that of a plan, or the claim's own for one written out."""
        return self.against if isinstance(self.against, str) else f"plan of claim {self.id}"


def read_claims(path: Path) -> tuple[tuple[Claim, ...], str]:
    """The claims of a claims file, and the problem that it names (empty where it names none)."""
    fields = Fields(read_yaml(path), str(path))
    schema = fields.raw("schema")
    if schema != CLAIMS_SCHEMA:
        newer = isinstance(schema, str) and schema.startswith("planner.claims/")
        hint = "the file is of another version than this planner reads" if newer else "a claims file"
        raise fields.error("schema", f"{CLAIMS_SCHEMA} ({hint})")
    problem, plan = fields.text("problem", default=""), fields.text("plan", default="")
    claims = _claims(fields.mappings("claims", required=True), plan)
    fields.done()
    return claims, problem


def claims_of(raw: Sequence[Mapping[str, object]], source: str) -> tuple[Claim, ...]:
    """The claims of a problem, as `Problem.claims` holds them."""
    return _claims([Fields(item, source, f"claims[{i}]") for i, item in enumerate(raw)], "")


def _claims(items: Sequence[Fields], plan: str) -> tuple[Claim, ...]:
    if len(items) > MAX_CLAIMS:
        raise InputError("claims", len(items), f"at most {MAX_CLAIMS} claims", items[0].source)
    found: dict[str, Claim] = {}
    for fields in items:
        claim = _claim(fields, plan)
        if claim.id in found:
            raise fields.error("id", f"an id that no other claim has ({found[claim.id].place} has it)")
        found[claim.id] = claim
    return tuple(found.values())


def _claim(fields: Fields, plan: str) -> Claim:
    """One claim; only the fields that its kind takes may be there."""
    kind = fields.choice("kind", KINDS)
    where = _where(fields)
    claim = Claim(
        id=fields.text("id"), kind=kind, text=fields.text("text"), at=fields.text("at", default=""),
        plan=fields.text("plan", default=plan), place=fields.path,
        source=fields.source, note=fields.text("note", default=""),
        tolerance=fields.maybe_number("tolerance", high=1.0), where=where, **_of_kind(fields, kind, where),
    )  # fmt: skip
    fields.done()
    return claim


def _of_kind(fields: Fields, kind: Kind, where: Mapping[str, Definition]) -> dict[str, Any]:
    """The fields that depend on the kind of claim."""
    if kind in ("term", "total", "shape", "flops"):
        found: dict[str, Any] = {"operator": _operators(fields), "gpus": _gpus(fields)}
        found["scope" if kind == "total" else "per"] = (
            fields.choice("scope", SCOPES, default="layers") if kind == "total" else fields.choice("per", PER, default="gpu")
        )
        if kind == "flops":
            return {**found, "claim": fields.number("claim", low=1.0), "working": _working(fields, where, False)}
        text = fields.text("claim")
        read = {"matrices": _matrices(fields, text, where)} if kind == "shape" else {"tree": _tree(fields, "claim", where)}
        return {**found, "claim": text, **read}
    if kind == "arithmetic":
        return {"claim": fields.number("claim"), "working": _working(fields, where, True)}
    if kind in ("percentage", "comparison"):
        of = fields.choice("of", RATIOS if kind == "percentage" else MEASURES)
        claim = fields.choice("claim", ("less", "more", "same")) if kind == "comparison" else _number_or_range(fields)
        return {"of": of, "claim": claim, "against": _against(fields)}
    of = fields.choice("of", tuple(name for name, quantity in QUANTITIES.items() if quantity.kind == kind))
    return {"of": of, "claim": _plain(fields), "operator": _operators(fields), "gpus": _gpus(fields)}


def _against(fields: Fields) -> str | Mapping[str, object]:
    """A plan's name, a plan written out, or nothing."""
    if isinstance(fields.raw("against"), Mapping):
        written = fields.mapping("against")
        written.ignore(written.values)
        return dict(written.values)
    return fields.text("against", default="")


def _plain(fields: Fields) -> float | bool | str | tuple[float, float]:
    """A number, a truth value, a text or a range."""
    value = fields.raw("claim")
    if isinstance(value, bool):
        return value
    return fields.text("claim") if isinstance(value, str) else _number_or_range(fields)


def _number_or_range(fields: Fields) -> float | tuple[float, float]:
    value = fields.raw("claim")
    if not isinstance(value, list):
        return fields.number("claim")
    if len(value) != 2 or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value) or value[0] > value[1]:
        raise fields.error("claim", "a number, or a range of two numbers")
    return float(value[0]), float(value[1])


def _operators(fields: Fields) -> tuple[str, ...]:
    value = fields.raw("operator")
    names = [value] if isinstance(value, str) else fields.texts("operator", default=())
    unknown = [name for name in names if name not in OPERATORS]
    if unknown:
        raise fields.error("operator", "operators of the graph: " + ", ".join(OPERATORS))
    return tuple(names)


def _gpus(fields: Fields) -> tuple[int, ...]:
    """A rank, or ranks such as `0-7`."""
    value = fields.raw("gpus")
    if value is None:
        return ()
    match = RANKS.fullmatch(str(value)) if isinstance(value, int | str) and not isinstance(value, bool) else None
    if match is None:
        raise fields.error("gpus", "a rank, or ranks such as 0-7")
    first = int(match.group(1))
    last = int(match.group(2) or first)
    if not first <= last < first + 100_000:
        raise fields.error("gpus", "ranks such as 0-7, the smaller first")
    return tuple(range(first, last + 1))


def _where(fields: Fields) -> dict[str, Definition]:
    """Named constants; each may use those above it."""
    found: dict[str, Definition] = {}
    section = fields.maybe_mapping("where")
    for name in section.values if section else ():
        assert section is not None
        value = section.raw(name)
        if name in CALLS or name in BASE:
            raise section.error(name, "a name that has no meaning yet")
        if value in ("unstated", "communication"):
            found[name] = Definition("unstated" if value == "unstated" else "communication")
        else:
            tree = _tree(section, name, found)
            found[name] = Definition("tree", tree, *_measure(tree, found))
    return found


def _measure(tree: Tree, where: Mapping[str, Definition]) -> tuple[int, int]:
    """Levels and parts of a tree with its names written out: names that use each other can grow beyond all bounds."""
    if isinstance(tree, Name):
        found = where.get(tree.name)
        return (found.height, found.parts) if found else (1, 1)
    inner = [_measure(part, where) for part in children(tree)]
    return 1 + max((height for height, _ in inner), default=0), 1 + sum(parts for _, parts in inner)


def _tree(fields: Fields, name: str, where: Mapping[str, Definition], calls: Sequence[str] = CALLS) -> Tree:
    value = fields.raw(name)
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else fields.text(name)
    return _parsed(fields, name, text, where, calls)


def _parsed(fields: Fields, name: str, text: str, where: Mapping[str, Definition], calls: Sequence[str]) -> Tree:
    try:
        tree = parse_expression(text, calls, (*BASE, *where))
    except InputError as error:
        raise error.within(fields.source, fields.at(name)) from None
    height, parts = _measure(tree, where)
    if height > MOST_LEVELS or parts > MOST_PARTS:
        allowed = f"at most {MOST_LEVELS} levels and {MOST_PARTS} parts with its names written out"
        raise InputError(fields.at(name), text, allowed, fields.source)
    return tree


def _working(fields: Fields, where: Mapping[str, Definition], required: bool) -> Tree | None:
    """The sum that a number is said to come from."""
    return _tree(fields, "working", where, ()) if required or fields.has("working") else None


def _matrices(fields: Fields, text: str, where: Mapping[str, Definition]) -> Matrices:
    """`[m, k] x [k, n]`, with `-> [m, n]` where the result is given; sizes may be expressions."""
    product, *result = ARROW.split(text)
    sides = [part.strip() for part in re.split(r"\]\s*[x×*]\s*\[", product.strip())]
    if len(sides) != 2 or len(result) > 1 or not sides[0].startswith("[") or not sides[1].endswith("]"):
        raise fields.error("claim", "[m, k] x [k, n], or [m, k] x [k, n] -> [m, n]")
    inner = [sides[0][1:], sides[1][:-1], *(part.strip().removeprefix("[").removesuffix("]") for part in result)]
    shapes = [tuple(_parsed(fields, "claim", part, where, ()) for part in shape.split(",")) for shape in inner]
    if any(len(shape) < 2 for shape in shapes):
        raise fields.error("claim", "matrices with two sizes or more")
    return Matrices(shapes[0], shapes[1], shapes[2] if len(shapes) > 2 else ())

"""Get_Time terms: the price of a path written down as an expression, read back and evaluated to the same number.

The grammar is that of `planner.evaluate.expression`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from planner.costs.groups import GroupShape
from planner.costs.pricer import Pricer
from planner.errors import InputError
from planner.evaluate.expression import Function, Value, evaluate_tree, parse_expression
from planner.graph.ops import COLLECTIVES, Kind, Op

COLLECTIVE_NAMES = {
    Kind.ALL_REDUCE: "AllReduce",
    Kind.ALL_GATHER: "AllGather",
    Kind.REDUCE_SCATTER: "ReduceScatter",
    Kind.ALL_TO_ALL: "AllToAll",
    Kind.SEND: "SendRecv",
}
PARTS = ("outside", "inside")
OPERATIONS = {name: kind.value for kind, name in COLLECTIVE_NAMES.items()}


def op_term(op: Op, row: int, kind: str, shape: GroupShape | None) -> str:
    """The term of one operator at one row; `kind` is named only where a cluster has several GPU kinds."""
    if op.kind in (Kind.MATMUL, Kind.GROUPED):
        m, k, n, batch = (_at(size, row) for size in (op.m, op.k, op.n, op.batch))
        grouped = op.kind == Kind.GROUPED
        more = [f"{'groups' if grouped else 'batch'}={_number(batch)}"] if grouped or batch != 1 else []
        return _call("Get_Time", [m, k, n], [*more, *_dtype(op.dtype), *_gpu(kind)])
    if op.attention is not None:
        a = op.attention
        sizes = [_at(s, row) for s in (a.batch, a.heads, a.kv_heads, a.q_len, a.kv_len, a.qk_dim, a.v_dim)]
        flags = (["causal=1"] if a.causal else []) + (["shared_kv=1"] if a.shared_kv else [])
        cache = [] if a.kv_dtype is None else [f"kv_dtype={a.kv_dtype}"]
        return _call("Attention", sizes, [*flags, *_dtype(op.dtype), *cache, *_gpu(kind)])
    if op.kind in COLLECTIVES and shape is not None:
        named = {name: getattr(shape, name) for name in GroupShape.__slots__}
        fields = [f"{name}={_number(value)}" for name, value in named.items() if value >= 0]
        return _call(COLLECTIVE_NAMES[op.kind], [_at(op.bytes, row)], fields)
    return _call("Memory", [_at(op.bytes, row)], _gpu(kind))


def transfer_term(sent: float, received: float, senders: int, receivers: int, crossing: float) -> str:
    """The term of a transfer between two disjoint sets of GPUs."""
    return _call("Transfer", [sent, received, senders, receivers, crossing], [])


def sum_terms(terms: Iterable[str]) -> str:
    """A sum in which equal neighbours are counted."""
    counted: list[tuple[str, int]] = []
    for term in terms:
        if counted and counted[-1][0] == term:
            counted[-1] = (term, counted[-1][1] + 1)
        else:
            counted.append((term, 1))
    return " + ".join(times(count, term) for term, count in counted) or "0"


def times(count: int, term: str) -> str:
    """A counted term; sums are bracketed."""
    if count == 1:
        return term
    return f"{count} x [{term}]" if " + " in term else f"{count} x {term}"


def _call(name: str, plain: Sequence[float], named: Sequence[str]) -> str:
    return f"{name}({', '.join([*(_number(x) for x in plain), *named])})"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _at(size: object, row: int) -> float:
    array = np.asarray(size)
    return float(array if array.ndim == 0 else array[row])


def _dtype(dtype: str) -> list[str]:
    return [] if dtype == "bf16" else [f"dtype={dtype}"]


def _gpu(kind: str) -> list[str]:
    return [f"gpu={kind}"] if kind else []


def evaluate_expression(text: str, pricer: Pricer) -> float:
    """Seconds of an expression on the cluster of a pricer."""
    known = functions(pricer)
    return evaluate_tree(parse_expression(text, known), known)


def functions(pricer: Pricer) -> dict[str, Function]:
    """What an expression may call."""
    default = next(iter(pricer.sources))

    def source(named: dict[str, Value]):  # type: ignore[no-untyped-def]  # noqa: ANN202
        name = str(named.get("gpu", default))
        if name not in pricer.sources:
            raise InputError("gpu", name, "one of " + ", ".join(pricer.sources), "expression")
        return pricer.sources[name]

    def get_time(plain: list[Value], named: dict[str, Value]) -> float:
        m, k, n = (float(x) for x in plain)
        dtype = str(named.get("dtype", "bf16"))
        if "groups" in named:
            return float(source(named).grouped(m, k, n, float(named["groups"]), dtype))
        return float(source(named).get_time(m, k, n, float(named.get("batch", 1)), dtype))

    def attention(plain: list[Value], named: dict[str, Value]) -> float:
        b, h, kv, q, length, qk, v = (float(x) for x in plain)
        cache = str(named["kv_dtype"]) if "kv_dtype" in named else None
        flags = bool(named.get("causal", 0)), str(named.get("dtype", "bf16")), cache, bool(named.get("shared_kv", 0))
        return float(source(named).attention(b, h, kv, q, length, qk, v, *flags))

    def memory(plain: list[Value], named: dict[str, Value]) -> float:
        return float(source(named).elementwise(float(plain[0])))

    def transfer(plain: list[Value], named: dict[str, Value]) -> float:
        return float(pricer.collectives.m2n_time(*(float(x) for x in plain)))

    def collective(operation: str) -> Function:
        def price(plain: list[Value], named: dict[str, Value]) -> float:
            counts = {key: int(float(value)) for key, value in named.items() if key not in PARTS}
            outside, inside = (float(named.get(key, -1.0)) for key in PARTS)
            shape = replace(GroupShape(**counts), outside=outside, inside=inside)
            return float(pricer.collectives.time(operation, float(plain[0]), shape))

        return price

    table: dict[str, Function] = {"Get_Time": get_time, "Attention": attention, "Memory": memory, "Transfer": transfer}
    table["max"] = lambda plain, named: max(float(x) for x in plain)
    return table | {name: collective(operation) for name, operation in OPERATIONS.items()}

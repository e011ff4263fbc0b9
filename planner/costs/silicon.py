"""Measurements from the package aiconfigurator-core: its tables of kernels and collectives, read where it is installed.

The package (NVIDIA, Apache-2.0) holds Parquet files of times in ms, `systems/data/SYSTEM/FAMILY/BACKEND/VERSION/TABLE`,
measured by the kernels of one inference runtime (BACKEND). Read here: products, prefill and decode attention, MLA, and
NCCL inside a node. Sliding windows, block-scaled and weight-only formats stay with the formulas, and so does decode with
more than 32 query heads to a KV head: there the runtimes fall back to kernels that take several times as long.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from planner.costs.kernels import AttentionClass
from planner.costs.rows import Array, Measurements, Sample
from planner.errors import InputError, unknown_name

PACKAGE = "aiconfigurator_core"
INSTALL = "the package aiconfigurator-core, which is not installed: pip install 'parallelism-planner[silicon]'"
SYSTEMS = {
    "a100-80gb": "a100_sxm", "h100": "h100_sxm", "h200": "h200_sxm", "b200": "b200_sxm", "b300": "b300_sxm",
    "gb200": "gb200", "gb300": "gb300", "l40s": "l40s",
}  # fmt: skip
BACKENDS = ("trtllm", "vllm", "sglang")
DTYPES = {
    "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "fp8": "fp8", "nvfp4": "nvfp4", "int8": "int8",
}  # fmt: skip
COMM_BYTES = {"half": 2.0, "bfloat16": 2.0, "int8": 1.0}
COMM = {"all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter", "alltoall": "all_to_all"}
MOST_GROUP = 32  # query heads to a KV head
STRAYS = 3.0  # a row that is more times off the others of its kind was disturbed (see `Table`)
MLA_PREFILL, MLA_DECODE = (192.0, 128.0), (576.0, 512.0)  # query and value dims, expanded and absorbed (DeepSeek-V3)
Key = TypeVar("Key", str, AttentionClass)
Columns = Mapping[str, np.ndarray[Any, Any]]


@lru_cache(maxsize=4)
def silicon_measurements(name: str, kind: str) -> Measurements:
    """The measurements that `silicon[:SYSTEM[/BACKEND]]` means for a GPU kind; `InputError` where there are none."""
    _, _, place = name.partition(":")
    system, _, backend = place.partition("/")
    data = _data_folder(name)
    systems = sorted(path.name for path in data.iterdir() if (path / "gemm").is_dir())
    system = system or SYSTEMS.get(kind, kind)
    if system not in systems:
        raise unknown_name("silicon system", system, systems, name)
    backends = [one for one in BACKENDS if (data / system / "gemm" / one).is_dir()]
    if backend and backend not in backends:
        raise unknown_name("silicon backend", backend, backends, name)
    return measurements_in(data / system, backend or backends[0])


def measurements_in(folder: Path, backend: str) -> Measurements:
    """The measurements of one system and backend; a table that is missing has no rows."""
    products = _read(folder / "gemm" / backend, "gemm_perf", products_of)
    attention: dict[AttentionClass, Sample] = {}
    for family, table, convert in (
        ("attention", "context_attention_perf", prefill_of),
        ("attention", "generation_attention_perf", decode_of),
        ("mla", "context_mla_perf", mla_prefill_of),
        ("mla", "generation_mla_perf", mla_decode_of),
    ):
        for kernel, sample in _read(folder / family / backend, table, convert).items():
            both = attention.get(kernel)
            attention[kernel] = sample if both is None else _joined(both, sample)
    return Measurements(products, attention, _read(folder / "comm" / "nccl", "nccl_perf", collectives_of))


def products_of(columns: Columns) -> dict[str, Sample]:
    """Products by dtype."""
    sizes = (columns["m"], columns["k"], columns["n"], np.ones(len(columns["m"])))
    return _split([DTYPES.get(dtype) for dtype in columns["gemm_dtype"]], sizes, columns["latency"])


def prefill_of(columns: Columns) -> dict[AttentionClass, Sample]:
    """Prefill attention without a window: causal, as many keys as queries besides those of earlier tokens (`step`)."""
    keys = _classes(columns, "attn_dtype", decode=False)
    return _attention(columns, keys, columns["num_key_value_heads"], (columns["head_dim"], columns["head_dim"]), decode=False)


def decode_of(columns: Columns) -> dict[AttentionClass, Sample]:
    """Decode attention without a window: one query, `step` tokens in the cache besides its own."""
    whole = columns["num_heads"] <= MOST_GROUP * columns["num_key_value_heads"]
    keys = [key if good else None for key, good in zip(_classes(columns, "attn_dtype", decode=True), whole, strict=True)]
    return _attention(columns, keys, columns["num_key_value_heads"], (columns["head_dim"], columns["head_dim"]), decode=True)


def mla_prefill_of(columns: Columns) -> dict[AttentionClass, Sample]:
    """Prefill of multi-head latent attention, keys and values expanded."""
    return _attention(columns, _classes(columns, "mla_dtype", decode=False), columns["num_heads"], MLA_PREFILL, decode=False)


def mla_decode_of(columns: Columns) -> dict[AttentionClass, Sample]:
    """Decode of multi-head latent attention, absorbed: one latent for all heads."""
    keys = _classes(columns, "mla_dtype", decode=True, shared=True)
    return _attention(columns, keys, np.ones(len(columns["latency"])), MLA_DECODE, decode=True)


def collectives_of(columns: Columns) -> dict[str, Sample]:
    """NCCL inside a node; `message_size` counts elements of the full buffer."""
    moved = columns["message_size"] * np.array([COMM_BYTES.get(dtype, 0.0) for dtype in columns["nccl_dtype"]])
    keys = [COMM.get(op) if size > 0 else None for op, size in zip(columns["op_name"], moved, strict=True)]
    return _split(keys, (columns["num_gpus"], np.ones(len(moved)), moved), columns["latency"])


def _classes(columns: Columns, dtype: str, *, decode: bool, shared: bool = False) -> list[AttentionClass | None]:
    """The class of each kernel; None for one with a window, or of a format that is not ours."""
    window = columns.get("window_size", np.zeros(len(columns["latency"])))
    pairs = zip(columns[dtype], columns["kv_cache_dtype"], window, strict=True)
    found = [None if size else (DTYPES.get(own), DTYPES.get(cache)) for own, cache, size in pairs]
    known = {
        pair: AttentionClass.of(1 if decode else 2, True, shared, pair[0], pair[1])
        for pair in set(found)
        if pair is not None and pair[0] is not None and pair[1] is not None
    }
    return [None if pair is None else known.get(pair) for pair in found]


def _attention(
    columns: Columns,
    keys: list[AttentionClass | None],
    kv_heads: Any,
    dims: tuple[Any, Any],
    *,
    decode: bool,
) -> dict[AttentionClass, Sample]:
    many = np.ones(len(keys))
    queries = many if decode else columns["isl"]
    length = columns["isl"] + columns["step"]
    own = [key if decode or q > 1 else None for key, q in zip(keys, queries, strict=True)]
    sizes = (columns["batch_size"], columns["num_heads"], kv_heads, queries, length, dims[0] * many, dims[1] * many)
    return _split(own, sizes, columns["latency"])


def _split(keys: list[Key | None], sizes: tuple[Array, ...], milliseconds: Array) -> dict[Key, Sample]:
    """Rows by key, those without one left out."""
    points, seconds = np.stack([np.asarray(size, dtype=np.float64) for size in sizes], axis=1), milliseconds * 1e-3
    names = list(dict.fromkeys(key for key in keys if key is not None))
    order = {key: at for at, key in enumerate(names)}
    owner = np.array([-1 if key is None else order[key] for key in keys])
    good = np.isfinite(seconds) & (seconds > 0) & np.all(points >= 1, axis=1)
    mine = {key: (owner == at) & good for key, at in order.items()}
    return {key: Sample.of(points[rows], seconds[rows]) for key, rows in mine.items() if np.any(rows)}


def _joined(a: Sample, b: Sample) -> Sample:
    return Sample.of(np.concatenate([a.points, b.points]), np.concatenate([a.seconds, b.seconds]))


def _read(folder: Path, table: str, convert: Callable[[Columns], dict[Key, Sample]]) -> dict[Key, Sample]:
    """The newest version of a table, converted; nothing where no version has it."""
    found = sorted(folder.glob(f"*/{table}.parquet"), key=lambda path: _version(path.parent.name))
    if not found:
        return {}
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(found[-1])
        return convert({name: rows.column(name).to_numpy() for name in rows.column_names})
    except (KeyError, ValueError, TypeError, OSError) as error:
        text = " ".join(str(error).split())[:120]
        raise InputError("table", found[-1].name, f"a table of the layout of aiconfigurator-core 0.12 ({text})") from None


def _version(name: str) -> tuple[int, ...]:
    """A version by its numbers: 1.3.0rc20 after 1.3.0rc10."""
    return tuple(int(part) for part in re.findall(r"\d+", name))


def _data_folder(name: str) -> Path:
    """The folder of the systems' tables in the installed package."""
    spec = find_spec(PACKAGE)
    places = [] if spec is None or spec.submodule_search_locations is None else list(spec.submodule_search_locations)
    for place in places:
        if (Path(place) / "systems" / "data").is_dir():
            return Path(place) / "systems" / "data"
    raise InputError("table", name, INSTALL)

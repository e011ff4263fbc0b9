"""From a name, a file or a mapping to a Cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from planner.cluster import Cluster, Domain, GpuKind, Link
from planner.clusters.kinds import GIVEN_LINK, MOST_GPUS, gpu_from_fields, gpu_kinds, link_from_fields, load_gpu
from planner.clusters.measured import comm_table, gemm_tables
from planner.errors import InputError, unknown_name
from planner.fields import Fields
from planner.files import read_json, read_yaml

FOLDER = Path(__file__).parent
PART = re.compile(r"([0-9]{1,12})x([0-9]{1,12})-(.+)")
SHAPES = "NODESxGPUS-KIND such as 2x8-h100, several joined by +, a cluster of the catalog, or a path to a cluster file"


@dataclass(frozen=True, slots=True)
class _Nodes:
    """`count` equal nodes of `gpus` GPUs; `domain` GPUs share one scale-up domain.

    `joins`: they are no node of their own but further GPUs, of another kind, in the node before.
    """

    kind: GpuKind
    count: int
    gpus: int
    domain: int
    link: Link
    joins: bool


def cluster_names() -> list[str]:
    """Names of the clusters that come as files; `NxM-kind` works besides for every kind of `gpu_kinds()`."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_cluster(ref: str | Path | Mapping[str, Any] | Cluster, source: str = "") -> Cluster:
    """The cluster that `ref` means: a name, a path to a cluster file, an inline mapping, or already a cluster."""
    if isinstance(ref, Cluster):
        return ref
    if isinstance(ref, Path) or (isinstance(ref, str) and _is_file(ref)):
        return _build(as_mapping(ref, source), str(ref))
    if not isinstance(ref, str):
        return _build(ref, source)
    try:
        return _build(as_mapping(ref, source), "")
    except InputError as error:  # the fields are those of the mapping behind the name: show the name that was written
        part = {"count": "NODES: ", "gpus": "GPUS: "}.get(error.field.rpartition(".")[2], "")
        raise InputError("cluster", ref, f"{part}{error.allowed}", source) from error


def as_mapping(ref: str | Path, source: str = "") -> dict[str, Any]:
    """The mapping that a name or a path stands for, so that single fields of it can be changed before it is built."""
    if isinstance(ref, Path) or _is_file(ref):
        path = Path(ref)
        return read_json(path) if path.suffix == ".json" else read_yaml(path)
    name = ref.strip().lower()
    if name in cluster_names():
        return read_yaml(FOLDER / f"{name}.yaml")
    parts = [PART.fullmatch(part.strip()) for part in name.split("+")]
    if not all(parts):
        raise _bad_name(ref, source)
    nodes = [{"kind": part[3], "count": int(part[1]), "gpus": int(part[2])} for part in parts if part]
    return {"name": name, "nodes": nodes}


def _is_file(ref: object) -> bool:
    text_form = str(ref)
    return text_form.endswith((".yaml", ".yml", ".json")) or (isinstance(ref, Path) and ref.is_file())


def _bad_name(ref: str, source: str) -> InputError:
    """The error for a name that is neither in the catalog nor of the form NxM-kind."""
    near = unknown_name("cluster", ref, [*cluster_names(), *(f"2x8-{kind}" for kind in gpu_kinds())], source)
    if "did you mean" in near.allowed:
        return InputError("cluster", ref, f"{SHAPES}; {near.allowed}", source)
    return InputError("cluster", ref, f"{SHAPES}; kinds: {', '.join(gpu_kinds())}", source)


def _build(value: object, source: str) -> Cluster:
    data = Fields(value, source, "cluster")
    data.ignore(("schema", "source"))
    nodes = _nodes(data)
    kinds = _priced({group.kind.name: group.kind for group in nodes}, data)
    per_node = max(_node_sizes(nodes))
    network, adapters = _network(data, list(kinds.values()), per_node)
    device_kinds = tuple(name for group in nodes for name in [group.kind.name] * (group.count * group.gpus))
    name = data.text("name", default="+".join(f"{g.count}x{g.gpus}-{g.kind.name}" for g in nodes))
    sources = (*(f"{kind.name}: {kind.source}" for kind in kinds.values()), f"network: {network.source}")
    sources += tuple(f"{kind.name} price: {kind.price_source}" for kind in kinds.values())
    tables = gemm_tables(data, tuple(kinds)), comm_table(data)
    data.done()
    return Cluster(name, kinds, device_kinds, _domains(nodes), network, per_node, sources, adapters, *tables)


def _nodes(data: Fields) -> list[_Nodes]:
    own = data.maybe_mapping("kinds")
    customs: dict[str, GpuKind] = {}
    for key in own.values if own else ():
        given = own.mapping(key) if own else data
        customs[key] = gpu_from_fields(Fields({"name": key} | dict(given.values), given.source, given.path))
    nodes = [_node(item, customs) for item in data.mappings("nodes", required=True)]
    total = sum(group.count * group.gpus for group in nodes)
    if not nodes or total > MOST_GPUS:
        raise InputError(data.at("nodes"), f"{total:,} GPUs", f"1 to {MOST_GPUS:,} GPUs", data.source)
    for place, group in enumerate(nodes):
        if group.joins and (place == 0 or group.count > 1 or nodes[place - 1].domain > nodes[place - 1].gpus):
            allowed = "false, or one more entry of the node before, where its domain is that node"
            raise InputError(data.at(f"nodes[{place}].same_node"), True, allowed, data.source)
    return nodes


def _node_sizes(nodes: list[_Nodes]) -> list[int]:
    """GPUs of every different node."""
    found: list[int] = []
    for group in nodes:
        if group.joins:
            found[-1] += group.gpus
        else:
            found.append(group.gpus)
    return found


def _node(data: Fields, customs: Mapping[str, GpuKind]) -> _Nodes:
    name = data.text("kind")
    kind = customs.get(name) or load_gpu(name, data.at("kind"), data.source)
    count = data.integer("count", low=1, high=MOST_GPUS, default=1)
    joins, given = data.boolean("same_node", default=False), data.maybe_mapping("link")
    link = kind.scale_up if given is None else link_from_fields(given, kind.scale_up)
    most = data.maybe_integer("gpus_per_domain", low=1, high=MOST_GPUS)
    rack = most is None and kind.domain_size > kind.gpus_per_node
    most = most or max(kind.domain_size, kind.gpus_per_node)
    gpus = data.integer("gpus", high=MOST_GPUS, default=min(8, kind.gpus_per_node, most))
    if link is None or not 1 <= gpus <= most:
        raise data.error(
            "gpus", f"1 to {most} {kind.name} in a node (take more nodes, or give gpus_per_domain in a cluster file)"
        )
    for part in (data, given):
        if part is not None:
            part.done()
    return _Nodes(kind, count, gpus, most if rack else gpus, link, joins)


def _domains(nodes: list[_Nodes]) -> tuple[Domain, ...]:
    """Scale-up domains: a node each, except where a rack joins nodes (72 GPUs of an NVL72); the slowest link of their kinds."""
    found: list[Domain] = []
    start = 0
    for group in nodes:
        end = start + group.count * group.gpus
        if group.joins:
            last = found.pop()
            link = min(last.link, group.link, key=lambda one: one.bandwidth)
            found.append(Domain((*last.ranks, *range(start, end)), link))
            start = end
            continue
        found.extend(
            Domain(tuple(range(at, min(at + group.domain, end))), group.link) for at in range(start, end, group.domain)
        )
        start = end
    return tuple(found)


def _network(data: Fields, kinds: list[GpuKind], per_node: int) -> tuple[Link, int]:
    """The network between domains: the slowest of the kinds' usual ones, with what the file overrides."""
    base = min((kind.network for kind in kinds if kind.network is not None), key=lambda link: link.bandwidth)
    given = data.maybe_mapping("network")
    if given is None:
        return base, 0
    adapters = given.integer("nics_per_node", high=per_node * 64, default=0)
    link = link_from_fields(given, base)
    given.done()
    return link, adapters


def _priced(kinds: dict[str, GpuKind], data: Fields) -> dict[str, GpuKind]:
    """The kinds with the prices that the cluster gives: one number for all, or a mapping by kind."""
    stated = data.source or GIVEN_LINK
    if not data.has("price_per_gpu_hour"):
        return kinds
    if not isinstance(data.raw("price_per_gpu_hour"), Mapping):
        price = data.number("price_per_gpu_hour", high=1e6)
        return {name: replace(kind, price_per_hour=price, price_source=stated) for name, kind in kinds.items()}
    given = data.mapping("price_per_gpu_hour")
    prices = {name: given.number(name, high=1e6) for name in kinds if given.has(name)}
    given.done()
    priced = {name: replace(kinds[name], price_per_hour=price, price_source=stated) for name, price in prices.items()}
    return kinds | priced

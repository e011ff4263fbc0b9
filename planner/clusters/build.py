"""From a name, a file or a mapping to a Cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from planner.cluster import Cluster, Domain, GpuKind, Link
from planner.clusters.kinds import GIVEN_LINK, LINK_KEYS, gpu_from_mapping, gpu_kinds, link_from_mapping, load_gpu, price
from planner.clusters.reading import mapping, read_mapping, text, whole
from planner.errors import InputError, unknown_name

MOST_GPUS = 1_048_576
FOLDER = Path(__file__).parent
PART = re.compile(r"([0-9]{1,12})x([0-9]{1,12})-(.+)")
CLUSTER_KEYS = ("schema", "name", "nodes", "network", "price_per_gpu_hour", "kinds", "source")
NODE_KEYS = ("kind", "count", "gpus", "link", "gpus_per_domain")
SHAPES = "NODESxGPUS-KIND such as 2x8-h100, several joined by +, a cluster of the catalog, or a path to a cluster file"


@dataclass(frozen=True, slots=True)
class _Nodes:
    """`count` equal nodes of `gpus` GPUs; `domain` GPUs share one scale-up domain."""

    kind: GpuKind
    count: int
    gpus: int
    domain: int
    link: Link


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
        raise InputError("cluster", ref, error.allowed, source) from error


def as_mapping(ref: str | Path, source: str = "") -> dict[str, Any]:
    """The mapping that a name or a path stands for, so that single fields of it can be changed before it is built."""
    if isinstance(ref, Path) or _is_file(ref):
        return read_mapping(Path(ref))
    name = ref.strip().lower()
    if name in cluster_names():
        return read_mapping(FOLDER / f"{name}.yaml")
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
    data = mapping(value, "cluster", source, CLUSTER_KEYS)
    nodes = _nodes(data, source)
    kinds = _priced({group.kind.name: group.kind for group in nodes}, data.get("price_per_gpu_hour"), source)
    per_node = max(group.gpus for group in nodes)
    network, adapters = _network(data.get("network"), list(kinds.values()), per_node, source)
    device_kinds = tuple(name for group in nodes for name in [group.kind.name] * (group.count * group.gpus))
    name = text(data, "name", "cluster", source, "+".join(f"{g.count}x{g.gpus}-{g.kind.name}" for g in nodes))
    sources = (*(f"{kind.name}: {kind.source}" for kind in kinds.values()), f"network: {network.source}")
    sources += tuple(f"{kind.name} price: {kind.price_source}" for kind in kinds.values())
    return Cluster(name, kinds, device_kinds, _domains(nodes), network, per_node, sources, adapters)


def _nodes(data: Mapping[str, Any], source: str) -> list[_Nodes]:
    own = mapping(data.get("kinds", {}), "cluster.kinds", source)
    customs = {
        key: gpu_from_mapping({"name": key} | _entry(value, key, source), f"cluster.kinds.{key}", source)
        for key, value in own.items()
    }
    listed = data.get("nodes")
    if not isinstance(listed, list) or not listed:
        raise InputError("cluster.nodes", listed, "a list of {kind, count, gpus}", source)
    nodes = [_node(item, f"cluster.nodes[{index}]", customs, source) for index, item in enumerate(listed)]
    total = sum(group.count * group.gpus for group in nodes)
    if total > MOST_GPUS:
        raise InputError("cluster.nodes", f"{total:,} GPUs", f"at most {MOST_GPUS:,} GPUs", source)
    return nodes


def _entry(value: object, key: str, source: str) -> dict[str, Any]:
    return mapping(value, f"cluster.kinds.{key}", source)


def _node(item: object, field: str, customs: Mapping[str, GpuKind], source: str) -> _Nodes:
    data = mapping(item, field, source, NODE_KEYS)
    name = text(data, "kind", field, source)
    kind = customs.get(name) or load_gpu(name, f"{field}.kind", source)
    count = whole(data, "count", field, source, low=1, high=MOST_GPUS, default=1)
    link = link_from_mapping(data.get("link", {}), f"{field}.link", source, kind.scale_up)
    most = max(kind.domain_size, kind.gpus_per_node)
    if "gpus_per_domain" in data:
        most = whole(data, "gpus_per_domain", field, source, low=1, high=MOST_GPUS)
    gpus = data.get("gpus", min(8, kind.gpus_per_node))
    if isinstance(gpus, bool) or not isinstance(gpus, int) or not 1 <= gpus <= most:
        hint = f"1 to {most} {kind.name} in a node (use more nodes, or give gpus_per_domain in a cluster file)"
        raise InputError(f"{field}.gpus", gpus, hint, source)
    rack = kind.domain_size > kind.gpus_per_node and "gpus_per_domain" not in data
    return _Nodes(kind, count, gpus, most if rack else min(gpus, most), link)


def _domains(nodes: list[_Nodes]) -> tuple[Domain, ...]:
    """Scale-up domains: a node each, except where a rack joins nodes (72 GPUs of an NVL72)."""
    found: list[Domain] = []
    start = 0
    for group in nodes:
        end = start + group.count * group.gpus
        found.extend(
            Domain(tuple(range(at, min(at + group.domain, end))), group.link) for at in range(start, end, group.domain)
        )
        start = end
    return tuple(found)


def _network(value: object, kinds: list[GpuKind], per_node: int, source: str) -> tuple[Link, int]:
    """The network between domains: the slowest of the kinds' usual ones, with what the file overrides."""
    usual = [kind.network for kind in kinds if kind.network is not None]
    base = min(usual, key=lambda link: link.bandwidth)
    data = mapping({} if value is None else value, "cluster.network", source, LINK_KEYS)
    adapters = whole(data, "nics_per_node", "cluster.network", source, low=0, high=per_node * 64, default=0)
    return link_from_mapping(data, "cluster.network", source, base), adapters


def _priced(kinds: dict[str, GpuKind], value: object, source: str) -> dict[str, GpuKind]:
    """The kinds with the prices that the cluster gives: one number for all, or a mapping by kind."""
    if value is None:
        return kinds
    field = "cluster.price_per_gpu_hour"
    given = mapping(value, field, source, kinds) if isinstance(value, Mapping) else dict.fromkeys(kinds, value)
    stated = source or GIVEN_LINK
    return {
        name: replace(kind, price_per_hour=price(given, name, field, source), price_source=stated) if name in given else kind
        for name, kind in kinds.items()
    }

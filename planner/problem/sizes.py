"""From a model, a workload and a cluster to the plain integers that a search space depends on."""

from __future__ import annotations

from collections.abc import Iterable

from planner.cluster import Cluster
from planner.errors import InputError
from planner.model import Attention, Ffn, ModelSpec
from planner.workload import Workload
from search_spaces.sizes import Sizes


def sizes_of(model: ModelSpec, workload: Workload, cluster: Cluster) -> Sizes:
    """The sizes of a problem; GPU kinds are numbered in the order of their first rank.

    Where layers differ the tightest one counts: the fewest dims a segment can have, the narrowest FFN. `InputError`
    for layers with different numbers of heads or experts, and for expert loads that do not match the experts.
    """
    attention = [layer.attention for layer in model.layer_kinds]
    dense = [layer.ffn for layer in model.layer_kinds if layer.ffn.kind == "dense"]
    mixtures = [layer.ffn for layer in model.layer_kinds if layer.ffn.kind == "moe"]
    experts = _one("experts", (ffn.experts for ffn in mixtures), model) if mixtures else 0
    _check_loads(workload, experts, sum(layer.ffn.kind == "moe" for layer in model.layers))
    number = {kind: index for index, kind in enumerate(dict.fromkeys(cluster.device_kinds))}
    return Sizes(
        phase="decode" if workload.phase == "decode" else "prefill",
        layers=len(model.layers),
        heads=_one("heads", (a.heads for a in attention), model),
        kv_heads=max(a.kv_heads for a in attention),
        head_dim=min(_split_dims(a) for a in attention),
        v_head_dim=min(a.v_head_dim for a in attention),
        latent=any(a.kind == "mla" for a in attention),
        dense=bool(dense),
        moe=bool(mixtures),
        ffn_hidden=_narrowest(dense),
        experts=experts,
        expert_hidden=_narrowest(mixtures),
        top_k=max((ffn.top_k for ffn in mixtures), default=0),
        vocab=model.vocab,
        batch=workload.batch,
        query_length=workload.query_length,
        kv_length=workload.kv_length,
        kind_of_device=tuple(number[kind] for kind in cluster.device_kinds),
        domain_of_device=cluster.domain_of,
        context_prefill=not any(_sees_part(a) for a in attention),
        expert_rows=workload.load_rows(sum(layer.ffn.kind == "moe" for layer in model.layers)),
        gpus=cluster.gpus,
        link_of_device=_links(cluster),
    )


def _links(cluster: Cluster) -> tuple[int, ...]:
    """The number of the link inside every rank's domain; nothing where all domains have the same."""
    number = {tier: index for index, tier in enumerate(dict.fromkeys(cluster.tiers))}
    return tuple(number[cluster.tiers[domain]] for domain in cluster.domain_of) if len(number) > 1 else ()


def _one(name: str, values: Iterable[int], model: ModelSpec) -> int:
    found = sorted(set(values))
    if len(found) > 1:
        raise InputError(f"model.{name}", found, f"the same number of {name} in all layers of {model.name}", model.source)
    return found[0]


def _split_dims(attention: Attention) -> int:
    """Dims of a head that segments share out; latent attention splits the dims without position."""
    return attention.nope_dim if attention.kind == "mla" else attention.head_dim


def _narrowest(networks: list[Ffn]) -> int:
    return min((ffn.hidden for ffn in networks), default=0)


def _sees_part(attention: Attention) -> bool:
    """Whether a query sees a part of the keys only, so that parts of the prompt are unequal work."""
    return attention.window is not None or attention.chunk is not None or attention.indexer is not None


def _check_loads(workload: Workload, experts: int, layers: int) -> None:
    loads = workload.expert_load
    if not loads:
        return
    if not experts:
        raise InputError("workload.expert_load", "given", "no loads: the model has no experts")
    if len(loads) not in (1, layers):
        raise InputError("workload.expert_load", f"{len(loads)} rows", f"one row, or one for each of the {layers} MoE layers")
    for index, row in enumerate(loads):
        if len(row) != experts:
            place = f"workload.expert_load[{index}]" if len(loads) > 1 else "workload.expert_load"
            raise InputError(place, f"{len(row)} loads", f"one for each of the {experts} experts")

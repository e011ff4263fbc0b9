"""A choice as a mapping: every decision written out, so that a reader needs no defaults."""

from __future__ import annotations

from planner.plan.read import PLAN_SCHEMA, SCHEDULES
from planner.plan.training import training_to_dict
from search_spaces.attention import AttentionPartition
from search_spaces.experts import Placement, rows_of
from search_spaces.orders import in_ranges
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice, StageChoice


def choice_to_dict(choice: Choice, sizes: Sizes) -> dict[str, object]:
    """The plan (`planner.plan/1`) of a choice; `plan_space` reads it back as a space that holds this choice alone."""
    return {
        "schema": PLAN_SCHEMA,
        **({"gpus": in_ranges(sizes.gpus)} if sizes.gpus else {}),
        "replicas": choice.replicas,
        "micro_batches": choice.micro_batches,
        **({"schedule": SCHEDULES[0]} if choice.training is None else training_to_dict(choice.training)),
        "in_flight": choice.in_flight,
        "stages": [_stage(stage, sizes) for stage in choice.stages],
    }


def _stage(stage: StageChoice, sizes: Sizes) -> dict[str, object]:
    written: dict[str, object] = {
        "layers": stage.layers,
        "devices": list(stage.devices),
        "attention": _attention(stage.attention, sizes),
        "mlp": {"ways": stage.mlp_ways},
    }
    if stage.experts is not None:
        written["experts"] = _experts(stage, sizes)
    return written


def _attention(partition: AttentionPartition, sizes: Sizes) -> dict[str, object]:
    return {
        "head_groups": partition.head_groups,
        "heads_per_group": list(partition.heads(sizes.heads)),
        "dimension_segments": partition.dimension_segments,
        "batch_parts": partition.batch_parts,
        "context_parts": partition.context_parts,
        "order": partition.order,
        "score_reduce": partition.score_reduce,
        "softmax": partition.softmax,
        "output_projection": partition.output_projection,
        "sequence_parallel": partition.sequence_parallel,
    }


def _experts(stage: StageChoice, sizes: Sizes) -> dict[str, object]:
    """The experts of a stage; a placement by layer names the copies itself."""
    experts = stage.experts
    if experts is None:
        return {}
    written: dict[str, object] = {"form": experts.form, "tensor_ways": experts.tensor_ways}
    if experts.form == "separate":
        written |= {"devices": list(stage.expert_devices), "router_side": experts.router_side}
    if experts.serve_within:
        written["serve_within"] = experts.serve_within
    if experts.by_layer:
        return written | {"placement_by_layer": [_groups(row) for row in rows_of(experts.placement)]}
    groups = experts.groups(sizes.experts, len(stage.expert_devices))
    copies = [len(held) for held in groups]
    written["placement"] = _groups(groups)
    written["replicas"] = copies[0] if len(set(copies)) == 1 else copies
    return written


def _groups(placement: Placement) -> list[int | list[int]]:
    """One entry per expert: its group, or the list of its groups where it has copies."""
    return [held[0] if len(held) == 1 else list(held) for held in placement]

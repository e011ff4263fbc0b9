"""Plans with one decision changed at random."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice, StageChoice

Change = Callable[[random.Random, Sizes, Choice], "Choice | None"]


def change_plan(rng: random.Random, sizes: Sizes, choice: Choice, operator: str) -> Choice | None:
    """The plan with one thing changed by this operator; None where it has nothing of the kind or nothing changed."""
    found = OPERATORS[operator](rng, sizes, choice)
    return None if found == choice else found


def _stage(rng: random.Random, choice: Choice, change: Callable[[StageChoice], StageChoice | None]) -> Choice | None:
    index = rng.randrange(len(choice.stages))
    new = change(choice.stages[index])
    return None if new is None else replace(choice, stages=(*choice.stages[:index], new, *choice.stages[index + 1 :]))


def _attention(
    rng: random.Random, choice: Choice, change: Callable[[AttentionPartition], AttentionPartition | None]
) -> Choice | None:
    def one(stage: StageChoice) -> StageChoice | None:
        new = change(stage.attention)
        return None if new is None else replace(stage, attention=new)

    return _stage(rng, choice, one)


def _experts(
    rng: random.Random, choice: Choice, change: Callable[[ExpertPlacement, int], ExpertPlacement | None]
) -> Choice | None:
    def one(stage: StageChoice) -> StageChoice | None:
        new = None if stage.experts is None else change(stage.experts, len(stage.expert_devices))
        return None if new is None else replace(stage, experts=new)

    return _stage(rng, choice, one)


def heads_per_group(rng, sizes, choice):
    """A head moves to another group, is lost, or is there twice."""

    def change(p: AttentionPartition) -> AttentionPartition:
        heads = list(p.heads(sizes.heads))
        heads[rng.randrange(len(heads))] += rng.choice((-1, 1))
        if rng.random() < 0.6:
            heads[rng.randrange(len(heads))] += sizes.heads - sum(heads)
        return replace(p, heads_per_group=tuple(heads))

    return _attention(rng, choice, change)


def grid(rng, sizes, choice):
    """One extent of the attention grid grows or shrinks, alone or at the cost of another."""

    def change(p: AttentionPartition) -> AttentionPartition:
        names = ["head_groups", "dimension_segments", "batch_parts", "context_parts"]
        one, other = rng.sample(names, 2)
        factor, new = rng.choice((2, 3)), p
        if rng.random() < 0.7 and getattr(p, other) % factor == 0:
            new = replace(new, **{other: getattr(p, other) // factor})
        return replace(new, **{one: getattr(new, one) * factor}, heads_per_group=())

    return _attention(rng, choice, change)


def attention_flag(rng, sizes, choice):
    """Order of the grid, score reduce, where the softmax runs, form of the output projection, sequence parallelism."""

    def change(p: AttentionPartition) -> AttentionPartition:
        field = rng.choice(["order", "score_reduce", "softmax", "output_projection", "sequence_parallel"])
        other = {"segments_inner": "heads_inner", "replicated": "scattered", "row": "gather"}
        other |= {value: key for key, value in other.items()}
        value = getattr(p, field)
        return replace(p, **{field: not value if isinstance(value, bool) else other[value]})

    return _attention(rng, choice, change)


def devices(rng, sizes, choice):
    """A stage loses a GPU, gets one of another stage or one that does not exist, or its GPUs change places."""

    def change(stage: StageChoice) -> StageChoice:
        ranks = list(stage.devices)
        kind, place = rng.choice(["lose", "other", "swap", "add"]), rng.randrange(len(ranks))
        if kind == "lose":
            ranks.pop(place)
        elif kind == "other":
            ranks[place] = rng.choice([*range(sizes.devices), sizes.devices, -1])
        elif kind == "add":
            ranks.append(rng.choice(range(sizes.devices + 1)))
        else:
            rng.shuffle(ranks)
        return replace(stage, devices=tuple(ranks))

    return _stage(rng, choice, change)


def layers(rng, sizes, choice):
    """A layer moves to another stage, is lost, or is there twice."""
    stages = list(choice.stages)
    index = rng.randrange(len(stages))
    stages[index] = replace(stages[index], layers=stages[index].layers + rng.choice((-1, 1)))
    if rng.random() < 0.5 and len(stages) > 1:
        other = (index + 1) % len(stages)
        stages[other] = replace(stages[other], layers=stages[other].layers + sizes.layers - sum(s.layers for s in stages))
    return replace(choice, stages=tuple(stages))


def stages(rng, sizes, choice):
    """Two stages change places, or one is lost."""
    found = list(choice.stages)
    if len(found) < 2:
        return None
    if rng.random() < 0.4:
        found.pop(rng.randrange(len(found)))
    else:
        i, j = rng.sample(range(len(found)), 2)
        found[i], found[j] = found[j], found[i]
    return replace(choice, stages=tuple(found))


def mlp_ways(rng, sizes, choice):
    """The dense network is split otherwise."""
    return _stage(
        rng, choice, lambda s: replace(s, mlp_ways=rng.choice([0, 1, s.mlp_ways * 2, s.mlp_ways + 1, max(1, s.mlp_ways // 2)]))
    )


def micro_batches(rng, sizes, choice):
    """More, fewer or none."""
    m = choice.micro_batches
    return replace(choice, micro_batches=rng.choice([0, 1, m + 1, m * 2, max(1, m // 2), sizes.batch * 2]))


def replicas(rng, sizes, choice):
    """More, or none."""
    return replace(choice, replicas=rng.choice([0, 2, 3, sizes.devices]))


def in_flight(rng, sizes, choice):
    """Other waves."""
    return replace(choice, in_flight=rng.choice([0, 1, 2, 3, choice.in_flight + 1]))


def placement(rng, sizes, choice):
    """An expert is nowhere, twice in a group, on a group that does not exist, on another one, or has a replica more."""

    def change(experts: ExpertPlacement, ways: int) -> ExpertPlacement:
        placed = [list(held) for held in experts.groups(sizes.experts, ways)]
        groups, held = ways // experts.tensor_ways, placed[rng.randrange(len(placed))]
        kind = rng.choice(["nowhere", "twice", "beyond", "moved", "copied", "lost", "more"])
        if kind == "nowhere":
            held.clear()
        elif kind == "twice":
            held.append(held[0])
        elif kind == "beyond":
            held[0] = rng.choice((groups, -1))
        elif kind == "moved":
            held[0] = rng.randrange(groups)
        elif kind == "copied":
            held.append(rng.randrange(groups))
        elif kind == "lost":
            placed.pop()
        else:
            placed.append([0])
        return replace(experts, placement=tuple(map(tuple, placed)))

    return _experts(rng, choice, change)


def expert_form(rng, sizes, choice):
    """Other tensor ways, another form, another side for the router, or experts where the model has none."""
    if all(stage.experts is None for stage in choice.stages):
        return _stage(rng, choice, lambda s: replace(s, experts=ExpertPlacement()))

    def change(stage: StageChoice) -> StageChoice:
        kind, experts = rng.choice(["ways", "form", "side", "none", "devices"]), stage.experts
        if kind == "ways":
            return replace(
                stage, experts=replace(experts, tensor_ways=rng.choice([0, experts.tensor_ways * 2, experts.tensor_ways + 1]))
            )
        if kind == "form":
            form = rng.choice([f for f in ("local", "dispatch", "separate") if f != experts.form])
            return replace(stage, experts=replace(experts, form=form))
        if kind == "devices":
            return replace(stage, experts=replace(experts, devices=experts.devices + rng.choice((-1, 1))))
        side = "expert" if experts.router_side == "attention" else "attention"
        return replace(stage, experts=None if kind == "none" else replace(experts, router_side=side))

    return _stage(rng, choice, change)


OPERATORS: dict[str, Change] = {
    change.__name__: change
    for change in (
        heads_per_group, grid, attention_flag, devices, layers, stages, mlp_ways, micro_batches, replicas, in_flight, placement,
        expert_form,
    )
}  # fmt: skip
"""Mutation operators of plans, by name."""

"""Random small problems over every decision, with brute force for all objectives at once.

A problem is a mapping first, so that its search can be certified; each is drawn from its seed alone.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from itertools import pairwise

from planner.evaluate.capacity import over_capacity
from planner.evaluate.measures import measures
from planner.evaluate.pipeline import feedback_seconds, makespan, send_seconds
from planner.evaluate.setting import Setting, setting
from planner.evaluate.stage import intervals, stage_price, view
from planner.evaluate.tables import Block, FfnOption, StageTable, price_blocks
from planner.evaluate.waves import Task, wave_tasks
from planner.problem import Problem, load_problem
from planner.solve.objective import NAMES, Caps
from planner.solve.optimum import SpaceSearch
from search_spaces.space import SearchSpace, token_split
from search_spaces.stages import Choice, StageChoice
from tests.oracle import flow_shop, step_waves

MOST_PLANS = 2500
DECISIONS = (
    "segments", "uneven heads", "stages of different sizes", "replicas", "micro-batches", "context parallel prefill",
    "context parallel decode", "sequence parallel", "expert placement", "expert copies", "experts apart", "waves", "mixed GPUs",
    "unequal domains", "copies near the sender", "strided context", "strided batch", "attention last", "tight memory",
    "infeasible",
)  # fmt: skip
"""What random problems leave open, or have that makes them hard."""


def random_case(seed: int) -> Problem:
    """A small random problem; where several expert placements are open, they are only in its space, not in its mapping."""
    rng = random.Random(f"case {seed}")
    moe = rng.random() < 0.45
    model = _model(rng, moe)
    problem = load_problem({
        "name": f"case-{seed}", "model": model, "cluster": _cluster(rng, model), "workload": _workload(rng, model),
        "space": _space(rng, model),
    })  # fmt: skip
    if moe and rng.random() < 0.2:
        experts = model["ffn"]["experts"]  # type: ignore[index]
        some = tuple(_placement(rng, experts) for _ in range(2))
        own = replace(problem.space.experts, placement=((), *some))
        return replace(problem, space=replace(problem.space, experts=own))
    return problem


def tiered_case(seed: int) -> Problem:
    """A small random problem on a few GPUs in several domains, often mixed; grids may be laid out in any order."""
    rng = random.Random(f"tiers {seed}")
    moe = rng.random() < 0.4
    model = _model(rng, moe)
    attention: dict[str, object] = {
        "batch_parts": "any", "context_parts": "any", "order": "any", "dimension_segments": rng.choice([1, [1, 2]]),
        "output_projection": "row", "softmax": "replicated", "sequence_parallel": rng.choice([False, False, "any"]),
    }  # fmt: skip
    space: dict[str, object] = {
        "attention": attention, "replicas": rng.choice([1, 1, "any"]), "micro_batches": {"from": 1, "to": 2}, "stages": [1, 2],
        "use_all": rng.random() < 0.5,
    }  # fmt: skip
    if moe:
        form = rng.choice(["local", "dispatch", "separate", "separate"])
        space["experts"] = {"form": form, "placement": "consecutive", "tensor_ways": "any" if form == "separate" else 1}
    kinds = rng.choice([["h100", "h100", "h100"], ["h100", "a100-80gb", "a100-80gb"], ["l40s", "h20", "h20"]])
    gpus = rng.choice([(2, 2), (2, 2), (1, 3), (3, 1), (1, 1, 2), (2, 1, 1)])
    if kinds[0] != kinds[1]:  # one kind in a stage: more of them on several tiers
        gpus = rng.choice([(1, 1, 3), (1, 2, 2), (2, 2, 1), (4, 1, 1)])
    nodes = [{"kind": kind, "gpus": count} for kind, count in zip(kinds, gpus, strict=False)]
    workload = _workload(rng, model) | {"batch": rng.choice([2, 4])}
    cluster = {"name": "tiers", "nodes": nodes}
    return load_problem({"name": f"tiers-{seed}", "model": model, "cluster": cluster, "workload": workload, "space": space})


def certifiable(problem: Problem) -> bool:
    """Whether the mapping of a problem says all of its space."""
    return problem.space.experts == load_problem(problem.raw).space.experts


def _model(rng: random.Random, moe: bool) -> dict[str, object]:
    kv = rng.choice([1, 1, 2, 3])
    heads = kv * rng.choice([1, 2, 3])
    attention: dict[str, object] = {
        "heads": heads,
        "kv_heads": kv,
        "head_dim": rng.choice([8, 64]),
        "causal": rng.random() < 0.5,
    }
    if rng.random() < 0.1:
        attention = {"kind": "mla", "heads": heads, "q_lora_rank": 64, "kv_lora_rank": 32, "nope_dim": 16, "rope_dim": 8,
                     "v_head_dim": 16}  # fmt: skip
    ffn: dict[str, object] = {
        "kind": "dense",
        "hidden": rng.choice([256, 1000, 4096]),
        "activation": rng.choice(["silu", "gelu"]),
    }
    if moe:
        ffn = {"kind": "moe", "hidden": rng.choice([128, 2048]), "experts": rng.choice([2, 3, 4]), "top_k": rng.choice([1, 2])}
        ffn |= {"shared_hidden": 128} if rng.random() < 0.3 else {}
    layers = rng.choice([1, 2, 3, 3] if not moe else [1, 2, 2, 3])
    return {"name": "case", "layers": layers, "hidden": rng.choice([128, 1024]), "vocab": rng.choice([0, 1001]),
            "attention": attention, "ffn": ffn}  # fmt: skip


def _cluster(rng: random.Random, model: dict[str, object]) -> dict[str, object]:
    """Two to four GPUs in one or two domains, of one or two kinds; in half of the problems memory is short."""
    gpus = rng.choice([2, 3, 4])
    first = rng.choice([gpus, gpus, gpus - 1, max(1, gpus // 2)])
    kinds: dict[str, object] = {}
    names = [rng.choice(["h100", "l40s"]), rng.choice(["h100", "a100-80gb"])] if rng.random() < 0.35 else ["h100", "h100"]
    if rng.random() < 0.5:
        parameters = load_problem({"model": model, "workload": {"phase": "decode", "batch": 1, "context": 8, "logits": "none"},
                                   "cluster": "1x1-h100"}).model.parameters  # fmt: skip
        needed = 0.75e9 + rng.choice([0.0, 0.4e9, 0.41e9]) + 2 * parameters * rng.choice([0.1, 0.35, 0.6, 0.9, 1.3])
        mib = int((needed + rng.choice([0.0, 1e6, 2e7])) / (1 - 0.03) / 2**20)
        kinds = {f"small-{name}": {"like": name, "memory_mib": max(mib, 1)} for name in names}
        names = [f"small-{name}" for name in names]
    nodes = [{"kind": names[0], "gpus": first}, *([{"kind": names[1], "gpus": gpus - first}] if gpus > first else [])]
    return {"name": "case", "nodes": nodes} | ({"kinds": kinds} if kinds else {})


def _workload(rng: random.Random, model: dict[str, object]) -> dict[str, object]:
    batch, logits = rng.choice([1, 2, 4, 6]), "last" if model["vocab"] else "none"
    found: dict[str, object] = {"phase": "decode", "batch": batch, "context": rng.choice([15, 4000]), "logits": logits}
    if rng.random() < 0.5:
        found = {"phase": "prefill", "batch": batch, "prompt": rng.choice([12, 600]), "logits": logits,
                 "keep_kv_cache": rng.random() < 0.5}  # fmt: skip
    experts = model["ffn"].get("experts")  # type: ignore[attr-defined]
    if experts and rng.random() < 0.4:
        found["expert_load"] = [round(rng.uniform(0.2, 3.0), 2) for _ in range(experts)]
    return found


def _space(rng: random.Random, model: dict[str, object]) -> dict[str, object]:
    """What is open: everything, or some of it."""
    latent = model["attention"].get("kind") == "mla"  # type: ignore[attr-defined]
    attention: dict[str, object] = {
        "batch_parts": rng.choice(["any", 1]), "context_parts": rng.choice(["any", "any", 1]),
        "dimension_segments": rng.choice(["any", 1, [1, 2]]), "output_projection": rng.choice(["any", "row"]),
        "softmax": rng.choice(["any", "replicated"]), "sequence_parallel": rng.choice(["any", False]),
        "order": rng.choice(["any", "segments_inner"]),
    }  # fmt: skip
    heads = model["attention"]["heads"]  # type: ignore[index]
    if heads > 2 and not latent and rng.random() < 0.25:
        cut = rng.randint(1, heads - 1)
        attention["heads_per_group"] = [[heads], [cut, heads - cut], [heads - 1, 1]]
    found: dict[str, object] = {
        "attention": attention, "replicas": rng.choice(["any", 1]), "micro_batches": rng.choice(["any", {"from": 1, "to": 2}]),
        "stages": rng.choice(["any", "any", [1, 2]]), "use_all": rng.random() < 0.15,
    }  # fmt: skip
    experts = model["ffn"].get("experts")  # type: ignore[attr-defined]
    if experts:
        form = rng.choice(["any", "local", "dispatch", "separate", "separate"])
        found["experts"] = {"form": form, "router_side": rng.choice(["attention", "expert", "any"])}
        if form in ("any", "separate"):  # every plan of these is priced alone: fewer of them
            attention |= {"softmax": "replicated", "output_projection": "row", "order": "segments_inner"}
        if rng.random() < 0.2:
            placement = [list(held) for held in _placement(rng, experts)]
            found["experts"] |= {"placement": placement, "replicas": [len(held) for held in placement]}  # type: ignore[operator]
            if form == "dispatch" and any(len(held) > 1 for held in placement):
                found["experts"] |= {"serve_within": [0, 1, 2]}  # type: ignore[operator]
    return found


def _placement(rng: random.Random, experts: int) -> tuple[tuple[int, ...], ...]:
    """The groups of every expert, one or both of two; no group is left empty."""
    return tuple(tuple(sorted({e % 2, rng.choice([0, 1])} if rng.random() < 0.5 else {e % 2})) for e in range(experts))


@dataclass(frozen=True)
class Brute:
    """Every plan of a space priced: least value for each objective (inf: none fits), plans, and the decisions seen."""

    least: dict[str, float]
    plans: int
    decisions: frozenset[str]


class _Pricer:
    """Stages of many plans, their options priced in one pass and their layers added up when first asked for."""

    def __init__(self, env: Setting, space: SearchSpace, choices: list[Choice]) -> None:
        self.env, self.space = env, space
        options = dict.fromkeys(
            (replace(stage, layers=1), space.sequences(c.replicas, c.micro_batches))
            for c in choices if not c.stages[0].separate for stage in c.stages
        )  # fmt: skip
        blocks = [self._block(stage, sequences) for stage, sequences in options]
        self._tables = dict(zip(options, price_blocks(env, blocks) if blocks else [], strict=True))
        self._known: dict[tuple[StageChoice, int, int, int], tuple[float, float]] = {}
        self._tasks: dict[tuple[StageChoice, int], tuple[list[Task], ...]] = {}

    def _block(self, stage: StageChoice, sequences: int) -> Block:
        kind, split = self.env.cluster.device_kinds[stage.devices[0]], token_split(self.space.sizes, stage.attention)
        ffn = FfnOption(stage.mlp_ways, stage.experts)
        return Block(kind, (stage.devices,), (sequences,), (stage.attention,), (ffn,), (split,))

    def stage(self, stage: StageChoice, start: int, sequences: int, micro_batches: int) -> tuple[float, float]:
        """(seconds, bytes of the fullest GPU)."""
        key = (stage, start, sequences, micro_batches)
        if key not in self._known:
            table: StageTable = self._tables[replace(stage, layers=1), sequences]
            v = view(self.env, self.space.sizes, table, 0, 0, sequences * micro_batches)
            price = stage_price(v, intervals(self.env, [(start, start + stage.layers)]))
            self._known[key] = float(price.seconds[0, 0, 0]), float(price.memory[0, 0, 0])
        return self._known[key]

    def waves(self, choice: Choice, sequences: int) -> float:
        """Seconds of a plan with experts apart."""
        key = (choice.stages[0], sequences)
        if key not in self._tasks:
            self._tasks[key] = wave_tasks(self.env, self.space.sizes, choice, sequences)
        return step_waves(self._tasks[key], choice)


def brute_forces(env: Setting, space: SearchSpace) -> Brute:
    """Price every plan for all objectives."""
    choices = list(space.choices())
    pricer, decisions, fitting = _Pricer(env, space, choices), _of_cluster(space), 0
    least = {"latency": math.inf, "throughput": math.inf, "cost": math.inf}
    for choice in choices:
        found = _measured(env, space, choice, pricer)
        decisions |= _made(space, choice)
        if found is not None:
            fitting += 1
            least = {name: min(least[name], value) for name, value in zip(least, found, strict=True)}
    placed = {stage.experts.placement for c in choices for stage in c.stages if stage.experts is not None}
    for name, there in (
        ("tight memory", 0 < fitting < len(choices)), ("infeasible", not fitting), ("expert placement", len(placed) > 1),
        ("replicas", len({c.replicas for c in choices}) > 1), ("micro-batches", len({c.micro_batches for c in choices}) > 1),
    ):  # fmt: skip
        decisions |= {name} if there else set()
    return Brute(least, len(choices), frozenset(decisions))


def _of_cluster(space: SearchSpace) -> set[str]:
    """What is special about the cluster."""
    sizes = space.sizes
    domains = {sizes.domain_of_device.count(domain) for domain in sizes.domain_of_device}
    return ({"mixed GPUs"} if len(set(sizes.kind_of_device)) > 1 else set()) | (
        {"unequal domains"} if len(domains) > 1 else set()
    )


def _made(space: SearchSpace, choice: Choice) -> set[str]:
    """The decisions that a plan makes in another way than the plainest."""
    found = set()
    for stage in choice.stages:
        partition, experts = stage.attention, stage.experts
        for name, there in (
            (f"context parallel {space.sizes.phase}", partition.context_parts > 1),
            ("segments", partition.dimension_segments > 1), ("sequence parallel", partition.sequence_parallel),
            ("uneven heads", len(set(partition.heads(space.sizes.heads))) > 1), ("experts apart", stage.separate),
            ("expert copies", experts is not None and any(len(held) > 1 for held in experts.placement)),
            ("copies near the sender", experts is not None and experts.serve_within > 0),
            ("strided context", partition.order == "context_inner"), ("strided batch", partition.order == "batch_inner"),
            ("attention last", stage.separate and stage.devices[0] > stage.devices[-1]),
        ):  # fmt: skip
            found |= {name} if there else set()
    shapes = {(stage.layers, len(stage.devices)) for stage in choice.stages}
    return (
        found | ({"waves"} if choice.in_flight > 1 else set()) | ({"stages of different sizes"} if len(shapes) > 1 else set())
    )


def _measured(env: Setting, space: SearchSpace, choice: Choice, pricer: _Pricer) -> tuple[float, float, float] | None:
    """(latency, steady seconds, dollars) of a plan by stepping through it; None when it does not fit."""
    sequences, micro = space.sequences(choice.replicas, choice.micro_batches), choice.micro_batches
    ranks = [
        rank + copy * space.stride(choice.replicas)
        for copy in range(choice.replicas)
        for s in choice.stages
        for rank in s.devices
    ]
    rate = sum(env.cluster.kind_of(rank).price_per_hour for rank in ranks) / 3600
    if choice.stages[0].separate:
        if over_capacity(env, space.sizes, choice) > 0:
            return None
        whole = pricer.waves(choice, sequences)
        return whole, whole, whole * rate
    stages, start = [], 0
    for stage in choice.stages:
        seconds, memory = pricer.stage(stage, start, sequences, micro)
        if memory > min(env.cluster.kind_of(rank).memory_bytes for rank in stage.devices):
            return None
        stages.append(seconds)
        start += stage.layers
    places = [stage.devices for stage in choice.stages]
    sends = [send_seconds(env, a, b, sequences) for a, b in pairwise(places)]
    if space.sizes.phase == "decode":
        sends += [feedback_seconds(env, places[-1], places[0], sequences)] if len(places) > 1 else []
        token = makespan(stages, sends, micro, True)
        return token, token, token * rate
    whole = flow_shop(stages, sends, micro)
    return whole, micro * max([*stages, *sends]), whole * rate


def case_setting(problem: Problem) -> Setting:
    """The setting of a problem."""
    return setting(problem.model, problem.workload, problem.cluster)


def disagreements(problem: Problem, brute: Brute) -> list[str]:
    """Where the search differs from brute force: status, value, bound or plan, for every objective; empty where it does not."""
    env, space = case_setting(problem), problem.space
    asked = SpaceSearch(env, space, "latency")
    found = [] if brute.plans == space.size() else [f"{brute.plans} plans listed, {space.size()} counted"]
    for name in NAMES:
        answer, best = asked.asking(name, Caps()).run(), brute.least[name]
        if answer.choice is None or math.isinf(best):
            found += [] if answer.choice is None and math.isinf(best) else [f"{name}: {answer.choice} where {best} is best"]
            continue
        measured = measures(env, space.sizes, answer.choice)
        own = {"latency": measured.latency_s, "throughput": measured.steady_s, "cost": measured.dollars}[name]
        for what, number, near in (("value", answer.value, 1e-8), ("bound", answer.bound, 1e-6), ("plan's price", own, 1e-8)):
            found += [] if math.isclose(number, best, rel_tol=near) else [f"{name}: {what} {number} where {best} is best"]
        found += [] if answer.bound <= answer.value else [f"{name}: bound {answer.bound} above {answer.value}"]
        found += [] if space.contains(answer.choice) else [f"{name}: {answer.choice} is not in the space"]
    return found

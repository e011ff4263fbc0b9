"""Brute force: the best plan of a small space by pricing every plan of it, one after another."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

from planner.cluster import Cluster, Domain, Link
from planner.clusters import load_cluster
from planner.evaluate.capacity import over_capacity, stage_total
from planner.evaluate.pipeline import feedback_seconds, makespan, send_seconds
from planner.evaluate.setting import Setting, setting
from planner.evaluate.waves import Task, wave_tasks
from planner.models import load_model
from planner.problem import sizes_of
from planner.workload import Workload
from search_spaces.attention import AttentionDomain
from search_spaces.experts import ExpertDomain
from search_spaces.space import SearchSpace
from search_spaces.stages import Choice

Known = dict[tuple[object, ...], tuple[float, float]]


def brute_force(env: Setting, space: SearchSpace) -> tuple[float, int]:
    """(least latency over every plan that fits, number of plans); inf when none fits."""
    best, count = math.inf, 0
    known: Known = {}
    for choice in space.choices():
        count += 1
        best = min(best, latency(env, space, choice, known))
    return best, count


def latency(env: Setting, space: SearchSpace, choice: Choice, known: Known) -> float:
    """Latency of one plan by stepping through it; inf when it does not fit."""
    sizes = space.sizes
    sequences = sizes.batch // choice.replicas // choice.micro_batches
    if choice.stages[0].separate:
        if over_capacity(env, sizes, choice) > 0:
            return math.inf
        return _waves(env, space, choice, sequences)
    total = _stages(env, space, choice, known)
    stages = [seconds for seconds, _ in total]
    for stage, (_, memory) in zip(choice.stages, total, strict=True):
        if memory > env.cluster.kind_of(stage.devices[0]).memory_bytes:
            return math.inf
    places = [stage.devices for stage in choice.stages]
    sends = [send_seconds(env, a, b, sequences) for a, b in pairwise(places)]
    decode = sizes.phase == "decode"
    if decode:
        if len(places) > 1:
            sends.append(feedback_seconds(env, places[-1], places[0], sequences))
        return makespan(stages, sends, choice.micro_batches, True)
    return flow_shop(stages, sends, choice.micro_batches)


def _stages(env: Setting, space: SearchSpace, choice: Choice, known: Known) -> list[tuple[float, float]]:
    """Seconds and bytes of every stage, remembered by what they depend on."""
    start, found = 0, []
    for index, stage in enumerate(choice.stages):
        key = (stage, start, choice.replicas, choice.micro_batches)
        if key not in known:
            known[key] = stage_total(env, space.sizes, choice, index)
        found.append(known[key])
        start += stage.layers
    return found


def flow_shop(stages: list[float], sends: list[float], micro_batches: int) -> float:
    """Step every micro-batch through every stage and send in order."""
    machines = [m for pair in zip(stages, sends, strict=False) for m in pair] + stages[len(sends) :]
    free = [0.0] * len(machines)
    for _ in range(micro_batches):
        at = 0.0
        for i, seconds in enumerate(machines):
            at = free[i] = max(free[i], at) + seconds
    return free[-1]


def _waves(env: Setting, space: SearchSpace, choice: Choice, sequences: int) -> float:
    """Step waves of micro-batches through attention, dispatch, experts and combine."""
    return step_waves(wave_tasks(env, space.sizes, choice, sequences), choice)


def step_waves(tasks: tuple[list[Task], ...], choice: Choice) -> float:
    """The same, of tasks that are known."""
    free = [0.0] * 4
    for _ in range(choice.micro_batches // choice.in_flight):
        ready = [0.0] * choice.in_flight
        for position, task in enumerate(tasks[0]):
            for micro in range(choice.in_flight):
                free[0] = max(free[0], ready[micro]) + task.seconds
                at = free[0]
                if position < len(tasks[1]):
                    for machine in (1, 2, 3):
                        at = free[machine] = max(free[machine], at) + tasks[machine][position].seconds
                ready[micro] = at
    return free[0]


@lru_cache(maxsize=64)
def small_cluster(name: str, domain: int, memory: int) -> Cluster:
    """A catalog cluster cut into scale-up domains of `domain` GPUs with `memory` bytes each (0: as they are)."""
    cluster = load_cluster(name)
    link = Link("test", cluster.domains[0].link.bandwidth, cluster.domains[0].link.latency_s, "test")
    ranks = range(cluster.size)
    domains = tuple(Domain(tuple(ranks[i : i + domain]), link) for i in range(0, cluster.size, domain))
    kinds = {n: replace(k, memory_bytes=memory or k.memory_bytes) for n, k in cluster.kinds.items()}
    return replace(cluster, domains=domains, kinds=kinds)


def random_problem(seed: int) -> tuple[Setting, SearchSpace]:
    """A small random problem: dense, mixture or latent; uneven heads; one or two GPU kinds; tight memory; some infeasible."""
    rng = random.Random(seed)
    moe, latent = rng.random() < 0.4, rng.random() < 0.15
    kv = rng.choice([1, 2, 3])
    heads = kv * rng.choice([1, 2, 3])
    attention: dict[str, object] = {
        "heads": heads,
        "kv_heads": kv,
        "head_dim": rng.choice([8, 64]),
        "causal": rng.random() < 0.5,
    }
    if latent:
        attention = {
            "kind": "mla",
            "heads": heads,
            "q_lora_rank": 64,
            "kv_lora_rank": 32,
            "nope_dim": 16,
            "rope_dim": 8,
            "v_head_dim": 16,
        }
    experts = rng.choice([2, 3, 4])
    ffn = {"kind": "dense", "hidden": rng.choice([256, 4096, 1000]), "activation": rng.choice(["silu", "gelu"])}
    if moe:
        ffn = {"kind": "moe", "hidden": rng.choice([128, 2048]), "experts": experts, "top_k": rng.choice([1, 2])}
        if rng.random() < 0.3:
            ffn["shared_hidden"] = 128
    layers = rng.choice([1, 2, 3])
    spec = {"name": "small", "layers": layers, "hidden": rng.choice([128, 1024]), "attention": attention, "ffn": ffn,
            "vocab": rng.choice([0, 1001])}  # fmt: skip
    model = load_model(spec)
    gpus = rng.choice([2, 3, 4])
    name = rng.choice([f"1x{gpus}-h100", f"1x{gpus}-h100", "1x2-h100+1x2-a100-80gb", f"1x{gpus}-l40s"])
    batch = rng.choice([2, 4, 6])
    if rng.random() < 0.5:
        workload = Workload("prefill", batch, prompt=rng.choice([12, 600]), keep_kv_cache=rng.random() < 0.5,
                            logits="none" if spec["vocab"] == 0 else "last")  # fmt: skip
    else:
        workload = Workload("decode", batch, context=rng.choice([15, 4000]), logits="none" if spec["vocab"] == 0 else "last")
    tight = 0
    if rng.random() < 0.5:
        used = (
            rng.choice([0.75e9, 1.19e9])
            + model.parameters * 2 * rng.choice([0.02, 0.2, 0.4, 0.7, 1.2])
            + rng.choice([0, 1e6, 2e7])
        )
        tight = int(used)
    cluster = small_cluster(name, rng.choice([2, 4]), tight)
    attention_domain = AttentionDomain(
        batch_parts=rng.choice([None, (1,)]), context_parts=rng.choice([None, (1,), (1,)]),
        dimension_segments=rng.choice([None, (1,), (1, 2)]), output_projection=rng.choice([None, ("row",)]),
        softmax=rng.choice([None, ("replicated",)]), sequence_parallel=rng.choice([None, (False,)]),
    )  # fmt: skip
    form = rng.choice([None, ("local",), ("dispatch",), ("separate",)]) if moe else None
    space = SearchSpace(
        sizes_of(model, workload, cluster), replicas=rng.choice([None, (1,), (1,)]), micro_batches=rng.choice([None, (1, 2)]),
        stages=rng.choice([None, None, (1, 2)]), attention=attention_domain, experts=ExpertDomain(form=form),
        use_all=rng.random() < 0.2,
    )  # fmt: skip
    return setting(model, workload, cluster), space

"""Random small training plans: a model, a step, a cluster and a choice, drawn from what the graph can train."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import assume
from hypothesis import strategies as st

from planner.cluster import Cluster
from planner.clusters import load_cluster
from planner.costs.pricer import Pricer
from planner.evaluate.setting import Setting
from planner.graph.sharing import even_keys
from planner.model import Attention, Ffn, Indexer, Layer, ModelSpec
from planner.problem.sizes import sizes_of
from planner.workload import Workload, load_workload
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice, StageChoice, replica_stride
from search_spaces.training import TrainingChoice
from tests.planner.plans import DENSE, MOE, gqa, mla


@dataclass(frozen=True)
class Trained:
    """A training plan of a problem; prices are those of operators one by one."""

    model: ModelSpec
    workload: Workload
    cluster: Cluster
    sizes: Sizes
    choice: Choice

    @property
    def env(self) -> Setting:
        return Setting(self.model, self.workload, self.cluster, Pricer(self.cluster))


def trained(
    spec: Attention | None = None, ffn: Ffn = DENSE, part: AttentionPartition | None = None, *,
    training: TrainingChoice | None = None, stages: int = 1, replicas: int = 1, micro: int = 2, layers: int = 2,
    norms: int = 2, experts: ExpertPlacement | None = None, cluster: str = "2x4-h100", mlp_ways: int = 0, batch: int = 8,
    **changes: object,
) -> Trained:  # fmt: skip
    """A plan of equal stages of equal layers."""
    part, layer = part or AttentionPartition(2), Layer(spec or gqa(heads=8, kv_heads=4), ffn, norms)
    model = ModelSpec("small", 256, 1001, (layer,) * layers, **changes)
    return plan_of(model, part, training, stages, replicas, micro, experts, cluster, mlp_ways, batch)


def plan_of(
    model: ModelSpec, part: AttentionPartition, training: TrainingChoice | None, stages: int, replicas: int, micro: int,
    experts: ExpertPlacement | None, cluster: str, mlp_ways: int, batch: int,
) -> Trained:  # fmt: skip
    """The same of any model."""
    workload, gpus, width = load_workload(f"training:global_batch={batch},sequence=24"), load_cluster(cluster), part.ways
    counts = [(len(model.layers) + stages - 1 - i) // stages for i in range(stages)]
    split = tuple(
        StageChoice(counts[i], tuple(range(i * width, (i + 1) * width)), part, mlp_ways or part.head_groups, experts)
        for i in range(stages)
    )
    choice = Choice(replicas, micro, split, 1, training or TrainingChoice())
    return Trained(model, workload, gpus, sizes_of(model, workload, gpus), choice)


@st.composite
def specs(draw) -> Attention:
    heads = draw(st.sampled_from((4, 6, 8)))
    if draw(st.integers(0, 3)) == 0:
        indexer = draw(st.sampled_from((None, None, Indexer(4, 32, 8))))
        low = 64 if indexer else draw(st.sampled_from((None, 64)))
        return mla(heads=heads, kv_heads=heads, indexer=indexer, q_lora_rank=low)
    kv_heads = draw(st.sampled_from([k for k in (1, 2, 3, 4, heads) if heads % k == 0]))
    limit = draw(st.sampled_from((None, None, "window", "chunk")))
    return gqa(
        heads=heads, kv_heads=kv_heads, causal=draw(st.booleans()), q_bias=draw(st.booleans()), kv_bias=draw(st.booleans()),
        o_bias=draw(st.booleans()), qk_norm=draw(st.sampled_from(("none", "head"))),
        rope=draw(st.sampled_from(("none", "half"))), softcap=draw(st.sampled_from((None, 5.0))), sinks=draw(st.booleans()),
        window=8 if limit == "window" else None, chunk=8 if limit == "chunk" else None,
    )  # fmt: skip


@st.composite
def trained_models(draw, equal: bool = False) -> ModelSpec:
    """`equal`: all head groups and experts of a plan are alike, so that no GPU is slower in one thing and faster in another."""
    spec = draw(specs())
    if equal:
        spec = replace(spec, heads=8, kv_heads=8 if spec.kind == "mla" else draw(st.sampled_from((1, 2, 4, 8))))
    mixture = replace(
        MOE, experts=8 if equal else draw(st.sampled_from((6, 8))), shared_hidden=draw(st.sampled_from((0, 70))),
        gated=draw(st.booleans()), bias=draw(st.booleans()), router_bias=draw(st.booleans()),
        scoring=draw(st.sampled_from(("softmax", "softmax_top_k", "sigmoid"))), renormalize=draw(st.booleans()),
        scale_input=draw(st.sampled_from((False, False, True))), routed_scale=draw(st.sampled_from((1.0, 1.7))),
    )  # fmt: skip
    mixture = replace(mixture, shared_gate=bool(mixture.shared_hidden) and draw(st.booleans()))
    dense = Ffn("dense", 512, gated=draw(st.booleans()), bias=draw(st.booleans()),
                activation=draw(st.sampled_from(("silu", "gelu", "gelu_tanh", "relu"))))  # fmt: skip
    ffns = draw(st.lists(st.sampled_from((dense, mixture)), min_size=1, max_size=4))
    kind = draw(st.sampled_from(("rms", "layer"))) if spec.kind == "gqa" else "rms"
    norms = draw(st.sampled_from((2, 4)))
    layers = tuple(Layer(spec, ffn, norms, kind) for ffn in ffns)
    return ModelSpec(
        "small", 256, 1000 if equal else 1001, layers, draw(st.booleans()), draw(st.sampled_from((0, 64))), kind,
        head_bias=draw(st.booleans()), final_softcap=draw(st.sampled_from((None, 4.0))),
    )  # fmt: skip


@st.composite
def trained_cases(draw, equal: bool = False) -> Trained:
    """Plans of one partition, with all that a training choice says."""
    model = draw(trained_models(equal))
    spec = model.layers[0].attention
    tensor = draw(st.sampled_from([t for t in (1, 2, 4) if t <= spec.heads]))
    parts = draw(st.sampled_from([(b, c) for b in (1, 2) for c in (1, 2, 4) if b * c * tensor <= 4]))
    seen = spec.window is None and spec.chunk is None and spec.indexer is None
    assume(parts[1] == 1 or seen)
    part = AttentionPartition(tensor, batch_parts=parts[0], context_parts=parts[1],
                              sequence_parallel=tensor > 1 and draw(st.booleans()))  # fmt: skip
    stages = draw(st.sampled_from([s for s in (1, 2) if s <= len(model.layers) and s * part.ways <= 8]))
    replicas = draw(st.sampled_from([r for r in (1, 2) if r * stages * part.ways <= 8]))
    zero = draw(st.integers(0, 3))
    assume(not zero or even_keys(part, spec))
    schedule = draw(st.sampled_from(("gpipe", "1f1b", "interleaved", "zb_h1"))) if stages > 1 else "1f1b"
    virtual = 2 if schedule == "interleaved" and len(model.layers) >= 2 * stages else 1
    schedule = "1f1b" if schedule == "interleaved" and virtual == 1 else schedule
    training = TrainingChoice(schedule, virtual, draw(st.sampled_from(("none", "selective", "full"))),
                              zero, draw(st.booleans()))  # fmt: skip
    micro = draw(st.sampled_from((2, 4)))
    form = draw(st.sampled_from(("local", "dispatch"))) if part.ways > 1 else "local"
    ways = draw(st.sampled_from([w for w in (1, 2) if part.ways % w == 0 and part.ways > 1])) if part.ways > 1 else 1
    experts = ExpertPlacement(form, tensor_ways=ways) if any(x.ffn.kind == "moe" for x in model.layers) else None
    mlp = draw(st.sampled_from([w for w in (tensor, part.ways) if part.ways % w == 0]))
    found = plan_of(model, part, training, stages, replicas, micro, experts, "2x4-h100", mlp, 16)
    assume(replica_stride(found.sizes, replicas) is not None)
    return found

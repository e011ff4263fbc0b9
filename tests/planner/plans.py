"""Random small plans: a model, a workload, a cluster and a choice, drawn from everything that the space can say."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import assume
from hypothesis import strategies as st

from planner.cluster import Cluster
from planner.clusters import load_cluster
from planner.evaluate.setting import Setting, setting
from planner.model import Attention, Ffn, Indexer, Layer, ModelSpec
from planner.problem.sizes import sizes_of
from planner.workload import Workload
from search_spaces.attention import AttentionDomain
from search_spaces.experts import ExpertDomain, Placed, Placement
from search_spaces.sizes import Sizes
from search_spaces.space import SearchSpace, StageOption
from search_spaces.stages import Choice, StageChoice


@dataclass(frozen=True)
class Case:
    """A plan of a problem."""

    model: ModelSpec
    workload: Workload
    cluster: Cluster
    sizes: Sizes
    choice: Choice

    @property
    def env(self) -> Setting:
        return setting(self.model, self.workload, self.cluster)


def gqa(**changes) -> Attention:
    """Four heads of 64 dims."""
    return replace(Attention("gqa", 4, 4, 64, 64, rotary_dim=64), **changes)


def mla(**changes) -> Attention:
    """Four latent heads."""
    plain = Attention("mla", 4, 4, 48, 32, q_lora_rank=64, kv_lora_rank=32, nope_dim=32, rope_dim=16, rope="interleaved")
    return replace(plain, **changes)


DENSE = Ffn("dense", 512)
MOE = Ffn("moe", 128, experts=6, top_k=2)


@st.composite
def attentions(draw) -> Attention:
    heads = draw(st.sampled_from((4, 6, 8, 12)))
    if draw(st.integers(0, 3)) == 0:
        indexer = draw(st.sampled_from((None, None, Indexer(4, 32, 8))))
        return mla(
            heads=heads, kv_heads=heads, q_lora_rank=64 if indexer else draw(st.sampled_from((None, 64))), indexer=indexer
        )
    kv_heads = draw(st.sampled_from([k for k in (1, 2, 3, 4, heads) if heads % k == 0]))
    limit = draw(st.sampled_from((None, None, "window", "chunk")))
    return gqa(
        heads=heads, kv_heads=kv_heads, causal=draw(st.booleans()), q_bias=draw(st.booleans()), o_bias=draw(st.booleans()),
        qk_norm=draw(st.sampled_from(("none", "head"))), rope=draw(st.sampled_from(("none", "half"))),
        window=8 if limit == "window" else None, chunk=8 if limit == "chunk" else None,
    )  # fmt: skip


@st.composite
def models(draw, attention: Attention | None = None) -> ModelSpec:
    spec = attention or draw(attentions())
    mixture = replace(MOE, shared_hidden=draw(st.sampled_from((0, 70))), gated=draw(st.booleans()), bias=draw(st.booleans()))
    ffns = draw(st.lists(st.sampled_from((replace(DENSE, gated=draw(st.booleans())), mixture)), min_size=1, max_size=4))
    full = replace(spec, window=None, chunk=None)
    norms = draw(st.sampled_from((2, 4)))
    layers = tuple(Layer(spec if i % 2 else full, ffn, norms) for i, ffn in enumerate(ffns))
    vocab = draw(st.sampled_from((0, 1001)))
    return ModelSpec("small", 256, vocab, layers, tied_embeddings=draw(st.booleans()), positions=draw(st.sampled_from((0, 64))))


@st.composite
def workloads(draw, mixtures: int) -> Workload:
    rows = ((3.0, 1.0, 0.5, 0.5, 0.5, 0.5), (1.0, 1.0, 2.0, 0.5, 0.5, 1.0), (1.0,) * 6)
    count = draw(st.sampled_from((0, 1, mixtures))) if mixtures else 0
    load = tuple(draw(st.sampled_from(rows)) for _ in range(count))
    logits = draw(st.sampled_from(("none", "last", "all")))
    batch = draw(st.sampled_from((4, 8, 12)))
    if draw(st.booleans()):
        return Workload("decode", batch, context=draw(st.sampled_from((16, 33))), logits=logits, expert_load=load)
    return Workload("prefill", batch, prompt=24, logits=logits, keep_kv_cache=draw(st.booleans()), expert_load=load)


@st.composite
def cases(draw, separate: bool | None = None) -> Case:
    model = draw(models())
    mixtures = sum(layer.ffn.kind == "moe" for layer in model.layers)
    moe = mixtures > 0
    workload = draw(workloads(mixtures))
    cluster = load_cluster(draw(st.sampled_from(("1x4-h100", "2x4-h100", "1x6-h100", "3x2-h100", "2x3-h100"))))
    sizes = sizes_of(model, workload, cluster)
    splits = [(n, sizes.heads - n) for n in range(1, sizes.heads)] + [(sizes.heads // 2 + 1, sizes.heads // 2 - 2, 1)]
    heads = draw(st.sampled_from((None, tuple(s for s in splits if min(s) > 0))))
    listed = (((0,), (1,), (1,), (0, 1), (1,), (0,)), ((0,), (1,), (2,), (2,), (2,), (2,)))
    placement = draw(st.sampled_from((None, listed, tuple(by_layer(placed, sizes) for placed in listed))))
    space = SearchSpace(
        sizes,
        attention=AttentionDomain(heads_per_group=heads, score_reduce=(True, False)),
        experts=ExpertDomain(placement=placement, serve_within=None if placement is None else (0, 2)),
    )
    apart = moe and (draw(st.booleans()) if separate is None else separate)
    micro = draw(st.sampled_from([m for m in (1, 2, 4) if workload.batch % m == 0]))
    assume(separate is None or apart == separate)
    return Case(model, workload, cluster, sizes, draw(_choices(space, apart, micro)))


def by_layer(placed: Placement, sizes: Sizes) -> Placed:
    """A placement for every mixture, each the one before with its experts turned by one; alike where loads are."""
    rows = tuple((*placed[at % len(placed) :], *placed[: at % len(placed)]) for at in sizes.expert_rows)
    return rows if rows else placed


@st.composite
def _choices(draw, space: SearchSpace, apart: bool, micro: int) -> Choice:
    sizes, sequences = space.sizes, space.sequences(1, micro)
    if apart:
        near, far = draw(st.sampled_from(space.separate_splits(sizes.devices)))
        options = [o for o in space.separate_options(near, far) if space.fits_micro_batch(o, near, sequences)]
        option = draw(_of(options))
        stage = StageChoice(sizes.layers, tuple(range(near + far)), option.attention, option.mlp_ways, option.experts)
        return Choice(1, micro, (stage,), draw(st.sampled_from(space.waves(micro))))
    stages, first, left = [], 0, sizes.layers
    while left:
        layers = draw(st.integers(1, left))
        width = draw(st.integers(1, sizes.devices - first))
        assume(layers == left or first + width < sizes.devices)
        options = [o for o in space.options(width) if space.fits_micro_batch(o, width, sequences)]
        option = draw(_of(options))
        devices = tuple(range(first, first + width))
        stages.append(StageChoice(layers, devices, option.attention, option.mlp_ways, option.experts))
        first, left = first + width, left - layers
    return Choice(1, micro, tuple(stages))


@st.composite
def _of(draw, options: list[StageOption]) -> StageOption:
    """An option; first its topology is drawn, so that the rare ones come up as often as the others."""
    assume(options)
    groups: dict[tuple[object, ...], list[StageOption]] = {}
    for option in options:
        p, experts = option.attention, option.experts
        split = (p.batch_parts > 1, p.context_parts > 1, p.dimension_segments > 1)
        key = (*split, p.sequence_parallel, p.order, experts and experts.form)
        groups.setdefault(key, []).append(option)
    return draw(st.sampled_from(draw(st.sampled_from(list(groups.values())))))

"""Small spaces, made of random sizes: few layers and GPUs, so that every plan can be listed."""

from __future__ import annotations

from hypothesis import strategies as st

from search_spaces.attention import ORDERS, AttentionDomain
from search_spaces.experts import ExpertDomain
from search_spaces.sizes import Sizes
from search_spaces.space import SearchSpace


def small_sizes(**changes) -> Sizes:
    """A dense two-layer prefill on four equal GPUs, with `changes`."""
    values = {
        "phase": "prefill", "layers": 2, "heads": 4, "kv_heads": 4, "head_dim": 8, "v_head_dim": 8, "latent": False,
        "dense": True, "moe": False, "ffn_hidden": 16, "experts": 0, "expert_hidden": 0, "top_k": 0, "vocab": 0, "batch": 4,
        "query_length": 8, "kv_length": 8, "kind_of_device": (0,) * 4, "domain_of_device": (0, 0, 1, 1),
    }  # fmt: skip
    return Sizes(**{**values, **changes})


@st.composite
def sizes(draw) -> Sizes:
    heads = draw(st.integers(1, 5))
    devices = draw(st.integers(1, 7))
    phase = draw(st.sampled_from(("prefill", "decode")))
    dense, moe = draw(st.sampled_from(((True, False), (False, True), (True, True))))
    kinds = draw(st.sampled_from(((0,) * devices, (0,) * (devices - 1) + (1,))))
    domain = draw(st.integers(1, devices))
    length = draw(st.sampled_from((1, 2, 4)))
    return small_sizes(
        phase=phase,
        layers=draw(st.integers(1, 4)),
        heads=heads,
        kv_heads=draw(st.sampled_from([k for k in (1, heads) if heads % k == 0])),
        head_dim=draw(st.sampled_from((1, 2, 4, 6))),
        v_head_dim=draw(st.sampled_from((2, 4))),
        latent=draw(st.booleans()),
        dense=dense,
        moe=moe,
        ffn_hidden=draw(st.sampled_from((2, 8))) if dense else 0,
        experts=draw(st.integers(1, 4)) if moe else 0,
        expert_hidden=draw(st.sampled_from((2, 8))) if moe else 0,
        top_k=1 if moe else 0,
        batch=draw(st.sampled_from((1, 2, 4, 6))),
        query_length=length if phase == "prefill" else 1,
        kv_length=length,
        kind_of_device=kinds,
        domain_of_device=tuple(rank // domain for rank in range(devices)),
        context_prefill=draw(st.booleans()),
    )


def some(values):
    """None, or a few of the values."""
    return st.none() | st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True).map(tuple)


@st.composite
def attention_domains(draw, of: Sizes) -> AttentionDomain:
    split = (of.heads - 1, 1) if of.heads > 2 else (of.heads,)
    return AttentionDomain(
        head_groups=draw(some((1, 2, 3, 4))),
        dimension_segments=draw(some((1, 2))),
        batch_parts=draw(st.sampled_from((None, (1,), (1, 2)))),
        context_parts=draw(st.sampled_from((None, (1,)))),
        heads_per_group=draw(st.sampled_from((None, None, (split,), (split, (1,) * of.heads)))),
        order=draw(some(ORDERS)),
        score_reduce=draw(st.sampled_from(((True,), (False,), (False, True)))),
        softmax=draw(some(("replicated", "scattered"))),
        output_projection=draw(some(("row", "gather"))),
        sequence_parallel=draw(some((False, True))),
    )


@st.composite
def expert_domains(draw, of: Sizes) -> ExpertDomain:
    copied = ((0, 1),) * of.experts
    return ExpertDomain(
        form=draw(some(("local", "dispatch", "separate"))),
        tensor_ways=draw(some((1, 2))),
        devices=draw(some((1, 2))),
        placement=draw(st.sampled_from((None, None, (((0,),) * of.experts, copied)))) if of.experts else None,
        router_side=draw(some(("attention", "expert"))),
    )


@st.composite
def spaces(draw) -> SearchSpace:
    of = draw(sizes())
    return SearchSpace(
        of,
        replicas=draw(some((1, 2))),
        stages=draw(some((1, 2))),
        micro_batches=draw(some((1, 2))),
        in_flight=draw(some((1, 2))),
        attention=draw(attention_domains(of)),
        mlp_ways=draw(some((1, 2))),
        experts=draw(expert_domains(of)),
        use_all=draw(st.booleans()),
        large=draw(st.sampled_from((64, 64, 0, 2))),
    )

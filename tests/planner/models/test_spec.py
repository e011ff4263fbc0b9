"""Our own format: defaults, overrides, refusals; and the ways to name a model."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.models import catalog_names, load_model
from planner.models.hf import FAMILIES
from planner.problem.models import model_mapping

HELIX = {
    "name": "helix-2l",
    "layers": 2,
    "hidden": 8192,
    "attention": {"heads": 16, "kv_heads": 16, "head_dim": 512, "causal": False},
    "ffn": {"kind": "dense", "hidden": 32768, "activation": "gelu"},
    "vocab": 0,
    "dtype": "bf16",
}
MOE = {"kind": "moe", "hidden": 64, "experts": 8, "top_k": 2}
MLA = {"kind": "mla", "heads": 4, "kv_lora_rank": 8, "nope_dim": 8, "rope_dim": 4, "v_head_dim": 8}


def changed(path: str, value: object):
    spec = copy.deepcopy(HELIX)
    *parents, last = path.split(".")
    inner = spec
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return spec


def test_helix():
    model = load_model(HELIX)
    layer = 4 * 8192 * 8192 + 2 * 8192 * 32768 + 2 * 8192
    assert model.parameters == 2 * layer
    assert not model.layers[0].ffn.gated
    assert not model.layers[0].attention.causal
    assert not model.final_norm


def test_defaults():
    model = load_model({"layers": 1, "hidden": 64, "vocab": 10, "attention": {"heads": 4}, "ffn": {"hidden": 96}})
    attention, ffn = model.layers[0].attention, model.layers[0].ffn
    assert (attention.kv_heads, attention.head_dim, attention.v_head_dim, attention.rotary_dim) == (4, 16, 16, 16)
    assert attention.causal
    assert (ffn.gated, ffn.activation, model.dtype, model.final_norm) == (True, "silu", "bf16", True)


@pytest.mark.parametrize(
    ("activation", "gated"),
    [("silu", True), ("swiglu", True), ("geglu", True), ("gelu", False), ("gelu_tanh", False), ("relu", False)],
)
def test_activation_says_whether_there_is_a_gate(activation, gated):
    ffn = {"hidden": 8, "activation": activation}
    assert load_model({**HELIX, "ffn": ffn}).layers[0].ffn.gated is gated
    assert load_model({**HELIX, "ffn": {"hidden": 8, "activation": "silu", "gated": False}}).layers[0].ffn.gated is False


def test_overrides_merge_into_the_part_unless_they_name_its_kind():
    overrides = [
        {"layers": "0-2", "ffn": MOE},
        {"layers": "1-5/2", "attention": {"window": 128}},
        {"layers": [5], "ffn": {"hidden": 7}},
        {"layers": 4, "attention": {"rope": "none", "rotary_dim": 0}},
        {"layers": "4, 5", "attention": {"sinks": True}},
    ]
    model = load_model({**HELIX, "layers": 6, "layer_overrides": overrides})
    assert [layer.ffn.kind for layer in model.layers] == ["moe"] * 3 + ["dense"] * 3
    assert [layer.attention.window for layer in model.layers] == [None, 128, None, 128, None, None]
    assert (model.layers[5].ffn.hidden, model.layers[5].ffn.activation) == (7, "gelu")
    assert [layer.attention.rope for layer in model.layers[3:]] == ["half"] * 3


def test_latent_attention_and_module_dtypes():
    spec = {**HELIX, "attention": {**MLA, "q_lora_rank": 6, "indexer": {"heads": 2, "head_dim": 4, "top_k": 9}}}
    model = load_model({**spec, "module_dtypes": {"ffn": "fp8"}, "kv_dtype": "fp8"})
    assert model.layers[0].attention.head_dim == 12
    assert model.kv_cache_bytes_per_token == 2 * 12
    assert model.dtype_of("ffn") == "fp8"


ROUTING = {
    **{"scoring": "sigmoid", "renormalize": False, "routed_scale": 2.5, "correction_bias": True, "scale_input": True},
    **{"expert_groups": 4, "top_k_groups": 2, "group_score": "top2"},
}


def test_what_a_model_computes():
    """Routing, activation and outer factors are read, default to the plainest, and add no parameter."""
    plain = load_model({**HELIX, "ffn": MOE, "vocab": 9, "positions": 7})
    ffn = plain.layers[0].ffn
    assert (ffn.scoring, ffn.renormalize, ffn.routed_scale, ffn.group_score) == ("softmax", True, 1.0, "max")
    assert (ffn.correction_bias, ffn.scale_input) == (False, False)
    assert (plain.embedding_scale, plain.position_offset, plain.architecture) == (1.0, 0, "")
    outer = {"embedding_scale": "sqrt_hidden", "position_offset": 2, "architecture": "llama"}
    ours = load_model({**HELIX, "ffn": {**MOE, **ROUTING}, "vocab": 9, "positions": 7, **outer})
    assert {name: getattr(ours.layers[0].ffn, name) for name in ROUTING} == ROUTING
    assert (ours.embedding_scale, ours.position_offset, ours.architecture) == (math.sqrt(8192), 2, "llama")
    assert ours.parameters == plain.parameters
    assert load_model({**HELIX, "embedding_scale": 1.5}).embedding_scale == 1.5
    clamped = load_model({**HELIX, "ffn": {**MOE, "activation": "swiglu_clamped"}}).layers[0].ffn
    assert (clamped.activation, clamped.gated) == ("swiglu_clamped", True)
    indexed = {**MLA, "q_lora_rank": 6, "indexer": {"heads": 2, "head_dim": 4, "top_k": 9, "rope": "interleaved"}}
    assert load_model({**HELIX, "attention": indexed}).layers[0].attention.indexer.rope == "interleaved"


@pytest.mark.parametrize("name", catalog_names())
def test_catalog_models_can_be_written_as_mappings(name):
    model = load_model(name)
    assert load_model(model_mapping(model)) == model
    assert model.architecture in FAMILIES


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("ffn", {**MOE, "scoring": "softmx"}, "did you mean softmax"),
        ("ffn", {**MOE, "group_score": "sum"}, "group_score"),
        ("ffn", {**MOE, "routed_scale": 0}, "routed_scale"),
        ("ffn", {**MOE, "renormalize": "yes"}, "renormalize"),
        ("ffn.scoring", "sigmoid", "no field of this name"),
        ("ffn", {"hidden": 8, "activation": "swiglu_clamped", "gated": False}, "gated network"),
        ("embedding_scale", "sqrt", "embedding_scale"),
        ("embedding_scale", 0, "embedding_scale"),
        ("position_offset", -1, "position_offset"),
        ("architecture", "lama", "did you mean llama"),
        ("layers", 0, r"model\.layers is 0"),
        ("layers", -1, "layers"),
        ("layers", 2.0, "without a point"),
        ("layers", True, "layers is True"),
        ("layers", "2", "layers"),
        ("layers", 10_001, "from 1 to 10000"),
        ("layers", None, "layers is missing"),
        ("hidden", 2**41, "hidden"),
        ("hidden", 0, "hidden"),
        ("vocab", -1, "vocab"),
        ("dtype", "bf17", "did you mean bf16"),
        ("dtype", 16, "dtype is 16"),
        ("module_dtypes", {"expert": "fp8"}, "did you mean experts"),
        ("kv_dtype", "fp9", "kv_dtype"),
        ("norms", 3, "norms"),
        ("norm_kind", "batch", "norm_kind"),
        ("name", "", "name"),
        ("attention", None, "attention"),
        ("attention", [1], r"attention is \[1\]"),
        ("attention.heads", 0, r"model\.attention\.heads is 0"),
        ("attention.headz", 1, "did you mean heads"),
        ("attention.kv_heads", 3, "a divisor of the 16 heads"),
        ("attention.kv_heads", 32, "a divisor of the 16 heads"),
        ("attention.rotary_dim", 3, "rotary_dim"),
        ("attention.rotary_dim", 514, "rotary_dim"),
        ("attention.head_dim", 7, "rotary_dim"),
        ("attention.q_lora_rank", 7, "q_lora_rank"),
        ("attention.kind", "mqa", "kind"),
        ("attention", {**MLA, "indexer": {"heads": 1, "head_dim": 2, "top_k": 3}}, "q_lora_rank"),
        ("attention", {"heads": 3}, "not a multiple"),
        ("ffn.kind", "sparse", "kind"),
        ("ffn.experts", 4, "no field of this name"),
        ("ffn.activation", "tanh", "activation"),
        ("ffn", {"hidden": 8, "activation": "swiglu", "gated": False}, "gated network"),
        ("ffn", {**MOE, "top_k": 9}, "at most the 8 experts"),
        ("ffn", {**MOE, "expert_groups": 3}, "a divisor of the 8 experts"),
        ("ffn", {**MOE, "expert_groups": 4, "top_k_groups": 5}, "at most the 4"),
        ("ffn", {**MOE, "expert_groups": 8, "top_k_groups": 1}, "at most the 1 experts"),
        ("ffn", {"kind": "moe", "hidden": 8, "experts": 4}, "top_k is missing"),
        ("ffn", {**MOE, "hidden": 2**40, "experts": 2**20}, "parameters"),
        ("layer_overrides", [{"layers": "0-2", "ffn": MOE}], "layers 0 to 1"),
        ("layer_overrides", [{"layers": "1-0", "ffn": MOE}], "layers 0 to 1"),
        ("layer_overrides", [{"layers": "0-1/0", "ffn": MOE}], "layers 0 to 1"),
        ("layer_overrides", [{"layers": "x", "ffn": MOE}], "layers 0 to 1"),
        ("layer_overrides", [{"ffn": MOE}], "layers"),
        ("layer_overrides", [{"layers": "0", "fnn": MOE}], "did you mean ffn"),
        ("layer_overrides", {"layers": "0"}, "a list of mappings"),
        ("source", 3, "source"),
        ("lairs", 3, "did you mean layers"),
    ],
)
def test_wrong_specs_are_refused_by_path(path, value, words):
    with pytest.raises(InputError, match=words) as caught:
        load_model(changed(path, value), "problem.yaml")
    assert str(caught.value).startswith("problem.yaml: ")


@pytest.mark.parametrize("field", ["layers", "hidden", "vocab", "attention", "ffn"])
def test_missing_fields_are_said_to_be_missing(field):
    spec = {name: value for name, value in HELIX.items() if name != field}
    with pytest.raises(InputError, match=rf"model\.{field} is missing"):
        load_model(spec)


def test_models_are_found_by_path(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "own.yaml").write_text("layers: 1\nhidden: 8\nvocab: 3\nattention: {heads: 2}\nffn: {hidden: 9}\n")
    assert load_model(tmp_path).name == tmp_path.name
    assert load_model(str(tmp_path)).parameters == load_model(tmp_path / "config.json").parameters == 124_439_808
    assert load_model(tmp_path / "own.yaml").name == "own"
    (tmp_path / "hf_quant_config.json").write_text("{}")
    with pytest.raises(InputError, match="ModelOpt"):
        load_model(tmp_path)


def test_a_folder_called_like_a_catalog_model_does_not_hide_it(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert load_model("gpt2").parameters == 124_439_808
    with pytest.raises(InputError, match=r"config\.json"):
        load_model("./gpt2")


@pytest.mark.parametrize(
    "ref", ["lama-3.1-70b", "none.json", "/none/config.json", "a\0b", "~nobody-here/x", "", 5, None, ["gpt2"]]
)
def test_what_names_no_model_is_refused(ref):
    with pytest.raises(InputError):
        load_model(ref)


def test_unknown_name_is_answered_with_near_ones():
    with pytest.raises(InputError, match=r"did you mean .*llama-3\.1-70b"):
        load_model("lama-3.1-70b")


KEYS = st.sampled_from([*HELIX, "layer_overrides", "module_dtypes", "norms", "heads", "kind", "experts", "top_k", "indexer"])
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["moe", "mla", "gqa", "0-1"])
)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=6)


@settings(max_examples=300)
@given(st.dictionaries(KEYS, VALUES, max_size=4), st.sampled_from(["", "attention", "ffn"]))
def test_random_changes_load_or_are_refused(changes, part):
    spec = copy.deepcopy(HELIX)
    (spec[part] if part else spec).update(changes)
    try:
        model = load_model(spec)
    except InputError:
        return
    assert 0 < model.active_parameters <= model.parameters

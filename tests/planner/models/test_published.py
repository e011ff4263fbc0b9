"""Counts equal the exact published ones, for imported configs and for the catalog."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from planner.files import read_yaml
from planner.models import catalog_names, load_model
from planner.models.catalog import find_name

GOLDEN = Path(__file__).parents[2] / "golden"
ROWS = read_yaml(GOLDEN / "models.yaml")["models"]
IDS = [row["config"] for row in ROWS]


# What the published files say and these copies, made for their sizes, leave out.
_QWEN3_MOE = {"norm_topk_prob": True}
LEFT_OUT = {
    "deepseek-v2": {"topk_method": "group_limited_greedy", "norm_topk_prob": False, "routed_scaling_factor": 16.0},
    "gemma-2-27b": {"query_pre_attn_scalar": 144},
    "glm-4.7": {"routed_scaling_factor": 2.5},
    "qwen3-235b-a22b": _QWEN3_MOE,
    "qwen3-30b-a3b": _QWEN3_MOE,
    "qwen3-coder-480b-a35b": _QWEN3_MOE,
}


def config_of(row) -> Path:
    return GOLDEN / "hf" / f"{row['config']}.json"


@pytest.mark.parametrize("row", ROWS, ids=IDS)
@pytest.mark.parametrize("way", ["config", "catalog"])
def test_counts_equal_the_published_ones(row, way):
    model = load_model(config_of(row) if way == "config" else row["catalog"])
    assert model.parameters == row["parameters"]
    assert model.active_parameters == row.get("active", model.active_parameters)
    assert model.kv_cache_bytes_per_token == row.get("kv_bytes", model.kv_cache_bytes_per_token)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_catalog_says_the_same_as_the_config(row):
    """Every field of every layer, not the counts alone."""
    config = json.loads(config_of(row).read_text()) | LEFT_OUT.get(row["config"], {})
    imported, ours = load_model(config, config_of(row).name), load_model(row["catalog"])
    assert imported.source
    assert ours.source
    if row["config"] == "gpt-neox-20b":  # its file names an approximation of GELU, the paper GELU itself
        ours = replace(ours, layers=imported.layers)
    assert replace(imported, name="", source="") == replace(ours, name="", source="")


@pytest.mark.parametrize(
    ("name", "active", "low", "high"),
    [  # in billions, as the makers round them; theirs may leave out the input embedding
        ("kimi-k2", False, 1020, 1045),
        ("kimi-k2", True, 32, 33),
        ("glm-4.7", True, 32, 34),
        ("llama-4-scout", True, 17, 17.5),
        ("qwen3-coder-480b-a35b", True, 35, 36),
    ],
)
def test_counts_agree_with_rounded_figures(name, active, low, high):
    model = load_model(name)
    assert low * 1e9 <= (model.active_parameters if active else model.parameters) <= high * 1e9


def test_every_catalog_model_has_a_source_and_a_published_figure():
    tested = {row["catalog"] for row in ROWS} | {"kimi-k2"}
    assert set(catalog_names()) == tested
    assert all(load_model(name).source and load_model(name).name == name for name in catalog_names())


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Llama-3.1-70B", "llama-3.1-70b"),
        ("Meta-Llama-3.1-70B", "llama-3.1-70b"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("Mixtral-8x7B", "mixtral-8x7b"),
        ("mistralai/Mixtral-8x22B-Instruct-v0.1", "mixtral-8x22b"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", "qwen3-235b-a22b"),
        ("DeepSeek-V3", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-r1"),
        ("Llama-4-Maverick-17B-128E-Instruct", "llama-4-maverick"),
        ("google/gemma-2-9b-it", "gemma-2-9b"),
        ("GPT2", "gpt2"),
        ("Llama-9", None),
    ],
)
def test_names_are_forgiving(written, name):
    assert find_name(written) == name

"""Tables of aiconfigurator-core: the layout of its Parquet files, converted; a small package of that layout stands for it."""

from __future__ import annotations

import numpy as np
import pytest

from planner.clusters import load_cluster, load_gpu
from planner.costs import GroupShape, Roofline, Table, price_sources
from planner.costs import silicon as read
from planner.costs.kernels import AttentionClass
from planner.costs.sources import collectives_of
from planner.errors import InputError

GEMM = {
    "framework": ["TRTLLM"] * 4, "device": ["NVIDIA H100 80GB HBM3"] * 4, "op_name": ["gemm"] * 4,
    "gemm_dtype": ["bfloat16", "bfloat16", "fp8", "fp8_block"], "m": [16, 32, 16, 16], "n": [64, 64, 64, 64],
    "k": [128, 128, 128, 128], "latency": [0.01, 0.02, 0.007, 0.009],
}  # fmt: skip
PREFILL = {
    "batch_size": [2, 2, 2], "isl": [512, 1, 512], "num_heads": [8, 8, 8], "num_key_value_heads": [2, 2, 2],
    "head_dim": [128, 128, 128], "window_size": [0, 0, 128], "attn_dtype": ["bfloat16"] * 3,
    "kv_cache_dtype": ["fp8"] * 3, "step": [0, 0, 0], "latency": [0.1, 0.01, 0.05],
}  # fmt: skip
DECODE = {
    "batch_size": [4, 4, 4], "isl": [1, 1, 1], "num_heads": [8, 8, 64], "num_key_value_heads": [2, 2, 1],
    "head_dim": [128, 128, 128], "window_size": [0, 0, 0], "attn_dtype": ["bfloat16"] * 3,
    "kv_cache_dtype": ["bfloat16", "fp8", "fp8"], "step": [1023, 1023, 1023], "latency": [0.02, 0.015, 0.1],
}  # fmt: skip
MLA = {
    "mla_dtype": ["bfloat16"], "kv_cache_dtype": ["bfloat16"], "num_heads": [16], "batch_size": [4], "isl": [1], "step": [4095],
    "latency": [0.03],
}  # fmt: skip
NCCL = {
    "op_name": ["all_reduce", "alltoall", "all_gather"], "nccl_dtype": ["half", "half", "int8"], "num_gpus": [8, 8, 4],
    "message_size": [1024, 1024, 1024], "latency": [0.02, 0.03, 0.01],
}  # fmt: skip


def columns(table):
    return {name: np.array(values) for name, values in table.items()}


def test_products_by_dtype_in_seconds():
    found = read.products_of(columns(GEMM))
    assert set(found) == {"bf16", "fp8"}  # block-scaled rows are another format
    assert found["bf16"].points.tolist() == [[16, 128, 64, 1], [32, 128, 64, 1]]
    assert found["bf16"].seconds.tolist() == pytest.approx([1e-5, 2e-5])


def test_attention_has_whole_caches_only():
    prefill, decode, mla = read.prefill_of(columns(PREFILL)), read.decode_of(columns(DECODE)), read.mla_decode_of(columns(MLA))
    (kernel, sample), *rest = prefill.items()
    assert (kernel, rest) == (AttentionClass.of(512, True, False, "bf16", "fp8"), [])
    assert sample.points.tolist() == [[2, 8, 2, 512, 512, 128, 128]]  # neither the window nor the single token
    found = {kernel.kv_dtype: sample.points[:, [1, 4]].tolist() for kernel, sample in decode.items()}
    assert found == {"bf16": [[8, 1024]], "fp8": [[8, 1024]]}  # not the fallback kernel of 64 heads on one cache
    assert mla[AttentionClass.of(1, True, True, "bf16", None)].points.tolist() == [[4, 16, 1, 1, 4096, 576, 512]]


def test_collectives_count_bytes():
    found = read.collectives_of(columns(NCCL))
    assert found["all_reduce"].points.tolist() == [[8, 1, 2048]]
    assert found["all_to_all"].points.tolist() == [[8, 1, 2048]]
    assert found["all_gather"].points.tolist() == [[4, 1, 1024]]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package of that layout, with two versions of the products."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    old = {**GEMM, "latency": [9.0] * 4}
    for place, table in (
        ("gemm/trtllm/1.3.0rc9/gemm_perf", old), ("gemm/trtllm/1.3.0rc10/gemm_perf", GEMM), ("gemm/vllm/0.9.0/gemm_perf", old),
        ("attention/trtllm/1.3.0rc10/context_attention_perf", PREFILL),
        ("attention/trtllm/1.3.0rc10/generation_attention_perf", DECODE), ("mla/trtllm/1.3.0rc10/generation_mla_perf", MLA),
        ("comm/nccl/2.27.3/nccl_perf", NCCL),
    ):  # fmt: skip
        path = tmp_path / "aiconfigurator_core/systems/data/h100_sxm" / f"{place}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(arrow.table(table), path)
    facts = tmp_path / "aiconfigurator_core-0.12.0.dist-info/METADATA"
    facts.parent.mkdir()
    facts.write_text("Metadata-Version: 2.1\nName: aiconfigurator-core\nVersion: 0.12.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    read.silicon_measurements.cache_clear()
    yield tmp_path / "aiconfigurator_core/systems/data/h100_sxm"
    read.silicon_measurements.cache_clear()


def test_a_cluster_is_priced_by_the_newest_version_of_its_own_system(package):
    cluster = load_cluster({"name": "mine", "nodes": [{"kind": "h100", "count": 1}], "gemm_table": "silicon",
                            "comm_table": "silicon:h100_sxm"})  # fmt: skip
    assert cluster.gemm_tables["h100"].version == "0.12.0"
    source = price_sources(cluster)["h100"]
    assert isinstance(source, Table)
    assert float(source.get_time(16, 128, 64)) == pytest.approx(1e-5)
    assert float(source.attention(4, 8, 2, 1, 1024, 128, 128)) == pytest.approx(2e-5)
    assert source.source_of("gemm", "int8") == Roofline(load_gpu("h100")).source_of("gemm", "int8")
    assert collectives_of(cluster).source_of("all_reduce", 2048, GroupShape(8, 1, 8), "h100") == "measured"


@pytest.mark.parametrize(
    ("name", "said"),
    [("silicon:h100_sxn", "did you mean h100_sxm"), ("silicon:h100_sxm/tensorrt", "one of trtllm, vllm"),
     ("silicon:h100_sxm/sglang", "one of trtllm, vllm")],
)  # fmt: skip
def test_an_unknown_system_or_backend_is_refused(package, name, said):
    with pytest.raises(InputError, match=said):
        read.silicon_measurements(name, "h100")


def test_a_table_of_another_layout_is_refused(package):
    next((package / "comm").rglob("*.parquet")).write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"nccl_perf.parquet.*layout of aiconfigurator-core"):
        read.silicon_measurements("silicon", "h100")


def test_another_version_than_the_stored_one_is_refused(package):
    table = {"name": "silicon", "version": "0.11.0"}
    with pytest.raises(InputError, match=r"gemm_table\.version is '0\.11\.0'"):
        load_cluster({"name": "mine", "nodes": [{"kind": "h100", "count": 1}], "gemm_table": table})

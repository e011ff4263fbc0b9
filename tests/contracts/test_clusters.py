"""Every GPU kind by name: constructs, has sources, and prices an operator."""

from __future__ import annotations

import pytest

from planner.clusters import gpu_kinds, load_cluster, load_gpu
from planner.costs.pricer import Pricer


@pytest.mark.parametrize("kind", gpu_kinds())
def test_every_gpu_kind_makes_a_cluster(kind: str) -> None:
    """`2x8-kind` has sixteen GPUs in whole domains, each with memory, bandwidth, a bf16 peak and a source."""
    cluster, gpu = load_cluster(f"2x8-{kind}"), load_gpu(kind)
    assert cluster.size == 16
    assert sorted(rank for domain in cluster.domains for rank in domain.ranks) == list(range(16))
    assert gpu.source and gpu.memory_bytes > 30e9 and gpu.memory_bandwidth > 1e11 and gpu.peak_flops["bf16"] > 1e14
    assert all(domain.link.bandwidth > 0 and domain.link.source for domain in cluster.domains)
    assert cluster.network.bandwidth > 0 and cluster.network.source


@pytest.mark.parametrize("kind", gpu_kinds())
def test_no_gpu_beats_its_peak(kind: str) -> None:
    """A large product takes at least its FLOPs over the peak, and a large copy its bytes over the bandwidth."""
    pricer, gpu = Pricer(load_cluster(f"1x1-{kind}")), load_gpu(kind)
    source = next(iter(pricer.sources.values()))
    for dtype, peak in gpu.peak_flops.items():
        if dtype in ("bf16", "fp16", "fp8"):
            assert float(source.get_time(8192, 8192, 8192, 1, dtype)) >= 2 * 8192**3 / peak
    assert float(source.elementwise(1e10)) >= 1e10 / gpu.memory_bandwidth

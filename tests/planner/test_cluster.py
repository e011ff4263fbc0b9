"""Clusters by name, file and mapping; GPU kinds as data."""

from __future__ import annotations

import time

import pytest

from planner.clusters import as_mapping, cluster_names, gpu_kinds, load_cluster, load_gpu
from planner.clusters.kinds import ALIASES
from planner.errors import InputError

MIXED = "1x8-h100+1x8-a100-80gb"


def test_default_cluster_has_two_nvlink_domains_of_eight():
    cluster = load_cluster("2x8-h100")
    assert [domain.ranks for domain in cluster.domains] == [tuple(range(8)), tuple(range(8, 16))]
    assert cluster.network.bandwidth == 50e9  # 400 Gb/s for each GPU
    assert cluster.domains[0].link.bandwidth == 450e9  # NVLink 4, one direction
    assert cluster.kind_of(9).name == "h100"


@pytest.mark.parametrize("kind", gpu_kinds())
def test_every_kind_works_by_name(kind):
    cluster = load_cluster(f"2x4-{kind}")
    gpu = cluster.kinds[kind]
    assert cluster.size == 8
    assert gpu.source
    assert gpu.price_per_hour > 0
    assert "assumed" in gpu.price_source
    assert 40e9 < gpu.memory_bytes < 320e9


def test_the_kinds_of_the_catalog():
    wanted = {"a100-40gb", "a100-80gb", "h100", "h100-pcie", "h200", "b200", "gb200", "l40s", "mi300x"}
    assert wanted <= set(gpu_kinds())


def test_other_names_are_those_in_the_files():
    assert {alias: load_gpu(kind).name for alias, kind in ALIASES.items()} == ALIASES
    in_files = {name.lower(): kind for kind in gpu_kinds() for name in load_gpu(kind).also_called}
    assert in_files == ALIASES
    assert load_gpu("H100-SXM").name == "h100"


def test_memory_is_what_the_driver_exposes_not_the_label():
    assert load_gpu("h100").memory_bytes == 85_520_809_984  # 81559 MiB: neither 80e9 nor 80 GiB
    assert load_gpu("mi300x").memory_bytes == 206_141_652_992  # rocm-smi


def test_seventy_two_gb200_share_a_domain():
    assert [len(domain.ranks) for domain in load_cluster("18x4-gb200").domains] == [72]
    assert [len(domain.ranks) for domain in load_cluster("20x4-gb200").domains] == [72, 8]


def test_mixed_kinds_take_the_slower_network():
    cluster = load_cluster(MIXED)
    assert set(cluster.kinds) == {"h100", "a100-80gb"}
    assert cluster.network.bandwidth == 25e9
    assert cluster.domains[0].link.bandwidth > cluster.domains[1].link.bandwidth
    assert cluster.price_per_hour() == pytest.approx(8 * load_gpu("h100").price_per_hour + 8 * load_gpu("a100").price_per_hour)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("2x8-h10", "did you mean h100"),
        ("2x8h100", "2x8-h100"),
        ("foo", "NODESxGPUS-KIND"),
        ("0x8-h100", "from 1 to 1048576"),
        ("2x0-h100", "1 to 8 h100 in a node"),
        ("1x16-h100", "1 to 8 h100 in a node"),
        ("1000000000x8-h100", "from 1 to 1048576"),
        ("1000000x8-h100", "1 to 1,048,576 GPUs"),
        ("-1x8-h100", "NODESxGPUS-KIND"),
        ("", "NODESxGPUS-KIND"),
        ("2x8-h100+", "NODESxGPUS-KIND"),
        ("nothing/here.yaml", "a file that exists"),
    ],
)
def test_bad_names_say_what_is_allowed(name, said):
    with pytest.raises(InputError) as caught:
        load_cluster(name)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({}, "cluster.nodes"),
        ({"nodes": []}, "cluster.nodes"),
        ({"nodes": [{"kind": "h100", "cont": 2}]}, "cluster.nodes[0].cont"),
        ({"nodes": [{"kind": "h100", "count": True}]}, "cluster.nodes[0].count"),
        ({"nodes": [{"kind": "h100", "link": {"gb_per_s": 0}}]}, "cluster.nodes[0].link.gb_per_s"),
        ({"nodes": [{"kind": "h100"}], "network": {"gb_per_s": float("nan")}}, "cluster.network.gb_per_s"),
        ({"nodes": [{"kind": "h100"}], "price_per_gpu_hour": {"h200": 1}}, "cluster.price_per_gpu_hour.h200"),
        ({"nodes": [{"kind": "mine"}], "kinds": {"mine": {"like": "h100", "peak_tflops": {"bf17": 3}}}}, "peak_tflops.bf17"),
    ],
)
def test_bad_mappings_name_the_field(data, field):
    with pytest.raises(InputError) as caught:
        load_cluster(data, "here.yaml")
    assert field in str(caught.value)
    assert "here.yaml" in str(caught.value)


def test_a_mapping_overrides_links_prices_and_kinds():
    small = {"like": "h100", "memory_mib": 1024, "scale_up": {"gb_per_s": 100}}
    cluster = load_cluster(
        {
            "nodes": [{"kind": "small", "count": 3, "gpus": 2}],
            "kinds": {"small": small},
            "network": {"gb_per_s": 12.5, "nics_per_node": 1},
            "price_per_gpu_hour": 2,
        }
    )
    assert cluster.kinds["small"].memory_bytes == 2**30
    assert cluster.domains[2].link.bandwidth == 100e9
    assert (cluster.network.bandwidth, cluster.adapters_per_gpu) == (12.5e9, 0.5)
    assert cluster.price_per_hour() == 12


def test_a_node_may_hold_several_kinds():
    nodes = [{"kind": "h100", "gpus": 8}, {"kind": "h100", "gpus": 7}, {"kind": "h200", "gpus": 1, "same_node": True}]
    cluster = load_cluster({"nodes": nodes})
    assert [domain.ranks for domain in cluster.domains] == [tuple(range(8)), tuple(range(8, 16))]
    assert (cluster.gpus_per_node, cluster.kind_of(15).name) == (8, "h200")
    slower = load_cluster({"nodes": [{"kind": "h100", "gpus": 1}, {"kind": "a100-80gb", "gpus": 1, "same_node": True}]})
    assert slower.domains[0].link == load_cluster("1x2-a100-80gb").domains[0].link


@pytest.mark.parametrize(
    "nodes",
    [
        [{"kind": "h100", "gpus": 8, "same_node": True}],
        [{"kind": "h100", "gpus": 4}, {"kind": "h200", "gpus": 1, "count": 2, "same_node": True}],
        [{"kind": "gb200", "gpus": 4}, {"kind": "h200", "gpus": 1, "same_node": True}],
    ],
)
def test_what_joins_a_node_is_one_more_part_of_it(nodes):
    with pytest.raises(InputError, match="same_node"):
        load_cluster({"nodes": nodes})


def test_names_files_and_mappings_are_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("nodes: [{kind: h100, count: 2, gpus: 8}]\n", encoding="utf-8")
    assert load_cluster(path).domains == load_cluster(as_mapping("2x8-h100")).domains == load_cluster("2x8-h100").domains
    for name in cluster_names():
        assert load_cluster(name).name == name


def test_sixteen_thousand_gpus_are_built_at_once():
    load_cluster("2x8-h100")
    start = time.process_time()
    cluster = load_cluster("2048x8-h100")
    assert cluster.domain_of[-1] == 2047
    assert time.process_time() - start < 0.1

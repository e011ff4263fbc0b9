"""The Ray engine on clusters in one machine; left out where Ray is not installed."""

from __future__ import annotations

import threading
import time

import pytest

from planner.batch.drive import Batch
from planner.batch.engines import RayEngine
from planner.batch.sweep import read_sweep
from planner.errors import InputError
from tests.planner.batch.stores import contents, planner, run_sweep, tiny_sweep, write_sweep

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


def test_a_local_cluster_gives_the_same_bytes(tmp_path):
    sweep = write_sweep(tmp_path, tiny_sweep((1, 2, 4), (16, 32), problems=["none such", {"name": "sound"}]))
    done = planner("batch", sweep, "--engine", "ray", "--workers", 2, "--out", tmp_path / "ray")
    assert done.returncode == 4, done.stderr
    run_sweep(sweep, tmp_path / "serial")
    assert contents(tmp_path / "ray") == contents(tmp_path / "serial")


def test_an_address_where_no_cluster_is(tmp_path):
    sweep = write_sweep(tmp_path, tiny_sweep((1,), (16,)))
    with pytest.raises(InputError, match="the address of a running Ray cluster"):
        Batch(read_sweep(sweep), tmp_path / "store", RayEngine("127.0.0.1:1")).run()


def test_a_node_that_is_lost_loses_nothing(tmp_path):
    from ray.cluster_utils import Cluster

    sweep = write_sweep(tmp_path, tiny_sweep(range(1, 31), (16, 32)))
    run_sweep(sweep, tmp_path / "serial")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        lost: list[int] = []

        def lose(event):
            if event["event"] == "run" and not lost and event["done"] >= 5:
                lost.append(event["done"])
                threading.Thread(target=cluster.remove_node, args=(second,), kwargs={"allow_graceful": False}).start()
                time.sleep(0.1)

        tally = Batch(read_sweep(sweep), tmp_path / "ray", RayEngine(cluster.address), listen=lose).run()
    finally:
        cluster.shutdown()
    assert lost and (tally.done, tally.failures) == (60, 0)
    run_sweep(sweep, tmp_path / "ray")
    assert contents(tmp_path / "ray") == contents(tmp_path / "serial")

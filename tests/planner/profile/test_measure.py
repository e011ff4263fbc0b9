"""Measuring on this machine: a table that the planner reads back; a plan priced by it; what is left out is said."""

from __future__ import annotations

import json
from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from planner.cli import main
from planner.clusters import load_gpu
from planner.costs import Roofline, Table, load_table
from planner.errors import InputError
from planner.profile import device as devices
from planner.profile import measure as measuring
from planner.profile.device import Device, find_device
from planner.profile.measure import LARGE, SLOW, UNKNOWN, measure
from planner.profile.shapes import Attention, Message, Product, Shapes
from planner.profile.table import table_text, write_table
from planner.profile.timing import Effort

torch = pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
SHAPES = "op,m,k,n,batch,dtype,heads,kv_heads,q_len,kv_len,qk_dim,v_dim\n"
SHAPES += "gemm,16,32,64,1,fp32,,,,,,\ngemm,32,32,64,2,fp32,,,,,,\nattention,,,,2,fp32,4,2,8,8,16,16\n"
PLAN = """problem:
  name: small
  model: {layers: 1, hidden: 64, attention: {heads: 8, kv_heads: 4, head_dim: 8}, ffn: {kind: dense, hidden: 128}, vocab: 0}
  workload: {phase: prefill, batch: 1, prompt: 8, logits: none}
  cluster: 1x4-h100
stages: [{layers: 1, devices: [0, 1, 2, 3]}]
attention: {head_groups: 4, dimension_segments: 1}
mlp: {ways: 4}
micro_batches: 1
"""


def quiet(text):
    assert text


def test_a_table_is_read_back_as_it_was_measured(tmp_path):
    rows = [
        {**Product(16, 32, 64, 1, "bf16").row(), "time_us": 1.5, "gpu": "A, B", "torch": "2"},
        {**Attention(2, 4, 2, 8, 8, 16, 16, True, "bf16").row(), "time_us": 2.5, "gpu": "A, B", "torch": "2"},
        {**Message("all_reduce", 2, 1024).row(), "time_us": 3.5, "gpu": "A, B", "torch": "2"},
    ]
    path = tmp_path / "table.csv"
    write_table(path, rows)
    found = load_table(path)
    assert found.products["bf16"].points.tolist() == [[16, 32, 64, 1]]
    (sample,) = found.attention.values()
    assert (sample.points.tolist(), sample.seconds.tolist()) == ([[2, 4, 2, 8, 8, 16, 16]], pytest.approx([2.5e-6]))
    assert found.collectives["all_reduce"].points.tolist() == [[2, 1, 1024]]
    assert path.read_text().splitlines()[0].endswith(",time_us,gpu,torch")
    assert table_text(rows[:1]).splitlines()[0] == "op,m,k,n,batch,dtype,time_us,gpu,torch"
    with pytest.raises(InputError, match="a path that can be written"):
        write_table(tmp_path / "none" / "table.csv", rows)


def test_what_is_too_slow_too_large_or_unknown_is_counted(monkeypatch):
    rate = {"bf16": 1e12}
    stub = SimpleNamespace(__version__="0", inference_mode=nullcontext)
    monkeypatch.setattr(measuring, "product_run", lambda device, shape: None if shape.dtype == "fp8" else shape)
    monkeypatch.setattr(measuring, "seconds_of", lambda shape, device, effort: shape.flops / rate[shape.dtype])
    some = (Product(1000, 1000, 1000, 1, "bf16"), Product(10**5, 10**4, 10**4, 1, "bf16"), Product(1, 10**5, 10**5, 1, "bf16"))
    found = measure(Device(stub, "cpu", "mine", 1), Shapes((*some, Product(1, 1, 1, 1, "fp8"))), Effort(1, 1.0), quiet)
    assert [row["m"] for row in found.rows] == [1000]
    assert found.left_out == {SLOW: 1, LARGE: 1, UNKNOWN: 1}
    assert found.rows[0] | {"gpu": "mine", "torch": "0", "time_us": pytest.approx(2000)} == found.rows[0]


def test_without_pytorch_one_line_says_how_to_get_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    code = main(["profile", "-o", str(tmp_path / "t.csv")])
    err = capsys.readouterr().err
    assert code == 2 and len(err.splitlines()) == 1 and "pip install 'parallelism-planner[profile]'" in err


@torch
def test_three_tiny_shapes_are_measured_and_price_a_plan(tmp_path, capsys):
    asked, out = tmp_path / "shapes.csv", tmp_path / "table.csv"
    asked.write_text(SHAPES, encoding="utf-8")
    code = main(["profile", "--device", "cpu", "--shapes", str(asked), "-o", str(out), "--repeats", "3", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (code, told["rows"], told["left_out"]) == (0, 3, {})
    found = load_table(out)
    seconds = found.products["fp32"].seconds
    assert len(seconds) == 2 and all(0 < second < 1 for second in seconds)
    table = Table(found, Roofline(load_gpu("h100")))
    assert min(seconds) * 0.999 <= float(table.get_time(16, 32, 64, 1, "fp32")) <= max(seconds) * 1.001
    assert out.read_text().splitlines()[1].split(",")[-3:-1] == ["CPU", told["torch"]]


@torch
def test_the_products_of_a_plan_are_measured_and_price_it(tmp_path, capsys):
    plan, out = tmp_path / "plan.yaml", tmp_path / "table.csv"
    plan.write_text(PLAN, encoding="utf-8")
    code = main(["profile", str(plan), "--device", "cpu", "-o", str(out), "--repeats", "1", "--seconds", "5"])
    assert code == 0, capsys.readouterr().err
    capsys.readouterr()
    code = main(["evaluate", str(plan), "--gemm-table", str(out), "--json"])
    told = json.loads(capsys.readouterr().out)
    tags = {item["source"] for item in told["critical_path"] if item["term"].startswith(("Get_Time", "Attention"))}
    assert (code, tags) == (0, {"measured"})


@torch
def test_a_device_that_is_not_there_is_refused():
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    with pytest.raises(InputError, match="PyTorch finds no GPU here"):
        find_device("cuda")
    assert find_device(None).kind == "cpu"


@torch
@pytest.mark.slow
def test_collectives_are_measured_by_one_process_for_each_rank():
    from planner.profile.collectives import measure_messages

    asked = [Message("all_reduce", 2, 4096), Message("broadcast", 2, 4096), Message("send_recv", 2, 64)]
    times = measure_messages(find_device("cpu"), asked, Effort(2, 1.0))
    assert set(times) == set(asked) and all(0 < seconds < 10 for seconds in times.values())

"""Shapes to measure: a grid, a file, or exactly what the prices of a problem ask for."""

from __future__ import annotations

import pytest

from planner.api import choose, named_space
from planner.errors import InputError
from planner.evaluate.evaluation import evaluate
from planner.profile.shapes import Attention, Message, Product, Shapes, at_most, grid, messages, shapes_in
from planner.profile.wanted import wanted


def test_a_file_names_shapes_with_or_without_times(tmp_path):
    path = tmp_path / "shapes.csv"
    path.write_text(
        "op,m,k,n,batch,dtype,heads,kv_heads,q_len,kv_len,qk_dim,v_dim,ranks,bytes,time_us\n"
        "gemm,16,32,64,,bf16,,,,,,,,,7\n,16,32,64,1,bf16,,,,,,,,,8\nattention,,,,2,fp16,8,2,5,5,64,32,,,\n"
        "all_gather,,,,,,,,,,,,4,1024,\n",
        encoding="utf-8",
    )
    found = shapes_in(path)
    assert found.products == (Product(16, 32, 64, 1, "bf16"),)
    assert found.attention == (Attention(2, 8, 2, 5, 5, 64, 32, True, "fp16"),)
    assert found.messages == (Message("all_gather", 4, 1024),)
    path.write_text("m,k,n,dtype\n16,0,64,bf16\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"shapes.csv:2: k is '0'"):
        shapes_in(path)


def test_the_grid_has_every_kind_of_kernel_and_collectives_over_powers_of_two():
    found = grid(["bf16", "fp8"], 6)
    assert {product.dtype for product in found.products} == {"bf16", "fp8"}
    assert {kernel.q_len == 1 for kernel in found.attention} == {True, False}
    assert {message.ranks for message in found.messages} == {2, 4}
    assert all(message.ranks == 2 for message in found.messages if message.operation == "send_recv")
    assert messages(1) == ()


def test_fewer_shapes_keep_the_smallest_and_the_largest():
    every = grid(["bf16"], 1)
    few = at_most(every, 5)
    assert (len(few.products), len(few.attention)) == (5, 5)
    sizes = [product.flops for product in every.products]
    assert (few.products[0].flops, few.products[-1].flops) == (min(sizes), max(sizes))
    assert at_most(Shapes(every.products[:3]), 3).count == 3


def test_a_plan_wants_the_products_of_its_graph():
    chosen = choose("helix:m4n4", sets=["plan.micro_batches=256"])
    problem, space, _ = named_space("helix:m4n4", ["plan.micro_batches=256"])
    found = wanted(problem, space)
    path = evaluate(chosen.env, problem.sizes, chosen.choice).critical_path
    terms = {item.term for item in path if item.term.startswith("Get_Time")}
    told = {f"Get_Time({p.m}, {p.k}, {p.n}{f', batch={p.batch}' if p.batch > 1 else ''})" for p in found.products}
    assert terms and terms <= told
    assert not found.attention  # segments of head dimensions know no fused kernel


def test_a_space_wants_the_fused_kernels_of_all_its_options():
    problem, space, _ = named_space("helix_two_stage:tp8_pp2", ["workload.batch=2", "workload.prompt=32"])
    found = wanted(problem, space)
    assert {(kernel.q_len, kernel.kv_len, kernel.causal) for kernel in found.attention} == {(32, 32, False)}
    assert {kernel.batch for kernel in found.attention} == {1, 2}

"""Words of labels: kinds, GPUs, bytes, shapes and products, and what no rule claims to understand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.inspect.labels import label_lines
from planner.inspect.shapes import Product, product_of, shapes_in
from planner.inspect.tokens import Html
from planner.inspect.words import (
    bytes_in,
    devices_in,
    dtype_in,
    kind_of,
    names_every_gpu,
    names_two_ends,
    ranks_in,
    stated_kind,
)

KINDS = {
    "matmul": ["MatMul", "Q Projection", "q_proj_gpu3", "FC1", "fc2", "Linear", "QKV Linear", "gate_proj", "GEMM", "expert_fc1",
               "Attention Output Projection", "FC1 + GELU", "QK^T scores", "W_o Proj", "bmm"],
    "all_reduce": ["All-Reduce", "AllReduce", "allreduce_mlp", "all_reduce scores"],
    "all_gather": ["All-Gather", "allgather"],
    "reduce_scatter": ["Reduce-Scatter"],
    "all_to_all": ["All-to-All", "AllToAll dispatch", "all2all"],
    "broadcast": ["Broadcast hidden states"],
    "send_recv": ["Send to stage 1", "recv", "Send/Recv", "P2P", "KV transfer"],
    "softmax": ["Softmax", "softmax_gpu_3"],
    "norm": ["LayerNorm", "RMSNorm", "Layer Norm 1", "ln_1", "layer0_attn_norm", "Add & Norm"],
    "add": ["Residual Add", "residual", "Add"],
    "activation": ["GELU", "SwiGLU", "Activation"],
    "concat": ["Concat heads", "Concatenate"],
    "split": ["Split QKV"],
    "reshape": ["Reshape", "Transpose"],
    "router": ["MoE Gate", "Router", "gating_network", "Top-K"],
    "lookup": ["Input Embedding", "embedding"],
    "attention": ["Flash Attention", "SDPA"],
    "block": ["MLP Layer 3", "mha_layer_0", "Expert 7", "Multi-Head Attention", "Stage 1"],
    "input": ["Model Input", "input"],
    "output": ["Model Output", "Output"],
    "": ["", "Foo", "addition", "aggregate", "matmulx", "gather", "dispatch", "12"],
}  # fmt: skip


@pytest.mark.parametrize(("title", "kind"), [(title, kind) for kind, titles in KINDS.items() for title in titles])
def test_kinds(title, kind):
    assert kind_of(title) == kind


def test_our_own_names_of_kinds():
    assert [stated_kind(text) for text in ("grouped_matmul", "barrier", "role", "GEMM", "nonsense")] == [
        "grouped_matmul", "barrier", "block", "matmul", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("GPU 3", [(3,)]), ("gpu3", [(3,)]), ("GPU_3", [(3,)]), ("GPU-3", [(3,)]), ("GPU #3", [(3,)]), ("cuda:3", [(3,)]),
        ("device=3", [(3,)]), ("Device: GPU 3", [(3,)]), ("rank 5", [(5,)]), ("(GPU 5)", [(5,)]), ("q proj gpu 12 x", [(12,)]),
        ("GPU: 0-3", [(0, 1, 2, 3)]), ("GPUs 0,1,2", [(0, 1, 2)]), ("GPUs [0, 2]", [(0, 2)]),
        ("devices 0 to 2 and 8", [(0, 1, 2, 8)]),
        ("GPU0-GPU2", [(0, 1, 2)]), ("GPU 0-1 | 2-3", [(0, 1), (2, 3)]), ("GPU 0 -> GPU 4", [(0,), (4,)]),
        ("GPU 0-1 to GPU 4-5", [(0, 1), (4, 5)]), ("GPU 3, 128x128 tiles", [(3,)]), ("Layer 2 on GPU 1", [(1,)]),
        ("16 GPUs", []), ("GPUs: 16", []), ("GPU 80GB", []), ("per GPU: 3 heads", []), ("num_gpus=8", []), ("low-rank 64", []),
        ("rank=same", []), ("GPU 0-99999999", []), ("GPU 5-2", []), ("GPU", []), ("", []),
    ],
)  # fmt: skip
def test_gpus(text, groups):
    assert list(devices_in(text)) == groups


def test_more_words():
    assert ranks_in("0-2, 7") == (0, 1, 2, 7) and ranks_in("0-5000") == () == ranks_in("x")
    assert names_every_gpu("All GPUs") and names_every_gpu("on all 16 GPUs") and not names_every_gpu("GPU 3")
    assert names_two_ends("GPU 0 to GPU 4") and names_two_ends("GPU 0-3 -> GPU 4-7") and not names_two_ends("GPU 0-3")
    assert bytes_in("335.5 MB each") == 335.5e6 and bytes_in("2 GiB") == 2 * 2**30 and bytes_in("100 B") == 100
    assert bytes_in("1 MB, 2 MB") is None and bytes_in("8 x 2 GB/s") is None and bytes_in("5 Bananas") is None
    assert dtype_in("BF16 weights") == "bf16" and dtype_in("fp8 x bf16") == "" and dtype_in("abf16") == ""


@pytest.mark.parametrize(
    ("lines", "inputs", "outputs", "weights", "bare"),
    [
        (
            ["Input: [1024, 10000, 8192]", "Output: [1024, 10000, 4, 128]"],
            [(1024, 10000, 8192)],
            [(1024, 10000, 4, 128)],
            [],
            [],
        ),
        (["Input Dimension: [2, 3]", "Output shape: (2, 5)"], [(2, 3)], [(2, 5)], [], []),
        (["Input: [batch_size=1024, seq_len=10000, hidden_dim: 8192]"], [(1024, 10000, 8192)], [], [], []),
        (["Input: [1024×10000, 8192/16]"], [(10240000, 512)], [], [], []),
        (["Input: 1024x10000x8192"], [(1024, 10000, 8192)], [], [], []),
        (["Input: [2, 3], [2, 4]"], [(2, 3), (2, 4)], [], [], []),
        (["Input:", "[3, 4]"], [(3, 4)], [], [], []),
        (["[2, 3] → [2, 5]"], [(2, 3)], [(2, 5)], [], []),
        (["in x [2, 3] bf16", "weight w [3, 5] bf16", "out y [2, 5] bf16"], [(2, 3)], [(2, 5)], [(3, 5)], []),
        (["W_q: [8192, 512]"], [], [], [(8192, 512)], []),
        (["Linear(8192, 512)"], [], [], [(8192, 512)], []),
        (["[2, 3]"], [], [], [], [(2, 3)]),
        (["Output Projection", "[2, 3]"], [], [], [], [(2, 3)]),
        (["Q: [2, 3]", "K: [2, 3]"], [], [], [], [(2, 3), (2, 3)]),
        (["4x4 = 16 partitions (m=4, n=4)", "heads (3)", "f(x, y)", "8 x 2 heads"], [], [], [], []),
    ],
)
def test_shapes(lines, inputs, outputs, weights, bare):
    found = shapes_in(lines)
    assert [[t.dims for t in tensors] for tensors in (found.inputs, found.outputs, found.weights, found.bare)] == [
        inputs, outputs, weights, bare,
    ]  # fmt: skip
    assert not found.unread and not found.wrong


@pytest.mark.parametrize(
    ("line", "product"),
    [
        ("m=10240000, k=8192, n=512", Product(10240000, 8192, 512)),
        ("N: 512 K: 8192 M: 1024*10000", Product(10240000, 8192, 512)),
        ("m=4, k=5, n=6, batch=7", Product(4, 5, 6, 7)),
        ("GEMM [m=4, k=5, n=6]", Product(4, 5, 6)),
        ("Get_Time(1024×10000, 8192, 512)", Product(10240000, 8192, 512)),
        ("(1024x10000) @ (10000x512)", Product(1024, 10000, 512)),
        ("[8, 4, 5] × [5, 6] → [8, 4, 6]", Product(32, 5, 6)),
        ("16 x (4 x 5) @ (5 x 6)", Product(4, 5, 6, 16)),
        ("Q [8, 16, 100, 64] @ K [8, 16, 100, 64]^T", Product(100, 64, 100, 128)),
        ("batch=7", None),
        ("m=4, n=4", None),
    ],
)
def test_products(line, product):
    found = shapes_in([line])
    assert found.product == product and not found.wrong and not found.unread


@pytest.mark.parametrize(
    ("line", "unread"),
    [
        ("[B, S, H]", "the shape [B, S, H]"),
        ("Input: (batch, 10, 8192)", "the shape [batch, 10, 8192]"),
        ("M=10,240,000 K=8192 N=512", "digits grouped by commas"),
        ("m=1, m=2, k=3, n=4", "one of them has several values"),
        ("m=0, k=3, n=4", "one of them has several values or is 0"),
    ],
)
def test_what_is_not_understood_is_said(line, unread):
    found = shapes_in([line])
    assert found.product is None and any(unread in text for text in found.unread)


def test_operands_that_do_not_fit_are_wrong():
    assert shapes_in(["[2, 3] @ [4, 5]"]).wrong and not shapes_in(["[2, 3] @ [5, 3]^T"]).wrong
    assert product_of((2, 3, 4), (5, 4, 6)) is None and product_of((4,), (4, 6)) is None


@pytest.mark.parametrize(
    ("label", "shape", "lines"),
    [
        ("a\\nb\\lc\\r", "", ["a", "b", "c"]),
        ("a\nb\\\\n", "", ["a", "b\\n"]),
        ("\\N of \\G", "", ["node of graph"]),
        ("{a|{b|<p> c}|d\\|e}", "record", ["a", "b", "c", "d|e"]),
        ("{a|b}", "box", ["{a|b}"]),
        ("a &lt; b &amp; c", "", ["a < b & c"]),
        (Html("<b>a</b><br/>b<BR ALIGN='left'/>c"), "", ["a", "b", "c"]),
        (Html("<table><tr><td>a</td><td>b &gt; c</td></tr></table>"), "", ["a", "b > c"]),
        ("", "", []),
        ("  a   b\\n\\n", "", ["a b"]),
    ],
)
def test_labels(label, shape, lines):
    assert list(label_lines(label, shape, "node", "graph")) == lines


@given(st.lists(st.text(max_size=80), max_size=5))
def test_any_text_is_read_without_error(lines):
    shapes_in(lines)
    for line in lines:
        label_lines(line, "record"), label_lines(Html(line))
        kind_of(line), devices_in(line), ranks_in(line), names_two_ends(line), bytes_in(line), dtype_in(line)


WORDS = [
    "Input:",
    "Output:",
    "weight",
    "1",
    "20",
    "9" * 16,
    "x",
    "×",
    "^T",
    "->",
    "m=",
    "k=",
    "n=",
    "batch=",
    "GPU",
    "0-3",
    "to",
    "B",
]


@given(st.lists(st.sampled_from([*WORDS, *"[](),@|*/="]), max_size=30).map(" ".join))
def test_any_mixture_of_words_is_read_without_error(line):
    found = shapes_in([line])
    devices_in(line), ranks_in(line), bytes_in(line)
    assert all(size > 0 for t in (*found.inputs, *found.outputs, *found.weights, *found.bare) for size in t.dims)

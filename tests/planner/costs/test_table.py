"""Get_Time from a CSV: measured sizes get their time, others a value between their bounds, errors their line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.clusters import load_cluster, load_gpu
from planner.costs import Collectives, GroupShape, Roofline, Table, load_table
from planner.costs.comm_table import MeasuredCollectives
from planner.costs.held import Held
from planner.costs.kernels import AttentionClass
from planner.errors import InputError

ROWS = """m,k,n,batch,dtype,time_us
128,1024,1024,1,bf16,10
256,1024,1024,1,bf16,18
4096,4096,4096,1,bf16,400
64,1024,1024,1,bf16,12.1
"""
MORE = """op,m,k,n,batch,dtype,heads,kv_heads,q_len,kv_len,qk_dim,v_dim,causal,ranks,nodes,bytes,time_us,gpu
gemm,16,16,16,,bf16,,,,,,,,,,,2,x
attention,,,,4,bf16,8,2,1024,1024,128,128,1,,,,100,x
attention,,,,8,bf16,8,2,2048,2048,128,128,1,,,,700,x
attention,,,,4,bf16,8,2,1,1024,128,128,,,,,9,x
all_reduce,,,,,,,,,,,,,8,,1000000,40,x
all_reduce,,,,,,,,,,,,,8,,100000000,700,x
all_reduce,,,,,,,,,,,,,16,2,1000000,90,x
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "mine.csv"
    path.write_text(ROWS, encoding="utf-8")
    return Table(load_table(path), Roofline(load_gpu("h100")))


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "more.csv"
    path.write_text(MORE, encoding="utf-8")
    return load_table(path)


def test_measured_sizes_get_their_time(table):
    assert table.get_time([256, 4096], [1024, 4096], [1024, 4096]).tolist() == pytest.approx([18e-6, 400e-6])


def test_rows_that_contradict_each_other_meet_in_the_middle(table):
    assert table.get_time([64, 128], 1024, 1024).tolist() == pytest.approx([11e-6, 11e-6])  # 64 rows took 12.1 us, 128 took 10


def test_between_measured_sizes_the_time_lies_between(table):
    assert 11e-6 <= table.get_time(200, 1024, 1024) <= 18e-6


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 6000), min_size=4, max_size=4), st.integers(0, 3), st.integers(1, 3000))
def test_never_faster_when_larger(table, sizes, which, by):
    larger = [size + by if index == which else size for index, size in enumerate(sizes)]
    assert table.get_time(*larger) >= table.get_time(*sizes) * (1 - 1e-12)


def test_other_dtypes_and_operators_fall_back_and_say_so(table):
    plain = table.fallback
    assert table.get_time(64, 64, 64, 1, "fp8") == plain.get_time(64, 64, 64, 1, "fp8")
    assert table.attention(1, 8, 8, 1, 100, 128, 128) == plain.attention(1, 8, 8, 1, 100, 128, 128)
    tags = (table.source_of("gemm"), table.source_of("gemm", "fp8"), table.source_of("decode"))
    assert tags == ("measured", "fitted", "fitted")
    assert np.array_equal(table.elementwise([0, 1e9]), plain.elementwise([0, 1e9]))


def test_a_disturbed_row_is_left_out_of_a_large_table(tmp_path):
    """A small product that took a hundred times as long would make every larger one slow."""
    plain, path = Roofline(load_gpu("h100")), tmp_path / "many.csv"
    sizes = [(m, 4096, 4096) for m in (256, 512, 1024, 2048, 4096)]
    times = [float(plain.get_time(*size)) * (100 if size[0] == 512 else 2) for size in sizes]
    rows = [f"{m},{k},{n},bf16,{seconds}" for (m, k, n), seconds in zip(sizes, times, strict=True)]
    path.write_text("\n".join(["m,k,n,dtype,seconds", *rows]), encoding="utf-8")
    every, trusted = Table(load_table(path), plain), Table(load_table(path), plain, strays=3.0)
    assert float(every.get_time(2048, 4096, 4096)) > 1.5 * times[3]
    assert float(trusted.get_time(2048, 4096, 4096)) == pytest.approx(times[3])
    assert times[0] <= float(trusted.get_time(512, 4096, 4096)) <= times[2]


@pytest.mark.parametrize(
    ("sizes", "tag"),
    [((256, 1024, 1024, 1), "measured"), ((300, 1100, 1030, 1), "measured"), ((64, 1024, 1023, 1), "extrapolated"),
     ((4097, 4096, 4096, 1), "extrapolated")],
)  # fmt: skip
def test_beyond_the_measured_sizes_the_time_is_extrapolated(table, sizes, tag):
    assert table.source_of("gemm", "bf16", sizes) == tag


def test_attention_is_measured_by_class_and_sizes(more):
    table = Table(more, Roofline(load_gpu("h100")))
    assert float(table.attention(4, 8, 2, 1024, 1024, 128, 128)) == pytest.approx(100e-6)
    assert float(table.attention(4, 8, 2, 1, 1024, 128, 128)) == pytest.approx(9e-6)
    assert table.attention(4, 8, 2, [1, 1024], 1024, 128, 128).tolist() == pytest.approx([9e-6, 100e-6])
    assert 100e-6 <= float(table.attention(6, 8, 2, 1500, 1500, 128, 128)) <= 700e-6
    unmasked = table.attention(4, 8, 2, 1024, 1024, 128, 128, False)
    assert unmasked == table.fallback.attention(4, 8, 2, 1024, 1024, 128, 128, False)
    prefill = AttentionClass.of(1024, True, False, "bf16", None)
    assert table.source_of("prefill", "bf16", (4, 8, 2, 1024, 1024, 128, 128), prefill) == "measured"
    assert table.source_of("prefill", "bf16", (1, 8, 2, 1024, 1024, 128, 128), prefill) == "extrapolated"


def test_collectives_are_measured_by_ranks_and_nodes(more):
    cluster = load_cluster("2x8-h100")
    table, plain = MeasuredCollectives(cluster, more.collectives), Collectives(cluster)
    inside, across, few = GroupShape(8, 1, 8), GroupShape(16, 2, 8), GroupShape(4, 1, 4)
    assert float(table.time("all_reduce", 1e6, inside)) == pytest.approx(40e-6)
    assert float(table.time("all_reduce", 1e6, across)) == pytest.approx(90e-6)
    assert float(table.time("all_reduce", 1e6, few)) == float(plain.time("all_reduce", 1e6, few))
    assert float(table.time("all_gather", 1e6, inside)) == float(plain.time("all_gather", 1e6, inside))
    shared = GroupShape(16, 2, 8, crossing=8)
    assert float(table.time("all_reduce", 1e6, shared)) == pytest.approx(max(90e-6, plain.time("all_reduce", 1e6, shared)))
    times = table.time("all_reduce", np.geomspace(1e3, 1e10, 200), inside)
    assert np.all(np.diff(times) >= 0)
    tags = [table.source_of("all_reduce", moved, shape, "h100") for moved, shape in ((2e6, inside), (1, inside), (1e6, few))]
    assert tags == ["measured", "extrapolated", "fitted"]


class Passing(Held):
    """Never on a grid."""

    _on_grid = False


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.tuples(*[st.integers(1, 5)] * 3), st.integers(1, 99), min_size=1, max_size=12),
    st.lists(st.tuples(*[st.floats(0, 6)] * 4), min_size=1, max_size=8),
)
def test_a_grid_and_a_pass_over_the_rows_agree(rows, asked):
    points, seconds = np.array(list(rows), dtype=float), np.array(list(rows.values()), dtype=float)
    points = points[:, [0, 1, 2, 1]]  # as where every row has as many keys as queries
    first, second = (kind(points, seconds, seconds).bounds(np.array(asked)) for kind in (Held, Passing))
    assert np.array_equal(first, second)
    assert np.all(first[0] <= first[1])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "header"),
        ("m,k,n,dtype\n1,1,1,bf16\n", "header"),
        ("m,k,n,seconds\n1,1,1,1\n", "header"),
        ("ranks,bytes,seconds\n1,1,1\n", "header"),
        ("m,k,n,dtype,second\n1,1,1,bf16,1\n", "did you mean seconds"),
        ("m,k,n,dtype,seconds\n", "at least one measured row"),
        ("m,k,n,dtype,seconds\n1,1,1,bf16,1\n1,x,1,bf16,1\n", "mine.csv:3: k is 'x'"),
        ("m,k,n,dtype,seconds\n1,1,1,bf17,1\n", "mine.csv:2: dtype is 'bf17'"),
        ("m,k,n,dtype,seconds\n1,1,1,bf16,-3\n", "mine.csv:2: seconds is '-3'"),
        ("m,k,n,dtype,seconds\n1,1,1,bf16,nan\n", "mine.csv:2: seconds is 'nan'"),
        ("m,k,n,dtype,seconds\n1,1,1,bf16\n", "mine.csv:2: row"),
        ("op,m,k,n,dtype,seconds\nmatmul,1,1,1,bf16,1\n", "mine.csv:2: op is 'matmul'"),
        ("op,m,k,n,dtype,seconds\nall_reduce,1,1,1,bf16,1\n", "mine.csv:2: ranks is ''"),
        (MORE.splitlines()[0] + "\nattention,,,,4,bf16,8,2,1,1,1,1,yes,,,,1,x\n", "mine.csv:2: causal is 'yes'"),
    ],
)
def test_a_malformed_file_is_refused_with_line_and_column(tmp_path, text, said):
    path = tmp_path / "mine.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_table(path)
    assert said in str(caught.value)

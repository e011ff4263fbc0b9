"""Get_Time from a CSV: measured sizes get their time, others a value between their bounds, errors their line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.clusters import load_gpu
from planner.costs import Roofline, Table
from planner.errors import InputError

ROWS = """m,k,n,batch,dtype,time_us
128,1024,1024,1,bf16,10
256,1024,1024,1,bf16,18
4096,4096,4096,1,bf16,400
64,1024,1024,1,bf16,12
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "mine.csv"
    path.write_text(ROWS, encoding="utf-8")
    return Table(path, Roofline(load_gpu("h100")))


def test_measured_sizes_get_their_time(table):
    assert table.get_time([256, 4096], [1024, 4096], [1024, 4096]).tolist() == pytest.approx([18e-6, 400e-6])


def test_a_larger_product_that_was_faster_is_lifted(table):
    assert table.get_time(128, 1024, 1024) == pytest.approx(12e-6)  # 64 rows took 12 us


def test_between_measured_sizes_the_time_lies_between(table):
    assert 12e-6 <= table.get_time(200, 1024, 1024) <= 18e-6


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 6000), min_size=4, max_size=4), st.integers(0, 3), st.integers(1, 3000))
def test_never_faster_when_larger(table, sizes, which, by):
    larger = [size + by if index == which else size for index, size in enumerate(sizes)]
    assert table.get_time(*larger) >= table.get_time(*sizes) * (1 - 1e-12)


def test_other_dtypes_and_operators_fall_back_and_say_so(table):
    plain = table.fallback
    assert table.get_time(64, 64, 64, 1, "fp8") == plain.get_time(64, 64, 64, 1, "fp8")
    assert table.attention(1, 8, 8, 1, 100, 128, 128) == plain.attention(1, 8, 8, 1, 100, 128, 128)
    assert (table.source_of("gemm"), table.source_of("gemm", "fp8"), table.source_of("decode")) == ("table", "fitted", "fitted")
    assert np.array_equal(table.elementwise([0, 1e9]), plain.elementwise([0, 1e9]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "header"),
        ("m,k,n,dtype\n1,1,1,bf16\n", "header"),
        ("m,k,n,dtype,second\n1,1,1,bf16,1\n", "did you mean seconds"),
        ("m,k,n,dtype,seconds\n", "at least one measured row"),
        ("m,k,n,dtype,seconds\n1,1,1,bf16,1\n1,x,1,bf16,1\n", "mine.csv:3: k is 'x'"),
        ("m,k,n,dtype,seconds\n1,1,1,bf17,1\n", "mine.csv:2: dtype is 'bf17'"),
        ("m,k,n,dtype,seconds\n1,1,1,bf16,-3\n", "mine.csv:2: seconds is '-3'"),
        ("m,k,n,dtype,seconds\n1,1,1,bf16,nan\n", "mine.csv:2: seconds is 'nan'"),
        ("m,k,n,dtype,seconds\n1,1,1,bf16\n", "mine.csv:2: row"),
    ],
)
def test_a_malformed_file_is_refused_with_line_and_column(tmp_path, text, said):
    path = tmp_path / "mine.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        Table(path, Roofline(load_gpu("h100")))
    assert said in str(caught.value)

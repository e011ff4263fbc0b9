from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InputError
from planner.workload import Workload, load_workload, workload_to_dict


def test_shorthands():
    prefill = load_workload("prefill:batch=64,prompt=4096")
    assert prefill == Workload("prefill", 64, prompt=4096)
    assert (prefill.query_length, prefill.kv_length) == (4096, 4096)
    decode = load_workload("decode:batch=256,context=8192,kv_dtype=fp8")
    assert decode == Workload("decode", 256, context=8192, kv_dtype="fp8")
    assert (decode.query_length, decode.kv_length) == (1, 8193)
    assert not load_workload("prefill: batch=1, prompt=2, keep_kv_cache=false, logits=all").keep_kv_cache


def test_a_file_and_a_mapping(tmp_path):
    path = tmp_path / "w.yaml"
    path.write_text("schema: planner.workload/1\nphase: prefill\nbatch: 1024\nprompt: 10000\nlogits: none\n")
    assert load_workload(path) == load_workload(str(path)) == Workload("prefill", 1024, prompt=10000, logits="none")


@given(
    st.sampled_from(("prefill", "decode")),
    st.integers(1, 2**20),
    st.integers(1, 2**20),
    st.sampled_from(("none", "last", "all")),
    st.sampled_from((None, "fp8", "bf16")),
    st.lists(st.lists(st.integers(1, 9), min_size=4, max_size=4), max_size=3),
)
def test_what_is_written_reads_back(phase, batch, length, logits, kv_dtype, loads):
    mapping = {"phase": phase, "batch": batch, "logits": logits, "expert_load": loads}
    mapping |= {"prompt" if phase == "prefill" else "context": length}
    mapping |= {"kv_dtype": kv_dtype} if kv_dtype else {}
    workload = load_workload(mapping)
    assert load_workload(workload_to_dict(workload)) == workload


def test_loads_are_relative_to_their_mean():
    assert load_workload({"phase": "decode", "batch": 1, "context": 1, "expert_load": [3, 1]}).expert_load == ((1.5, 0.5),)


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("training:global_batch=512", "sequence"),
        ({"phase": "training", "batch": 1, "sequence": 8}, "global_batch"),
        ("prefil:batch=1,prompt=2", "prefill:batch=B"),
        ("prefill", "prefill:batch=B"),
        ("prefill:batch", "NAME=VALUE"),
        ("prefill:batch=1,batch=2,prompt=3", "twice"),
        ("prefill:batch=1", "workload.prompt is missing"),
        ("prefill:batch=0,prompt=1", "workload.batch is 0"),
        ("prefill:batch=1e3,prompt=1", "workload.batch is '1e3'"),
        ("prefill:batch=1,prompt=2,context=3", "workload.context is 3"),
        ("decode:batch=1,context=2,keep_kv_cache=false", "decode reads the KV cache"),
        ("decode:batch=1,context=2,kv_dtype=fp9", "fp8"),
        ("decode:batch=1,context=2,logit=all", "did you mean logits"),
        ({"phase": "prefil", "batch": 1}, "did you mean prefill"),
        ({"phase": "prefill", "batch": 1, "prompt": 2, "expert_load": [0, 0]}, "not all zero"),
        (
            {"phase": "prefill", "batch": 1, "prompt": 2, "expert_load": [[1, "2"]]},
            "expert_load[0][1] is '2'; allowed: a number from 0",
        ),
        ({"phase": "prefill", "batch": 1, "prompt": 2, "expert_load": 3}, "one number for each expert"),
        ({"schema": "planner.workload/2", "phase": "prefill"}, "planner.workload/1"),
        (7, "a path to a workload file"),
        ("missing.yaml", "a file that exists"),
    ],
)
def test_what_is_wrong_is_named(ref, said):
    with pytest.raises(InputError) as error:
        load_workload(ref)
    assert said in str(error.value)


def test_training_is_one_optimizer_step_on_a_global_batch() -> None:
    workload = load_workload("training:global_batch=512,sequence=4096,precision=fp8")
    assert (workload.phase, workload.batch, workload.query_length, workload.kv_length) == ("training", 512, 4096, 4096)
    assert workload.training is not None and workload.training.precision == "fp8"
    assert load_workload(workload_to_dict(workload)) == workload
    assert workload.forward.phase == "prefill" and workload.forward.logits == "all" and not workload.forward.keep_kv_cache

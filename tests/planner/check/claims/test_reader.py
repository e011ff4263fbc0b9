"""Claims files: strict fields, and one clear message with the place for anything wrong or hostile."""

from __future__ import annotations

import time

import pytest

from planner.check.claims import claims_of, read_claims
from planner.errors import InputError
from tests.planner.check.claims.claims import read, verdict

TERM = {"kind": "term", "operator": "q_proj", "claim": "Get_Time(1, 2, 3)"}
FILE = """
schema: planner.claims/1
problem: helix
plan: m4n4
claims:
  - {id: a, at: page 1, kind: count, of: gpus, claim: 16, text: sixteen GPUs}
  - {id: b, kind: model, of: layers, claim: 2, text: two layers, plan: m4n4_exact}
"""


def test_a_file_is_read_with_its_defaults(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text(FILE)
    claims, problem = read_claims(path)
    assert problem == "helix"
    assert [(c.id, c.plan, c.at, c.claim) for c in claims] == [("a", "m4n4", "page 1", 16.0), ("b", "m4n4_exact", "", 2.0)]


@pytest.mark.parametrize(
    ("change", "place"),
    [(("planner.claims/1", "planner.claims/2"), "schema"), (("of: gpus", "off: gpus"), "claims[0]"),
     (("id: b", "id: a"), "claims[1].id"), (("claim: 16", "claim: [3, 1]"), "claims[0].claim"),
     (("kind: count", "kind: number"), "claims[0].kind"), (("of: layers", "of: gpus"), "claims[1].of"),
     (("text: two layers", "text: ''"), "claims[1].text"), (("claims:", "claim:"), "claims"),
     (("kind: model, of: layers, claim: 2", "kind: arithmetic, working: 1 / 0, claim: 2, of: layers"), "claims[1].of")],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_its_place(tmp_path, change, place):
    path = tmp_path / "claims.yaml"
    path.write_text(FILE.replace(*change))
    with pytest.raises(InputError) as error:
        read_claims(path)
    assert place in str(error.value) and "claims.yaml" in str(error.value)


HOSTILE = {
    "unknown name": "Get_Time(tokens, 2, 3)",
    "unknown function": "system(1)",
    "parentheses": "(" * 10_000 + "1" + ")" * 10_000,
    "nested calls": "max(" * 10_000 + "1" + ")" * 10_000,
    "minus signs": "-" * 9_000 + "1 +",
    "too long": "1 + " * 2_500_000 + "1",
    "endless number": "9" * 5_000,
    "not an expression": "os.remove('x')",
    "empty": " ",
    "argument twice": "Get_Time(1, 2, 3, op=qkv, op=qkv)",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_expressions_are_refused_at_once(name):
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        claims_of([{"id": "x", "text": "t", **TERM, "claim": HOSTILE[name]}], "file.yaml")
    assert "file.yaml: claims[0].claim" in str(error.value)
    assert len(str(error.value)) < 1000 and time.monotonic() - start < 2


@pytest.mark.parametrize(
    "fields",
    [{"claim": "Get_Time(1 / 0, 2, 3)"}, {"claim": "Get_Time(1, 2)"}, {"claim": "Get_Time(1, 2, 3) x Get_Time(1, 2, 3)"},
     {"claim": "2 / Get_Time(1, 2, 3)"}, {"claim": "Get_Time(Get_Time(1, 2, 3), 2, 3)"}, {"claim": "Get_Time(1, 2, 3) / 0"},
     {"claim": "Get_Time(1, 2, 3, op=5)"}, {"gpus": "40-41"}, {"gpus": "3-1"}, {"gpus": "all"}, {"operator": "kv"},
     {"operator": None}, {"claim": "Get_Time(wait, 2, 3)", "where": {"wait": "communication"}},
     {"where": {"max": 3}}, {"where": {"a": "b"}}],
)  # fmt: skip
def test_wrong_claims_name_themselves(fields):
    with pytest.raises(InputError):
        verdict("helix:m4n4", **{**TERM, **fields})


def test_names_may_use_the_names_above_them():
    claim = read(**{**TERM, "claim": "Get_Time(rows, 8192, 512)", "where": {"half": "512 x 10000", "rows": "2 x half"}})
    assert list(claim.where) == ["half", "rows"]
    found = verdict(
        "helix:m4n4", **{**TERM, "claim": "Get_Time(rows, 8192, 512)", "where": {"half": 5120000, "rows": "2 x half"}}
    )
    assert found.verdict == "holds"


@pytest.mark.parametrize("grow", ["a{0} + a{0}", "(1 + a{0})", "max(a{0}, 1)"])
def test_names_that_use_each_other_stay_small(grow):
    """Neither a chain of thousands of names nor one that doubles with every name is unfolded."""
    where = {"a0": "1", **{f"a{i + 1}": grow.format(i) for i in range(3_000)}}
    start = time.monotonic()
    with pytest.raises(InputError, match=r"claims\[0\]\.where") as error:
        read(**{**TERM, "where": where})
    assert time.monotonic() - start < 2 and len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "claim", ["[1, 2]", "[1, 2] x [2]", "[1, 2] x [2, 3] -> [1, 3] -> [3]", "1, 2 x 2, 3", "[1, 2] + [2, 3]"]
)
def test_shapes_are_two_matrices(claim):
    with pytest.raises(InputError):
        read(kind="shape", operator="q_proj", claim=claim)


def test_the_rival_may_be_written_out():
    claim = read(kind="percentage", of="throughput_gain", claim=[2, 2.5], against={"stages": []})
    assert claim.claim == (2.0, 2.5) and claim.rival == "plan of claim it"

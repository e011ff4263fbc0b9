"""`planner search --certificate` and `planner verify`: exit codes, one line for a refusal, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.files import write_text_atomic
from tests.planner.certify.tamper import change, signed

TINY = ("--model", "gpt2", "--workload", "prefill:batch=4,prompt=64", "--cluster", "1x2-h100", "--set", "model.layers=2")


@pytest.fixture
def certificate(planner, tmp_path) -> Path:
    """The certificate of a tiny problem."""
    file = tmp_path / "proof.json"
    code, out, _ = planner("search", *TINY, "--certificate", file)
    assert code == 0 and out and json.loads(file.read_text())["schema"] == "planner.certificate/1"
    return file


def test_a_certificate_is_verified(planner, certificate):
    code, out, _ = planner("verify", certificate, "--samples", 20)
    assert code == 0 and out.startswith("VERIFIED: gpt2-prefill") and "samples" in out and "NOT CHECKED" in out
    code, out, _ = planner("verify", certificate, "--samples", 20, "--json")
    told = json.loads(out)
    assert (code, told["schema"], told["verified"], told["whole"]) == (0, "planner.verification/1", True, True)
    assert all(check["passed"] and check["detail"] for check in told["checks"]) and told["reason"] is None


def test_a_tampered_certificate_is_refused_with_the_reason(planner, certificate):
    raw = json.loads(certificate.read_text())
    plain = change(raw, ("objective", "least"), raw["objective"]["least"] / 2)
    for wrong, reason in ((plain, "digests: "), (signed(plain), "statement: ")):
        write_text_atomic(certificate, json.dumps(wrong))
        code, out, _ = planner("verify", certificate)
        assert code == 1 and out.splitlines()[0].startswith("REFUSED: ") and reason in out.splitlines()[0]
        code, out, _ = planner("verify", certificate, "--json")
        told = json.loads(out)
        assert code == 1 and not told["verified"] and told["reason"].startswith(reason) and not told["checks"][-1]["passed"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "planner.certificate/9"}', '{"schema": NaN}'])
def test_what_is_no_certificate_is_one_message(planner, tmp_path, text):
    file = tmp_path / "c.json"
    file.write_text(text)
    code, out, err = planner("verify", file)
    assert code == 2 and not out and err.startswith("error: ") and len(err.splitlines()) == 1


def test_a_certificate_that_cannot_be_written_is_told_before_the_search(planner, tmp_path):
    code, out, err = planner("search", *TINY, "--certificate", tmp_path / "no" / "c.json")
    assert code == 2 and not out and "--certificate" in err
    code, _, err = planner("search", "--all", "--certificate", tmp_path / "c.json")
    assert code == 2 and "without --all" in err


def test_an_infeasible_problem_has_a_certificate(planner, tmp_path):
    file = tmp_path / "none.json"
    code, _, _ = planner("search", *TINY, "--max-memory-gb", 0.5, "--certificate", file)
    assert code == 1 and json.loads(file.read_text())["plan"] is None
    code, out, _ = planner("verify", file, "--samples", 20)
    assert code == 0 and "infeasible: no plan fits" in out.splitlines()[0]

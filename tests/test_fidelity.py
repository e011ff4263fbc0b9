"""The score of predictions: its figures by hand, and what it says of small directories that are made here."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from planner.clusters import load_gpu
from planner.costs import Roofline
from tests.benchmarks.fidelity.__main__ import main
from tests.benchmarks.fidelity.models import model_of
from tests.benchmarks.fidelity.plans import Grid, choice_of
from tests.benchmarks.fidelity.report import INFERENCE, score
from tests.benchmarks.fidelity.rows import Unusable
from tests.benchmarks.fidelity.score import Scored, confusion, coverage, errors, kendall_tau, overall, ranking, regret, section

GROUP_KEYS = {"rows", "mape", "median", "bias", "regret_mean", "regret_max", "top3_regret", "kendall_tau", "rank_groups"}


def scored(measured: float, predicted: float, rank: str = "r", **more: object) -> Scored:
    return Scored(f"{measured}", "g", rank, measured, predicted, **more)  # type: ignore[arg-type]


def test_errors_by_hand() -> None:
    """Ratios 0.9, 1.1 and 1.4: mean error 0.2, median 0.1, 90th percentile 0.34, median ratio 1.1."""
    found = errors([0.9, 1.1, 1.4])
    assert found == {
        "rows": 3, "mape": pytest.approx(0.2), "median": pytest.approx(0.1), "p90": pytest.approx(0.34), "bias": 1.1,
    }  # fmt: skip
    assert errors([])["mape"] is None


def test_regret_and_rank_correlation_by_hand() -> None:
    """The plan predicted best takes 12 where 10 is best: 20 %; two of three pairs are in order."""
    rows = [scored(10, 3), scored(12, 2), scored(20, 5)]
    assert regret(rows) == pytest.approx(0.2) and regret(rows, 3) == 0.0
    assert kendall_tau([10, 12, 20], [3, 2, 5]) == pytest.approx(1 / 3)
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / (2 * 3) ** 0.5)
    assert kendall_tau([1, 1], [1, 2]) is None
    found = ranking([*rows, scored(5, 5, "other"), scored(6, 6, "other"), scored(1, 1, "alone"), scored(1, 1, "")])
    assert found["rank_groups"] == 2 and found["exact_best"] == 0.5
    assert (found["regret_mean"], found["regret_max"]) == (pytest.approx(0.1), pytest.approx(0.2))


def test_more_tokens_a_second_are_better() -> None:
    """Plans of 2 and 8 GPUs: 100 tokens/s are 50 for each GPU, 200 only 25."""
    small, large = scored(100, 90, more_is_better=True, per_value=2.0), scored(200, 220, more_is_better=True, per_value=8.0)
    assert regret([small, large]) == 0.0
    assert small.cost(100) < large.cost(200)


def test_groups_are_averaged_not_rows() -> None:
    """One row that is off by half and three that are right: 25 % over groups."""
    rows = [Scored(str(i), "a", "", 1.0, 1.0) for i in range(3)] + [Scored("x", "b", "", 1.0, 1.5)]
    found = section(rows, {"few": 1, "many": 2})
    assert found["overall"]["mape"] == pytest.approx(0.25) and found["overall"]["rows"] == 4
    assert list(found["unusable"]) == ["many", "few"] and set(found["groups"]) == {"a", "b"}
    assert overall({})["mape"] is None


def test_intervals_and_memory_by_hand() -> None:
    """Rows that constants were fitted to do not count for coverage."""
    rows = [
        scored(1, 1, interval=(0.5, 2.0)),
        scored(3, 1, interval=(0.5, 2.0)),
        scored(9, 1, interval=(0.5, 2.0), fitted=True),
    ]
    assert coverage(rows) == 0.5 and coverage([]) is None
    pairs = [(True, True), (True, False), (False, False), (False, True)]
    assert confusion(pairs) == {"true_feasible": 1, "false_oom": 1, "true_oom": 1, "missed_oom": 1}


@pytest.mark.parametrize(
    ("name", "precision", "billions", "dtype"),
    [
        ("meta-llama/Llama-2-7b-hf", "fp16", 6.74, "bf16"),
        ("Meta-Llama-3-8B", "", 8.03, "bf16"),
        ("Qwen3-32B-NVFP4", "fp4", 32.8, "nvfp4"),
        ("GPT-J-6B", "fp8", 5.85, "fp8"),
    ],
)
def test_names_of_sources_lead_to_models(name: str, precision: str, billions: float, dtype: str) -> None:
    """Organisations, endings and precisions are understood; the parameters are the published ones."""
    model = model_of(name, precision)
    assert not isinstance(model, Unusable)
    assert model.parameters / 1e9 == pytest.approx(billions, rel=0.02) and model.dtype_of("ffn") == dtype


def test_dimensions_stand_for_a_name_unless_they_contradict_the_row() -> None:
    """24 layers of 1024 are 0.35 billion parameters: a row that states 2 is not used."""
    row = {"model": "own", "layers": "24", "hidden": "1024", "heads": "16", "ffn_hidden": "4096", "vocab": "51200"}
    model = model_of("own", "fp16", row | {"params_b": "0.355"})
    assert not isinstance(model, Unusable) and len(model.layers) == 24
    assert isinstance(model_of("own", "fp16", row | {"params_b": "2"}), Unusable)
    assert isinstance(model_of("own", "fp16", {"model": "own"}), Unusable)


def test_plans_of_mixtures_use_every_gpu_once() -> None:
    """Eight GPUs with attention split by sequences hold the experts together; ways that do not divide the heads are refused."""
    model = model_of("DeepSeek-V3", "fp8")
    assert not isinstance(model, Unusable)
    found = choice_of(model, Grid(1, 1, 8, 8, 1), 16)
    assert not isinstance(found, Unusable)
    stage = found.stages[0]
    assert stage.attention.batch_parts == 8 and stage.experts is not None and stage.experts.form == "dispatch"
    assert isinstance(choice_of(model, Grid(24), 8), Unusable)
    assert isinstance(choice_of(model, Grid(8, 1, 1, 3, 2), 8), Unusable)


def write(folder: Path, name: str, rows: Sequence[Mapping[str, object]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / name).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def serving_rows() -> list[dict[str, object]]:
    plain = dict.fromkeys(INFERENCE.split(), "")
    common = {"model": "Llama-3.1-8B", "gpu": "H100-SXM5-80GB", "framework": "vLLM", "precision": "fp16", "group": "mine",
              "serving_mode": "aggregated", "isl": 512, "osl": 64, "status": "ok", "rank_group": "1"}  # fmt: skip
    batch = plain | common | {"arrival": "single offline batch", "batch_size": 8}
    loop = plain | common | {"arrival": "closed loop at fixed concurrency", "concurrency": 16, "group": "loop"}
    return [
        batch | {"row_id": "a", "tp": 1, "n_gpus": 1, "ttft_ms": 90, "output_tok_s_total": 800},
        batch | {"row_id": "b", "tp": 2, "n_gpus": 2, "ttft_ms": 60, "output_tok_s_total": 1200},
        loop | {"row_id": "c", "tp": 1, "n_gpus": 1, "tpot_ms": 12},
        loop | {"row_id": "d", "tp": 1, "n_gpus": 1, "tpot_ms": 12, "status": "suspect"},
        loop | {"row_id": "e", "tp": 1, "n_gpus": 1, "tpot_ms": 12, "model": "nobody-knows"},
        loop | {"row_id": "f", "n_gpus": 1, "tpot_ms": 12},
        loop | {"row_id": "g", "tp": 1, "n_gpus": 1, "tpot_ms": 12, "gpu": "TPUv9"},
        batch | {"row_id": "h", "tp": 1, "n_gpus": 1, "model": "Llama-3.1-70B", "status": "OOM"},
    ]


def test_json_has_its_shape_and_counts_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory with eight inference rows and nothing else."""
    write(tmp_path, "inference.csv", serving_rows())
    assert main(["--truth", str(tmp_path), "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert "training.csv: no such file" in printed.err
    assert {"training", "inference", "gemm", "kernels", "comm", "memory", "interval_coverage"} <= set(found)
    assert set(found["inference"]) == {"tpot", "ttft", "throughput"}
    throughput, tpot = found["inference"]["throughput"], found["inference"]["tpot"]
    assert throughput["groups"]["mine"].keys() >= GROUP_KEYS and throughput["overall"].keys() >= GROUP_KEYS
    assert throughput["overall"]["rows"] == 2 and throughput["overall"]["rank_groups"] == 1
    assert tpot["overall"]["rows"] == 1 and tpot["unusable"] == {
        "GPU TPUv9: neither in the catalog nor in gpus.csv": 1,
        "model nobody-knows: neither in the catalog nor with dimensions": 1,
        "no plan in the row": 1,
        "the row contradicts itself": 1,
    }
    assert found["memory"]["oom"] == {"true_feasible": 3, "false_oom": 0, "true_oom": 1, "missed_oom": 0}
    assert {"groups", "median", "p90"} <= set(found["gemm"]) and found["gemm"]["median"] is None
    assert found["training"]["overall"]["rows"] == 0 and 0.2 < 1 + tpot["overall"]["mape"] < 3


def test_missing_columns_are_reported_and_operators_scored(tmp_path: Path) -> None:
    """A product that takes exactly what it is priced at has no error; a file without its columns is left out."""
    seconds = float(Roofline(load_gpu("h100")).get_time(4096, 4096, 4096))
    product = {"gpu": "H100-SXM5-80GB", "dtype": "bfloat16", "group": "own", "m": 4096, "k": 4096, "n": 4096}
    write(tmp_path, "gemm.csv", [product | {"time_us": seconds * 1e6}, product | {"time_us": "n/a"}])
    write(tmp_path, "comm.csv", [{"gpu": "H100-SXM5-80GB"}])
    report = score(tmp_path, with_baselines=False)
    assert report.json["gemm"]["median"] == pytest.approx(0.0, abs=1e-9)
    assert "comm.csv: no column time_us" in report.missing and report.json["comm"]["groups"] == {}


def test_page_and_tables_show_fitted_and_other_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A page has its drawings; text names the worst rows."""
    write(tmp_path, "inference.csv", serving_rows())
    assert main(["--truth", str(tmp_path), "--page", str(tmp_path / "page")]) == 0
    printed = capsys.readouterr().out
    assert "Worst rows of throughput" in printed and "constant rate" in printed
    page = (tmp_path / "page" / "README.md").read_text(encoding="utf-8")
    assert "throughput.svg" in page and (tmp_path / "page" / "throughput.svg").read_text(encoding="utf-8").startswith("<svg")


def test_a_folder_that_is_not_there_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One message, exit code 2."""
    assert main(["--truth", str(tmp_path / "none")]) == 2 and "no such folder" in capsys.readouterr().err

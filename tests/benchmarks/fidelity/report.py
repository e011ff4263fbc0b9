"""The whole score of a truth directory: what `--json` prints, and the rows behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from planner.costs.intervals import width_models
from planner.costs.stacks import fitted_models
from planner.errors import PlannerError
from planner.evaluate.serving import Mixing
from planner.model import ModelSpec
from tests.benchmarks.fidelity import baselines, inference, operators
from tests.benchmarks.fidelity.clusters import Machines
from tests.benchmarks.fidelity.inference import Runtime
from tests.benchmarks.fidelity.models import model_of
from tests.benchmarks.fidelity.plans import grid_of
from tests.benchmarks.fidelity.prices import Prices
from tests.benchmarks.fidelity.rows import Row, Table, Unusable, group_of, positive, read_table, text, whole
from tests.benchmarks.fidelity.score import Scored, confusion, coverage, errors, section
from tests.benchmarks.fidelity.training import predict_training

INFERENCE = (
    "model gpu framework precision serving_mode tp pp n_gpus concurrency batch_size isl osl arrival ttft_ms tpot_ms status"
)
TRAINING = "model gpu n_gpus precision seq_len gbs tp pp dp step_time_s tokens_per_s_per_gpu status"
SKIPPED = {"suspect": "the row contradicts itself", "plan-unknown": "no plan in the row"}
USED = ("", "ok", "plan-inferred")
T = TypeVar("T")
Pairs = list[tuple[Scored, Row]]


@dataclass
class Part:
    """Scored rows of one kind with the rows that they come from, and why others were left out."""

    pairs: Pairs = field(default_factory=list)
    unusable: Counter[str] = field(default_factory=Counter)
    fits: list[tuple[bool, bool]] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    @property
    def rows(self) -> list[Scored]:
        """The scored rows."""
        return [one for one, _ in self.pairs]

    def section(self) -> dict[str, Any]:
        """As a section of the report."""
        return section(self.rows, self.unusable)


@dataclass
class Report:
    """Everything scored: parts by name (`training`, `tpot`, `ttft`, `throughput`), those of the baselines, and the JSON."""

    parts: dict[str, Part]
    baselines: dict[str, dict[str, Part]]
    json: dict[str, Any]
    missing: list[str]


def status_reason(row: Row) -> str | None:
    """Why a row is not scored for its time, by its status; None where it is."""
    status = text(row, "status")
    return None if status in USED else SKIPPED.get(status, f"status {status}")


def guarded(predict: Callable[[], T]) -> T | Unusable:
    """A prediction, or why the row has none: whatever a file holds, the other rows are scored."""
    try:
        return predict()
    except (PlannerError, ValueError, ArithmeticError, LookupError) as error:
        return Unusable(f"could not be priced: {type(error).__name__}: {error}"[:100])


def training_seconds(row: Row) -> float | None:
    """The measured time of a training step: as stated, else from tokens or samples per second of a GPU."""
    stated, gpus, batch = positive(row, "step_time_s"), whole(row, "n_gpus"), whole(row, "gbs")
    if stated is not None:
        return stated
    tokens, samples = positive(row, "tokens_per_s_per_gpu"), positive(row, "samples_per_s_per_gpu")
    if tokens is not None and gpus and batch and whole(row, "seq_len"):
        return batch * whole(row, "seq_len") / (tokens * gpus)
    return batch / (samples * gpus) if samples is not None and gpus and batch else None


def score_training(rows: Iterable[Row], machines: Machines) -> Part:
    """All training rows."""
    part = Part()
    for row in rows:
        ran_out = text(row, "status").upper() == "OOM"
        reason = None if ran_out else status_reason(row)
        seconds = training_seconds(row)
        if reason is None and not ran_out and seconds is None:
            reason = "no step time and nothing that gives it"
        found = Unusable(reason) if reason is not None else guarded(partial(predict_training, row, machines))
        if isinstance(found, Unusable):
            part.unusable[found.reason] += 1
            continue
        if found.fits is not None:
            part.fits.append((not ran_out, found.fits))
        memory = positive(row, "mem_gb")
        if memory is not None and found.memory_bytes is not None and not ran_out:
            part.memory.append(found.memory_bytes / (memory * 1e9))
        if not ran_out and seconds is not None:
            one = Scored(
                text(row, "row_id"), group_of(row), text(row, "rank_group"), seconds, found.step_time_s,
                per_value=whole(row, "n_gpus", 1) / whole(row, "gbs", 1), interval=found.interval, fitted=found.fitted,
                about=inference.about(row),
            )  # fmt: skip
            part.pairs.append((one, row))
    return part


def score_inference(rows: Iterable[Row], runtime: Runtime) -> dict[str, Part]:
    """All inference rows by metric; a row that cannot be priced is counted under every metric that it measured."""
    parts = {metric: Part() for metric in inference.METRICS}
    seen, widths = fitted_models(), width_models()
    for row in rows:
        ran_out = text(row, "status").upper() == "OOM"
        reason = None if ran_out else status_reason(row)
        found = Unusable(reason) if reason is not None else guarded(partial(inference.predict_inference, row, runtime))
        stated = set(inference.measured(row))
        if isinstance(found, inference.Forecast) and not ran_out and inference.impossible(row, found):
            found = Unusable("measured faster than its GPUs can read the weights")
        if isinstance(found, Unusable):
            for metric in stated or {"throughput"}:
                parts[metric].unusable[found.reason] += 1
            continue
        if found.fits is not None:
            parts["throughput"].fits.append((not ran_out, found.fits))
        if ran_out:
            continue
        model = model_of(text(row, "model"), text(row, "precision"), row)
        name = model.name if isinstance(model, ModelSpec) else ""
        scored = dict(inference.scored_figures(row, found, name in seen, name in widths))
        for metric, one in scored.items():
            parts[metric].pairs.append((one, row))
        for metric in stated - set(scored):
            parts[metric].unusable["the planner has no such figure for this kind of run"] += 1
    return parts


def flops_of(row: Row) -> float | None:
    """FLOPs that each GPU does for a step of training, or for one token."""
    model = model_of(text(row, "model"), text(row, "precision"), row)
    if isinstance(model, Unusable):
        return None
    if whole(row, "gbs"):
        return 6.0 * model.active_parameters * whole(row, "gbs") * whole(row, "seq_len", 1) / whole(row, "n_gpus", 1)
    grid = grid_of(row)
    gpus = whole(row, "n_gpus", 1) if isinstance(grid, Unusable) else grid.gpus
    return 2.0 * model.active_parameters / gpus


def flops_with(requests: Callable[[Row], int]) -> Callable[[Row], float | None]:
    """The FLOPs of a row's measured time, for so many tokens at once."""

    def work(row: Row) -> float | None:
        one = flops_of(row)
        return None if one is None else one * requests(row)

    return work


WORK: dict[str, Callable[[Row], float | None]] = {
    "training": flops_of,
    "tpot": flops_with(lambda row: whole(row, "concurrency") or whole(row, "batch_size", 1)),
    "ttft": flops_with(lambda row: whole(row, "isl", 1)),
    "throughput": flops_of,
}


def score(folder: Path, with_baselines: bool = True) -> Report:
    """Score every file of a truth directory."""
    tables = {name: read_table(folder, f"{name}.csv", columns.split()) for name, columns in
              (("training", TRAINING), ("inference", INFERENCE), ("gpus", "gpu"))}  # fmt: skip
    machines = Machines(tables["gpus"])
    parts = {"training": score_training(tables["training"].rows, machines)}
    parts |= score_inference(tables["inference"].rows, inference.committed(machines))
    singles, missing = operators.operator_sections(folder)
    missing = [*(line for table in tables.values() for line in table.missing), *missing]
    others: dict[str, dict[str, Part]] = {}
    if with_baselines:
        others["constant rate"] = {name: constant_part(part, WORK[name]) for name, part in parts.items()}
        others["roofline"] = roofline_parts(tables["inference"], machines)
    return Report(parts, others, to_json(parts, others, singles, missing), missing)


def constant_part(part: Part, work: Callable[[Row], float | None]) -> Part:
    """A part as a constant rate predicts it."""
    predicted = {id(row): row for _, row in part.pairs}
    found = baselines.constant_rate(part.pairs, work)
    by_id = {one.row_id: row for one, row in part.pairs}
    return Part([(one, by_id[one.row_id]) for one in found] if predicted else [])


def roofline_parts(table: Table, machines: Machines) -> dict[str, Part]:
    """The inference rows at the peak rates of the data sheets, without what a stack adds."""
    prices = {"": Prices(machines, baselines.roofline_pricer)}
    return score_inference(table.rows, Runtime(prices, lambda row: None, lambda stack, requests: 0.0, lambda stack: Mixing()))


def to_json(
    parts: dict[str, Part], others: dict[str, dict[str, Part]], singles: dict[str, dict[str, Any]], missing: Sequence[str]
) -> dict[str, Any]:
    """The report as `--json` prints it."""
    memory = [ratio for part in parts.values() for ratio in part.memory]
    fits = [pair for part in parts.values() for pair in part.fits]
    found: dict[str, Any] = {
        "training": parts["training"].section(),
        "inference": {metric: parts[metric].section() for metric in inference.METRICS},
        **singles,
        "memory": {
            "mape": errors(memory)["mape"],
            "median": errors(memory)["median"],
            "rows": len(memory),
            "oom": confusion(fits),
        },
        "interval_coverage": coverage(one for part in parts.values() for one in part.rows),
        "missing": list(missing),
        "baselines": {
            name: {part: section(other.rows, {})["overall"] for part, other in found_parts.items()}
            for name, found_parts in others.items()
        },
    }
    return found

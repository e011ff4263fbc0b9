"""Refit what software stacks make of the prices of single operators, from whole inference runs.

    python -m tests.benchmarks.fit_stacks --truth DIR [--write]

Two designs of runtimes have two and three shared constants, two schedules three each, and each stack one of its own. The
rows of the models named in `planner/costs/stacks.yaml` are fitted; the errors of these and of all other models are printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from planner.costs.stacks import FILE, Mechanisms, Stack, fitted_models, mechanisms, stacks
from planner.evaluate.serving import Mixing
from planner.model import ModelSpec
from tests.benchmarks.fidelity.clusters import Machines
from tests.benchmarks.fidelity.inference import (
    Forecast,
    Runtime,
    design_pricer,
    impossible,
    predict_inference,
    scored_figures,
    stack_of,
)
from tests.benchmarks.fidelity.models import model_of
from tests.benchmarks.fidelity.prices import Prices
from tests.benchmarks.fidelity.report import status_reason
from tests.benchmarks.fidelity.rows import Row, Unusable, read_table, text

PROBE_S = 1e-3
DESIGNS = ("overlapped", "synchronous")
NAMES = tuple(field.name for field in fields(Mechanisms))
SHARED = tuple((design, name) for design in DESIGNS for name in NAMES if (design, name) != ("overlapped", "request"))
SCHEDULES = ("chunked", "prefill_first")
Array = np.ndarray


class Seen(NamedTuple):
    """A measured time with its stack, and whether its model is fitted."""

    row: Row
    stack: Stack
    seconds: float
    fitted: bool


@dataclass(frozen=True)
class Features:
    """Measured rows, and their predicted seconds [rows, 2, 5] as far as they are linear in the constants: without any start,
    what the starts of kernels and of collectives add, and what a second of a step and one of each request in it adds; without
    and with prompts mixed in.
    """

    seen: tuple[Seen, ...]
    table: Array

    def seconds(self, constants: Constants) -> Array:
        """Predicted seconds."""
        own = [constants.shared[one.stack.design] for one in self.seen]
        step = np.array([constants.steps.get(one.stack.name, one.stack.step_s) for one in self.seen])
        launch, collective, request = (np.array([getattr(o, f.name) for o in own]) for f in fields(Mechanisms))
        weights = np.stack([np.ones(len(step)), launch, collective, step, step * request], axis=1)
        both = (self.table * weights[:, None, :]).sum(axis=2)
        tokens = np.array([constants.mixing[one.stack.schedule].tokens for one in self.seen])
        return np.asarray(both[:, 0] + tokens * (both[:, 1] - both[:, 0]))

    def ratios(self, constants: Constants) -> Array:
        """Predicted over measured."""
        return np.asarray(self.seconds(constants) / np.array([one.seconds for one in self.seen]))

    def where(self, keep: Callable[[Seen], bool]) -> Features:
        """Some of the rows."""
        chosen = np.array([keep(one) for one in self.seen], dtype=bool)
        return Features(tuple(one for one, kept in zip(self.seen, chosen, strict=True) if kept), self.table[chosen])


@dataclass(frozen=True)
class Constants:
    """What is fitted: shared constants by design, the step of each stack, and how prompts mix by schedule."""

    shared: dict[str, Mechanisms]
    steps: dict[str, float]
    mixing: dict[str, Mixing]


def timed(row: Row, found: Forecast) -> tuple[float, float] | None:
    """(measured, predicted) seconds: of a token where TPOT was measured, else of a batch for each of its tokens."""
    figures = dict(scored_figures(row, found, False))
    one = figures.get("tpot") or (figures.get("throughput") if text(row, "arrival").startswith("single") else None)
    if one is None or impossible(row, found):
        return None
    return (1.0 / one.measured, 1.0 / one.predicted) if one.more_is_better else (one.measured, one.predicted)


def probes(machines: Machines) -> list[Runtime]:
    """Runtimes of which each pays for one thing alone, without and with prompts mixed in."""
    plain, launch, collective = (
        Prices(machines, design_pricer(Mechanisms(*starts, 0.0))) for starts in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    )
    hosts: list[tuple[Prices, Callable[[Stack, int], float]]] = [
        (plain, lambda stack, requests: 0.0),
        (launch, lambda stack, requests: 0.0),
        (collective, lambda stack, requests: 0.0),
        (plain, lambda stack, requests: PROBE_S),
        (plain, lambda stack, requests: PROBE_S * requests),
    ]
    return [
        Runtime(dict.fromkeys(DESIGNS, prices), stack_of, host, always(Mixing(tokens)))
        for tokens in (0.0, 1.0)
        for prices, host in hosts
    ]


def always(mixing: Mixing) -> Callable[[Stack | None], Mixing]:
    """One way to mix for all stacks."""
    return lambda stack: mixing


def features(folder: Path) -> Features:
    """Price every usable row with and without everything that is fitted."""
    runtimes = probes(Machines(read_table(folder, "gpus.csv", ())))
    seen, table = [], []
    for row in read_table(folder, "inference.csv", ()).rows:
        stack = stack_of(row)
        if stack is None or status_reason(row) is not None:
            continue
        found = [predict_inference(row, runtime) for runtime in runtimes]
        pairs = [pair for one in found if isinstance(one, Forecast) for pair in [timed(row, one)] if pair is not None]
        if len(pairs) < len(runtimes):
            continue
        model = model_of(text(row, "model"), text(row, "precision"), row)
        seen.append(Seen(row, stack, pairs[0][0], isinstance(model, ModelSpec) and model.name in fitted_models()))
        table.append([pair[1] for pair in pairs])
    both = np.array(table).reshape(len(table), 2, 5)
    both[:, :, 1:] -= both[:, :, :1]
    both[:, :, 3:] /= PROBE_S
    return Features(tuple(seen), both)


def constants_of(x: Array, names: list[str]) -> Constants:
    """The constants in a vector: the shared ones, how prompts mix by schedule, the steps of stacks."""
    shared = dict(zip(SHARED, x.tolist(), strict=False))
    designs = {d: Mechanisms(*(shared.get((d, name), 0.0) for name in NAMES)) for d in DESIGNS}
    at = len(SHARED) + len(SCHEDULES)
    mixing = {name: Mixing(float(x[len(SHARED) + i])) for i, name in enumerate(SCHEDULES)}
    return Constants(designs, dict(zip(names, x[at:].tolist(), strict=True)), mixing)


def fit(data: Features) -> Constants:
    """The constants with the least robust error of log time; groups count equally."""
    names = sorted({one.stack.name for one in data.seen})
    weight = weights(data.seen)

    def residuals(x: Array) -> Array:
        return np.asarray(weight * np.log(data.ratios(constants_of(x, names))))

    start = np.concatenate([np.full(len(SHARED), 0.3), np.full(len(SCHEDULES), 0.7), np.full(len(names), 1e-3)])
    high = np.concatenate([np.full(len(SHARED), 4.0), np.full(len(SCHEDULES), 1.0), np.full(len(names), 0.05)])
    found = least_squares(residuals, start, bounds=(np.zeros(start.size), high), loss="soft_l1", f_scale=0.1, x_scale=start)
    return constants_of(np.array([float(f"{value:.3g}") if value > 1e-6 else 0.0 for value in found.x]), names)


def weights(seen: Sequence[Seen]) -> Array:
    """Weights of rows under which groups count equally, one on average."""
    groups = [text(one.row, "group") for one in seen]
    found = np.array([1.0 / np.sqrt(groups.count(group)) for group in groups])
    return np.asarray(found / found.mean())


def fit_waits(folder: Path, found: Constants) -> Constants:
    """How long prompts wait, by schedule, from the TTFT of runs at fixed concurrency of the fitted models."""
    machines = Machines(read_table(folder, "gpus.csv", ()))
    prices = {design: Prices(machines, design_pricer(shared)) for design, shared in found.shared.items()}

    def host_s(stack: Stack, requests: int) -> float:
        own = found.steps.get(stack.name, stack.step_s)
        return own * (1.0 + found.shared[stack.design].request * requests)

    tried = [Mixing(1.0, 0.0, 0.0), Mixing(1.0, 1.0, 0.0), Mixing(1.0, 0.0, 1.0)]
    runtimes = [Runtime(prices, stack_of, host_s, always(mixing)) for mixing in tried]
    seen, table = [], []
    for row in read_table(folder, "inference.csv", ()).rows:
        stack, model = stack_of(row), model_of(text(row, "model"), text(row, "precision"), row)
        usable = stack is not None and status_reason(row) is None and text(row, "arrival").startswith("closed")
        if not usable or stack is None or isinstance(model, Unusable) or model.name not in fitted_models():
            continue
        ones = [predict_inference(row, runtime) for runtime in runtimes]
        figures = [dict(scored_figures(row, one, True)).get("ttft") for one in ones if isinstance(one, Forecast)]
        values = [figure for figure in figures if figure is not None]
        if len(values) == len(tried) and values[0].predicted < values[1].predicted:
            seen.append(Seen(row, stack, values[0].measured, True))
            table.append([figure.predicted for figure in values])
    return replace(found, mixing={name: _wait(name, found.mixing[name], seen, np.array(table)) for name in SCHEDULES})


def _wait(schedule: str, mixing: Mixing, seen: Sequence[Seen], table: Array) -> Mixing:
    """Queue and burst of one schedule."""
    chosen = np.array([one.stack.schedule == schedule for one in seen])
    if not chosen.any():
        return mixing
    base, each = table[chosen, 0], table[chosen, 1:] - table[chosen, :1]
    measured = np.array([one.seconds for one in seen])[chosen]
    weight = weights([one for one, kept in zip(seen, chosen, strict=True) if kept])

    def residuals(x: Array) -> Array:
        return np.asarray(weight * np.log((base + each @ x) / measured))

    found = least_squares(residuals, [1.0, 0.1], bounds=([0.0, 0.0], [10.0, 1.0]), loss="soft_l1", f_scale=0.1)
    return Mixing(mixing.tokens, *(float(f"{value:.3g}") for value in found.x))


def table(data: Features, found: Array) -> str:
    """Errors by stack and group, fitted models apart."""
    keys = [("fitted" if one.fitted else "other", one.stack.name, text(one.row, "group")) for one in data.seen]
    lines = ["| models | stack | group | rows | median | p90 | bias |", "|---|---|---|---:|---:|---:|---:|"]
    everything = [*sorted(set(keys)), ("fitted", "all", ""), ("other", "all", "")]
    for key in everything:
        ratio = found[[other == key or (key[1:] == ("all", "") and other[0] == key[0]) for other in keys]]
        if ratio.size:
            off = np.abs(ratio - 1.0)
            figures = f"{off.size} | {np.median(off):.1%} | {np.quantile(off, 0.9):.1%} | {np.median(ratio):.2f}"
            lines.append(f"| {' | '.join(key)} | {figures} |")
    return "\n".join(lines)


def as_yaml(found: Constants, counts: dict[str, int]) -> str:
    """The constants as YAML."""
    lines = [
        "# Constants of software stacks. Meaning: planner/costs/stacks.py, fit: tests/benchmarks/fit_stacks.py.",
        "schema: planner.stacks/1",
        "designs:",
    ]
    for design, shared in found.shared.items():
        lines.append(f"  {design}: {{{', '.join(f'{f.name}: {getattr(shared, f.name):g}' for f in fields(Mechanisms))}}}")
    lines.append("schedules:")
    for name, mixing in found.mixing.items():
        lines.append(f"  {name}: {{tokens: {mixing.tokens:g}, queue: {mixing.queue:g}, burst: {mixing.burst:g}}}")
    lines.append("stacks:")
    for name, stack in stacks().items():
        named = {"called": f"[{', '.join(stack.called)}]", "before": f'"{stack.before}"', "gpus": f"[{', '.join(stack.gpus)}]"}
        stated = "".join(f"{key}: {value}, " for key, value in named.items() if value not in ("[]", '""'))
        source = f"{counts[name]} runs of the fitted models" if name in counts else stack.source
        step = found.steps.get(name, stack.step_s) * 1e3
        lines.append(
            f'  {name}: {{design: {stack.design}, schedule: {stack.schedule}, {stated}step_ms: {step:.3g}, source: "{source}"}}'
        )
    return "\n".join([*lines, f"fitted_models: [{', '.join(sorted(fitted_models()))}]", ""])


def main() -> None:
    """Fit, print the errors, and write the constants if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--truth", type=Path, required=True, help="folder with inference.csv and gpus.csv")
    parser.add_argument("--write", action="store_true", help="replace planner/costs/stacks.yaml")
    options = parser.parse_args()
    data = features(options.truth)
    known = data.where(lambda one: one.fitted)
    found = fit_waits(options.truth, fit(known))
    print(f"before: {mechanisms()}\nafter: {found}\n")
    print(table(data, data.ratios(found)))
    if options.write:
        counts = {name: sum(one.stack.name == name for one in known.seen) for name in found.steps}
        FILE.write_text(as_yaml(found, counts), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Inference rows: TTFT, TPOT and throughput of a serving or batch run from two priced steps of its plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from planner.costs.intervals import relative_interval
from planner.costs.stacks import Stack, find_stack
from planner.evaluate.serving import Serving, Step, Traffic, continuous, disaggregated, static_batch
from tests.benchmarks.fidelity.models import stored_as
from tests.benchmarks.fidelity.plans import grid_of
from tests.benchmarks.fidelity.prices import Instance, Priced, Prices
from tests.benchmarks.fidelity.rows import Row, Unusable, group_of, positive, text, whole
from tests.benchmarks.fidelity.score import Scored

METRICS = ("tpot", "ttft", "throughput")
MOST_REQUESTS = 2048  # requests that a runtime batches at most where all are queued (TensorRT-LLM's default max_batch_size)


class Figure(NamedTuple):
    """A predicted figure, and the seconds of its operators by class that its interval comes from."""

    value: float
    classes: dict[str, float]


@dataclass(frozen=True, slots=True)
class Forecast:
    """The figures of a row by metric, the GPUs that they are for, and whether the plan fits (None: not looked at)."""

    figures: dict[str, Figure]
    gpus: int
    fits: bool | None = None


def measured(row: Row) -> dict[str, float]:
    """What a row measured: tpot and ttft in seconds, throughput in output tokens/s of all GPUs."""
    found: dict[str, float] = {}
    for metric, columns in (("tpot", ("tpot_ms",)), ("ttft", ("ttft_ms", "prefill_ms"))):
        value = next((v for name in columns for v in [positive(row, name)] if v is not None), None)
        if value is not None:
            found[metric] = value * 1e-3
    gpus, total = whole(row, "n_gpus"), positive(row, "output_tok_s_total")
    each, latency = positive(row, "output_tok_s_per_gpu"), positive(row, "e2e_latency_ms")
    batch = whole(row, "batch_size") or 1
    if total is not None:
        found["throughput"] = total
    elif each is not None and gpus:
        found["throughput"] = each * gpus
    elif latency is not None and whole(row, "osl") and text(row, "arrival").startswith("single"):
        found["throughput"] = batch * whole(row, "osl") / (latency * 1e-3)
    return found


def predict_inference(row: Row, prices: Prices) -> Forecast | Unusable:
    """The figures of a row that the planner can price."""
    prompt, output = whole(row, "isl"), whole(row, "osl")
    if not prompt:
        return Unusable("no prompt length")
    stack = find_stack(text(row, "framework"), text(row, "framework_version"))
    mode, arrival = text(row, "serving_mode").lower(), text(row, "arrival").lower()
    if mode == "disaggregated":
        return _apart(row, prices, stack, Traffic(prompt, max(output, 1), whole(row, "concurrency")))
    for phase in ("prefill", "decode"):
        if mode.endswith(phase):
            return _phase(row, prices, stack, phase)
    if mode not in ("", "agg", "aggregated"):
        return Unusable(f"serving mode {mode}")
    if not output:
        return Unusable("no output length")
    grid = grid_of(row)
    if isinstance(grid, Unusable):
        return grid
    one = prices.instance(row, grid, cache_dtype(row))
    if isinstance(one, Unusable):
        return one
    if arrival.startswith("single"):
        return _batch(prices, one, stack, Traffic(prompt, output, whole(row, "batch_size") or whole(row, "concurrency", 1)))
    if "queued" in arrival or "offline" in arrival:
        return _queued(prices, one, stack, prompt, output)
    open_requests = whole(row, "concurrency") or whole(row, "batch_size")
    if not open_requests:
        return Unusable("neither concurrency nor batch size")
    return _loop(prices, one, stack, Traffic(prompt, output, open_requests))


def cache_dtype(row: Row) -> str | None:
    """The dtype of the KV cache: as stated, else fp8 beside 4-bit weights (as their checkpoints say), else the activations'."""
    stated = text(row, "kv_dtype").lower()
    if stated:
        return stored_as(stated) or None
    return "fp8" if stored_as(text(row, "precision")) in ("nvfp4", "mxfp4") else None


def _step(priced: Priced, stack: Stack | None, copies: int = 1) -> Step:
    """A priced step as a step of serving, on `copies` instances, with what the runtime adds."""
    extra = stack.step_s if stack else 0.0
    return Step(priced.seconds + extra, priced.sequences * copies, priced.gpus * copies)


def _mixed(parts: list[tuple[float, Priced]], stack: Stack | None) -> dict[str, float]:
    """Seconds by class of a weighted sum of steps."""
    found: dict[str, float] = {}
    for weight, priced in parts:
        for name, seconds in priced.classes.items():
            found[name] = found.get(name, 0.0) + weight * seconds
        found["host"] = found.get("host", 0.0) + weight * (stack.step_s if stack else 0.0)
    return found


def _pair(prices: Prices, one: Instance, traffic: Traffic, prompts: int, requests: int) -> tuple[Priced, Priced] | Unusable:
    """The prefill of `prompts` and a decode step of `requests` half way through their output."""
    prefill = prices.step(one, "prefill", prompts, traffic.prompt)
    decode = prices.step(one, "decode", requests, traffic.prompt + traffic.output // 2)
    if isinstance(prefill, Unusable) or isinstance(decode, Unusable):
        return prefill if isinstance(prefill, Unusable) else decode if isinstance(decode, Unusable) else Unusable("")
    return prefill, decode


def _batch(prices: Prices, one: Instance, stack: Stack | None, traffic: Traffic) -> Forecast | Unusable:
    """One batch that starts together; in rounds where its caches do not all fit."""
    held = prices.held(one, traffic.prompt + traffic.output)
    if isinstance(held, Unusable):
        return held
    together = min(traffic.concurrency, max(held, 1))
    steps = _pair(prices, one, traffic, together, together)
    if isinstance(steps, Unusable):
        return steps
    prefill, decode = steps
    found = static_batch(_step(prefill, stack), replace(_step(decode, stack), sequences=together), traffic)
    whole_request = _mixed([(1.0, prefill), (traffic.output - 1.0, decode)], stack)
    figures = _figures(found, _mixed([(1.0, decode)], stack), _mixed([(1.0, prefill)], stack), whole_request)
    return Forecast(figures, one.grid.gpus, held > 0)


def _loop(prices: Prices, one: Instance, stack: Stack | None, traffic: Traffic) -> Forecast | Unusable:
    """Continuous batching at fixed concurrency; requests beyond what the caches hold wait."""
    held = prices.held(one, traffic.prompt + traffic.output)
    if isinstance(held, Unusable):
        return held
    together = min(traffic.concurrency, max(held, 1))
    steps = _pair(prices, one, traffic, one.grid.data, together)
    if isinstance(steps, Unusable):
        return steps
    prefill, decode = steps
    found = continuous(_step(prefill, stack), _step(decode, stack), replace(traffic, concurrency=together))
    share = (together - 1) / prefill.sequences / max(traffic.output - 1, 1)
    token = _mixed([(1.0, decode), (share, prefill)], stack)
    return Forecast(_figures(found, token, _mixed([(1.0, prefill)], stack), token), one.grid.gpus, held > 0)


def _queued(prices: Prices, one: Instance, stack: Stack | None, prompt: int, output: int) -> Forecast | Unusable:
    """All requests wait from the start: as many run as the caches hold; only the throughput is meant."""
    held = prices.held(one, prompt + output // 2)
    if isinstance(held, Unusable):
        return held
    found = _loop(prices, one, stack, Traffic(prompt, output, max(1, min(held, MOST_REQUESTS * one.grid.data))))
    return found if isinstance(found, Unusable) else replace(found, figures={"throughput": found.figures["throughput"]})


def _phase(row: Row, prices: Prices, stack: Stack | None, phase: str) -> Forecast | Unusable:
    """The GPUs of one phase alone, for a stated batch of each GPU or of all."""
    grid = grid_of(row)
    batch = whole(row, "batch_size")
    if isinstance(grid, Unusable):
        return grid
    if not batch:
        return Unusable("one phase alone, without a batch size")
    one = prices.instance(row, grid, cache_dtype(row))
    if isinstance(one, Unusable):
        return one
    priced = prices.step(one, phase, batch * grid.data, whole(row, "isl"))
    if isinstance(priced, Unusable):
        return priced
    step = _step(priced, stack)
    classes = _mixed([(1.0, priced)], stack)
    if phase == "prefill":
        return Forecast({"ttft": Figure(step.seconds, classes)}, grid.gpus)
    rate = Figure(step.per_second, classes)
    return Forecast({"tpot": Figure(step.seconds, classes), "throughput": rate}, grid.gpus)


def _apart(row: Row, prices: Prices, stack: Stack | None, traffic: Traffic) -> Forecast | Unusable:
    """Prompts and tokens on GPUs of their own; every worker of a side gets an equal share."""
    sides = [(grid_of(row, f"{side}_"), whole(row, f"{side}_workers")) for side in ("prefill", "decode")]
    (near, prompts), (far, tokens) = sides
    if isinstance(near, Unusable) or isinstance(far, Unusable):
        return near if isinstance(near, Unusable) else Unusable("no plan in the row")
    if not prompts or not tokens:
        return Unusable("prefill apart from decode, without the number of workers")
    if not traffic.concurrency:
        return Unusable("neither concurrency nor batch size")
    ones = prices.instance(row, near, cache_dtype(row)), prices.instance(row, far, cache_dtype(row))
    for found in ones:
        if isinstance(found, Unusable):
            return found
    first, second = (one for one in ones if isinstance(one, Instance))
    prefill = prices.step(first, "prefill", near.data, traffic.prompt)
    share = -(-traffic.concurrency // tokens)
    decode = prices.step(second, "decode", share, traffic.prompt + traffic.output // 2)
    if isinstance(prefill, Unusable) or isinstance(decode, Unusable):
        return prefill if isinstance(prefill, Unusable) else Unusable(getattr(decode, "reason", ""))
    both = disaggregated(_step(prefill, stack, prompts), _step(decode, stack, tokens), traffic)
    token = _mixed([(1.0, decode)], stack)
    figures = _figures(both, token, _mixed([(1.0, prefill)], stack), token)
    return Forecast(figures, near.gpus * prompts + far.gpus * tokens)


def _figures(found: Serving, token: dict[str, float], first: dict[str, float], request: dict[str, float]) -> dict[str, Figure]:
    """Serving figures by metric, each with the seconds of the operators that it comes from."""
    figures = {"throughput": Figure(found.tokens_per_s, request)}
    if found.tpot_s is not None:
        figures["tpot"] = Figure(found.tpot_s, token)
    if found.ttft_s is not None:
        figures["ttft"] = Figure(found.ttft_s, first)
    return figures


def scored(row: Row, forecast: Forecast, fitted: bool) -> Iterator[tuple[str, Scored]]:
    """(metric, scored figure) for everything that a row measured and the planner predicts."""
    for metric, value in measured(row).items():
        figure = forecast.figures.get(metric)
        if figure is None or not figure.value > 0:
            continue
        more = metric == "throughput"
        requests = whole(row, "concurrency") or whole(row, "batch_size", 1)
        low, high = relative_interval(figure.classes)
        interval = (figure.value / high, figure.value / low) if more else (figure.value * low, figure.value * high)
        yield metric, Scored(
            text(row, "row_id"), group_of(row), text(row, "rank_group"), value, figure.value,
            per_value=forecast.gpus / (1 if more else requests),
            more_is_better=more, interval=interval, fitted=fitted, about=about(row),
        )  # fmt: skip


STATED = ("n_gpus", "tp", "pp", "dp_attn", "ep", "dp", "mbs", "concurrency", "batch_size", "isl", "osl")


def about(row: Row) -> str:
    """What a row is, in a few words."""
    parts = [text(row, name) for name in ("model", "gpu", "framework", "precision", "serving_mode")]
    numbers = [f"{name}{text(row, name)}" for name in STATED if text(row, name)]
    return " ".join(part for part in (*parts, *numbers) if part)

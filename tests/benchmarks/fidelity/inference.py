"""Inference rows: TTFT, TPOT and throughput of a serving or batch run from two priced steps of its plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from planner.cluster import Cluster
from planner.costs.calibration import calibration
from planner.costs.intervals import relative_interval
from planner.costs.pricer import Pricer
from planner.costs.stacks import Mechanisms, Stack, find_stack, mechanisms, pricer_with, scaled, schedules
from planner.evaluate.serving import Mixing, Serving, Step, Traffic, continuous, disaggregated, static_batch
from tests.benchmarks.fidelity.clusters import Machines
from tests.benchmarks.fidelity.models import stored_as
from tests.benchmarks.fidelity.plans import grid_of
from tests.benchmarks.fidelity.prices import Instance, Priced, Prices
from tests.benchmarks.fidelity.rows import Row, Unusable, group_of, positive, text, whole
from tests.benchmarks.fidelity.score import Scored

METRICS = ("tpot", "ttft", "throughput")
FLOOR = 0.25
MOST_REQUESTS = 2048  # requests that a runtime batches at most where all are queued (TensorRT-LLM's default max_batch_size)


@dataclass(frozen=True)
class Runtime:
    """How rows are priced: the prices of steps under each stack's design (`` without a stack), the stack of a row, what that
    adds to a step with so many requests, and how its schedule mixes prompts with tokens.
    """

    prices: dict[str, Prices]
    stack_of: Callable[[Row], Stack | None]
    host_s: Callable[[Stack, int], float]
    mixing: Callable[[Stack | None], Mixing]


def stack_of(row: Row) -> Stack | None:
    """The software stack of a row, as it was at the date of the row on its GPU."""
    return find_stack(text(row, "framework"), text(row, "date"), text(row, "gpu"))


def committed(machines: Machines) -> Runtime:
    """The committed constants of stacks."""
    prices = {design: Prices(machines, design_pricer(shared)) for design, shared in mechanisms().items()}
    prices[""] = Prices(machines, lambda cluster, kv_dtype: pricer_with(cluster, calibration(), kv_dtype))
    return Runtime(prices, stack_of, Stack.host_s, mixing_of)


def mixing_of(stack: Stack | None) -> Mixing:
    """The committed schedule of a stack; that of most where it is not known."""
    return Mixing(**schedules()[stack.schedule if stack else "chunked"])


def design_pricer(shared: Mechanisms) -> Callable[[Cluster, str | None], Pricer]:
    """Makes the price source of a cluster and a KV cache under the constants of a design."""
    data = scaled(calibration(), shared)
    return lambda cluster, kv_dtype: pricer_with(cluster, data, kv_dtype)


class Figure(NamedTuple):
    """A predicted figure, and the seconds of its operators by class that its interval comes from."""

    value: float
    classes: dict[str, float]


@dataclass(frozen=True, slots=True)
class Forecast:
    """The figures of a row by metric, the GPUs that they are for, whether the plan fits (None: not looked at), and the seconds
    in which its GPUs can read the weights for the tokens of one request.
    """

    figures: dict[str, Figure]
    gpus: int
    fits: bool | None = None
    floor_s: float = 0.0


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


@dataclass(frozen=True)
class Run:
    """A row's stack, and what prices its steps."""

    stack: Stack | None
    prices: Prices
    host_s: Callable[[Stack, int], float]
    mixing: Mixing

    @classmethod
    def of(cls, row: Row, runtime: Runtime) -> Run:
        """The run of a row."""
        stack = runtime.stack_of(row)
        return cls(stack, runtime.prices[stack.design if stack else ""], runtime.host_s, runtime.mixing(stack))

    def host(self, priced: Priced) -> float:
        """Seconds that the runtime adds to a step; every attention-data part schedules its own requests."""
        return self.host_s(self.stack, -(-priced.sequences // priced.data)) if self.stack else 0.0

    def step(self, priced: Priced, copies: int = 1) -> Step:
        """A priced step as a step of serving, on `copies` instances."""
        return Step(priced.seconds + self.host(priced), priced.sequences * copies, priced.gpus * copies)

    def mix(self, *parts: tuple[float, Priced]) -> dict[str, float]:
        """Seconds by class of a weighted sum of steps."""
        found: dict[str, float] = {}
        for weight, priced in parts:
            for name, seconds in (*priced.classes.items(), ("host", self.host(priced))):
                found[name] = found.get(name, 0.0) + weight * seconds
        return found


def predict_inference(row: Row, runtime: Runtime) -> Forecast | Unusable:
    """The figures of a row that the planner can price."""
    prompt, output = whole(row, "isl"), whole(row, "osl")
    mode = text(row, "serving_mode").lower()
    if not prompt:
        return Unusable("no prompt length")
    run = Run.of(row, runtime)
    if mode == "disaggregated":
        return _apart(row, run, Traffic(prompt, max(output, 1), whole(row, "concurrency")))
    for phase in ("prefill", "decode"):
        if mode.endswith(phase):
            return _phase(row, run, phase)
    if mode not in ("", "agg", "aggregated"):
        return Unusable(f"serving mode {mode}")
    return _together(row, run, prompt, output) if output else Unusable("no output length")


def _together(row: Row, run: Run, prompt: int, output: int) -> Forecast | Unusable:
    """Prompts and tokens on the same GPUs."""
    grid, arrival = grid_of(row), text(row, "arrival").lower()
    if isinstance(grid, Unusable):
        return grid
    one = run.prices.instance(row, grid, cache_dtype(row))
    if isinstance(one, Unusable):
        return one
    batch, open_requests = whole(row, "batch_size"), whole(row, "concurrency")
    if arrival.startswith("single"):
        return _batch(run, one, Traffic(prompt, output, batch or open_requests or 1), "static" in arrival)
    if "queued" in arrival or "offline" in arrival:
        return _queued(run, one, Traffic(prompt, output, MOST_REQUESTS * grid.data))
    if batch and open_requests:  # the batch is that of one attention-data part, the concurrency that of all instances
        open_requests = min(open_requests, batch * grid.data)
    if not (batch or open_requests):
        return Unusable("neither concurrency nor batch size")
    return _loop(run, one, Traffic(prompt, output, open_requests or batch * grid.data))


def cache_dtype(row: Row) -> str | None:
    """The dtype of the KV cache: as stated, else fp8 beside 4-bit weights (as their checkpoints say), else the activations'."""
    stated = text(row, "kv_dtype").lower()
    if stated:
        return stored_as(stated) or None
    return "fp8" if stored_as(text(row, "precision")) in ("nvfp4", "mxfp4") else None


def _pair(run: Run, one: Instance, traffic: Traffic, prompts: int, requests: int) -> tuple[Priced, Priced] | Unusable:
    """The prefill of `prompts` and a decode step of `requests` half way through their output."""
    prefill = run.prices.step(one, "prefill", prompts, traffic.prompt)
    decode = run.prices.step(one, "decode", requests, traffic.prompt + traffic.output // 2)
    if isinstance(prefill, Unusable):
        return prefill
    return decode if isinstance(decode, Unusable) else (prefill, decode)


def _batch(run: Run, one: Instance, traffic: Traffic, static: bool) -> Forecast | Unusable:
    """One batch that starts together; in rounds where its caches do not all fit, unless the runtime allots them at once."""
    held = run.prices.held(one, traffic.prompt + traffic.output)
    if isinstance(held, Unusable):
        return held
    together = traffic.concurrency if static else min(traffic.concurrency, max(held, 1))
    steps = _pair(run, one, traffic, together, together)
    if isinstance(steps, Unusable):
        return steps
    prefill, decode = steps
    found = static_batch(run.step(prefill), replace(run.step(decode), sequences=together), traffic)
    whole_request = run.mix((1.0, prefill), (traffic.output - 1.0, decode))
    figures = _figures(found, run.mix((1.0, decode)), run.mix((1.0, prefill)), whole_request)
    return Forecast(figures, one.grid.gpus, held >= (together if static else 1), one.floor_s * traffic.output)


def _loop(run: Run, one: Instance, traffic: Traffic) -> Forecast | Unusable:
    """Continuous batching at fixed concurrency; requests beyond what the caches hold wait."""
    held = run.prices.held(one, traffic.prompt + traffic.output)
    if isinstance(held, Unusable):
        return held
    together = min(traffic.concurrency, max(held, 1))
    steps = _pair(run, one, traffic, one.grid.data, together)
    if isinstance(steps, Unusable):
        return steps
    prefill, decode = steps
    found = continuous(run.step(prefill), run.step(decode), replace(traffic, concurrency=together), run.mixing)
    share = run.mixing.tokens * (together - 1) / prefill.sequences / max(traffic.output - 1, 1)
    token = run.mix((1.0, decode), (share, prefill))
    first = _waiting(found, run.mix((1.0, prefill)))
    return Forecast(_figures(found, token, first, token), one.grid.gpus, held > 0)


def _queued(run: Run, one: Instance, most: Traffic) -> Forecast | Unusable:
    """All requests wait from the start: as many run as the caches hold; only the throughput is meant."""
    held = run.prices.held(one, most.prompt + most.output // 2)
    if isinstance(held, Unusable):
        return held
    found = _loop(run, one, replace(most, concurrency=max(1, min(held, most.concurrency))))
    return found if isinstance(found, Unusable) else replace(found, figures={"throughput": found.figures["throughput"]})


def _phase(row: Row, run: Run, phase: str) -> Forecast | Unusable:
    """The GPUs of one phase alone, for a stated batch of each attention-data part."""
    grid, batch = grid_of(row), whole(row, "batch_size")
    if isinstance(grid, Unusable):
        return grid
    if not batch:
        return Unusable("one phase alone, without a batch size")
    one = run.prices.instance(row, grid, cache_dtype(row))
    if isinstance(one, Unusable):
        return one
    priced = run.prices.step(one, phase, batch * grid.data, whole(row, "isl"))
    if isinstance(priced, Unusable):
        return priced
    step, classes = run.step(priced), run.mix((1.0, priced))
    if phase == "prefill":
        return Forecast({"ttft": Figure(step.seconds, classes)}, grid.gpus)
    return Forecast({"tpot": Figure(step.seconds, classes), "throughput": Figure(step.per_second, classes)}, grid.gpus)


def _apart(row: Row, run: Run, traffic: Traffic) -> Forecast | Unusable:
    """Prompts and tokens on GPUs of their own; every worker of a side gets an equal share."""
    near, far = grid_of(row, "prefill_"), grid_of(row, "decode_")
    if isinstance(near, Unusable) or isinstance(far, Unusable):
        return Unusable("no plan in the row")
    prompts, tokens = whole(row, "prefill_workers"), whole(row, "decode_workers")
    if not prompts or not tokens:
        return Unusable("prefill apart from decode, without the number of workers")
    if not traffic.concurrency:
        return Unusable("neither concurrency nor batch size")
    first, second = run.prices.instance(row, near, cache_dtype(row)), run.prices.instance(row, far, cache_dtype(row))
    if isinstance(first, Unusable):
        return first
    if isinstance(second, Unusable):
        return second
    prefill = run.prices.step(first, "prefill", near.data, traffic.prompt)
    decode = run.prices.step(second, "decode", -(-traffic.concurrency // tokens), traffic.prompt + traffic.output // 2)
    if isinstance(prefill, Unusable):
        return prefill
    if isinstance(decode, Unusable):
        return decode
    both = disaggregated(run.step(prefill, prompts), run.step(decode, tokens), traffic)
    token, first = run.mix((1.0, decode)), _waiting(both, run.mix((1.0, prefill)))
    return Forecast(_figures(both, token, first, token), near.gpus * prompts + far.gpus * tokens)


def _waiting(found: Serving, first: dict[str, float]) -> dict[str, float]:
    """The seconds to the first token by class, the wait before its own prefill among them."""
    wait = (found.ttft_s or 0.0) - sum(first.values())
    return first | {"waiting": max(wait, 0.0)}


def _figures(found: Serving, token: dict[str, float], first: dict[str, float], request: dict[str, float]) -> dict[str, Figure]:
    """Serving figures by metric, each with the seconds of the operators that it comes from."""
    figures = {"throughput": Figure(found.tokens_per_s, request)}
    if found.tpot_s is not None:
        figures["tpot"] = Figure(found.tpot_s, token)
    if found.ttft_s is not None:
        figures["ttft"] = Figure(found.ttft_s, first)
    return figures


def impossible(row: Row, forecast: Forecast) -> bool:
    """Whether a batch took less than a fraction of the time in which its GPUs can read the weights for its tokens."""
    batch = positive(row, "batch_size") or 1.0
    speed = measured(row).get("throughput")
    return bool(forecast.floor_s and speed and batch * whole(row, "osl") / speed < FLOOR * forecast.floor_s)


def scored_figures(row: Row, forecast: Forecast, fitted: bool, widened: bool = False) -> Iterator[tuple[str, Scored]]:
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
            more_is_better=more, interval=interval, fitted=fitted, widened=widened, about=about(row),
        )  # fmt: skip


STATED = ("n_gpus", "tp", "pp", "dp_attn", "ep", "dp", "mbs", "concurrency", "batch_size", "isl", "osl")


def about(row: Row) -> str:
    """What a row is, in a few words."""
    parts = [text(row, name) for name in ("model", "gpu", "framework", "precision", "serving_mode")]
    numbers = [f"{name}{text(row, name)}" for name in STATED if text(row, name)]
    return " ".join(part for part in (*parts, *numbers) if part)

"""Serving figures of a plan: TTFT, TPOT, tokens/s per GPU and per user, and how many requests the KV caches hold.

All are read off the price of two steps of the one graph: a prefill of some prompts, and a decode step of some requests.
Between the steps this file knows only how a runtime mixes them; it prices no operator.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from planner.evaluate.evaluation import Evaluation
from planner.workload import Workload


@dataclass(frozen=True, slots=True)
class Step:
    """One pass through the model: `seconds` for `sequences` prompts (prefill) or requests (decode) on `gpus` GPUs."""

    seconds: float
    sequences: int
    gpus: int

    @property
    def per_second(self) -> float:
        """Sequences that pass in a second."""
        return self.sequences / self.seconds


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests of `prompt` tokens in and `output` tokens out, of which `concurrency` are always open."""

    prompt: int
    output: int
    concurrency: int


@dataclass(frozen=True, slots=True)
class Mixing:
    """How a runtime mixes prompts with tokens. `tokens`: share of a prompt's own time that it adds to the steps that it is
    mixed into (it shares their launches and reads of the weights). `queue`: how many times its own time a prompt waits for
    steps in progress and for neighbours in its own. `burst`: share of the other open requests' prompts that are before it,
    because requests begin together.
    """

    tokens: float = 1.0
    queue: float = 0.5
    burst: float = 0.0


@dataclass(frozen=True, slots=True)
class Serving:
    """What a user and an operator see; what the priced steps say nothing about is None.

    `ttft_s` from a request's arrival to its first token, `tpot_s` from token to token after that, `request_s` a whole request;
    `tokens_per_s` output tokens of all requests together (of a prefill alone: prompt tokens), and the same for each GPU;
    `tokens_per_s_per_user` output tokens of one request; `concurrent_requests` that the KV caches hold.
    """

    ttft_s: float | None
    tpot_s: float | None
    request_s: float | None
    tokens_per_s: float
    tokens_per_s_per_gpu: float
    tokens_per_s_per_user: float | None
    concurrent_requests: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return asdict(self)


def step_of(workload: Workload, evaluation: Evaluation) -> Step:
    """A priced plan as a step of serving."""
    return Step(evaluation.latency_s, workload.batch, max(1, len(evaluation.devices)))


def phase_figures(workload: Workload, evaluation: Evaluation) -> Serving:
    """The figures that one phase gives on its own: TTFT of a prefill, TPOT of a decode step."""
    step = step_of(workload, evaluation)
    held = requests_held(workload, evaluation)
    rate = step.per_second * workload.query_length
    if workload.phase == "prefill":
        return Serving(step.seconds, None, None, rate, rate / step.gpus, None, held)
    return Serving(None, step.seconds, None, rate, rate / step.gpus, 1.0 / step.seconds, held)


def requests_held(workload: Workload, evaluation: Evaluation) -> int | None:
    """Requests of the workload's length whose KV cache fits beside everything else; None where no cache is kept.

    The rest of each GPU's memory stays as it is for the workload's batch.
    """
    rooms = []
    for device in evaluation.devices:
        memory = device.memory
        if memory.kv_cache_bytes:
            free = memory.capacity_bytes - (memory.total_bytes - memory.kv_cache_bytes)
            rooms.append(free / memory.kv_cache_bytes)
    return max(0, int(min(rooms) * workload.batch)) if rooms else None


def static_batch(prefill: Step, decode: Step, traffic: Traffic) -> Serving:
    """One batch: its prompts go through together, then its tokens step by step; `concurrency` requests in rounds of a batch.

    `prefill` and `decode` are steps of the same requests; the first token comes from the prefill.
    """
    rounds = -(-traffic.concurrency // decode.sequences)
    one = prefill.seconds + (traffic.output - 1) * decode.seconds
    total = rounds * one
    rate = traffic.concurrency * traffic.output / total
    user = None if traffic.output < 2 else 1.0 / decode.seconds
    tpot = None if traffic.output < 2 else decode.seconds
    return Serving(prefill.seconds, tpot, total, rate, rate / decode.gpus, user)


def continuous(prefill: Step, decode: Step, traffic: Traffic, mixing: Mixing | None = None) -> Serving:
    """Continuous batching at fixed concurrency on one set of GPUs: a request that ends makes room for the next prompt.

    While a request decodes its `output - 1` tokens, each of the other open requests ends once and is replaced once, so
    that many prompts pass between its tokens.
    """
    how, others = mixing or Mixing(), traffic.concurrency - 1
    between = others / prefill.per_second
    tpot = decode.seconds + how.tokens * between / max(traffic.output - 1, 1)
    ttft = prefill.seconds * (1.0 + how.queue * others / traffic.concurrency) + how.burst * between
    return _closed_loop(ttft, tpot, traffic, decode.gpus)


def disaggregated(prefill: Step, decode: Step, traffic: Traffic) -> Serving:
    """Prompts on GPUs of their own, requests on others at fixed concurrency; the slower side holds the other back.

    `prefill` and `decode` count all workers of their side.
    """
    service = traffic.concurrency / (prefill.seconds + (traffic.output - 1) * decode.seconds)
    rate = min(service, prefill.per_second)
    ttft = max(prefill.seconds, traffic.concurrency / rate - (traffic.output - 1) * decode.seconds)
    return _closed_loop(ttft, decode.seconds, traffic, prefill.gpus + decode.gpus)


def _closed_loop(ttft: float, tpot: float, traffic: Traffic, gpus: int) -> Serving:
    """The figures of `concurrency` requests that are always open (Little's law)."""
    request = ttft + (traffic.output - 1) * tpot
    rate = traffic.concurrency * traffic.output / request
    return Serving(ttft, tpot, request, rate, rate / gpus, 1.0 / tpot)

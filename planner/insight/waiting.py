"""Where the GPU-seconds of a plan go: work, communication, and three kinds of waiting that add up to the whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.evaluate.evaluation import Evaluation
from planner.evaluate.linear import stage_machine
from planner.evaluate.pipeline import feedback_seconds, send_seconds
from planner.evaluate.setting import Setting
from planner.evaluate.waves import NAMES, wave_tasks
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice

NOTHING = 1e-12
SIDES = (0, 2)
"""The machines of a plan with experts apart that are GPUs; the other two are transfers."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A stage, a side of it, or a transfer: seconds for one micro-batch, GPUs of the first replica (none for a transfer)."""

    name: str
    seconds: float
    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Shares of the GPU-seconds (latency x GPUs in use) of a plan; the five add up to 1.

    busy: computing. communication: held by collectives. bubble: the time in which not even the slowest machine has work
    for the GPU (a pipeline that fills and drains, or the wait for the other side). stages: waiting for the slowest
    machine. gpus: waiting inside a stage for a GPU with a larger share, or for a transfer that nothing hides.
    """

    busy: float
    communication: float
    bubble: float
    stages: float
    gpus: float
    machines: tuple[Machine, ...]
    slowest: str


def waiting(env: Setting, sizes: Sizes, choice: Choice, evaluation: Evaluation) -> Waiting:
    """Split the GPU-seconds of a priced plan."""
    machines = plan_machines(env, sizes, choice)
    slowest = max(machines, key=lambda m: m.seconds)
    latency, micro = evaluation.latency_s, choice.micro_batches
    reports = {report.rank: report for report in evaluation.devices}
    stages, gpus, busy, sent = [], [], [], []
    for machine in machines:
        for rank in machine.devices:
            report = reports[rank]
            busy.append(report.busy_s)
            sent.append(report.communication_s)
            stages.append(micro * (slowest.seconds - machine.seconds))
            gpus.append(micro * machine.seconds - report.busy_s - report.communication_s)
    whole = latency * len(busy)
    bubble = (latency - micro * slowest.seconds) * len(busy)
    parts = (math.fsum(busy), math.fsum(sent), bubble, math.fsum(stages), math.fsum(gpus))
    # What is left of a difference of equal seconds is no waiting.
    shares = [0.0 if abs(part) <= NOTHING * whole else part / whole for part in parts]
    return Waiting(shares[0], shares[1], shares[2], shares[3], shares[4], machines, slowest.name)


def plan_machines(env: Setting, sizes: Sizes, choice: Choice) -> tuple[Machine, ...]:
    """Every stage and hand-over, or the two sides and the transfers where experts are apart."""
    sequences = sizes.batch // choice.replicas // choice.micro_batches
    if choice.stages[0].separate:
        stage = choice.stages[0]
        tasks = wave_tasks(env, sizes, choice, sequences)
        devices = (stage.attention_devices, (), stage.expert_devices, ())
        return tuple(
            Machine(f"{name} GPUs" if at in SIDES else name, math.fsum(task.seconds for task in tasks[at]), devices[at])
            for at, name in enumerate(NAMES)
        )
    found, start = [], 0
    for index, stage in enumerate(choice.stages):
        seconds = stage_machine(env, sizes, choice, index, start, sequences).seconds
        found.append(Machine(f"stage {index}", seconds, stage.devices))
        start += stage.layers
    for index, (a, b) in enumerate(zip(choice.stages, choice.stages[1:], strict=False)):
        found.append(Machine(f"send {index}-{index + 1}", send_seconds(env, a.devices, b.devices, sequences), ()))
    if env.workload.phase == "decode" and len(choice.stages) > 1:
        last, first = choice.stages[-1].devices, choice.stages[0].devices
        found.append(Machine("token feedback", feedback_seconds(env, last, first, sequences), ()))
    return tuple(found)

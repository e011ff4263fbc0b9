"""The Ray engine: workers anywhere; tasks of lost ones run again, results are committed by the one that asks."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterator
from typing import Any

from planner.batch.engines.engine import MOST_ATTEMPTS, Task, pack, solve_packed, unpack_outcome
from planner.batch.work import Outcome, lost
from planner.errors import InputError

IN_FLIGHT = 2
"""Tasks given out for each CPU of the cluster."""
KNOCK_S = 20.0
TOKEN = "one that asks for a token needs RAY_AUTH_MODE=token and its ~/.ray/auth_token here"
RETRIES = 3
"""How often Ray itself runs a task again whose worker or node is lost."""


class RayEngine:
    """Solves problems on a Ray cluster: the one at `address`, or one of its own on this machine with `workers` CPUs."""

    name = "ray"

    def __init__(self, address: str | None = None, workers: int = 1) -> None:
        self.address, self.workers = address, workers

    def run(self, tasks: Iterator[Task]) -> Iterator[Outcome]:
        """See `Engine`. A task that fails as a whole is cut into its problems; one that keeps failing is a crash."""
        ray = _ray()
        own = not ray.is_initialized()
        if own:
            self._connect(ray)
        try:
            yield from self._drain(ray, tasks)
        finally:
            if own:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        """Join a cluster, or start one; nothing is sent to anybody outside it."""
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if self.address is not None:
                _knock(self.address)
                ray.init(address=self.address, **quiet)
            else:
                ray.init(num_cpus=self.workers, include_dashboard=False, **quiet)
        except (ConnectionError, RuntimeError, ValueError, OverflowError, OSError) as error:
            told = " ".join(str(error).split())[:200]
            allowed = f"the address of a running Ray cluster, such as auto or HOST:6379 ({told}; {TOKEN})"
            raise InputError("--address", self.address, allowed) from None

    def _drain(self, ray: Any, tasks: Iterator[Task]) -> Iterator[Outcome]:
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(solve_packed)
        again: deque[Task] = deque()
        attempts: dict[str, int] = {}
        flying: dict[Any, Task] = {}
        room = IN_FLIGHT * max(1, int(ray.cluster_resources().get("CPU", 1)))
        try:
            while True:
                while len(flying) < room and (task := again.popleft() if again else next(tasks, [])):
                    flying[remote.remote(pack(task))] = task
                if not flying:
                    return
                ready, _ = ray.wait(list(flying), num_returns=1)
                for reference in ready:
                    task = flying.pop(reference)
                    try:
                        found = unpack_outcome(ray.get(reference))
                    except ray.exceptions.RayTaskError as error:  # the task itself raised: another planner, or our fault
                        raise error.as_instanceof_cause() from None
                    except ray.exceptions.RayError as error:
                        yield from _failed(task, type(error).__name__, again, attempts)
                        continue
                    yield from found
        finally:
            for reference in flying:
                ray.cancel(reference, force=True)


def _knock(address: str) -> None:
    """See that somebody listens: Ray itself tries for minutes before it says that nobody does."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()


def _failed(task: Task, name: str, again: deque[Task], attempts: dict[str, int]) -> Iterator[Outcome]:
    """A task whose worker is gone for good: each of its problems alone, so that the bad one is found."""
    for asked in task:
        attempts[asked.key] = attempts.get(asked.key, 0) + 1
        if len(task) == 1 and attempts[asked.key] >= MOST_ATTEMPTS:
            yield lost(asked, "crash", f"its worker ended {MOST_ATTEMPTS} times ({name})")
        else:
            again.append([asked])


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError(
            "--engine", "ray", "serial or process: Ray is not installed (pip install 'parallelism-planner[ray]')"
        ) from None
    return ray

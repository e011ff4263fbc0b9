"""The process engine: workers on this machine; one that dies is replaced, and its problem tried again."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

from planner.batch.engines.engine import MOST_ATTEMPTS, OtherPlannerError, Task, pack, unpack
from planner.batch.work import Asked, Outcome, lost, solve
from planner.evaluate.shared import Shared

GRACE = 3.0
"""A problem that takes this many times its time limit, and a minute, hangs: its worker is stopped."""
GRACE_S = 60.0
LOOK_S = 1.0
PATIENCE_S = 5.0


class _Worker:
    """A process with a line to it, and the problems it was given and has not answered."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        with _interrupts_held():
            self.process.start()
        theirs.close()
        self.left: deque[Asked] = deque()
        self.since = time.monotonic()

    def give(self, task: Task) -> None:
        """Send a task."""
        self.left.extend(task)
        self.since = time.monotonic()
        with contextlib.suppress(OSError):  # it died: noticed when it is waited for
            self.line.send_bytes(pack(task))

    def overdue(self) -> bool:
        """Whether its present problem takes far more than its time limit."""
        limit = self.left[0].options.get("time_limit_s") if self.left else None
        return isinstance(limit, int | float) and time.monotonic() - self.since > GRACE * limit + GRACE_S

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self.line.close()
        self.process.kill()
        self.process.join(PATIENCE_S)


class ProcessEngine:
    """Solves problems in `workers` processes of this machine."""

    name = "process"

    def __init__(self, workers: int) -> None:
        self.workers = max(1, workers)

    def run(self, tasks: Iterator[Task]) -> Iterator[Outcome]:
        """See `Engine`. A problem whose worker dies is tried again, at most three times in all, then recorded as a crash."""
        again: deque[Task] = deque()
        attempts: dict[str, int] = {}
        crew: list[_Worker] = []
        try:
            while True:
                for worker in crew:
                    if not worker.left and (task := _next(again, tasks)):
                        worker.give(task)
                while len(crew) < self.workers and (task := _next(again, tasks)):
                    crew.append(_Worker())
                    crew[-1].give(task)
                if not any(worker.left for worker in crew):
                    return
                for worker in _ready(crew):
                    yield from self._hear(worker, crew, again, attempts)
        finally:
            for worker in crew:
                worker.stop()

    def _hear(self, worker: _Worker, crew: list[_Worker], again: deque[Task], attempts: dict[str, int]) -> Iterator[Outcome]:
        """What a worker has to say: an outcome; or, by its silence, that it hangs or is gone."""
        if worker.overdue() and not worker.line.poll():
            yield lost(worker.left.popleft(), "timeout", "the search did not end in three times its time limit: stopped")
            _dismiss(worker, crew, again)
            return
        try:
            message = json.loads(worker.line.recv_bytes())
        except (EOFError, OSError):
            asked = worker.left.popleft()
            _dismiss(worker, crew, again)
            attempts[asked.key] = attempts.get(asked.key, 0) + 1
            if attempts[asked.key] < MOST_ATTEMPTS:
                again.append([asked])
            else:
                yield lost(asked, "crash", f"its worker process ended {MOST_ATTEMPTS} times ({_ended(worker)})")
            return
        if "refused" in message:
            raise OtherPlannerError(str(message["refused"]))
        worker.left.popleft()
        worker.since = time.monotonic()
        yield Outcome(**message)


def _dismiss(worker: _Worker, crew: list[_Worker], again: deque[Task]) -> None:
    """End a worker; the problems that it did not come to are for others."""
    crew.remove(worker)
    worker.stop()
    if worker.left:
        again.append(list(worker.left))


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while a process starts: it inherits that, and so does not end with a traceback of its own."""
    resource_tracker.ensure_running()  # which lets go of what is held, when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(line: Connection) -> None:
    """A worker's life: solve what comes, answer each problem at once, end with the line or with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    shared = Shared()
    with contextlib.suppress(EOFError, OSError):
        while True:
            try:
                task = unpack(line.recv_bytes())
            except OtherPlannerError as error:
                line.send_bytes(json.dumps({"refused": str(error)}).encode())
                return
            for asked in task:
                line.send_bytes(json.dumps(solve(asked, shared).to_dict()).encode())


def _end_with(sentinel: int) -> None:
    """A parent that was killed leaves nobody to work for."""
    wait([sentinel])
    os._exit(1)


def _next(again: deque[Task], tasks: Iterator[Task]) -> Task:
    return again.popleft() if again else next(tasks, [])


def _ready(crew: list[_Worker]) -> list[_Worker]:
    """The workers that have something to say, or hang; looks again after a second."""
    heard = set(wait([worker.line for worker in crew if worker.left], LOOK_S))
    return [worker for worker in crew if worker.left and (worker.line in heard or worker.overdue())]


def _ended(worker: _Worker) -> str:
    code = worker.process.exitcode
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

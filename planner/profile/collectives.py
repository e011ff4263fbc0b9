"""Collectives over the GPUs of this machine: one process for each rank, the slowest one's median."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from planner.profile.device import Device
from planner.profile.shapes import Message
from planner.profile.timing import WARM_UP, Effort

BACKENDS = {"cuda": "nccl", "cpu": "gloo"}


def measure_messages(device: Device, messages: Sequence[Message], effort: Effort) -> dict[Message, float]:
    """Seconds of each message; what the backend cannot do on this device is left out."""
    found: dict[Message, float] = {}
    for ranks in sorted({message.ranks for message in messages}):
        mine = [message for message in messages if message.ranks == ranks]
        with TemporaryDirectory() as folder:
            asked = (ranks, folder, device.kind, [asdict(message) for message in mine], effort.repeats)
            device.torch.multiprocessing.spawn(_rank, args=asked, nprocs=ranks)
            times = json.loads((Path(folder) / "times.json").read_text(encoding="utf-8"))
        found.update({message: seconds for message, seconds in zip(mine, times, strict=True) if seconds is not None})
    return found


def _rank(rank: int, ranks: int, folder: str, kind: str, asked: list[dict[str, Any]], repeats: int) -> None:
    """What each process does; the first writes the times (None: not possible)."""
    import torch
    import torch.distributed as dist

    if kind == "cuda":
        torch.cuda.set_device(rank)
    store = dist.FileStore(str(Path(folder) / "store"), ranks)
    dist.init_process_group(BACKENDS[kind], store=store, rank=rank, world_size=ranks)
    times = [_seconds(torch, dist, kind, rank, Message(**message), repeats) for message in asked]
    if rank == 0:
        (Path(folder) / "times.json").write_text(json.dumps(times), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def _seconds(torch: Any, dist: Any, kind: str, rank: int, message: Message, repeats: int) -> float | None:
    """Median over the repeats of the slowest rank's seconds."""
    run = _work(torch, dist, kind, rank, message)
    try:
        for _ in range(WARM_UP):
            run()
        times = [_once(torch, dist, kind, run) for _ in range(repeats)]
    except (RuntimeError, NotImplementedError, ValueError):
        return None
    slowest = torch.tensor(times, dtype=torch.float64 if kind == "cpu" else torch.float32, device=kind)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return float(median(slowest.tolist()))


def _once(torch: Any, dist: Any, kind: str, run: Callable[[], object]) -> float:
    dist.barrier()
    if kind == "cpu":
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _work(torch: Any, dist: Any, kind: str, rank: int, message: Message) -> Callable[[], object]:
    """The collective on buffers of its full size, in bytes (one-byte elements)."""
    ranks = message.ranks
    whole = torch.zeros(max(message.bytes // ranks, 1) * ranks, dtype=torch.uint8, device=kind)
    part = torch.zeros(len(whole) // ranks, dtype=torch.uint8, device=kind)
    works: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: dist.all_gather_into_tensor(whole, part),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, whole),
        "all_to_all": lambda: dist.all_to_all_single(torch.empty_like(whole), whole),
        "broadcast": lambda: dist.broadcast(whole, 0),
        "send_recv": lambda: dist.send(whole, 1) if rank == 0 else dist.recv(whole, 0),
    }
    return works[message.operation]

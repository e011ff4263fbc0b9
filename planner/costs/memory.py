"""Memory that is not a tensor of the graph: runtime reserve, communication buffers, stage-boundary buffers."""

from __future__ import annotations

from planner.cluster import GpuKind

CONTEXT_BYTES = 750_000_000  # CUDA context and library workspaces, 0.5 to 1 GB (assumed)
COLLECTIVE_BYTES = 400_000_000  # NCCL channel buffers, 0.34 to 0.39 GB in aiconfigurator's H200 preset
FRAGMENTATION = 0.03  # share of the memory that the allocator cannot use, 3 to 10 % without expandable segments (assumed)
BOUNDARY_BUFFERS = 2  # micro-batches that wait between two pipeline stages


def reserve_bytes(kind: GpuKind) -> float:
    """Bytes of a GPU that no tensor can use: context, libraries and allocator fragmentation."""
    return CONTEXT_BYTES + FRAGMENTATION * kind.memory_bytes


def communication_bytes(stage_width: int) -> float:
    """Bytes that the collectives library keeps on a GPU of a stage of several GPUs."""
    return float(COLLECTIVE_BYTES if stage_width > 1 else 0)

"""Clusters by name (`2x8-h100`), from a file, or inline: GPUs, their scale-up domains and the network between them."""

from __future__ import annotations

from planner.clusters.build import as_mapping, cluster_names, load_cluster
from planner.clusters.kinds import gpu_kinds, load_gpu

__all__ = ["as_mapping", "cluster_names", "gpu_kinds", "load_cluster", "load_gpu"]

"""Engines: where the problems of a sweep are solved. Each gives the same outcomes, in an order of its own."""

from __future__ import annotations

from planner.batch.engines.engine import Engine, Task
from planner.batch.engines.process import ProcessEngine
from planner.batch.engines.ray_cluster import RayEngine
from planner.batch.engines.serial import SerialEngine

__all__ = ["Engine", "ProcessEngine", "RayEngine", "SerialEngine", "Task"]

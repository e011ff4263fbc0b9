"""Hugging Face `config.json` to `ModelSpec`, family by family."""

from __future__ import annotations

from planner.models.hf.read import FAMILIES, read_config

__all__ = ["FAMILIES", "read_config"]

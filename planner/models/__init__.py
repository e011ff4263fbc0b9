"""Models by name, from a Hugging Face `config.json`, from our own spec files, or inline."""

from __future__ import annotations

from planner.models.catalog import catalog_names
from planner.models.load import load_model

__all__ = ["catalog_names", "load_model"]

"""Every catalog model: sound layers, a source, and the numbers that `planner show` prints."""

from __future__ import annotations

import pytest

from planner.models import catalog_names, load_model
from planner.problem import load_problem


@pytest.mark.parametrize("name", catalog_names())
def test_every_catalog_model_is_sound(name: str) -> None:
    """It has layers, a source, more parameters than active ones, and can be put into a problem."""
    model = load_model(name)
    assert model.layers and model.source
    assert 0 < model.active_parameters <= model.parameters
    assert model.kv_cache_bytes_per_token > 0
    assert sum(model.layers_of_kind) == len(model.layers)
    problem = load_problem(model=name, workload="decode:batch=8,context=1024")
    assert problem.sizes.layers == len(model.layers)

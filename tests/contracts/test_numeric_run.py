"""The promise of every catalog model: random sound plans for it compute it, on small tensors and operator by operator."""

from __future__ import annotations

import random
import zlib
from collections import defaultdict

import pytest

from planner.check.findings import errors
from planner.check.run import run_choice
from planner.check.structure import check_structure
from planner.clusters import load_cluster
from planner.evaluate.setting import setting
from planner.model import ModelSpec
from planner.models import catalog_names, load_model
from planner.problem.sizes import sizes_of
from planner.workload import load_workload
from search_spaces.sizes import Sizes
from search_spaces.space import SearchSpace, StageOption
from search_spaces.stages import Choice, StageChoice

WORKLOADS = ("prefill:batch=8,prompt=512", "decode:batch=24,context=1024")
WIDTHS = ((4,), (2, 2), (1, 3), (3,))
MICRO_BATCHES = 2


def random_choice(model: ModelSpec, sizes: Sizes, rng: random.Random) -> Choice:
    """Stages of random widths with random options; every topology of attention and experts is as likely as another."""
    space, widths = SearchSpace(sizes), rng.choice(WIDTHS)
    cut = rng.randint(1, len(model.layers) - 1)
    layers = (cut, len(model.layers) - cut) if len(widths) > 1 else (len(model.layers),)
    stages, first = [], 0
    for width, count in zip(widths, layers, strict=True):
        kinds: dict[object, list[StageOption]] = defaultdict(list)
        for option in space.options(width):
            if space.fits_micro_batch(option, width, sizes.batch // MICRO_BATCHES):
                p, experts = option.attention, option.experts
                form = experts and experts.form
                kinds[p.context_parts > 1, p.dimension_segments > 1, p.sequence_parallel, p.order, form].append(option)
        option = rng.choice(kinds[rng.choice(list(kinds))])
        devices = tuple(range(first, first + width))
        stages.append(StageChoice(count, devices, option.attention, option.mlp_ways, option.experts))
        first += width
    return Choice(1, MICRO_BATCHES, tuple(stages))


@pytest.mark.parametrize("name", catalog_names())
@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_random_plan_of_every_model_computes_it(name: str, workload: str) -> None:
    model, work, cluster = load_model(name), load_workload(workload), load_cluster("2x2-h100")
    sizes = sizes_of(model, work, cluster)
    choice = random_choice(model, sizes, random.Random(zlib.crc32(f"{name} {workload}".encode())))
    assert errors(check_structure(sizes, choice)) == []
    found = run_choice(setting(model, work, cluster), sizes, choice)
    assert found.matches_unsplit_model, [f.message for f in errors(found.findings)]
    assert found.max_abs_error is not None and found.tolerance is not None and found.max_abs_error <= found.tolerance

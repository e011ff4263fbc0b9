"""run_training: run the twin of a training plan, forward and back, and hold its gradients against the unsplit model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from planner.check.findings import Finding
from planner.check.run.numeric import run_choice
from planner.check.run.verdict import NumericRun
from planner.evaluate.setting import Setting
from planner.graph.nodes import Graph
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice


def run_training(env: Setting, sizes: Sizes, choice: Choice, change: Callable[[Graph], Graph] | None = None) -> NumericRun:
    """Run the twin of a structurally sound training plan; `change` breaks its graph first (for tests of this check).

    One replica runs: replicas compute the same on other sequences, and the sum over them is that over the copies inside a
    stage with more members. Compared are all intermediates, the gradient of the residual stream at the entry of every half of a
    layer, and at the end of the step the gradient of every part of every weight on every GPU.
    """
    if not env.model.vocab:
        message = "a model without a vocabulary has no loss: its gradients were not computed"
        return NumericRun(False, findings=(Finding("NUM005", "warning", "model.vocab", message),))
    alone, own = replace(choice, replicas=1), replace(sizes, batch=sizes.batch // choice.replicas)
    return run_choice(env, own, alone, change)

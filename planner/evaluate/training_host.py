"""What the stack of a training run adds to its passes: the host that issues operators."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner.costs.training import CLASSES, stack_of_pricer
from planner.evaluate.setting import Setting
from planner.evaluate.training_parts import Passes


def issued(env: Setting, passes: Passes, apart: bool) -> Passes:
    """The passes of a chunk when a host issues their operators; `apart`: both kinds of gradients are passes of their own."""
    stack = stack_of_pricer(env.pricer)
    counts = passes.spent[:, len(CLASSES) :]
    forward, inputs, weights = (float(n) for n in counts @ np.array([stack.host_s, stack.mixture_s]))
    if forward + inputs + weights <= 0.0:
        return passes
    ahead = stack.pass_seconds(passes.forward_s, forward)
    if apart:
        back, last = stack.pass_seconds(passes.inputs_s, inputs), stack.pass_seconds(passes.weights_s, weights)
    else:
        back = passes.inputs_s
        last = stack.pass_seconds(passes.inputs_s + passes.weights_s, inputs + weights) - back
    return replace(passes, forward_s=ahead, inputs_s=back, weights_s=last)

"""Confirm: the unsplit reference itself, held against Hugging Face's own code where that is installed and knows the model."""

from __future__ import annotations

import numpy as np

from planner.check.findings import Finding
from planner.check.reference import available, reference_logits
from planner.check.run.world import World

OURS = "our own unsplit NumPy model"


def confirm(world: World, tolerance: float) -> tuple[str, tuple[Finding, ...]]:
    """What a run's numbers rest on, in words, and a finding where the two references disagree."""
    model = world.twin.model
    if not model.architecture:
        return OURS, ()
    if not available():
        return f"{OURS} (transformers and torch are not installed)", ()
    theirs = reference_logits(model, world.weights, world.tokens)
    if isinstance(theirs, str):
        return f"{OURS} ({theirs})", ()
    key = (len(model.layers) - 1, "ffn.y") if theirs.logits is None else (None, "head.logits")
    ours, found = world.trace.values[key], theirs.hidden[-1] if theirs.logits is None else theirs.logits
    valid = world.tokens.valid
    error, allowed = float(np.max(np.abs(ours - found)[valid])), tolerance * float(np.max(np.abs(found[valid])))
    name = f"transformers {theirs.version} ({model.architecture})"
    if error <= allowed:
        return f"{name}; single operators: {OURS}, which agrees with it to {error:.1g}", ()
    message = f"{OURS} is {error:.3g} off {name}, where {allowed:.1g} is allowed: nothing can be said about the plan"
    return name, (Finding("NUM006", "error", "reference", message, error, allowed, "report this: one of the two is wrong"),)

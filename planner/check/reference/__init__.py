"""The unsplit reference: what a model computes, in plain float64 NumPy, from its spec alone.

It knows no plan, no device and no operator graph: whatever the graph gets wrong, it cannot get wrong in the same way.
Where PyTorch and transformers are installed, `reference_logits` runs Hugging Face's own code on the same weights.

`Trace.values` holds, by layer (S sequences, L tokens, H heads, K KV heads, E experts, k chosen):

- attention.x, xn, o, y [S, L, hidden]; on after a post-norm; scores and probabilities [S, H, L, L]; a [S, L, H, v];
  grouped-query: q, k, v, q_normed, k_normed, q_rotated, k_rotated [S, L, heads, dims];
  latent: qa, qan, q, kva, kvan, kv, q_rope, k_rope; the indexer's iq, ik, ikn, iw, index_scores, picked [S, L, L]
- ffn.x, xn, f, y [S, L, hidden]; fn after a post-norm; dense: gate, up, active [S, L, width]; mixture: router_scores
  [S, L, E], routes and route_weights [S, L, k], expert_output [S, L, k, hidden], shared_gate_proj, shared_up, shared_active,
  shared_gate [S, L, 1], shared [S, L, hidden] (behind its gate)

and outside the layers (None) embedding.y, head.xn, head.logits. `backward` gives the gradients of its training loss.
"""

from __future__ import annotations

from planner.check.reference.backward import Gradients, backward, targets_of
from planner.check.reference.constants import NORM_EPS, ROPE_BASE
from planner.check.reference.forward import forward
from planner.check.reference.inputs import Tokens, Trace, Weights
from planner.check.reference.transformers import HfTrace, available, reference_logits
from planner.check.reference.weights import random_weights

__all__ = [
    "NORM_EPS",
    "ROPE_BASE",
    "Gradients",
    "HfTrace",
    "Tokens",
    "Trace",
    "Weights",
    "available",
    "backward",
    "forward",
    "random_weights",
    "reference_logits",
    "targets_of",
]

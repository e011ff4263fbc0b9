"""Book: the gradient of every weight on every GPU as it stands, and what it should be once the step is over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.check.reference import Gradients
from planner.check.run.load import part
from planner.check.run.site import Value
from planner.check.run.split import Split
from planner.check.run.world import World
from planner.graph.nodes import Node
from planner.graph.sharing import UNTRAINED

Floats = NDArray[np.float64]
Name = tuple[int | None, str]
FLOOR = 1e-4
"""A gradient is measured against its largest element, or against this part of the largest of all: some are zero in theory."""
STREAM = {"attention": "attention.x", "mlp": "ffn.x", "moe": "ffn.x", "head": "head.x"}


@dataclass(frozen=True)
class Wrong:
    """A gradient that is not the unsplit model's, and who wrote it."""

    node: str
    message: str
    error: float
    scale: float


def is_weight_gradient(node: Node) -> bool:
    """Whether a node writes gradients of weights."""
    return bool(node.outputs) and (node.outputs[0].name.endswith(".weight_grad") or exchanges(node))


def exchanges(node: Node) -> bool:
    """Whether a node adds up gradients of weights over GPUs."""
    return node.role == "exchange" and not moves_weights(node)


def moves_weights(node: Node) -> bool:
    """Whether a node gathers weights, which a virtual GPU has anyway."""
    return node.role == "exchange" and "gather" in node.name


def names_in(node: Node, value: Value) -> dict[Name, Value]:
    """The gradients in a value, by layer and weight."""
    if not exchanges(node):
        return {(node.layer, name): own for name, own in value.parts.items()}
    found: dict[Name, Value] = {}
    for slot, own in value.parts.items():
        layer, name = slot.split(":", 1)
        found[int(layer) if layer else None, name] = own
    return found


class Book:
    """What the last operator left of every gradient."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.held: dict[tuple[int, Name], tuple[Node, Split, Value]] = {}
        self.needed: dict[tuple[int, Name], Node] = {}

    def wrote(self, node: Node, device: int, split: Split, value: Value) -> None:
        """Note what a node left on a GPU."""
        for name, own in names_in(node, value).items():
            self.held[device, name] = node, split, own
            if node.name == "tied":
                self.held.pop((device, (None, "head")), None)

    def uses(self, node: Node) -> None:
        """Note that a GPU computes with weights, whose gradients it will need."""
        for weight in node.weights if not node.role.endswith(("_backward", "_again")) else ():
            if weight.name not in UNTRAINED and weight.elements:
                self.needed.setdefault((node.devices[0], (node.layer, weight.name)), node)

    def wrong(self, gradients: Gradients, tolerance: float) -> Iterator[Wrong]:
        """Gradients that are missing, or off by more than the tolerance."""
        largest = max(float(np.max(np.abs(value), initial=0.0)) for value in gradients.weights.values())
        for (device, name), node in self.needed.items():
            tied = name == (None, "head") and (None, "head") not in gradients.weights
            if (device, name) not in self.held and not (tied and (device, (None, "embedding")) in self.held):
                yield Wrong(node.id, f"no gradient of {name[1]} is found on GPU {device}", 0.0, 0.0)
        for (device, name), (node, split, value) in self.held.items():
            wanted = expected_weight(gradients.weights, split, name, value)
            scale = max(float(np.max(np.abs(wanted), initial=0.0)), FLOOR * largest)
            if wanted.shape != value.array.shape:
                message = f"the gradient of {name[1]} on GPU {device} is {list(value.array.shape)} for {list(wanted.shape)}"
                yield Wrong(node.id, message, float("inf"), scale)
                continue
            error = float(np.max(np.abs(wanted - value.array), initial=0.0))
            text = f"the gradient of {name[1]} on GPU {device} is off by {error:.3g}, where {tolerance * scale:.1g} is allowed"
            yield Wrong(node.id, text if error > tolerance * scale else "", error, scale)


def split_for(split: Split, layer: int | None) -> Split:
    """A GPU's part of another layer."""
    return replace(split, layer=None if layer is None else split.world.twin.model.layers[layer])


def expected_weight(weights: Mapping[Name, Floats], split: Split, name: Name, value: Value) -> Floats:
    """A GPU's part of the gradient of a weight: all of it, or where copies share it out its flat share."""
    whole = part(split_for(split, name[0]), weights, name[0], name[1])
    if "part" not in value.beside:
        return whole
    index, count = (int(n) for n in value.beside["part"])
    tied = name[1] == "head" and (None, "head") not in weights
    return np.array_split((whole.T if tied else whole).ravel(), count)[index]


def expected_stream(gradients: Gradients, role: str, layer: int | None, split: Split) -> Floats | None:
    """The gradient of the residual stream that enters a role, of the GPU's tokens."""
    name = STREAM.get(role)
    if name is None:
        return None
    whole = gradients.stream[layer, name]
    return np.asarray(whole.reshape(-1, whole.shape[-1])[split.at.residual(split.place)], dtype=np.float64)

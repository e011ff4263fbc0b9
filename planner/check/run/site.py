"""Site: what one operator sees while it runs on one GPU, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.check.run.load import load
from planner.check.run.split import Split
from planner.graph.nodes import Node
from planner.model import Layer

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Fault(Exception):  # noqa: N818  # it is the plan's, not the program's
    """An operator cannot run: the message says what it lacks."""


@dataclass(frozen=True)
class Value:
    """A tensor on one GPU, with the small things that travel beside it (log-sum-exp, token numbers, routes).

    What a backward operator writes has `parts`: the gradient of each tensor or weight that its forward operator read.
    """

    array: Floats
    beside: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    parts: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """One operator on one GPU: what its incoming edges deliver, by the names it knows them by, and its weights."""

    node: Node
    split: Split
    layer_index: int | None
    delivered: Mapping[str, Value]

    @property
    def role(self) -> str:
        """The role that the operator belongs to in the forward pass."""
        return base_role(self.node.role)

    @property
    def layer(self) -> Layer:
        """The layer that the operator belongs to."""
        if self.split.layer is None:
            raise Fault("it belongs to no layer")
        return self.split.layer

    def has(self, *names: str) -> bool:
        """Whether one of some tensors was delivered."""
        return any(name in self.delivered for name in names)

    def read(self, *names: str) -> Value:
        """The first of some tensors that was delivered."""
        for name in names:
            if name in self.delivered:
                return self.delivered[name]
        raise Fault(f"nothing delivers {' or '.join(names)}")

    def array(self, *names: str) -> Floats:
        """The numbers of the first of some tensors that was delivered."""
        return self.read(*names).array

    def holds(self, name: str) -> bool:
        """Whether the operator brings a weight along."""
        return any(weight.name == name for weight in self.node.weights)

    def weight(self, name: str) -> Floats:
        """The GPU's part of a weight that the operator brings along."""
        shapes = [weight.shape for weight in self.node.weights if weight.name == name]
        if not shapes:
            raise Fault(f"it has no weight {name}")
        found = self.resident(name)
        if found.shape != shapes[0]:
            raise Fault(f"its weight {name} has the shape {list(shapes[0])}, and the GPU's part is {list(found.shape)}")
        return found

    def resident(self, name: str) -> Floats:
        """The GPU's part of a weight that is on the GPU, whichever operator brought it."""
        try:
            return load(self.split, self.layer_index, name)
        except KeyError:
            raise Fault(f"the model has no weight {name}") from None


def base_role(role: str) -> str:
    """The forward role whose backward pass, weight gradients or repetition a role is."""
    for ending in ("_backward", "_weights", "_again"):
        role = role.removesuffix(ending)
    return "head" if role == "loss" else role


Kernel = Callable[[Site], Value]

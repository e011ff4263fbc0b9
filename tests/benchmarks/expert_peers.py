"""What others do with skewed expert loads, to compare with: longest processing time first, and DeepSeek's EPLB.

EPLB here is written from its published description (README of deepseek-ai/EPLB): copies one at a time to the expert with
the largest share, and packs of equally many items, largest first into the lightest pack that has room; globally, or with
whole routing groups packed to nodes first. `public_eplb` runs the published file itself, on NumPy in the place of torch.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Placement = tuple[tuple[int, ...], ...]


def longest_first(loads: Array, groups: int, slots: int) -> float:
    """Largest GPU load of longest processing time first without copies: each expert to the lightest GPU with a free slot."""
    held, count = np.zeros(groups), np.zeros(groups, dtype=int)
    for expert in np.argsort(-loads, kind="stable"):
        group = int(np.where(count < slots, held, np.inf).argmin())
        held[group] += loads[expert]
        count[group] += 1
    return float(held.max())


def balanced_packing(weights: Array, packs: int) -> NDArray[np.int64]:
    """Pack of every item: equally many items a pack, largest first, into the lightest pack that is not full."""
    held, count, pack = np.zeros(packs), np.zeros(packs, dtype=int), np.zeros(weights.size, dtype=np.int64)
    for item in np.argsort(-weights, kind="stable"):
        chosen = int(np.where(count < weights.size // packs, held, np.inf).argmin())
        pack[item] = chosen
        held[chosen] += weights[item]
        count[chosen] += 1
    return pack


def replicated(loads: Array, slots: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Expert of every slot, and copies of every expert: the next copy always to the expert with the largest share."""
    experts, copies = list(range(loads.size)), np.ones(loads.size, dtype=np.int64)
    for _ in range(slots - loads.size):
        most = int((loads / copies).argmax())
        experts.append(most)
        copies[most] += 1
    return np.array(experts), copies


def eplb(loads: Array, groups: int, slots: int, nodes: int = 1, routing_groups: int = 1) -> float:
    """Largest GPU load of EPLB's policy: hierarchical where the nodes divide the routing groups, else global."""
    if routing_groups % nodes:
        nodes = routing_groups = 1
    size, per_node = loads.size // routing_groups, groups // nodes
    node_of = balanced_packing(loads.reshape(routing_groups, size).sum(axis=1), nodes)
    largest = 0.0
    for node in range(nodes):
        own = np.concatenate([loads[g * size : (g + 1) * size] for g in np.nonzero(node_of == node)[0]])
        expert, copies = replicated(own, per_node * slots)
        share = (own / copies)[expert]
        held = np.bincount(balanced_packing(share, per_node), weights=share, minlength=per_node)
        largest = max(largest, float(held.max()))
    return largest


def load_public_eplb(path: Path) -> Any:
    """The published `eplb.py` as a module; where torch is not installed, on the few functions of it that the file uses."""
    if importlib.util.find_spec("torch") is None:
        sys.modules.setdefault("torch", _numpy_torch())
    spec = importlib.util.spec_from_file_location("public_eplb", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"--eplb: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def public_eplb(module: Any, loads: Array, groups: int, slots: int, nodes: int, routing_groups: int) -> Array:
    """Largest GPU load [L] of the published code on loads [L, E]."""
    torch = sys.modules["torch"]
    held, _, copies = module.rebalance_experts(torch.tensor(loads), groups * slots, routing_groups, nodes, groups)
    slot, count = np.asarray(held, dtype=np.int64), np.asarray(copies, dtype=np.float64)
    share = np.take_along_axis(loads / count, slot, axis=1)
    return np.asarray(share.reshape(loads.shape[0], groups, slots).sum(axis=2).max(axis=1))


class _Tensor(np.ndarray):  # type: ignore[type-arg]
    """An array with the few methods of a tensor that differ from NumPy's."""

    device = "cpu"

    def float(self) -> _Tensor:
        return self.astype(np.float64)

    def cpu(self) -> _Tensor:
        return self

    def size(self, axis: int) -> int:  # type: ignore[override]
        return int(self.shape[axis])

    def view(self, *shape: Any) -> Any:  # type: ignore[override]
        return self.reshape(shape) if isinstance(shape[0], int) else super().view(*shape)

    def unflatten(self, axis: int, shape: tuple[int, ...]) -> _Tensor:
        at = axis % self.ndim
        return self.reshape(*self.shape[:at], *shape, *self.shape[at + 1 :])

    def unsqueeze(self, axis: int) -> _Tensor:
        return np.expand_dims(self, axis)  # type: ignore[return-value]

    def flatten(self, first: int) -> _Tensor:  # type: ignore[override]
        return self.reshape(*self.shape[: first % self.ndim], -1)

    def repeat(self, *times: int) -> _Tensor:  # type: ignore[override]
        return np.tile(np.asarray(self), times).view(_Tensor)

    def gather(self, axis: int, index: Any) -> _Tensor:
        return np.take_along_axis(np.asarray(self), np.asarray(index), axis).view(_Tensor)

    def scatter_(self, axis: int, index: Any, source: Any) -> None:
        np.put_along_axis(np.asarray(self), np.asarray(index), np.asarray(source), axis)

    def max(self, dim: int | None = None, **more: Any) -> Any:  # type: ignore[override]
        values = np.asarray(self)
        return values.max() if dim is None else types.SimpleNamespace(indices=values.argmax(axis=dim).view(_Tensor))

    def sort(self, axis: int = -1, descending: bool = False) -> Any:  # type: ignore[override]
        values = np.asarray(self)
        index = np.argsort(-values if descending else values, axis=axis, kind="stable")
        return types.SimpleNamespace(indices=index.view(_Tensor))

    def expand(self, *shape: Any) -> _Tensor:
        wanted = shape[0] if isinstance(shape[0], tuple) else shape
        sizes = [own if new == -1 else new for own, new in zip((1,) * (len(wanted) - self.ndim) + self.shape, wanted)]  # noqa: B905
        return np.array(np.broadcast_to(np.asarray(self), sizes)).view(_Tensor)


def _numpy_torch() -> types.ModuleType:
    """A module with the functions of torch that the published file calls."""

    def made(array: Any) -> _Tensor:
        return np.asarray(array).view(_Tensor)

    def arange(*ends: int, dtype: Any = np.int64, device: str = "cpu") -> _Tensor:
        return made(np.arange(*ends, dtype=dtype))

    def full(shape: Any, value: Any = 0, *, fill_value: Any = None, dtype: Any = np.float64, device: str = "cpu") -> _Tensor:
        return made(np.full(shape, value if fill_value is None else fill_value, dtype=dtype))

    def full_like(like: Any, fill_value: Any = 0, dtype: Any = None, device: str = "cpu") -> _Tensor:
        return full(like.shape, fill_value, dtype=dtype or like.dtype)

    module = types.ModuleType("torch")
    functions = {
        "Tensor": _Tensor, "int64": np.int64, "arange": arange, "full": full, "full_like": full_like,
        "zeros_like": full_like, "empty_like": full_like, "tensor": lambda data: made(np.array(data)),
        "zeros": lambda *shape, **more: full(shape, 0, **more), "ones": lambda *shape, **more: full(shape, 1, **more),
    }  # fmt: skip
    for name, value in functions.items():
        setattr(module, name, value)
    return module

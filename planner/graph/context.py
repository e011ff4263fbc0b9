"""RoleContext: what every role builder needs to know besides its rows."""

from __future__ import annotations

from dataclasses import dataclass

from planner.graph.ops import Kind, Op, Shard, Size, Tensor
from planner.model import Layer, ModelSpec, Module
from planner.workload import Training, Workload


@dataclass(frozen=True, slots=True)
class RoleContext:
    """The model, the workload's forward pass and how it is trained, with shorthands for the operators that roles share."""

    model: ModelSpec
    workload: Workload
    training: Training | None = None

    @property
    def gradient_dtype(self) -> str:
        """Dtype of the gradient buffer."""
        return "fp32" if self.training is None else self.training.gradient_dtype

    @property
    def dtype(self) -> str:
        """Dtype of activations."""
        return self.model.dtype

    @property
    def kv_dtype(self) -> str:
        """Dtype of the KV cache."""
        return self.workload.kv_dtype or self.model.kv_dtype or self.model.dtype

    @property
    def keeps_cache(self) -> bool:
        """Whether keys and values stay in memory after the pass."""
        return self.workload.phase == "decode" or self.workload.keep_kv_cache

    def shard(self, name: str, module: Module, *shape: Size) -> Shard:
        """A part of weight `name`, stored in the dtype of its module."""
        return Shard(name, shape, self.model.dtype_of(module))

    def tensor(self, name: str, *shape: Size) -> Tensor:
        """An activation in the model's dtype."""
        return Tensor(name, shape, self.dtype)

    def elementwise(self, name: str, inputs: tuple[str, ...], output: Tensor, passes: float = 2.0, **more: object) -> Op:
        """An operator that moves `passes` times its output's bytes through memory (2: read one, write one)."""
        return Op(name, Kind.ELEMENTWISE, inputs, output, dtype=output.dtype, bytes=passes * output.bytes, **more)  # type: ignore[arg-type]

    def ffn_input(self, layer: Layer) -> str:
        """What the FFN half norms: what attention left, or the layer's own input where the two halves are parallel."""
        return "x_in" if layer.parallel_residual else "x"

    def norm(self, name: str, source: str, output: Tensor) -> Op:
        """A norm over the hidden dim (one read, one write), whose weight vector every GPU holds."""
        width = output.shape[-1]
        vectors = 2 if self.model.norm_kind == "layer" else 1
        weights = (self.shard(name, "norm", vectors, width),)
        return self.elementwise(name, (source,), output, weights=weights)

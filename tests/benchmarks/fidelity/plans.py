"""The plan of an inference row as a choice of the planner: tensor, pipeline, attention-data and expert parallel ways."""

from __future__ import annotations

from dataclasses import dataclass

from planner.model import ModelSpec
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement
from search_spaces.sizes import share
from search_spaces.stages import Choice, StageChoice
from tests.benchmarks.fidelity.rows import Row, Unusable, whole


@dataclass(frozen=True, slots=True)
class Grid:
    """Ways of one instance of a model: `tensor` x `data` GPUs (attention) in each of `stages`; over the same GPUs lie
    `expert` groups of `expert_tensor` GPUs.
    """

    tensor: int = 1
    stages: int = 1
    data: int = 1
    expert: int = 1
    expert_tensor: int = 0

    @property
    def width(self) -> int:
        """GPUs of a stage."""
        return self.tensor * self.data

    @property
    def gpus(self) -> int:
        """GPUs of the instance."""
        return self.width * self.stages


def grid_of(row: Row, side: str = "") -> Grid | Unusable:
    """The ways that a row states; `side` is `prefill_` or `decode_` where the two have plans of their own."""
    tensor, stages, data = (whole(row, f"{side}{name}", default) for name, default in (("tp", 0), ("pp", 1), ("dp_attn", 1)))
    expert, expert_tensor = whole(row, f"{side}ep", 0), whole(row, f"{side}moe_tp", 0)
    if not tensor and data == 1:
        return Unusable("no plan in the row")
    return Grid(max(tensor, 1), stages, data, expert, expert_tensor)


def choice_of(model: ModelSpec, grid: Grid, batch: int) -> Choice | Unusable:
    """One instance of the model on ranks 0 to `grid.gpus - 1` for a batch that its attention-data parts share equally.

    Attention-data parallel copies of a dense model are plain replicas. A mixture's experts see all tokens of the stage where
    attention or experts are tensor parallel, and are reached by dispatch where every GPU holds sequences and whole experts.
    """
    moe = any(layer.ffn.kind == "moe" for layer in model.layers)
    layers, heads = len(model.layers), model.layers[0].attention.heads
    if grid.stages > layers:
        return Unusable("more pipeline stages than layers")
    if heads % grid.tensor:
        return Unusable(f"{grid.tensor} tensor ways do not divide the heads: the GPU counts of the row are doubtful")
    width = grid.width if moe else grid.tensor
    attention = AttentionPartition(head_groups=grid.tensor, batch_parts=grid.data if moe else 1)
    experts = expert_placement(model, grid) if moe else None
    if isinstance(experts, Unusable):
        return experts
    stages, first = [], 0
    for index in range(grid.stages):
        ranks = tuple(range(first, first + width))
        stages.append(StageChoice(share(layers, grid.stages, index), ranks, attention, grid.tensor, experts))
        first += width
    copies = 1 if moe else grid.data
    micro = max(m for m in range(1, grid.stages + 1) if batch % (grid.data * m) == 0)
    return Choice(copies, micro, tuple(stages))


def expert_placement(model: ModelSpec, grid: Grid) -> ExpertPlacement | Unusable:
    """Where the experts are: `expert` groups of `expert_tensor` GPUs; what is not stated follows from the GPUs there are."""
    width = grid.width
    ways = grid.expert_tensor or (width // grid.expert if grid.expert > 1 and width % grid.expert == 0 else width)
    if width % ways or (grid.expert > 1 and grid.expert_tensor and grid.expert * grid.expert_tensor != width):
        return Unusable("expert ways do not cover the GPUs of the plan")
    count = next(layer.ffn.experts for layer in model.layers if layer.ffn.kind == "moe")
    if width // ways > count:
        return Unusable("more groups than experts")
    return ExpertPlacement("dispatch" if grid.data > 1 and ways == 1 else "local", ways)

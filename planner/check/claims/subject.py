"""Subject: the plan that claims speak of, with everything about it that a claim may be held against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from planner.check.claims.work import ENDS, Book, Products, Work, book_of
from planner.check.validate import sample_graph
from planner.errors import InputError
from planner.evaluate.expanded import longest_path, price_graph
from planner.evaluate.setting import Setting
from planner.graph.expand import expand
from planner.graph.nodes import Graph
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice, StageChoice

SCOPES = ("layer", "stage", "layers", "model")
GROUPS = {"qkv": ("q_proj", "k_proj", "v_proj"), "attention": ("scores", "attention_value")}
DENSE = {"up_proj": "expert_up_proj", "gate_proj": "expert_gate_proj", "down_proj": "expert_down_proj"}


@dataclass(frozen=True)
class Subject:
    """A plan: what is fixed, its choice, and the name by which claims speak of it."""

    env: Setting
    sizes: Sizes
    choice: Choice
    name: str = ""

    @cached_property
    def graph(self) -> Graph:
        """One micro-batch through one layer of each kind per stage."""
        return sample_graph(self.env, self.sizes, self.choice)

    @cached_property
    def chain(self) -> Graph:
        """One micro-batch through all layers."""
        return expand(self.env.model, self.env.workload, self.sizes, self.choice, micro_batches=1)

    @cached_property
    def book(self) -> Book:
        """Work of every GPU, by the layers of `graph`."""
        return book_of(self.graph, self.choice.micro_batches)

    @cached_property
    def unsplit(self) -> dict[int, dict[str, Work]]:
        """Work of the model on one GPU, by layer kind (`ENDS` for embedding and head)."""
        placement = ExpertPlacement() if self.sizes.moe else None
        whole = Choice(1, 1, (StageChoice(self.sizes.layers, (0,), AttentionPartition(), 1, placement),))
        kinds = self.env.kind_of_layer
        firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
        graph = expand(self.env.model, self.env.workload, self.sizes, whole, layers=firsts, micro_batches=1)
        found = book_of(graph, 1)
        return {layer if layer == ENDS else kinds[layer]: gpus[0] for layer, gpus in found.items()}

    @cached_property
    def layers(self) -> dict[int, int]:
        """How many layers each layer of `graph` stands for: those of its kind in its stage."""
        found, start = dict[int, int](), 0
        for stage in self.choice.stages:
            kinds = self.env.kind_of_layer[start : start + stage.layers]
            found |= {start + kinds.index(kind): kinds.count(kind) for kind in dict.fromkeys(kinds)}
            start += stage.layers
        return found

    @property
    def tokens(self) -> int:
        """Tokens of the whole batch."""
        return self.env.workload.batch * self.env.query_length

    @property
    def ranks(self) -> tuple[int, ...]:
        """GPUs of one replica."""
        return tuple(sorted(rank for stage in self.choice.stages for rank in stage.devices))

    def gpus(self, asked: Sequence[int]) -> tuple[int, ...]:
        """The GPUs asked for, all of them when none are; they must be the plan's."""
        unknown = [rank for rank in asked if rank not in self.ranks]
        if unknown:
            raise InputError("gpus", unknown[0], f"ranks of the plan: {self.ranks[0]} to {self.ranks[-1]}")
        return tuple(asked) or self.ranks

    def scope(self, name: str) -> list[tuple[int, int]]:
        """The layers of a scope with how many layers each stands for."""
        counted = list(self.layers.items())
        if name == "layer":
            return [(counted[0][0], 1)]
        if name == "stage":
            return [item for item in counted if item[0] < self.choice.stages[0].layers]
        return counted + ([(ENDS, 1)] if name == "model" and ENDS in self.book else [])

    def works(self, operators: Sequence[str], gpus: Sequence[int] = (), layers: Iterable[int] = ()) -> list[Work]:
        """The work of operators, taken together, on each GPU that does any, in the first layer that has them."""
        for layer in [*layers] or [*self.layers, ENDS]:
            here = self.book.get(layer, {})
            found = [joined([here[g][o] for o in operators if o in here[g]]) for g in self.gpus(gpus) if g in here]
            if any(found):
                return [work for work in found if work is not None]
        return []

    def slowest(self, operators: Sequence[str], gpus: Sequence[int] = (), layers: Iterable[int] = ()) -> Work | None:
        """The work of operators on the GPU that has most of it."""
        return max(self.works(operators, gpus, layers), key=lambda work: work.flops, default=None)

    def whole(self, operators: Sequence[str]) -> Work | None:
        """The work of operators in one layer of the unsplit model."""
        for works in self.unsplit.values():
            found = joined([works[o] for o in operators if o in works])
            if found is not None:
                return found
        return None

    def needed(self, scope: str) -> dict[str, float]:
        """FLOPs that the longest path of a scope needs, by operator: on the GPU with most of it, added up over layers."""
        found: dict[str, float] = {}
        for layer, times in self.scope(scope):
            for operator in {o: None for works in self.book.get(layer, {}).values() for o in works}:
                slowest = max(w[operator].flops for w in self.book[layer].values() if operator in w)
                found[operator] = found.get(operator, 0.0) + times * slowest
        return {operator: flops for operator, flops in found.items() if flops}

    def operators(self, operators: Sequence[str]) -> tuple[tuple[str, ...], bool]:
        """The plan's operators that a claim means, and whether it names a dense FFN where the plan has experts."""
        found = tuple(part for operator in operators for part in GROUPS.get(operator, (operator,)))
        dense = [operator for operator in found if operator in DENSE and self.whole([operator]) is None]
        return tuple(DENSE.get(o, o) if o in dense else o for o in found), bool(dense)

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Seconds of every node of `graph`."""
        return price_graph(self.env, self.graph)

    @cached_property
    def communication_share(self) -> float:
        """The part of one micro-batch's longest path through `graph` that is communication between GPUs."""
        found = longest_path(self.graph, self.seconds)
        moved = sum(self.seconds[name] for name in found.path if self.graph.by_id[name].communicates)
        return moved / found.seconds if found.seconds else 0.0

    @cached_property
    def behind(self) -> dict[str, frozenset[str]]:
        """For every operator of the layer first sampled the operators that its tensors come from, directly or not."""
        first = next(iter(self.layers))
        come: dict[str, set[str]] = {}
        for node in self.graph.nodes:
            come[node.id] = set()
            for edge in self.graph.into[node.id]:
                if edge.kind == "data" and self.graph.by_id[edge.src].layer == first:
                    come[node.id] |= come[edge.src] | _names(self.graph.by_id[edge.src].name)
        found: dict[str, set[str]] = {}
        for node in self.graph.nodes:
            if node.layer == first:
                for name in _names(node.name):
                    found.setdefault(name, set()).update(come[node.id])
        if "attention" in found:
            found["attention_value"] = found["attention"] | {"scores"}
        return {name: frozenset(sources) for name, sources in found.items()}


def _names(name: str) -> set[str]:
    """A fused kernel stands for both of its products."""
    fused = name.rstrip("0123456789") in ("attention", "attention_")
    return {name, "attention", "scores", "attention_value"} if fused else {name}


def joined(works: Sequence[Work]) -> Work | None:
    """Operators of one GPU as one: projections of the same tokens have their columns side by side."""
    if not works:
        return None
    first, flops = works[0], sum(work.flops for work in works)
    if len(works) == 1:
        return first
    if all((w.product.rows, w.product.k, w.product.count) == (first.product.rows, first.product.k, 1) for w in works):
        product = Products(first.product.rows, first.product.k, sum(w.product.n for w in works))
        return Work(first.operator, first.gpu, product, flops)
    return Work(first.operator, first.gpu, first.product, flops)

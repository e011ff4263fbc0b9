"""Judge: whether a mutant is found, by which check, or by which criterion it is no fault at all."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from planner.check.findings import Finding, errors
from planner.check.run import numeric
from planner.check.run.verdict import Evidence, NumericRun, verdict
from planner.check.run.world import World
from planner.check.run.worlds import forced_routes, make_world
from planner.check.structure import check_structure
from planner.check.validate import check_choice, check_graph
from planner.graph.expand import expand
from planner.graph.nodes import Graph, Node
from planner.graph.ops import Kind
from search_spaces.stages import Choice
from tests.mutants.subjects import Subject

EQUIVALENT = {
    "same graph": "nodes and edges are those of the graph without the change",
    "same order": "operators and tensors are the same, and so are the operators before each of them: waits that others imply",
    "same stretches": "between two points where GPUs or streams meet, a GPU runs the same operators one after another",
    "another sample": "the plan's own graph, with other layers of the same kinds to stand for all",
    "another sound plan": "no check objects to the changed plan, and its own graph computes the model in the numeric run",
}
"""Criteria by which a change is no fault, each decided by a computation."""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: the code that found it, or the criterion by which it is equivalent; neither: it survived."""

    found: str = ""
    equivalent: str = ""

    @property
    def survived(self) -> bool:
        """Whether a fault went unnoticed."""
        return not self.found and not self.equivalent


class Judge:
    """Judges the mutants of one subject; what does not depend on the mutant is computed once."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._known = self._told(check_graph(subject.env, subject.sizes, subject.choice, subject.graph, subject.complete))
        self._plan = self._told(check_choice(subject.env, subject.sizes, subject.choice))
        self._order: Order | None = None
        self._worlds: tuple[World, ...] | None = None
        self._baseline: set[tuple[str, str]] | None = None

    def graph(self, mutant: Graph) -> Verdict:
        """A broken graph that is said to be the plan's."""
        s = self.subject
        if set(mutant.nodes) == set(s.graph.nodes) and sorted(map(repr, mutant.edges)) == sorted(map(repr, s.graph.edges)):
            return Verdict(equivalent="same graph")
        found = [f for f in check_graph(s.env, s.sizes, s.choice, mutant, s.complete) if f.severity != "info"]
        new = [f.code for f in found if (f.code, f.where) not in self._known]
        if new:
            return Verdict(new[0])
        if s.complete and (code := self._run(mutant)):
            return Verdict(code)
        return Verdict(equivalent=self._equivalent(mutant))

    def plan(self, choice: Choice) -> Verdict:
        """A plan that was changed: found, or a sound one."""
        s = self.subject
        found = errors(check_structure(s.sizes, choice))
        if found:
            return Verdict(found[0].code)
        new = [
            f.code for f in check_choice(s.env, s.sizes, choice) if f.severity != "info" and (f.code, f.where) not in self._plan
        ]
        if new:
            return Verdict(new[0])
        other = Judge(Subject(s.name, s.env, s.sizes, choice).twin)
        run = other.run(other.subject.graph)
        wrong = errors(run.findings)
        return Verdict(wrong[0].code) if wrong else Verdict(equivalent="another sound plan")

    def run(self, graph: Graph) -> NumericRun:
        """The numeric run of a twin's graph."""
        worlds = self.worlds()
        outcomes = [numeric.run_once(graph, world) for world in worlds]
        outcomes[0].departures += numeric.more_orders(graph, worlds[0])
        return verdict(Evidence(worlds[0].twin, graph, worlds, tuple(outcomes), numeric.ORDERS, "", ()))

    def worlds(self) -> tuple[World, ...]:
        """Tensors of the twin: as the router routes, and so that every expert is reached."""
        if self._worlds is None:
            s = self.subject
            small = s.small
            first = make_world(small)
            forced = (make_world(small, forced_routes(small, first.length)),) if s.sizes.moe else ()
            self._worlds = (first, *forced)
        return self._worlds

    def _run(self, mutant: Graph) -> str:
        if self._baseline is None:
            self._baseline = self._told(self.run(self.subject.graph).findings)
        found = self.run(mutant).findings
        return next((f.code for f in found if f.severity != "info" and (f.code, f.where) not in self._baseline), "")

    def _equivalent(self, mutant: Graph) -> str:
        """The criterion by which a graph with the same operators and tensors is no other graph."""
        graph, s = self.subject.graph, self.subject
        layers = {node.layer for node in mutant.nodes if node.layer is not None}
        sample = expand(s.env.model, s.env.workload, s.sizes, s.choice, layers=layers, micro_batches=None if s.complete else 1)
        if set(mutant.nodes) == set(sample.nodes) and set(mutant.edges) == set(sample.edges):
            return "another sample"
        if set(mutant.operators()) != set(graph.operators()) or {e for e in mutant.edges if e.tensor} != {
            e for e in graph.edges if e.tensor
        }:
            return ""
        self._order = self._order or Order(graph)
        order = Order(mutant)
        if order.operators() == self._order.operators():
            return "same order"
        return "same stretches" if None is not order.stretches() == self._order.stretches() else ""

    @staticmethod
    def _told(found: tuple[Finding, ...]) -> set[tuple[str, str]]:
        return {(f.code, f.where) for f in found if f.severity != "info"}


class Order:
    """For every node the set of nodes that end before it starts, as the bits of a number."""

    def __init__(self, graph: Graph) -> None:
        self.graph, names = graph, sorted(node.id for node in graph.nodes)
        self.bit = {name: 1 << place for place, name in enumerate(names)}
        self.before: dict[str, int] = {}
        waits: dict[str, set[str]] = {name: set() for name in names}
        after: dict[str, set[str]] = {name: set() for name in names}
        for edge in graph.edges:
            waits[edge.dst].add(edge.src)
            after[edge.src].add(edge.dst)
        ready = [name for name in names if not waits[name]]
        left = {name: len(found) for name, found in waits.items()}
        while ready:
            name = ready.pop()
            row = 0
            for other in waits[name]:
                row |= self.before[other] | self.bit[other]
            self.before[name] = row
            for other in after[name]:
                left[other] -= 1
                if not left[other]:
                    ready.append(other)

    def operators(self) -> dict[str, int]:
        """The same without barriers, which take no time."""
        kept = {node.id for node in self.graph.operators()}
        mask = sum(self.bit[name] for name in kept)
        return {name: row & mask for name, row in self.before.items() if name in kept}

    def stretches(self) -> dict[tuple[int, str], list[set[str]]] | None:
        """Operators of every stream of every GPU, cut where it meets others; None where a stream has no order."""
        streams: dict[tuple[int, str], list[Node]] = {}
        for node in self.graph.nodes:
            if node.transfer is None:
                for device in node.devices:
                    own = [node.stream] if node.stream else ["compute", "transfer"]
                    for stream in own:
                        streams.setdefault((device, stream), []).append(node)
        stream_of = {node.id: node.stream for node in self.graph.nodes}
        meets = {n.id for n in self.graph.nodes if len(n.devices) > 1 or n.kind == Kind.BARRIER}
        meets |= {
            name for e in self.graph.edges if e.tensor and stream_of[e.src] != stream_of[e.dst] for name in (e.src, e.dst)
        }
        found: dict[tuple[int, str], list[set[str]]] = {}
        for key, nodes in streams.items():
            nodes.sort(key=lambda node: self.before[node.id].bit_count())
            if any(not self.before[b.id] & self.bit[a.id] for a, b in pairwise(nodes)):
                return None
            found[key] = [set()]
            for node in nodes:
                if node.id in meets:
                    found[key] += [{node.id}, set()]
                else:
                    found[key][-1].add(node.id)
        return found

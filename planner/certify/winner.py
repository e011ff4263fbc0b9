"""The plan of a certificate: built from its text, checked without a solver, and priced anew."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from planner.certify.apart import ApartPlans
from planner.certify.branch import Branch
from planner.certify.document import Certificate
from planner.certify.pipelines import pipeline_below
from planner.certify.question import INF, TOLERANCE, Question
from planner.certify.refusal import RefusedError
from planner.certify.stages import StageTimes
from planner.check.findings import errors
from planner.check.structure import check_structure
from planner.check.validate import check_choice
from planner.errors import InputError
from planner.evaluate.capacity import over_capacity
from planner.evaluate.linear import linear_path
from planner.evaluate.measures import measures
from planner.evaluate.setting import Setting
from planner.evaluate.waves import waves_path
from planner.plan import choice_to_dict, plan_space
from search_spaces.experts import Placed
from search_spaces.space import SearchSpace
from search_spaces.stages import Choice

GRAPH_GPUS = 256
"""Most GPUs for which the graph of a plan is built and checked."""


def check_winner(read: Certificate, env: Setting, question: Question) -> str:
    """The plan is in the space, sound, within memory and limits, and worth what is claimed."""
    if read.plan is None:
        return "no plan is claimed"
    choice, sizes = chosen(read), read.problem.sizes
    graph = sizes.devices <= GRAPH_GPUS
    found = errors(check_choice(env, sizes, choice) if graph else check_structure(sizes, choice))
    if found:
        raise RefusedError(f"the plan is not sound: {found[0].code} {found[0].where}: {found[0].message}")
    if not fits(env, read.problem.space, question, choice):
        raise RefusedError("the plan needs more memory than a GPU has, or than the limit allows")
    measured = measures(env, sizes, choice)
    walked = (waves_path if choice.stages[0].separate else linear_path)(env, sizes, choice).latency_s
    if abs(walked - measured.latency_s) > TOLERANCE * walked:
        raise RefusedError(f"its critical path takes {walked:.12g} s, its stages {measured.latency_s:.12g} s")
    value = question.of_plan(measured)
    if value == INF:
        raise RefusedError("the plan is beyond a limit of the question")
    if read.least is None or abs(value - read.least) > TOLERANCE * value:
        raise RefusedError(f"the plan is worth {value:.12g}, not the {read.least} that is claimed (in what is minimized)")
    return f"{'graph, memory' if graph else 'structure, memory'} and limits hold; priced at {value:.12g}, as claimed"


def chosen(read: Certificate) -> Choice:
    """The one plan that the text stands for, which must be in the space."""
    space = read.problem.space
    try:
        own = plan_space(read.plan or {}, space, "plan")
    except InputError as error:
        raise RefusedError(f"the plan cannot be read: {error}") from None
    found = list(islice(own.choices(), 2)) if own.layout and own.size() < 3 else []
    if len(found) != 1:
        raise RefusedError("the plan leaves decisions open, or is none")
    held = with_placements_of(space, found[0]) if read.any_placement else space
    if not held.contains(found[0]):
        raise RefusedError("the plan is not in the space")
    return found[0]


def with_placements_of(space: SearchSpace, choice: Choice) -> SearchSpace:
    """The space with the placements of a plan among those that it lists; it must leave placements open."""
    if space.experts.placement is not None or space.layout:
        raise RefusedError("any placement is claimed of a space that pins placements")
    found: dict[int, tuple[Placed, ...]] = {}
    for stage in choice.stages:
        if stage.experts is not None and stage.experts.placement:
            groups = len(stage.expert_devices) // stage.experts.tensor_ways
            found[groups] = tuple(dict.fromkeys((*found.get(groups, ()), stage.experts.placement)))
    return replace(space, experts=replace(space.experts, searched=tuple(found.items())))


def fits(env: Setting, space: SearchSpace, question: Question, choice: Choice) -> bool:
    """Whether a plan stays within the memory of its GPUs and within the limit on it."""
    if over_capacity(env, space.sizes, choice) > 0:
        return False
    most = question.most.memory_bytes
    if most == INF:
        return True
    alone = plan_space(choice_to_dict(choice, space.sizes), space)
    branch, open_question = Branch(alone, choice.replicas, choice.micro_batches), Question(env, "latency")
    if choice.stages[0].separate:
        return ApartPlans(env, alone, most).below(open_question, branch, INF) is not None
    return pipeline_below(StageTimes(env, alone, most), open_question, branch, INF) is not None

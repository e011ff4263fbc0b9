"""Finds the provably fastest parallel deployment of a large language model on a GPU cluster.

The public names are `load_problem`, `load_plan`, `library_names`, `search`, `pareto`, `evaluate`, `validate`, `compare`,
`explain`, `build_graph`, `certificate`, `verify` and the errors. They are loaded at first use, so that importing this package
costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.api import Chosen, NoPlanError, build_graph, choose, evaluate, search, validate
    from planner.certify.verify import verify
    from planner.certify.write import certificate
    from planner.errors import InputError, PlannerError
    from planner.front import pareto
    from planner.insight.compare import compare
    from planner.insight.explain import explain
    from planner.problem import Problem, library_names, load_plan, load_problem

__all__ = [
    "Chosen", "InputError", "NoPlanError", "PlannerError", "Problem", "build_graph", "certificate", "choose", "compare",
    "evaluate", "explain", "library_names", "load_plan", "load_problem", "pareto", "search", "validate", "verify",
]  # fmt: skip
_ERRORS = {"InputError", "PlannerError"}
_PROBLEMS = {"Problem", "library_names", "load_plan", "load_problem"}
_CALLED = {"evaluate", "search"}  # modules of this package that share their name with a public function


class _Callable(ModuleType):
    """A module of this package that may be called like the public function of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(import_module("planner.api"), self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Face(ModuleType):
    """The package itself: `planner.search` is the module and can be called, imported before or not."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _CALLED and isinstance(value, ModuleType):
            value.__class__ = _Callable
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __getattr__(name: str) -> Any:
    """Load a public name at its first use."""
    if name == "evaluate":
        return import_module("planner.evaluate")
    if name == "search":
        return import_module("planner.search")
    if name in _ERRORS:
        return getattr(import_module("planner.errors"), name)
    if name in _PROBLEMS:
        return getattr(import_module("planner.problem"), name)
    if name == "compare":
        return import_module("planner.insight.compare").compare
    if name == "explain":
        return import_module("planner.insight.explain").explain
    if name == "pareto":
        return import_module("planner.front").pareto
    if name == "verify":
        return import_module("planner.certify.verify").verify
    if name == "certificate":
        return import_module("planner.certify.write").certificate
    if name in __all__:
        return getattr(import_module("planner.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

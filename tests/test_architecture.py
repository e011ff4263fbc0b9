"""The floors of CONTRIBUTING.md as a failing test: who may import whom, and what no file may do.

The checker reads syntax trees only, so it imports nothing and sees TYPE_CHECKING and in-function imports too. A rule takes a
house (sources by path) and yields what is wrong. Below the rules stand small houses, each with one fault that must be found.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("search_spaces", "planner")

# A room imports from lower floors, or from its own floor where that closes no circle. CONTRIBUTING.md holds the same table.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("search_spaces/",),
    ("planner/errors.py", "planner/units.py", "planner/fields.py", "planner/files.py"),
    ("planner/model.py", "planner/models/", "planner/cluster.py", "planner/clusters/", "planner/workload.py"),
    ("planner/plan.py", "planner/problem.py"),
    ("planner/graph/",),
    ("planner/costs/",),
    ("planner/evaluate/",),
    ("planner/check/",),
    ("planner/solve/",),
    ("planner/hand_designed.py", "planner/search.py"),
    (
        "planner/api.py",
        "planner/front.py",
        "planner/certify/",
        "planner/insight/",
        "planner/inspect/",
        "planner/profile/",
        "planner/report/",
        "planner/export/",
        "planner/store.py",
        "planner/batch/",
    ),
    ("planner/cli/", "planner/__init__.py", "planner/__main__.py"),
)
FACES = {"planner.cli", "planner", "planner.__main__"}  # these load rooms late, so that the command starts fast
DOORS = {  # a third-party package and the only rooms that may import it
    "ortools": {"planner.solve"},
    "typer": {"planner.cli"},
    "tabulate": {"planner.report", "planner.cli"},
    "networkx": {"planner.graph", "planner.export", "planner.check"},
    "pygraphviz": {"planner.export"},
    "torch": {"planner.profile", "planner.check"},
}
NOT_IN_SEARCH = {"networkx", "pygraphviz"}  # slow to load, and of no use to a search
RUNS_ITS_INPUT = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_YAML = (
    "unsafe_load unsafe_load_all full_load full_load_all Loader CLoader FullLoader CFullLoader UnsafeLoader CUnsafeLoader"
)
FORBIDDEN = {"eval", "exec", "__import__", "builtins.eval", "builtins.exec", *(f"yaml.{n}" for n in UNSAFE_YAML.split())}
FILE_LINES, FUNCTION_LINES = 400, 60
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def dotted_path(path: str) -> str:
    """`planner/graph/ops.py` -> `planner.graph.ops`; a package is named after its folder."""
    return path.rstrip("/").removesuffix(".py").replace("/", ".").removesuffix(".__init__")


FLOOR = {dotted_path(room): floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    return ".".join(module.split(".")[: 1 if module.startswith("search_spaces") else 2])


class Import(NamedTuple):
    target: str  # the module where it can be told from a name, else the dotted name up to the module
    line: int
    in_function: bool
    for_types_only: bool

    @property
    def ours(self) -> bool:
        return self.target.split(".")[0] in PACKAGES

    @property
    def package(self) -> str:
        return self.target.split(".")[0]


class Source:
    """One file: its tree, the modules it imports, and what its local names stand for."""

    def __init__(self, path: str, text: str, modules: set[str]):
        self.path, self.text, self.module = path, text, dotted_path(path)
        self.room, self.tree = room_of(self.module), ast.parse(text, path)
        self.aliases: dict[str, str] = {}
        self.imports = list(self._imports(self.tree, modules, in_function=False, for_types_only=False))

    def _imports(self, node: ast.AST, modules: set[str], in_function: bool, for_types_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            for target in self._targets(child, modules):
                yield Import(target, child.lineno, in_function, for_types_only)
            function = in_function or isinstance(child, FUNCTIONS)
            types = for_types_only or (isinstance(child, ast.If) and self.name(child.test).endswith("TYPE_CHECKING"))
            yield from self._imports(child, modules, function, types)

    def _targets(self, node: ast.AST, modules: set[str]) -> Iterator[str]:
        if isinstance(node, ast.Import):
            self.aliases.update({a.asname: a.name for a in node.names if a.asname})
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = self.module.split(".") + ["__init__"] * self.path.endswith("__init__.py")
            base = ".".join([*(here[: -node.level] if node.level else []), *filter(None, [node.module])])
            self.aliases.update({a.asname or a.name: f"{base}.{a.name}" for a in node.names})
            yield from (f"{base}.{a.name}" if f"{base}.{a.name}" in modules else base for a in node.names)
        elif isinstance(node, ast.Call) and self.name(node.func) == "importlib.import_module":
            name = node.args[0] if node.args else node
            yield name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else "?"

    def name(self, node: ast.AST) -> str:
        """The dotted name an expression stands for, with import aliases undone; empty for anything else."""
        if isinstance(node, ast.Name):
            return self.aliases.get(node.id, node.id)
        return f"{self.name(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""

    def names(self) -> Iterator[tuple[str, int]]:
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
                yield self.name(node), node.lineno


House = Mapping[str, Source]


def build_house(files: Mapping[str, str]) -> House:
    modules = {dotted_path(path) for path in files}
    return {dotted_path(path): Source(path, text, modules) for path, text in files.items()}


def arrows(house: House) -> Iterator[tuple[Source, Import]]:
    """Every import of one of our own modules."""
    yield from ((source, imported) for source in house.values() for imported in source.imports if imported.ours)


def circle(edges: Mapping[str, set[str]]) -> Iterator[str]:
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        yield "import circle: " + " <- ".join(error.args[1])


def every_room_has_a_floor(house: House) -> Iterator[str]:
    for source in house.values():
        if source.room not in FLOOR:
            yield f"{source.path}: {source.room} is on no floor; place it in FLOORS ({Path(__file__).name}) and CONTRIBUTING.md"


def imports_go_down(house: House) -> Iterator[str]:
    for source, imported in arrows(house):
        here, there = FLOOR.get(source.room, 99), FLOOR.get(room_of(imported.target), -1)
        if there > here:
            yield f"{source.path}:{imported.line}: floor {here} imports {imported.target} from floor {there}: an import goes up"


def rooms_make_no_circle(house: House) -> Iterator[str]:
    edges: dict[str, set[str]] = {}
    for source, imported in arrows(house):
        if source.room != room_of(imported.target):
            edges.setdefault(source.room, set()).add(room_of(imported.target))
    yield from circle(edges)


def modules_make_no_circle(house: House) -> Iterator[str]:
    edges: dict[str, set[str]] = {}
    for source, imported in arrows(house):
        if source.module != imported.target:
            edges.setdefault(source.module, set()).add(imported.target)
    yield from circle(edges)


def ground_uses_only_the_standard_library(house: House) -> Iterator[str]:
    for source in house.values():
        for imported in source.imports if source.room == "search_spaces" else ():
            if imported.package not in {*sys.stdlib_module_names, "search_spaces"}:
                yield f"{source.path}:{imported.line}: the ground imports {imported.target}, outside the standard library"


def packages_come_in_by_their_door(house: House) -> Iterator[str]:
    for source in house.values():
        for imported in source.imports:
            if source.room not in DOORS.get(imported.package, {source.room}):
                doors = ", ".join(sorted(DOORS[imported.package]))
                yield f"{source.path}:{imported.line}: only {doors} may import {imported.package}"


def own_imports_stand_at_the_head(house: House) -> Iterator[str]:
    for source in house.values():
        for imported in source.imports if source.room not in FACES else ():
            if imported.target == "?":
                yield f"{source.path}:{imported.line}: an import whose name is computed cannot be checked"
            elif imported.ours and imported.in_function:
                yield f"{source.path}:{imported.line}: imports {imported.target} inside a function; move it to the head"


def search_stays_light(house: House) -> Iterator[str]:
    """What `import planner.search` loads at once, parent packages included, holds no graph drawing."""
    queue, seen = ["planner.search"], set[str]()
    while queue:
        module = queue.pop()
        if module in seen or module not in house:
            continue
        seen.add(module)
        queue.append(module.rpartition(".")[0])
        for imported in house[module].imports:
            if imported.in_function or imported.for_types_only:
                continue
            queue.append(imported.target)
            if imported.package in NOT_IN_SEARCH:
                yield f"{house[module].path}:{imported.line}: search loads {imported.package}; import it where it is used"


def only_the_command_prints(house: House) -> Iterator[str]:
    for source in house.values():
        for name, line in source.names() if source.room != "planner.cli" else ():
            if name in {"print", "builtins.print"}:
                yield f"{source.path}:{line}: print; return the text, planner/cli.py prints it"


def input_is_never_run(house: House) -> Iterator[str]:
    for source in house.values():
        where = source.path
        yield from (f"{where}:{i.line}: {i.package} runs what it reads" for i in source.imports if i.package in RUNS_ITS_INPUT)
        yield from (f"{where}:{line}: {name} runs what it reads" for name, line in source.names() if name in FORBIDDEN)
        for call in (node for node in ast.walk(source.tree) if isinstance(node, ast.Call)):
            keywords = {keyword.arg: keyword.value for keyword in call.keywords}
            pickles = keywords.get("allow_pickle")
            if pickles is not None and not (isinstance(pickles, ast.Constant) and pickles.value is False):
                yield f"{where}:{call.lineno}: allow_pickle runs what it reads"
            if source.name(call.func) in {"yaml.load", "yaml.load_all"} and "Loader" not in keywords and len(call.args) < 2:
                yield f"{where}:{call.lineno}: {source.name(call.func)} without a safe loader runs what it reads"


def files_and_functions_stay_short(house: House) -> Iterator[str]:
    for source in house.values():
        if (lines := len(source.text.splitlines())) > FILE_LINES:
            yield f"{source.path}: {lines} lines, the limit is {FILE_LINES}"
        for node in ast.walk(source.tree):
            lines = node.end_lineno - node.lineno + 1 if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else 0
            if lines > FUNCTION_LINES:
                yield f"{source.path}:{node.lineno}: {node.name} has {lines} lines, the limit is {FUNCTION_LINES}"


RULES = (
    every_room_has_a_floor,
    imports_go_down,
    rooms_make_no_circle,
    modules_make_no_circle,
    ground_uses_only_the_standard_library,
    packages_come_in_by_their_door,
    own_imports_stand_at_the_head,
    search_stays_light,
    only_the_command_prints,
    input_is_never_run,
    files_and_functions_stay_short,
)


@cache
def our_house() -> House:
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return build_house({path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths})


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_our_house_keeps_the_rule(rule):
    found = list(rule(our_house()))
    assert not found, "\n" + "\n".join(found)


def test_the_house_is_not_empty():
    assert {"planner.errors", "planner.model"} <= set(our_house())


def test_contributing_shows_the_same_floors():
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [(int(floor), tuple(re.findall(r"`([^`]+)`", rooms))) for floor, rooms in rows] == list(enumerate(FLOORS))


SOUND = {
    "search_spaces/sizes.py": "import math\nfrom dataclasses import dataclass\n",
    "planner/__init__.py": "def load():\n    from planner.search import search\n    return search\n",
    "planner/errors.py": "from typing import NamedTuple\n",
    "planner/model.py": "from planner.errors import InputError\nfrom search_spaces import sizes\n",
    "planner/models/__init__.py": "from planner.model import ModelSpec\n",
    "planner/files.py": "import yaml\nclass L(yaml.SafeLoader): ...\nA = yaml.load('', Loader=L)\nB = yaml.safe_load('')\n",
    "planner/graph/__init__.py": "from planner.graph.build import build_graph as build_graph\n",
    "planner/graph/ops.py": "import ast\nA = ast.literal_eval('1')\n",
    "planner/graph/build.py": "from . import ops\ndef draw():\n    import networkx\n    return networkx\n",
    "planner/solve/__init__.py": "from ortools.sat.python import cp_model\n",
    "planner/search.py": "from planner.graph import build_graph\nfrom planner.solve import choose\n",
    "planner/cli.py": "import typer\ndef main():\n    import planner.search\n    print(planner.search)\n",
}

FAULTS = [
    (every_room_has_a_floor, {"planner/attic.py": ""}, "planner.attic is on no floor; place it"),
    (every_room_has_a_floor, {"planner/attic/box.py": ""}, "planner.attic is on no floor; place it"),
    (imports_go_down, {"search_spaces/sizes.py": "import planner.units"}, "goes up"),
    (imports_go_down, {"planner/model.py": "from planner import plan", "planner/plan.py": ""}, "planner.plan from floor 3"),
    (imports_go_down, {"planner/costs/a.py": "from planner import load_problem"}, "imports planner from floor 11"),
    (imports_go_down, {"planner/costs/a.py": "from ..check import b"}, "planner.check from floor 7"),
    (imports_go_down, {"planner/costs/a.py": "if TYPE_CHECKING:\n    from planner.solve import X"}, "goes up"),
    (imports_go_down, {"planner/costs/a.py": "def f():\n    import planner.check.run"}, "goes up"),
    (imports_go_down, {"planner/costs/a.py": "import importlib as i\ni.import_module('planner.solve')"}, "goes up"),
    (
        rooms_make_no_circle,
        {"planner/plan.py": "from planner.problem import P", "planner/problem.py": "import planner.plan"},
        "import circle: planner.p",
    ),
    (
        rooms_make_no_circle,  # no circle of modules, and yet a circle of rooms
        {"planner/report/a.py": "import planner.batch.a", "planner/batch/b.py": "import planner.report.c"},
        "import circle: planner.",
    ),
    (
        modules_make_no_circle,
        {"planner/graph/__init__.py": "from planner.graph.a import f", "planner/graph/a.py": "from . import f"},
        "import circle: planner.graph",
    ),
    (ground_uses_only_the_standard_library, {"search_spaces/a.py": "import numpy as np"}, "imports numpy"),
    (ground_uses_only_the_standard_library, {"search_spaces/a.py": "def f():\n    import yaml"}, "imports yaml"),
    (packages_come_in_by_their_door, {"planner/search.py": "from ortools.sat.python import cp_model"}, "only planner.solve"),
    (packages_come_in_by_their_door, {"planner/report/a.py": "import typer"}, "only planner.cli"),
    (packages_come_in_by_their_door, {"planner/store.py": "from tabulate import tabulate"}, "only planner.cli, planner.report"),
    (packages_come_in_by_their_door, {"planner/evaluate/a.py": "def f():\n    import networkx"}, "may import networkx"),
    (packages_come_in_by_their_door, {"planner/graph/a.py": "import pygraphviz"}, "only planner.export"),
    (own_imports_stand_at_the_head, {"planner/plan.py": "def f():\n    from planner.errors import E"}, "inside a function"),
    (own_imports_stand_at_the_head, {"planner/plan.py": "import importlib\nimportlib.import_module(X)"}, "computed"),
    (search_stays_light, {"planner/graph/build.py": "import networkx as nx"}, "search loads networkx"),
    (
        search_stays_light,
        {"planner/__init__.py": "import planner.export", "planner/export/__init__.py": "import pygraphviz"},
        "search",
    ),
    (only_the_command_prints, {"planner/report/a.py": "def f():\n    print(1)"}, "planner/report/a.py:2: print"),
    (only_the_command_prints, {"planner/search.py": "def f(progress=print): ..."}, "print"),
    (input_is_never_run, {"planner/files.py": "x = eval('1')"}, "eval runs"),
    (input_is_never_run, {"planner/files.py": "from builtins import exec as run\nrun('1')"}, "builtins.exec runs"),
    (input_is_never_run, {"planner/store.py": "import pickle"}, "pickle runs"),
    (input_is_never_run, {"planner/store.py": "import numpy\nnumpy.load('a', allow_pickle=True)"}, "allow_pickle runs"),
    (input_is_never_run, {"planner/files.py": "import yaml as y\ny.load('')"}, "yaml.load without"),
    (input_is_never_run, {"planner/files.py": "import yaml\nyaml.load('', Loader=yaml.Loader)"}, "yaml.Loader runs"),
    (input_is_never_run, {"planner/files.py": "from yaml import UnsafeLoader as L\nclass S(L): ..."}, "yaml.UnsafeLoader runs"),
    (input_is_never_run, {"planner/files.py": "from yaml import unsafe_load\nunsafe_load('')"}, "yaml.unsafe_load runs"),
    (files_and_functions_stay_short, {"planner/plan.py": "\n" * (FILE_LINES + 1)}, "401 lines"),
    (files_and_functions_stay_short, {"planner/plan.py": "def f():\n" + "    x = 1\n" * FUNCTION_LINES}, "f has 61 lines"),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_sound_house_passes(rule):
    assert list(rule(build_house(SOUND))) == []


@pytest.mark.parametrize(("rule", "fault", "message"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
def test_a_fault_is_found(rule, fault, message):
    assert any(message in found for found in rule(build_house({**SOUND, **fault})))


def test_every_rule_has_a_fault_to_find():
    assert {rule for rule, _, _ in FAULTS} == set(RULES)


def test_limits_themselves_are_allowed():
    text = "def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 1) + "\n" * (FILE_LINES - FUNCTION_LINES)
    assert list(files_and_functions_stay_short(build_house({"planner/plan.py": text}))) == []

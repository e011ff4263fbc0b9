"""Names from files in what we draw and write: they are shown, and do nothing."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from planner.api import BEST, Chosen
from planner.cli.drawing import Drawer
from planner.evaluate.setting import setting
from planner.export.dot import dag_svg
from planner.inspect.parse import parse_dot
from planner.problem import load_problem
from planner.report import markdown_report
from planner.search import search
from planner.store import run_files
from tests.planner.batch.stores import TINY

SVG = "{http://www.w3.org/2000/svg}"
NAMES = [
    "<script>alert(1)</script>", '"><svg onload=alert(1)>', "]];} digraph evil { a -> b",
    'x" URL="javascript:alert(1)', "\\N\\G\\l<b>",
    "&lt;script&gt;", "a\u202eb\u2028c", "[x](javascript:alert(1))", "![x](http://x/y.png)", "| a | b |", "-->", "{{7*7}}",
]  # fmt: skip


@pytest.fixture(scope="module", params=NAMES)
def result(request):
    name = request.param
    return search(
        load_problem(
            {"name": name, "model": {**TINY, "name": name}, "cluster": "1x1-h100", "source": name, "assumptions": [name],
             "workload": {"phase": "prefill", "batch": 2, "prompt": 16, "logits": "none"}}
        ),
        details=False,
    )  # fmt: skip


def test_a_drawing_holds_names_as_text_alone(result):
    problem = result.problem
    env = setting(problem.model, problem.workload, problem.cluster)
    drawer = Drawer(Chosen(problem, env, BEST, result.choice))
    for dot in (drawer.dot("model"), drawer.full()):
        graph = parse_dot(dot, "drawing")
        assert graph.nodes and not any("URL" in node.attributes for node in graph.nodes)
    root = ET.fromstring(dag_svg(drawer.dot("model")))
    for element in root.iter():
        assert element.tag.removeprefix(SVG) in {
            "svg",
            "g",
            "title",
            "path",
            "polygon",
            "polyline",
            "ellipse",
            "text",
            "a",
            "tspan",
        }
        for attribute, value in element.attrib.items():
            assert not attribute.startswith("on") and "javascript" not in value


def test_a_report_holds_names_as_text_alone(result):
    report = markdown_report(result)
    for markup in ("<script", "<svg", "](javascript", "](http"):
        assert markup not in report.replace("\\<", "").replace("\\]", "")
    assert "\u202e" not in report and "\u2028" not in report
    assert {name for name in run_files(result)} == {"problem.yaml", "result.json", "report.md", "plan.yaml", "evaluation.json"}

"""Verdicts on the claims of a source: for the terminal, as a page for each problem, and on one page over all of them."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from planner.check.claims import Judgement
from planner.problem import Problem
from planner.report.document import Block, Bullets, Section, Table, Text, table, to_markdown, to_text
from planner.report.show import count, seconds

WORDS = {"holds": "holds", "wrong": "wrong", "not_derivable": "not derivable"}
HOW = (
    "Each claim is held against the graph of its plan: the work of one GPU over the whole batch, operator by operator, two "
    "FLOPs for each multiply-add, nothing recomputed. Factor: claimed over required work (or over the derived value). "
    "Comparisons use the planner's own prices of both plans, each completed as well as its author's pins allow."
)
MOST = 120
"""Characters of a claim's text in a table."""
WORK = ("term", "shape", "total", "flops")


@dataclass(frozen=True)
class JudgedProblem:
    """A problem with the verdicts on its claims by plan (`` for those about the problem), and the seconds of its plans:
    completed, and as written (in one micro-batch, whether or not that fits).
    """

    problem: Problem
    judgements: Mapping[str, Sequence[Judgement]]
    latency_s: Mapping[str, float]
    as_written_s: Mapping[str, float]

    @property
    def every(self) -> list[Judgement]:
        """All verdicts."""
        return [judgement for some in self.judgements.values() for judgement in some]


def claims_report(judgements: Sequence[Judgement]) -> str:
    """Verdicts for the terminal: what is wrong and what cannot be derived; claims that hold are counted."""
    sections = []
    for verdict, title in (("wrong", "Wrong claims"), ("not_derivable", "Claims that cannot be derived")):
        found = [judgement for judgement in judgements if judgement.verdict == verdict]
        if found:
            sections.append(Section(title, (_short_table(found),)))
    return to_text(f"claims: {counted(judgements)}", sections)


def counted(judgements: Iterable[Judgement]) -> str:
    """How many claims have which verdict, in one line."""
    found = Counter(judgement.verdict for judgement in judgements)
    return f"{found['holds']} hold, {found['wrong']} are wrong, {found['not_derivable']} cannot be derived"


def claims_markdown(judged: JudgedProblem) -> str:
    """The page of one problem: every claim with its verdict."""
    problem = judged.problem
    sections = [Section("By mistake", _by_mistake([judged]))] if any(j.mistakes for j in judged.every) else []
    for plan, judgements in judged.judgements.items():
        title = f"Claims about {plan}" if plan else "Claims about the problem"
        longer = [f"{j.id}: {j.reason}" for j in judgements if _short(j.reason) != j.reason]
        blocks: tuple[Block, ...] = (Text(counted(judgements) + "."), _table(judgements))
        sections.append(Section(title, (*blocks, Bullets(tuple(longer))) if longer else blocks))
    headline = f"{count(len(judged.every), 'claim')} of {problem.source or problem.name}: {counted(judged.every)}. {HOW}"
    return to_markdown(f"Claims of {problem.name}", headline, sections)


def claims_summary(problems: Sequence[JudgedProblem]) -> str:
    """One page over several problems."""
    every = [judgement for judged in problems for judgement in judged.every]
    headline = f"{count(len(every), 'claim')} of {len(problems)} sources: {counted(every)}. {HOW}"
    sections = [
        Section("By source", (_by_source(problems), _work_words(every))),
        Section("By mistake", _by_mistake(problems)),
        Section("Whole expressions", _totals(problems)),
        Section("What it changes in the authors' conclusions", (Bullets(tuple(_conclusions(problems))),)),
        Section("Claims that cannot be derived", (Bullets(tuple(_open(problems))),)),
    ]
    return to_markdown("Claims", headline, sections)


def factor_words(factor: float | None) -> str:
    """A factor as a person says it: `1,024 x too much`, `1/8 of it`."""
    if factor is None:
        return "-"
    if math.isclose(factor, 1.0, rel_tol=0.011):
        return "1"
    inverse = 1 / factor if factor else math.inf
    if factor < 1 and math.isclose(inverse, round(inverse), rel_tol=0.01):
        return f"1/{round(inverse):,} of it"
    return f"{_plain(factor)} x too much" if factor > 1 else f"{factor:.3g} of it"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or math.isclose(value, round(value), rel_tol=1e-9) else f"{value:.4g}"


def _table(judgements: Sequence[Judgement]) -> Table:
    """Claims with their verdicts and reasons."""
    headers = ("claim", "at", "in the author's words", "verdict", "claimed", "derived", "factor", "why")
    rows = [
        (j.id, j.at or "-", _short(j.text), WORDS[j.verdict], _short(j.claimed), _short(j.derived), _factor(j),
         j.reason if _short(j.reason) == j.reason else "see below the table")
        for j in judgements
    ]  # fmt: skip
    return table(headers, rows)


def _short_table(judgements: Sequence[Judgement]) -> Table:
    """Claims with their factors and reasons, to fit a terminal."""
    rows = [(f"{j.id}\n{j.at}", _short(j.text), _factor(j), j.reason) for j in judgements]
    return table(("claim", "in the author's words", "factor", "why"), rows, wide=44)


def _short(text: str) -> str:
    """The beginning of a long text: the whole stands in the claims file."""
    return textwrap.shorten(text, MOST, placeholder=" ...")


def _factor(judgement: Judgement) -> str:
    return factor_words(judgement.factor) if judgement.verdict == "wrong" else "-"


def _by_source(problems: Sequence[JudgedProblem]) -> Table:
    rows = []
    for judged in problems:
        found = Counter(j.verdict for j in judged.every)
        work = Counter(j.verdict for j in judged.every if j.kind in WORK)
        rows.append(
            (judged.problem.name, judged.problem.source or "-", len(judged.every), found["holds"], found["wrong"],
             found["not_derivable"], f"{work['holds']} of {sum(work.values())}")
        )  # fmt: skip
    headers = ("problem", "source", "claims", "hold", "wrong", "not derivable", "of the work claims hold")
    return table(headers, rows, headers[2:])


def _work_words(every: Sequence[Judgement]) -> Text:
    """What the last column counts, and how far the work claims are off."""
    factors = [j.factor for j in every if j.kind in WORK and j.verdict == "wrong" and j.factor]
    more, less = sum(f > 1.011 for f in factors), sum(f < 0.989 for f in factors)
    reach = f" (from {factor_words(min(factors))} to {factor_words(max(factors))})" if factors else ""
    return Text(
        "Work claims are those about products: Get_Time terms, shapes, FLOP figures and whole expressions. "
        f"Of the wrong ones with a factor {more} claim too much and {less} too little{reach}."
    )


def _by_mistake(problems: Sequence[JudgedProblem]) -> tuple[Block, ...]:
    """How often each mistake is made, and where."""
    found: dict[str, list[tuple[str, Judgement]]] = {}
    for judged in problems:
        for judgement in judged.every:
            for name in judgement.mistakes:
                found.setdefault(name, []).append((judged.problem.name, judgement))
    rows = []
    for name, made in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
        alone = sorted({j.factor for _, j in made if j.factor is not None and j.mistakes == (name,) and j.kind != "total"})
        reach = " to ".join(dict.fromkeys(factor_words(f) for f in (alone[:1] + alone[-1:]))) or "-"
        where = Counter(problem for problem, _ in made)
        here = len(problems) > 1
        text = ", ".join(f"{problem} {times}" for problem, times in where.items()) if here else ", ".join(j.id for _, j in made)
        rows.append((name, len(made), reach, text))
    last = "where" if len(problems) > 1 else "which"
    note = Text("A claim can make several. Factor: of claims whose only mistake it is, whole expressions aside.")
    return note, table(("mistake", "claims", "factor", last), rows, ("claims",))


def _totals(problems: Sequence[JudgedProblem]) -> tuple[Block, ...]:
    """The authors' whole expressions: work against the longest path's, and both priced with the same Get_Time."""
    rows = []
    for judged in problems:
        for plan, judgements in judged.judgements.items():
            for j in (j for j in judgements if j.kind == "total" and j.seconds is not None):
                latency = judged.latency_s.get(plan)
                rows.append(
                    (judged.problem.name, plan, j.id, WORDS[j.verdict], j.claimed, j.derived, factor_words(j.factor),
                     seconds(j.seconds or 0.0), "-" if latency is None else seconds(latency))
                )  # fmt: skip
    headers = ("problem", "plan", "expression", "verdict", "claimed work", "required work", "factor", "claimed time",
               "price of the plan")  # fmt: skip
    note = Text(
        "Work of one GPU along the longest path. Claimed time: the author's expression under the planner's Get_Time, without "
        "the communication that it names but does not size. Price of the plan: the planner's, of the completed plan as a "
        "whole, communication and pipeline overlap included; it belongs to expressions of the whole model."
    )
    return note, table(headers, rows)


def _conclusions(problems: Sequence[JudgedProblem]) -> list[str]:
    """Which plan is better: by the authors' own expressions, and by the planner's prices; then what they conclude."""
    lines = []
    for judged in problems:
        lines += _reversed(judged)
        for j in judged.every:
            if j.kind in ("comparison", "percentage") and j.verdict != "not_derivable":
                verdict = "does not hold" if j.verdict == "wrong" else "holds"
                shown = f" (claimed {j.claimed}, derived {j.derived})" if j.kind == "percentage" else ""
                lines.append(f'{judged.problem.name}: "{j.text}" {verdict}{shown}: {j.reason}')
    return lines or ["No source compares plans."]


def _reversed(judged: JudgedProblem) -> list[str]:
    """The authors' last whole expressions of a proposal and its baseline, priced, beside the planner's latencies."""
    plans = {}
    for plan, judgements in judged.judgements.items():
        whole = [j for j in judgements if j.kind == "total" and j.seconds and j.id in ("total", "base-total")]
        if whole and plan in judged.latency_s:
            plans[plan] = whole[-1].seconds or 0.0
    if len(plans) != 2:
        return []
    (first, a), (second, b) = plans.items()
    x, y = judged.latency_s[first], judged.latency_s[second]
    same = (a < b) == (x < y)
    written = [seconds(judged.as_written_s[plan]) for plan in (first, second) if plan in judged.as_written_s]
    once = f"; in one micro-batch, if it fitted, {' and '.join(written)}" if len(written) == 2 else ""
    return [
        f"{judged.problem.name}: by the author's own expressions {first} takes {seconds(a)} and {second} {seconds(b)} "
        f"({a / b:.3g} times); completed and priced they take {seconds(x)} and {seconds(y)} ({x / y:.3g} times): "
        f"{'the order stays' if same else 'the order turns round'}{once}"
    ]


def _open(problems: Sequence[JudgedProblem]) -> list[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for judged in problems:
        for j in judged.every:
            if j.verdict == "not_derivable":
                found.setdefault((judged.problem.name, j.reason), []).append(j.id)
    return [f"{problem}: {', '.join(ids)}: {reason}" for (problem, reason), ids in found.items()] or ["None."]

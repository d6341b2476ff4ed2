"""The three tests of Shi et al. 2024."""

from __future__ import annotations

from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from acdc.circuit import Circuit
from acdc.errors import ConfigError
from acdc.evaluation.hypothesis import LEVEL, Scores, Test, equivalence, independence, minimality_test
from acdc.jobs.evaluate.part import Part, Row, of, randoms_of, settings_of
from acdc.jobs.prepare import Prepared
from acdc.report.grid import Grid
from acdc.report.html import Section
from acdc.report.numbers import number

_HEADER = ["test", "H0 (an ideal circuit)", "statistic", "p", "verdict", "random, p"]
_MEANING = (
    "<p>Each H0 is what an ideal circuit fulfils; a small p-value speaks against the circuit, a large one proves"
    f" nothing. H0 is rejected below {LEVEL:g}. The statistics: the share of pairs on which the circuit does better"
    " than the model; HSIC of the scores of the model and of what is left without the circuit; the smallest share of"
    " random edges that an edge outdoes (its p-value is corrected for the number of edges). Random: the median p-value"
    " of random circuits.</p>"
)


def look(prepared: Prepared, folder: Path, console: Console) -> Part:
    """Test each circuit, and by the first two tests random circuits too."""
    title = "Tests of an ideal circuit (Shi et al. 2024)"
    try:
        scores = Scores(prepared.experiment)
    except ConfigError as error:
        section = Section(title, f"<p>{escape(str(error))}.</p>")
        return Part("hypotheses", {"absent": str(error)}, [], {}, [f"not tested: {error}"], [section])
    values: dict[str, Any] = {}
    rows: list[Row] = []
    metrics: dict[str, Any] = {}
    shown, sections = [], []
    for name, circuit in prepared.circuits.items():
        tests = _tests(prepared, scores, circuit)
        theirs = [_tests(prepared, scores, other, False) for other in randoms_of(prepared, circuit)]
        rivals = {own.name: median(p for p in column if p is not None) for own, *column in _columns(tests, theirs)}
        values[name] = {test.name: test.as_dict() for test in tests}
        for test in tests:
            if test.name in rivals:
                values[name][test.name]["random_p_value_median"] = rivals[test.name]
            rows += [(name, "", f"{test.name} test, {key}", getattr(test, key)) for key in ("statistic", "p_value")]
            if len(prepared.circuits) == 1:
                metrics |= {f"{test.name}_p_value": test.p_value}
        grid = Grid(
            f"{title}{of(name, prepared)}", _HEADER, [_line(test, rivals.get(test.name)) for test in tests], left=2
        )
        brief = Grid(grid.title, [*_HEADER[:1], *_HEADER[2:]], [[row[0], *row[2:]] for row in grid.rows])
        shown.append(brief.console())
        minimal = tests[-1].of_edges or {}
        worst = sorted(minimal, key=minimal.__getitem__)
        edges = Grid("", ["edge", "p, not corrected"], [[str(e), number(minimal[e])] for e in worst])
        details = f"<details><summary>Minimality, edge by edge</summary>{edges.html()}</details>" if worst else ""
        sections.append(Section(f"{title}{of(name, prepared)}", _MEANING + grid.html() + details))
    return Part("hypotheses", values, rows, metrics, shown, sections)


def _tests(prepared: Prepared, scores: Scores, circuit: Circuit, every: bool = True) -> list[Test]:
    """The tests of one circuit; all, or those that are quick."""
    job = settings_of(prepared)
    tests = [equivalence(scores, circuit, job.epsilon), independence(scores, circuit, job.permutations, job.seed)]
    return [*tests, minimality_test(scores, circuit, job.inflated, job.quantile, job.seed)] if every else tests


def _columns(tests: list[Test], theirs: list[list[Test]]) -> list[tuple[Any, ...]]:
    """Each quick test with the p-values of the random circuits."""
    columns = zip(*theirs, strict=True)
    return [(own, *(test.p_value for test in column)) for own, column in zip(tests, columns, strict=False)]


def _line(test: Test, rival: float | None) -> list[str]:
    verdict = test.note if test.rejected is None else "rejected" if test.rejected else "not rejected"
    return [test.name, test.null, number(test.statistic), number(test.p_value), verdict, number(rival)]

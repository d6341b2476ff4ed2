"""The three tests of an ideal circuit in a table."""

from __future__ import annotations

from acdc.evaluation.hypothesis import LEVEL, HypothesesPart, Test
from acdc.report.evaluate.shown import Shown, by_circuit
from acdc.report.numbers import number
from acdc.report.view import Block, Folded, Section, Table

_TITLE = "Tests of an ideal circuit (Shi et al. 2024)"
_HEADER = ["test", "H0 (an ideal circuit)", "statistic", "p", "verdict", "random, p"]
_MEANING = (
    "Each H0 is what an ideal circuit fulfils; a small p-value speaks against the circuit, a large one proves nothing."
    f" H0 is rejected below {LEVEL:g}. The statistics: the share of pairs on which the circuit does better than the"
    " model; HSIC of the scores of the model and of what is left without the circuit; the smallest share of random"
    " edges that an edge outdoes (its p-value is corrected for the number of edges). Random: the median p-value of"
    " random circuits."
)


def shown(part: HypothesesPart) -> Shown:
    """Say how the tests of each circuit fall out."""
    if part.absent:
        return Shown([f"not tested: {part.absent}"], [Section(_TITLE, [f"{part.absent}."])])
    says = Shown([], [])
    for title, _, one in by_circuit(part):
        rows = [_line(test, one.random.get(test.name)) for test in one.tests]
        says.console.append(Table(f"{_TITLE}{title}", [_HEADER[0], *_HEADER[2:]], [[row[0], *row[2:]] for row in rows]))
        blocks: list[Block] = [_MEANING, Table("", _HEADER, rows, left=2)]
        if minimal := one.tests[-1].of_edges:
            edges = [[str(edge), number(p)] for edge, p in sorted(minimal.items(), key=lambda item: item[1])]
            blocks.append(Folded("Minimality, edge by edge", [Table("", ["edge", "p, not corrected"], edges)]))
        says.sections.append(Section(f"{_TITLE}{title}", blocks))
    return says


def _line(test: Test, random: float | None) -> list[str]:
    verdict = test.note if test.rejected is None else "rejected" if test.rejected else "not rejected"
    return [test.name, test.null, number(test.statistic), number(test.p_value), verdict, number(random)]

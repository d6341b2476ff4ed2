"""Stability: how much of a circuit is found again, in a table."""

from __future__ import annotations

from collections.abc import Mapping

from acdc.evaluation.stability import Stability, StabilityPart
from acdc.report.evaluate.shown import Shown
from acdc.report.numbers import share
from acdc.report.view import Folded, Section, Table

_CHANGED = {"pairs": "pairs, resampled", "seeds": "seed of the task", "orders": "order of the heads"}
_HEADER = ["changed", "Jaccard, mean", "least", "most", "of each other", "edges"]
_MEANING = (
    "The circuit's own method searches again with one thing changed: pairs drawn with replacement, the task's pairs by"
    " another seed, or heads numbered otherwise, so that they are tested in another order. The Jaccard index of two"
    " circuits is their common edges over all their edges."
)


def shown(part: StabilityPart) -> Shown:
    """Say how much of each circuit is found again, or why it could not be searched for."""
    says = Shown([], [])
    for name, one in part.found.items():
        title = "Stability" if part.single else f"Stability · {name}"
        if isinstance(one, str):
            says.console.append(f"not found again: {one}")
            says.sections.append(Section(title, [f"{one}."]))
            continue
        lines = [_line(_CHANGED[kind], one.summary(kind)) for kind in one.found]
        if one.randoms:
            lines.append(_line(f"random circuits ({len(one.randoms)})", one.of_randoms()))
        table = Table(f"{title}, searches of each kind: {part.runs}", _HEADER, lines)
        says.console.append(table)
        recurrence = Folded("How often each edge is found again", [_recurrence(one)])
        says.sections.append(Section(title, [_MEANING, table, recurrence]))
    return says


def _recurrence(one: Stability) -> Table:
    rows = [[str(edge), "yes" if edge in one.circuit else "", share(x)] for edge, x in one.recurrence().items()]
    return Table("", ["edge", "in the circuit", "found again"], rows, left=2)


def _line(name: str, numbers: Mapping[str, float]) -> list[str]:
    indices = [f"{numbers[key]:.2f}" if key in numbers else "—" for key in ("mean", "min", "max", "between")]
    return [name, *indices, f"{numbers['edges']:,.0f}"]

"""Circuits against known circuits: rates, areas, ROC curves, and the edges in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from acdc.evaluation.grading import RULES, Graded, GradesPart
from acdc.report.evaluate.shown import Shown
from acdc.report.roc import draw_roc
from acdc.report.view import Block, Bullets, Figure, Folded, Section, Table

MOST_EDGES = 200  # listed
MOST_ON_CONSOLE = 8  # circuits whose grades are listed one by one
RATES = ("precision", "recall")
_TITLE = "Against known circuits"
_RULES = (
    "pessimistic: the rule of the original ACDC, between two points of the curve the worse one holds; trapezoid: the"
    " usual rule, points are joined by straight lines. Both begin at the empty and end at the whole graph."
)


def shown(part: GradesPart) -> Shown:
    """Say how circuits stand against the known ones, over edges and over nodes."""
    absent = [f"not graded: {line}" for line in part.absent]
    missing: list[Block] = ["Not graded against:", Bullets(part.absent)] if part.absent else []
    if not part.graded:
        nothing = "No known circuit fits this task and model."
        return Shown([*absent], [Section(_TITLE, [nothing, *missing])])
    rates, areas = _rates_table(part.graded), _areas_table(part.graded)
    plots = [
        Figure(
            f"roc_{of}",
            partial(draw_roc, {one.label: one.curve.curves[of] for one in part.graded}, f"{part.task}, over {of}"),
            f"ROC curves over {of}",
        )
        for of in ("edges", "nodes")
    ]
    sources = [f"{one.label}: {'; '.join(one.truth.sources)}" for one in part.graded]
    folded = [block for one in part.graded for block in (*_differences(one), *_positions(one))]
    section = Section(
        _TITLE,
        [rates, areas.title, areas, _RULES, *plots, *folded, "Where the known circuits are from:", Bullets(sources)],
    )
    few = len(part.graded[0].circuits) <= MOST_ON_CONSOLE
    return Shown([*([rates] if few else []), areas, *absent], [replace(section, blocks=[*section.blocks, *missing])])


def _rates_table(graded: Sequence[Graded]) -> Table:
    header = ["known circuit", "of", "true", "kept", "right", *RATES, *(f"{rate}, random" for rate in RATES)]
    rows = []
    for result in graded:
        for name, one in result.points.items():
            label = f"{result.label}" + f", {name}" * (len(result.points) > 1)
            rivals = result.random.get(name)
            for of, curve in one.curves.items():
                (point,) = curve.points
                counts = (curve.true, point.kept, point.right)
                theirs = [f"{rivals[f'{of}_{rate}']:.3f}" if rivals else "—" for rate in RATES]
                rows.append([label, of, *map(str, counts), f"{point.precision:.3f}", f"{point.recall:.3f}", *theirs])
    return Table(_TITLE, header, rows, left=2)


def _areas_table(graded: Sequence[Graded]) -> Table:
    rows = [
        [result.label, of, result.cut_by, *(f"{curve.auc(rule):.3f}" for rule in RULES)]
        for result in graded
        for of, curve in result.curve.curves.items()
    ]
    return Table("Area under the ROC curve", ["known circuit", "of", "curve over", *RULES], rows, left=3)


def _differences(result: Graded) -> list[Block]:
    """List the edges that are missed and those that are too many, where one circuit is graded."""
    if len(result.points) != 1:
        return []
    (name,) = result.points
    return [
        Folded(f"{result.label}: {len(edges):,} edges {title}", [_names(edges)])
        for title, edges in (("missed", result.missed(name)), ("not in it", result.extra(name)))
        if edges
    ]


def _positions(result: Graded) -> list[Block]:
    """List which edges of a known circuit read at which labels of the prompt, where that is known."""
    at: dict[str, list[str]] = {}
    for edge, labels in result.truth.positions.items():
        at.setdefault(", ".join(labels), []).append(str(edge))
    if not at:
        return []
    rows = [[labels, _names(edges).replace("`", "")] for labels, edges in sorted(at.items())]
    summary = f"{result.label}: the positions at which {len(result.truth.positions):,} edges read"
    return [Folded(summary, [Table("", ["positions", "edges"], rows, left=2)])]


def _names(edges: Sequence[str]) -> str:
    more = f" and {len(edges) - MOST_EDGES:,} more" if len(edges) > MOST_EDGES else ""
    return ", ".join(f"`{edge}`" for edge in edges[:MOST_EDGES]) + more

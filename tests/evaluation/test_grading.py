"""Grades of circuits and scores: points, curves and areas, by hand and by counting."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_ground_truth import SMALL, TRUTH, edges

from acdc import Circuit
from acdc.errors import ConfigError, FormatError
from acdc.evaluation.grading import Curve, Grade, Point, grade
from acdc.evaluation.ground_truth import Truth
from acdc.graph import Edge, Graph
from acdc.report.roc import draw_roc
from acdc.report.style import draw_files


def curve(*points: tuple[float, float]) -> Curve:
    return Curve(tuple(Point(None, 0, 0, 1.0, y, x) for x, y in points), 10, 5)


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([], 0.0),
        ([(0.5, 0.5)], 0.25),
        ([(0.25, 0.25)], 0.1875),
        ([(0.25, 0.25), (0.5, 0.5)], 5 / 16),
        ([(0.25, 0.25), (0.75, 0.5)], 4 / 16),
        ([(0.0, 1.0)], 1.0),
        ([(0.0, 0.6)], 0.6),
    ],
)
def test_the_pessimistic_area_is_the_originals(points: list[tuple[float, float]], area: float) -> None:
    """The first five are the assertions beside `pessimistic_auc` in the original's code, ends included."""
    assert curve(*points).auc("pessimistic") == pytest.approx(area)


def test_a_point_that_another_beats_is_left_out() -> None:
    assert curve((0.1, 0.8), (0.3, 0.5)).corners() == [(0, 0), (0.1, 0.8), (1, 1)]
    assert curve((0.1, 0.8), (0.3, 0.8)).corners() == [(0, 0), (0.1, 0.8), (0.3, 0.8), (1, 1)]


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose one of pessimistic, trapezoid"):
        curve().auc("optimistic")


@given(st.lists(st.integers(-3, 3), min_size=len(SMALL), max_size=len(SMALL)))
def test_the_trapezoid_area_is_the_chance_that_a_right_edge_is_ranked_above_a_wrong_one(scores: list[int]) -> None:
    ranking = dict(zip(SMALL, map(float, scores), strict=True))
    pairs = [(ranking[a], ranking[b]) for a in TRUTH.edges for b in SMALL if b not in TRUTH.edges]
    expected = math.fsum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    graded = grade(ranking, TRUTH)
    assert graded.edges.auc("trapezoid") == pytest.approx(expected)
    assert graded.edges.auc("pessimistic") <= graded.edges.auc("trapezoid") + 1e-12


def test_a_circuit_by_hand() -> None:
    circuit = Circuit(SMALL, dict.fromkeys(edges("m0->logits a0.h0->m0 input->a0.h0<v> input->a0.h0<q>"), 1.0))
    graded = grade(circuit, TRUTH)
    (point,) = graded.edges.points
    assert (graded.edges.total, graded.edges.true, point.kept, point.right) == (13, 5, 4, 3)
    assert (point.precision, point.recall, point.false_positive_rate) == (0.75, 0.6, 1 / 8)
    (node,) = graded.nodes.points  # input, a0.h0, m0, logits of input, a0.h0, a0.h1, m0, logits
    assert (graded.nodes.total, node.kept, node.right, node.recall) == (5, 4, 4, 0.8)
    assert graded.edges.auc() == pytest.approx(0.6 * 7 / 8)
    assert graded.edges.auc("trapezoid") == pytest.approx(0.5 * 0.6 / 8 + 0.5 * (0.6 + 1) * 7 / 8)


def test_scores_give_a_point_for_every_cut() -> None:
    right, wrong = sorted(TRUTH.edges), sorted(e for e in SMALL if e not in TRUTH.edges)
    graded = grade({right[0]: -3.0, right[1]: 2.0, wrong[0]: 2.0, wrong[1]: 1.0}, TRUTH)
    assert [(p.cut, p.kept, p.right) for p in graded.edges.points] == [(2, 2, 1), (1, 3, 1), (-3, 4, 2)]
    sizes = [(p.cut, p.right) for p in grade({right[0]: -3.0, wrong[0]: 2.0}, TRUTH, absolute=True).edges.points]
    assert sizes == [(3, 1), (2, 1)]


def test_what_cannot_be_graded_is_said() -> None:
    with pytest.raises(FormatError, match="m5->logits does not exist"):
        grade({Edge("m5", "logits"): 1.0}, TRUTH)
    with pytest.raises(FormatError, match="is not a number"):
        grade({Edge("m0", "logits"): math.nan}, TRUTH)
    with pytest.raises(FormatError, match="different graphs"):
        grade(Circuit(Graph(SMALL.config, True), {}), TRUTH)
    with pytest.raises(ConfigError, match="has no edges"):
        grade({}, Truth("none", "derived", SMALL, frozenset()))


def test_curves_are_drawn(tmp_path: Path) -> None:
    graded: Grade = grade(dict.fromkeys(TRUTH.edges, 1.0), TRUTH)
    for rule in ("pessimistic", "trapezoid"):
        draw = partial(draw_roc, {"mine": graded.edges, "nothing": curve()}, "Gate", rule)
        svg, png = draw_files(draw, tmp_path, rule)
        assert ET.parse(svg).getroot().tag.endswith("svg")
        assert len(svg.read_text()) > 3000
        with Image.open(png) as image:
            colours = image.convert("RGB").getcolors(1 << 20)
        assert colours is not None
        assert len(colours) > 10


def at(*places: tuple[float, float]) -> Curve:
    """A curve through (false-positive rate, recall)."""
    return Curve(tuple(Point(None, 0, 0, 1.0, y, x) for x, y in places), 10, 5)


def test_a_long_ranking_is_drawn_by_its_turns() -> None:
    ranking = at((0, 0.2), (0, 0.4), (0, 0.4), (0.1, 0.4), (0.2, 0.4), (0.3, 0.4), (0.3, 0.8), (0.5, 1), (1, 1))
    turns = [(p.false_positive_rate, p.recall) for p in ranking.turns()]
    assert turns == [(0, 0.2), (0, 0.4), (0.3, 0.4), (0.3, 0.8), (0.5, 1), (1, 1)]
    sweep = at((0.5, 0.5), (0.5, 0.9), (0.5, 0.2), (0.1, 0.1))  # no rising curve: the best point stays
    assert sweep.turns() == sweep.points

"""MIB's CPR and CMD of a circuit's scores."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from acdc.circuit import Circuit
from acdc.engine.full import FullEngine
from acdc.errors import ConfigError
from acdc.evaluation.areas import Areas, areas, random_scores, tied
from acdc.evaluation.method_table import strengths
from acdc.jobs.evaluate.part import Part, Row, of, settings_of, spread, stem
from acdc.jobs.prepare import Prepared
from acdc.report.grades import image
from acdc.report.grid import Grid
from acdc.report.html import Section
from acdc.report.numbers import number, share
from acdc.report.yardsticks import draw_areas

_TITLE = "Areas over sizes of circuits (MIB)"


def look(prepared: Prepared, folder: Path, console: Console) -> Part:
    """The areas of every circuit that has scores, and of random scores."""
    job, experiment = settings_of(prepared), prepared.experiment
    values: dict[str, Any] = {}
    rows: list[Row] = []
    metrics: dict[str, Any] = {}
    shown: list[RenderableType] = []
    sections: list[Section] = []
    files: dict[str, Path] = {}
    engine = FullEngine(experiment)
    try:
        scores = {
            name: strengths(c.method.get("name", ""), c.tested) for name, c in prepared.circuits.items() if c.tested
        }
        ties = {name: tied(experiment.graph, own) for name, own in scores.items()}
        found = {name: areas(experiment, own, engine) for name, own in scores.items()}
        reversed_ = {name: areas(experiment, scores[name], engine, last_first=True) for name in found if ties[name]}
        rivals_of = random_scores(experiment, job.random, job.seed) if found else []
        randoms = [areas(experiment, drawn, engine) for drawn in rivals_of]
    except ConfigError as error:
        return Part(
            "areas",
            {"absent": str(error)},
            [],
            {},
            [f"no areas: {error}"],
            [Section(_TITLE, f"<p>{escape(str(error))}.</p>")],
        )
    rivals = spread([{"cpr": one.cpr, "cmd": one.cmd} for one in randoms]) if randoms else None
    for name, own in found.items():
        circuit, other = prepared.circuits[name], reversed_.get(name)
        values[name] = {"cpr": own.cpr, "cmd": own.cmd, "points": _points(own)} | ({"random": rivals} if rivals else {})
        values[name] |= {"scored": len(circuit.tested), "tied": ties[name]}
        rows += [(name, "", "cpr", own.cpr), (name, "", "cmd", own.cmd), (name, "", "tied edges", ties[name])]
        note = ""
        if other:
            note = _about_ties(circuit, ties[name])
            values[name] |= {"note": note, "ties_reversed": {"cpr": other.cpr, "cmd": other.cmd}}
            rows += [(name, "", "cpr, ties reversed", other.cpr), (name, "", "cmd, ties reversed", other.cmd)]
        if rivals:
            rows += [(name, "", f"{key}, random", value) for key, value in rivals["mean"].items()]
        rows += [
            (name, "", f"f at {point.fraction:g}, by {how}", point.f)
            for how, points in (("score", own.signed), ("size", own.absolute))
            for point in points
        ]
        if len(prepared.circuits) == 1:
            metrics |= {"cpr": own.cpr, "cmd": own.cmd, "tied_edges": ties[name]}
        lines = [["scores", number(own.cpr), number(own.cmd)]]
        if other:
            lines.append(["with ties reversed", number(other.cpr), number(other.cmd)])
        if rivals:
            lines.append([f"random scores ({len(randoms)})", _both(rivals, "cpr"), _both(rivals, "cmd")])
        grid = Grid(f"{_TITLE}{of(name, prepared)}", ["", "CPR", "CMD"], lines)
        shown += [grid.console(), *([note] if note else [])]
        drawn = draw_areas(own, randoms, folder / stem(name, "areas", prepared))
        files |= drawn
        svg = next(path for file, path in drawn.items() if file.endswith("svg"))
        html = (
            f"<p>{len(circuit.tested):,} of {len(experiment.graph):,} edges have a score; one without has 0. At each"
            " share of the edges the best ones are kept alone, less those on no path. CPR is the area under their"
            " recovery f, of edges ranked by score; CMD the area between f and 1, ranked by size. Low CMD and a CPR"
            " near 1 go together in a good ranking; CPR alone can be gamed.</p>"
            + grid.html()
            + (f"<p>{escape(note)}</p>" if note else "")
            + image(svg, "recovery over shares of the edges")
        )
        sections.append(Section(f"{_TITLE}{of(name, prepared)}", html + _sizes(own).html()))
    for name in [name for name in prepared.circuits if name not in found]:
        shown.append(f"no areas: {name} has no scores")
        values[name] = {"absent": "no scores"}
    return Part("areas", values, rows, metrics, shown, sections, files)


def _about_ties(circuit: Circuit, n_tied: int) -> str:
    """What it means for the areas that so many edges have the same score as another, and what to do."""
    method, unscored = circuit.method.get("name"), len(circuit.graph) - len(circuit.tested)
    why = ", since ACDC did not test them," if method == "acdc" else ""
    text = f"{unscored:,} of {len(circuit.graph):,} edges have no score{why} and count as 0. " if unscored else ""
    text += (
        f"{n_tied:,} edges tie with another and are ranked in the order of ACDC's tests, not by what they do; another"
        " program, MIB's too, may rank them otherwise and find other areas."
    )
    if method == "acdc_scores":
        return text + " More thresholds (method.thresholds) tell more of them apart."
    return text + (" method=acdc_scores gives every edge a score by ACDC." if unscored else "")


def _points(own: Areas) -> list[dict[str, float]]:
    return [
        {
            "fraction": signed.fraction,
            "edges": signed.edges,
            "f": signed.f,
            "edges_absolute": absolute.edges,
            "f_absolute": absolute.f,
        }
        for signed, absolute in zip(own.signed, own.absolute, strict=True)
    ]


def _sizes(own: Areas) -> Grid:
    rows = [
        [f"{a.fraction:g}", f"{a.edges:,}", share(a.f), f"{b.edges:,}", share(b.f)]
        for a, b in zip(own.signed, own.absolute, strict=True)
    ]
    return Grid("", ["share of the edges", "on a path, by score", "f", "on a path, by size", "f"], rows)


def _both(rivals: dict[str, dict[str, float | None]], key: str) -> str:
    return f"{number(rivals['mean'][key])} ± {number(rivals['sd'][key])}"

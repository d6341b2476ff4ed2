"""Random knock-outs in circuit and model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from acdc.circuit import Circuit
from acdc.evaluation.completeness import Completeness, completeness, knockable
from acdc.jobs.evaluate.part import Part, Row, of, randoms_of, settings_of, spread, stem
from acdc.jobs.prepare import Prepared
from acdc.report.grades import image
from acdc.report.grid import Grid
from acdc.report.html import Section
from acdc.report.numbers import number, share
from acdc.report.yardsticks import draw_completeness

_HEADER = ["", "mean", "of clean − corrupted", "largest"]


def look(prepared: Prepared, folder: Path, console: Console) -> Part:
    """Knock random parts out of each circuit, of the model, and of random circuits."""
    metric = prepared.experiment.metric_name
    values: dict[str, Any] = {}
    rows: list[Row] = []
    metrics: dict[str, Any] = {}
    shown, sections = [], []
    files: dict[str, Path] = {}
    for name, circuit in prepared.circuits.items():
        own = _knocked(prepared, circuit, settings_of(prepared).knockouts, 0)
        randoms = randoms_of(prepared, circuit)
        each = max(1, settings_of(prepared).knockouts // max(1, len(randoms)))
        theirs = [_knocked(prepared, other, each, i) for i, other in enumerate(randoms, 1)]
        values[name] = own.as_dict()
        numbers = own.summary()
        rows += [(name, "", f"incompleteness, {key}", value) for key, value in numbers.items()]
        lines = [_line("circuit", numbers)]
        if theirs:
            values[name]["random"] = random = spread([one.summary() for one in theirs])
            rows += [(name, "", f"incompleteness, {key}, random", v) for key, v in random["mean"].items()]
            lines.append(_line(f"random circuits ({len(theirs)})", random["mean"]))
        if len(prepared.circuits) == 1:
            metrics |= {f"incompleteness_{key}": value for key, value in numbers.items()}
        drawn = draw_completeness(own, theirs, metric, folder / stem(name, "completeness", prepared))
        files |= drawn
        grid = Grid(f"Completeness{of(name, prepared)}: |{metric} of C∖K − of M∖K|", _HEADER, lines)
        shown.append(grid.console())
        html = (
            f"<p>{len(own.knockouts)} random sets K of the circuit's {settings_of(prepared).knockout_kind} are taken"
            " out of the circuit C and out of the model M. A complete circuit goes with the model whatever is taken"
            " out: its dots lie on the diagonal.</p>"
        )
        svg = next(path for file, path in drawn.items() if file.endswith("svg"))
        sections.append(
            Section(f"Completeness{of(name, prepared)}", html + grid.html() + image(svg, "circuit and model without K"))
        )
    return Part("completeness", values, rows, metrics, shown, sections, files)


def _knocked(prepared: Prepared, circuit: Circuit, draws: int, which: int) -> Completeness:
    job = settings_of(prepared)
    size = job.knockout_size and min(job.knockout_size, len(knockable(circuit, job.knockout_kind)))
    return completeness(prepared.experiment, circuit, draws, job.knockout_kind, size, job.seed + which)


def _line(name: str, numbers: Any) -> list[str]:
    return [name, number(numbers.get("mean")), share(numbers.get("mean_share")), number(numbers.get("max"))]

"""What each edge is worth inside the finished circuit; prune again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from acdc.circuit import Circuit
from acdc.evaluation.faithfulness import faithfulness
from acdc.evaluation.minimality import Minimality, minimality, prune_again, threshold_of
from acdc.jobs.evaluate.part import Part, Row, of, randoms_of, settings_of, stem
from acdc.jobs.prepare import Prepared
from acdc.report.grades import image
from acdc.report.grid import Grid
from acdc.report.html import Section
from acdc.report.numbers import number, share
from acdc.report.yardsticks import draw_minimality

_OF_RANDOM = 32  # edges looked at of each random circuit


def look(prepared: Prepared, folder: Path, console: Console) -> Part:
    """Each circuit's edges, and some of random circuits'; with `job.prune` also the circuit without the idle ones."""
    job = settings_of(prepared)
    values: dict[str, Any] = {}
    rows: list[Row] = []
    metrics: dict[str, Any] = {}
    shown: list[RenderableType] = []
    sections: list[Section] = []
    files: dict[str, Path] = {}
    for name, circuit in prepared.circuits.items():
        threshold = threshold_of(circuit, prepared.experiment.metric_name) if job.threshold is None else job.threshold
        own = minimality(prepared.experiment, circuit)
        values[name] = own.as_dict(threshold)
        lines = [_line("circuit", own, threshold)]
        if theirs := _random_worth(prepared, circuit):
            values[name]["random"] = _named(theirs, threshold)
            lines.append(_line(f"random circuits ({job.random})", theirs, threshold))
        numbers = _named(own, threshold)
        rows += [(name, "", f"minimality, {key}", value) for key, value in numbers.items()]
        rows += [(name, "", f"worth of {edge}", value) for edge, value in own.worth.items()]
        if len(prepared.circuits) == 1:
            metrics |= {f"minimality_{key}": value for key, value in numbers.items() if value is not None}
        tau = "τ" if threshold is None else f"τ = {threshold:g}"
        grid = Grid(
            f"Minimality{of(name, prepared)}: what an edge is worth inside the circuit",
            ["", "edges", f"below {tau}", "share", "median", "least"],
            lines,
        )
        drawn = draw_minimality(circuit, own, threshold, folder / stem(name, "minimality", prepared))
        files |= drawn
        pruned = ""
        shown.append(grid.console())
        if job.prune and threshold is not None:
            values[name]["pruned"], pruned = _prune(prepared, circuit, threshold, folder / "circuit.pruned.json")
            files["circuit.pruned.json"] = folder / "circuit.pruned.json"
            metrics |= {f"pruned_{key}": v for key, v in values[name]["pruned"].items() if not isinstance(v, list)}
            shown.append(pruned)
        svg = next(path for file, path in drawn.items() if file.endswith("svg"))
        html = (
            "<p>An edge's worth is the loss of the circuit without it less the loss of the circuit. An edge that was"
            " kept for its effect while others were still there may be worth less in the end, with the original ACDC"
            " too.</p>"
            + grid.html()
            + (f"<p>{pruned[0].upper()}{pruned[1:]}.</p>" if pruned else "")
            + image(svg, "worth of each edge against its effect or score")
            + f"<details><summary>The edges, the least first</summary>{_edges(circuit, own).html()}</details>"
        )
        sections.append(Section(f"Minimality{of(name, prepared)}", html))
    return Part("minimality", values, rows, metrics, shown, sections, files)


def _random_worth(prepared: Prepared, circuit: Circuit) -> Minimality | None:
    """What edges of the random circuits are worth in theirs, all together."""
    rng = random.Random(settings_of(prepared).seed)
    worth: dict[Any, float] = {}
    for i, other in enumerate(randoms_of(prepared, circuit)):
        some = rng.sample(list(other), min(_OF_RANDOM, len(other)))
        worth |= {(i, edge): value for edge, value in minimality(prepared.experiment, other, some).worth.items()}
    return Minimality(worth) if worth else None


_KEYS = ("edges", "below", "below_share", "median", "least")


def _numbers(one: Minimality, threshold: float | None) -> list[float | None]:
    worth = sorted(one.worth.values())
    below = None if threshold is None else len(one.below(threshold))
    if not worth:
        return [0, below, None, None, None]
    middle = (worth[(len(worth) - 1) // 2] + worth[len(worth) // 2]) / 2
    return [len(worth), below, None if below is None else below / len(worth), middle, worth[0]]


def _named(one: Minimality, threshold: float | None) -> dict[str, float | None]:
    return dict(zip(_KEYS, _numbers(one, threshold), strict=True))


def _line(name: str, one: Minimality, threshold: float | None) -> list[str]:
    edges, below, part, median, least = _numbers(one, threshold)
    return [name, number(edges), number(below), share(part), number(median), number(least)]


def _edges(circuit: Circuit, own: Minimality) -> Grid:
    rows = [
        [edge.sender, edge.receiver, number(worth), number(circuit.edges[edge])]
        for edge, worth in sorted(own.worth.items(), key=lambda item: item[1])
    ]
    return Grid("Edges", ["sender", "receiver", "worth", "effect or score in the file"], rows, left=2)


def _prune(prepared: Prepared, circuit: Circuit, threshold: float, path: Path) -> tuple[dict[str, Any], str]:
    """Write the circuit that is left; what it is like, and the same in a sentence."""
    pruned = prune_again(prepared.experiment, circuit, threshold)
    before, after = (faithfulness(prepared.experiment, one) for one in (circuit, pruned))
    pruned.metrics = after
    pruned.save(path)
    gone = [str(edge) for edge in circuit - pruned]
    about = {"edges": len(pruned), "jaccard": circuit.jaccard(pruned), "recovery": after["recovery"], "kl": after["kl"]}
    line = (
        f"pruned again at τ = {threshold:g}: {len(gone)} of {len(circuit)} edges went, {len(pruned)} are left; recovery"
        f" {share(before['recovery'])} before, {share(after['recovery'])} after; {path.name}"
    )
    return about | {"removed": gone}, line

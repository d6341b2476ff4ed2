"""How well circuits do alone, for people: on their own pairs and fresh ones, scrubbed, beside random circuits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from acdc.report.grid import Grid, listed
from acdc.report.html import EXPLANATIONS, Section
from acdc.report.numbers import number, share

Values = Mapping[str, Any]

TITLE = "How well the circuit does alone"
_SHOWN: dict[str, Callable[[Any], str]] = {
    "circuit": number,
    "recovery": share,
    "kl": number,
    "accuracy": share,
    "agreement": share,
}
_NAMES = {"circuit": "by the circuit", "kl": "KL"}


def faithfulness_grid(results: Mapping[str, Values], metric: str) -> Grid:
    """A row for each circuit and for what it is held against; of a single one these are columns."""
    measures = [key for key in _SHOWN if any(key in values for values in results.values())]
    header = ["", "edges", f"{metric}, model", "without edges", *(_NAMES.get(key, key) for key in measures)]
    rows = [row for name, values in results.items() for row in _rows(name, values, measures, len(results) > 1)]
    if len(results) == 1:
        across = list(zip(header, *rows, strict=True))
        return Grid(TITLE, across[0], across[1:])
    return Grid(TITLE, header, rows)


def brief_grid(results: Mapping[str, Values], metric: str) -> Grid:
    """A line for each of several circuits, with the recovery of what it is held against; for the console."""

    def line(name: str, values: Values) -> list[str]:
        others = [values.get("fresh", {}), *(values.get(what, {}).get("mean", {}) for what in ("scrubbed", "random"))]
        recoveries = [share(one.get("recovery")) for one in (values, *others)]
        shown = [number(values["circuit"]), *recoveries, number(values["kl"]), share(values.get("accuracy"))]
        return [name, number(values["edges_kept"]), *shown]

    header = ["", "edges", metric, "recovery", "fresh", "scrubbed", "random", "KL", "accuracy"]
    return Grid(TITLE, header, [line(name, values) for name, values in results.items()])


def faithfulness_section(results: Mapping[str, Values], metric: str, lines: Sequence[str] = ()) -> Section:
    """The same for a page, with what the numbers mean."""
    notes = [f"{key}: {EXPLANATIONS[key]}" for key in ("recovery", "kl", "accuracy", "agreement")]
    several = list(results.values())
    if any("intervals" in values for values in several):
        notes.append("in brackets: bootstrap intervals over the pairs (job.confidence)")
    if any("fresh" in values for values in several):
        notes.append("fresh pairs: of the same task, which do not occur among the others")
    if scrubbed := [values["scrubbed"] for values in several if "nothing" in values.get("scrubbed", {})]:
        notes.append(
            "scrubbed: every edge outside the circuit carries its sender's output on another pair's prompt, drawn for"
            " each edge and prompt (causal scrubbing), mean ± standard deviation over draws; with no edge important"
            f" that gives {number(scrubbed[0]['nothing'])}"
        )
    if any("random" in values for values in several):
        notes.append("random: circuits of as many edges, mean ± standard deviation over them")
    return Section(TITLE, faithfulness_grid(results, metric).html() + listed([*notes, *lines]))


def _rows(name: str, values: Values, measures: Sequence[str], several: bool) -> list[list[str]]:
    """The circuit, then what it is held against."""
    size = f"{values['edges_kept']:,} of {values['edges_total']:,}"

    def label(what: str) -> str:
        return f"{name}, {what}" if several else what

    rows = [[name, size, *_ends(values), *_cells(values, measures)]]
    if fresh := values.get("fresh"):
        rows.append([label(f"{fresh['pairs']} fresh pairs"), size, *_ends(fresh), *_cells(fresh, measures)])
    for what in ("scrubbed", "random"):
        drawn = values.get(what, {})
        if "mean" in drawn:
            cells = [_both(_SHOWN[key], drawn["mean"].get(key), drawn["sd"].get(key)) for key in measures]
            some = f" ({drawn['pairs']} pairs)" if drawn.get("left_out") else ""
            rows.append([label(what + some), size, *_ends(drawn if some else values), *cells])
    return rows


def _ends(values: Values) -> list[str]:
    return [number(values["clean"]), number(values["corrupted"])]


def _cells(values: Values, measures: Sequence[str]) -> list[str]:
    intervals = values.get("intervals", {})
    cells = []
    for key in measures:
        text = _SHOWN[key](values.get(key))
        if key in intervals:
            scale = 100 if _SHOWN[key] is share else 1
            low, high = (f"{scale * end + 0.0:.3g}" for end in intervals[key])
            text += f" [{low}, {high}]"
        cells.append(text)
    return cells


def _both(shown: Callable[[Any], str], mean: float | None, sd: float | None) -> str:
    if mean is None or sd is None:
        return shown(mean)
    return f"{100 * mean:.1f} ± {100 * sd:.1f}%" if shown is share else f"{mean:.3g} ± {sd:.2g}"

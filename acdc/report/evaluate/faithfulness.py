"""How well circuits do alone: on their own pairs and on fresh ones, scrubbed, and beside random circuits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from acdc.evaluation.faithfulness import MEASURES, Alone, Faithfulness, FaithfulnessPart
from acdc.evaluation.part import Spread
from acdc.report.evaluate.shown import Shown
from acdc.report.meanings import MEANINGS
from acdc.report.numbers import number, share
from acdc.report.partners import partners_line, partners_section
from acdc.report.view import Bullets, Section, Table

TITLE = "How well the circuit does alone"
_SHARES = ("recovery", "accuracy", "agreement")  # shown in percent
_NAMES = {"circuit": "by the circuit", "kl": "KL"}


def shown(part: FaithfulnessPart) -> Shown:
    """Say what each circuit does alone, and what that is worth."""
    results = part.findings
    table = _table(results, part.metric)
    says = Shown([table if part.single else _brief(results, part.metric), *part.remarks], [])
    says.sections.append(Section(TITLE, [table, Bullets([*_meanings(list(results.values())), *part.remarks])]))
    for partners in (one.by_partner for one in results.values() if one.by_partner):
        says.console.append(partners_line(partners))
        says.sections.append(partners_section(partners, part.metric))
    return says


def _table(results: Mapping[str, Faithfulness], metric: str) -> Table:
    """Make a row for each circuit and for what it is held against; of a single circuit these are columns."""
    measures = [key for key in MEASURES if any(key in one.own.numbers for one in results.values())]
    header = ["", "edges", f"{metric}, model", "without edges", *(_NAMES.get(key, key) for key in measures)]
    rows = [row for name, one in results.items() for row in _rows(name, one, measures, len(results) > 1)]
    if len(results) == 1:
        across = list(zip(header, *rows, strict=True))
        return Table(TITLE, across[0], across[1:])
    return Table(TITLE, header, rows)


def _brief(results: Mapping[str, Faithfulness], metric: str) -> Table:
    """Make a line for each of several circuits, with the recovery of what it is held against, for the console."""

    def line(name: str, one: Faithfulness) -> list[str]:
        own, fresh = one.own.numbers, one.fresh.numbers if one.fresh else {}
        drawn = [one.drawn[what].mean if what in one.drawn else {} for what in ("scrubbed", "random")]
        recoveries = [share(numbers.get("recovery")) for numbers in (own, fresh, *drawn)]
        cells = [number(own["circuit"]), *recoveries, number(own["kl"]), share(own.get("accuracy"))]
        return [name, number(own["edges_kept"]), *cells]

    header = ["", "edges", metric, "recovery", "fresh", "scrubbed", "random", "KL", "accuracy"]
    return Table(TITLE, header, [line(name, one) for name, one in results.items()])


def _meanings(results: Sequence[Faithfulness]) -> list[str]:
    """Say what the numbers mean."""
    lines = [f"{key}: {MEANINGS[key]}" for key in ("recovery", "kl", "accuracy", "agreement")]
    if any(one.own.intervals for one in results):
        lines.append("in brackets: bootstrap intervals over the pairs (`job.confidence`)")
    if any(one.fresh for one in results):
        lines.append("fresh pairs: of the same task, which do not occur among the others")
    if ends := [one.scrubbed.ends for one in results if one.scrubbed and one.scrubbed.ends]:
        lines.append(
            "scrubbed: every edge outside the circuit carries its sender's output on another pair's prompt, drawn for"
            " each edge and prompt (causal scrubbing), mean ± standard deviation over draws; with no edge important"
            f" that gives {number(ends[0]['nothing'])}"
        )
    if any(one.random for one in results):
        lines.append("random: circuits of as many edges, mean ± standard deviation over them")
    return lines


def _rows(name: str, one: Faithfulness, measures: Sequence[str], several: bool) -> list[list[str]]:
    """Make the row of the circuit, and those of what it is held against."""
    own = one.own.numbers
    size = f"{own['edges_kept']:,} of {own['edges_total']:,}"

    def row(what: str, ends: Mapping[str, float], cells: list[str]) -> list[str]:
        label = f"{name}, {what}" if what and several else what or name
        return [label, size, number(ends["clean"]), number(ends["corrupted"]), *cells]

    rows = [row("", own, _cells(one.own, measures))]
    if one.fresh:
        fresh = one.fresh.numbers
        rows.append(row(f"{fresh['pairs']} fresh pairs", fresh, _cells(one.fresh, measures)))
    for what, spread in one.drawn.items():
        some, ends = "", own
        if what == "scrubbed" and one.scrubbed and one.scrubbed.left_out:
            some, ends = f" ({one.scrubbed.pairs} pairs)", one.scrubbed.ends or {}
        rows.append(row(what + some, ends, [_spread(key, spread) for key in measures]))
    return rows


def _cells(one: Alone, measures: Sequence[str]) -> list[str]:
    """Make cells of numbers with their intervals."""
    cells = []
    for key in measures:
        text = (share if key in _SHARES else number)(one.numbers.get(key))
        if key in one.intervals:
            scale = 100 if key in _SHARES else 1
            low, high = (f"{scale * end + 0.0:.3g}" for end in one.intervals[key])
            text += f" [{low}, {high}]"
        cells.append(text)
    return cells


def _spread(key: str, spread: Spread) -> str:
    mean, sd = spread.mean.get(key), spread.sd.get(key)
    if mean is None or sd is None:
        return "—"
    return f"{100 * mean:.1f} ± {100 * sd:.1f}%" if key in _SHARES else f"{mean:.3g} ± {sd:.2g}"

"""Estimates beside real patching, for people: how well they agree, where they do not, and which heads back up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from rich.table import Table
from rich.text import Text

from acdc.patching.agreement import Agreement, Disagreement
from acdc.patching.attribution import Attributed
from acdc.patching.backup import LEAST, NONE_BELOW
from acdc.report.grades import image
from acdc.report.grid import thousandths
from acdc.report.html import Section, table
from acdc.report.maps import name_points, new_figure, save_figure

MOST_ON_CONSOLE = 5  # disagreements of a map
_AGREEMENT = ["site", "direction", "sites", "Pearson", "Spearman"]
_DISAGREEMENT = ["site", "direction", "where", "estimated", "real", "direct", "backup heads"]


def agreement_table(found: Attributed) -> Table:
    """The correlations of each map."""
    return _on_console("Estimated and real patching", _AGREEMENT, map(_agreement_row, found.agreements))


def disagreement_table(found: Attributed) -> Table:
    """The sites of each map where the two differ most."""
    rows: list[list[str]] = []
    for one in found.agreements:
        rows += map(_disagreement_row, of_map(found, one)[:MOST_ON_CONSOLE])
    return _on_console("Where they disagree most", _DISAGREEMENT, rows)


def agreement_section(found: Attributed, pictures: Sequence[Path]) -> Section:
    """The correlations and the scatter plots; empty where nothing was patched for real."""
    if not found.agreements:
        return Section("Estimated and real patching", "")
    html = (
        "<p>Every site was also patched for real. Effects are importance: 0 is no effect, 1 all of clean − corrupted."
        + " Estimates are sizes (GradDrop), beside the mean size of the real effect over the pairs."
        * found.agreements[0].unsigned
        + "</p>"
        + table(_AGREEMENT, [[escape(c) for c in _agreement_row(one)] for one in found.agreements], numeric=(2, 3, 4))
        + "".join(image(path, f"estimated and real {path.stem}") for path in pictures)
    )
    return Section("Estimated and real patching", html)


def disagreement_section(found: Attributed) -> Section:
    """The sites where the two differ most, with their backup heads."""
    if not found.disagreements:
        return Section("Where they disagree most", "")
    rows = [[escape(cell) for cell in _disagreement_row(one)] for one in found.disagreements]
    text = (
        "<p>direct: the change of recovery by what the site itself writes into the logits, the final norm's scale held."
        " Backup heads are later heads whose direct share moves against it once the site is really patched, by at least"
        f" {LEAST:.0%} of it, so that the real effect is the smaller; — where there is none, and (no direct effect)"
        f" where the site writes less than {NONE_BELOW:.0%} of clean − corrupted itself.</p>"
    )
    return Section("Where they disagree most", text + table(_DISAGREEMENT, rows, numeric=range(3, 6)))


def draw_agreement(one: Agreement, metric: str, furthest: Sequence[Disagreement], folder: Path) -> list[Path]:
    """Estimated against real importance, a point a site, as SITE_DIRECTION_compare.svg and .png; those furthest from
    the diagonal have their names."""
    kind, direction = one.real.grid.kind.name, one.real.direction
    x, y = (values.tolist() for values in one.effects)
    figure = new_figure((5.6, 5.2))
    axes = figure.add_subplot()
    axes.axline((0, 0), slope=1, color="0.6", linewidth=0.8, linestyle="--")
    axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.85", linewidth=0.8, zorder=0)
    axes.scatter(x, y, s=18, color="#2563ab", alpha=0.75, linewidths=0)
    axes.margins(0.12)
    size = "size of the " * one.unsigned
    axes.set_xlabel(f"estimated {size}effect", fontsize=9)
    axes.set_ylabel(f"real {size}effect", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    numbers = ", ".join(
        f"{name} {thousandths(value)}" for name, value in (("Pearson", one.pearson), ("Spearman", one.spearman))
    )
    axes.set_title(f"{kind}, {direction}: estimated and real ({metric})\n{numbers}", fontsize=9, loc="left")
    axes.autoscale_view()
    name_points(axes, [(item.site, item.estimated, item.real) for item in furthest])
    return save_figure(figure, folder, f"{kind}_{direction}_compare")


def of_map(found: Attributed, one: Agreement) -> list[Disagreement]:
    """The disagreements of one map."""
    name = one.real.grid.kind.name, one.real.direction
    return [item for item in found.disagreements if (item.site.kind, item.direction) == name]


def _agreement_row(one: Agreement) -> list[str]:
    name, direction = one.real.grid.kind.name, one.real.direction
    return [name, direction, f"{len(one.real.grid):,}", thousandths(one.pearson), thousandths(one.spearman)]


def _disagreement_row(one: Disagreement) -> list[str]:
    backup = str(one.backup) or ("—" if abs(one.backup.direct) >= NONE_BELOW else "(no direct effect)")
    numbers = map(thousandths, (one.estimated, one.real, one.backup.direct))
    return [one.site.kind, one.direction, str(one.site), *numbers, backup]


def _on_console(title: str, header: Sequence[str], rows: Iterable[list[str]]) -> Table:
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(header):
        shown.add_column(Text(name), justify="right" if 2 < i < 6 else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    return shown

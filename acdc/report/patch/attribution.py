"""What attribution patching shows: how well estimates agree with real patching, where not, and backup heads."""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure as Drawing

from acdc.patching.attribution import Agreement, Attributed, Disagreement
from acdc.patching.backup import LEAST, NONE_BELOW
from acdc.report.maps import name_points
from acdc.report.numbers import number, thousandths
from acdc.report.patch.sites import maps_section, sites_section, sites_table
from acdc.report.style import BLUE, new_figure
from acdc.report.view import Block, Figure, Section, Subject, Table, View

MOST_ON_CONSOLE = 5  # disagreements of a map
_ESTIMATED = "The sites that matter most, as estimated"


def view(found: Attributed, subject: Subject) -> View:
    """The page and the console of estimates beside real patching."""
    estimated = found.estimated
    console = [sites_table(estimated, _ESTIMATED)]
    if found.agreements:
        console.append(_agreement_table(found))
    if found.disagreements:
        furthest = [item for one in found.agreements for item in found.furthest(one)[:MOST_ON_CONSOLE]]
        console.append(_disagreement_table(furthest))
    corrections = f" with AtP*'s {' and '.join(found.corrections)}" if found.corrections else ""
    return View(
        f"Attribution patching · {subject.task} · {subject.model}",
        f"The effect of patching each site of {subject.model}, estimated from gradients on {subject.pairs} pairs of the"
        f" task {subject.task}{corrections}. Recovery is 1 at the clean run's {estimated.metric} of"
        f" {number(estimated.clean)} and 0 at the corrupted run's of {number(estimated.corrupted)}.",
        [
            _agreement_section(found),
            _disagreement_section(found),
            maps_section(estimated, "attribution.csv", estimated=True),
            sites_section(estimated, _ESTIMATED),
        ],
        console,
    )


def _agreement_table(found: Attributed) -> Table:
    """The correlations of each map."""
    rows = [
        [
            one.real.grid.kind.name,
            one.real.direction,
            f"{len(one.real.grid):,}",
            thousandths(one.pearson),
            thousandths(one.spearman),
        ]
        for one in found.agreements
    ]
    return Table("Estimated and real patching", ["site", "direction", "sites", "Pearson", "Spearman"], rows, left=2)


def _disagreement_table(items: list[Disagreement]) -> Table:
    """Sites with both effects, the direct effect and the backup heads."""
    rows = []
    for one in items:
        backup = one.backup_heads or ("—" if one.backup.has_direct_effect else "(no direct effect)")
        numbers = map(thousandths, (one.estimated, one.real, one.direct))
        rows.append([one.site.kind, one.direction, str(one.site), *numbers, backup])
    header = ["site", "direction", "where", "estimated", "real", "direct", "backup heads"]
    return Table("Where they disagree most", header, rows, left=3, words=[6])


def _agreement_section(found: Attributed) -> Section:
    """The correlations and the scatter plots; empty where nothing was patched for real."""
    if not found.agreements:
        return Section("", [])
    words = "Every site was also patched for real. Effects are importance: 0 is no effect, 1 all of clean − corrupted."
    if found.agreements[0].unsigned:
        words += " Estimates are sizes (GradDrop), beside the mean size of the real effect over the pairs."
    blocks: list[Block] = [words, _agreement_table(found)]
    for one in found.agreements:
        draw = partial(_draw_agreement, one, found.estimated.metric, found.furthest(one))
        name = f"{one.real.name}_compare"
        blocks.append(Figure(name, draw, f"estimated and real {name}"))
    return Section("Estimated and real patching", blocks)


def _disagreement_section(found: Attributed) -> Section:
    """The sites where the two differ most, with their backup heads."""
    if not found.disagreements:
        return Section("", [])
    words = (
        "direct: the change of the logit difference by what the site itself writes, the final norm's scale held, over"
        " clean − corrupted. Backup heads are later heads whose direct share moves against it once the site is really"
        f" patched, by at least {LEAST:.0%} of it, so that the real effect is the smaller; — where there is none, and"
        f" (no direct effect) where the site itself changes less than {NONE_BELOW:.0%} of the largest direct effect."
    )
    return Section("Where they disagree most", [words, _disagreement_table(list(found.disagreements))])


def _draw_agreement(one: Agreement, metric: str, furthest: list[Disagreement]) -> Drawing:
    """Draw estimated against real importance, a point a site; those furthest from the diagonal have their names."""
    x, y = (values.tolist() for values in one.effects)
    figure = new_figure((5.6, 5.2))
    axes = figure.add_subplot()
    axes.axline((0, 0), slope=1, color="0.6", linewidth=0.8, linestyle="--")
    axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.85", linewidth=0.8, zorder=0)
    axes.scatter(x, y, s=18, color=BLUE, alpha=0.75, linewidths=0)
    axes.margins(0.12)
    size = "size of the " * one.unsigned
    numbers = f"Pearson {thousandths(one.pearson)}, Spearman {thousandths(one.spearman)}"
    kind, direction = one.real.grid.kind.name, one.real.direction
    axes.set(
        xlabel=f"estimated {size}effect",
        ylabel=f"real {size}effect",
        title=f"{kind}, {direction}: estimated and real ({metric})\n{numbers}",
    )
    axes.autoscale_view()
    name_points(axes, [(str(item.site), item.estimated, item.real) for item in furthest])
    return figure

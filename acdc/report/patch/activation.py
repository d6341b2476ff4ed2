"""What activation patching shows: maps, the sites that matter most, and the classes of sites."""

from __future__ import annotations

from collections import Counter
from functools import partial

from matplotlib.figure import Figure as Drawing

from acdc.patching.activation_result import CLASSES, Patched, SiteMap
from acdc.report.maps import name_points
from acdc.report.numbers import number
from acdc.report.patch.sites import maps_section, sites_section, sites_table
from acdc.report.style import BLUE, GREEN, GREY, ORANGE, new_figure
from acdc.report.view import Block, Figure, Section, Subject, Table, View

MEANINGS = {
    "necessary_and_sufficient": "noising it loses the behaviour, denoising it brings it back",
    "sufficient_redundant": "denoising it brings the behaviour back, but without it others do the same",
    "necessary_only": "noising it loses the behaviour, but it does not bring it back alone",
    "irrelevant": "neither",
}
COLOURS = {
    "necessary_and_sufficient": BLUE,
    "sufficient_redundant": GREEN,
    "necessary_only": ORANGE,
    "irrelevant": GREY,
}


def view(patched: Patched, subject: Subject) -> View:
    """The page and the console of a sweep."""
    sites = ", ".join(dict.fromkeys(one.grid.kind.name for one in patched.maps))
    return View(
        f"Activation patching · {subject.task} · {subject.model}",
        f"{sites} of {subject.model}, patched one site at a time on {subject.pairs} pairs of the task {subject.task}."
        f" Recovery is 1 at the clean run's {patched.metric} of {number(patched.clean)} and 0 at the corrupted run's of"
        f" {number(patched.corrupted)}.",
        [maps_section(patched, "patch.csv"), _classes_section(patched), sites_section(patched)],
        [sites_table(patched)],
    )


def _classes_section(patched: Patched) -> Section:
    """How many sites are of which class, and the quadrants; empty where only one direction was patched."""
    counts = Counter(patched.classes().values())
    if not counts:
        return Section("", [])
    blocks: list[Block] = [
        f"A site is sufficient if denoising it recovers at least {patched.sufficient_from:g} (`patch.sufficient_from`),"
        f" necessary if noising it loses at least {patched.necessary_from:g} (`patch.necessary_from`) of the way"
        " between the corrupted and the clean metric.",
        Table(
            "",
            ["", "sites", "meaning"],
            [[name, number(counts[name]), MEANINGS[name]] for name in CLASSES.values()],
            code=[0],
            words=[2],
        ),
    ]
    for noise, denoise in patched.both():
        name = f"{denoise.grid.kind.name}_classes"
        blocks.append(Figure(name, partial(_draw_classes, noise, denoise, patched), f"quadrants {name}"))
    return Section("Necessary, sufficient", blocks)


def _draw_classes(noise: SiteMap, denoise: SiteMap, patched: Patched) -> Drawing:
    """Draw how necessary against how sufficient each site is; the limits make four quadrants."""
    classes = patched.classes()
    x, y = denoise.importance.flatten().tolist(), noise.importance.flatten().tolist()
    points = [point for point in zip(denoise.grid, x, y, strict=True) if point[0] in classes]
    figure = new_figure((6.4, 5.6))
    axes = figure.add_subplot()
    for name, colour in COLOURS.items():
        mine = [(a, b) for site, a, b in points if classes[site] == name]
        label = f"{name} ({len(mine)})"
        axes.scatter([a for a, _ in mine], [b for _, b in mine], s=18, color=colour, alpha=0.8, label=label)
    axes.margins(0.12)
    limits = patched.sufficient_from, patched.necessary_from
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    left, right = min(left, limits[0] - 0.05), max(right, limits[0] + 0.05)
    bottom, top = min(bottom, limits[1] - 0.05), max(top, limits[1] + 0.05)
    for (necessary, sufficient), name in CLASSES.items():
        across = (limits[0], right) if sufficient else (left, limits[0])
        up = (limits[1], top) if necessary else (bottom, limits[1])
        axes.fill_between(across, *up, color=COLOURS[name], alpha=0.07, linewidth=0)
    axes.axvline(limits[0], color="0.4", linewidth=0.8, linestyle="--")
    axes.axhline(limits[1], color="0.4", linewidth=0.8, linestyle="--")
    axes.set(
        xlim=(left, right),
        ylim=(bottom, top),
        xlabel=f"sufficient: recovery when denoising (limit {limits[0]:g})",
        ylabel=f"necessary: 1 − recovery when noising (limit {limits[1]:g})",
        title=f"{denoise.grid.kind.name}: is it necessary, is it enough? ({patched.metric})",
    )
    name_points(axes, [(str(site), a, b) for site, a, b in points if classes[site] != "irrelevant"])
    figure.legend(loc="outside lower center", ncols=2)
    return figure

"""What an ablation shows: the sites that matter most, the knock-out curve, what rises, and how sites interact."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing

from acdc.patching.ablation_result import Ablated, Ablation, Additivity, Curve
from acdc.patching.backup import Backup
from acdc.report.maps import Heatmap, draw_grid, draw_heatmap
from acdc.report.numbers import number, thousandths
from acdc.report.patch.sites import shift_text
from acdc.report.style import BLUE, GREY, new_figure
from acdc.report.view import Block, Figure, Section, Subject, Table, View

MOST_ON_CONSOLE = 10
MOST_ON_PAGE = 50
MOST_RISING = 8
MOST_NAMED = 30  # sites on the axis of a curve
ADDITIVE = 0.05  # of the sum: an interaction that is called none


def view(result: Ablation, subject: Subject) -> View:
    """The page and the console of an ablation."""
    sites = ", ".join(one.grid.kind.name for one in result.maps)
    clean, corrupted = (number(float(end.mean())) for end in (result.scale.clean, result.scale.corrupted))
    return View(
        f"Ablation · {subject.task} · {subject.model}",
        f"{sites} of {subject.model}, ablated on {subject.pairs} pairs of the task {subject.task}: in the clean run it"
        f" gets {result.stands_in}. The {result.metric} is {clean} in the clean and {corrupted} in the corrupted run.",
        [_effects_section(result), _curve_section(result), _backup_section(result), _additivity_section(result)],
        [
            _sites_table(result, "The sites that matter most", MOST_ON_CONSOLE),
            *([f"area under the knock-out curve: {_areas(result.curve)}"] if result.curve is not None else []),
            *(backup_words(result, one) for one in result.backups),
            *additivity_words(result),
        ],
    )


def backup_words(result: Ablation, one: Backup) -> str:
    """How much of a lost direct effect is made up for, and by what."""
    name = result.names.name(one.site)
    if one.compensation is None or one.backup is None:
        return f"backup of {name}: it loses no direct effect worth the name ({number(one.lost)})"
    if one.lost > 0:
        text, against, along = f"it loses {number(one.lost)} of direct effect", "restore", "lose"
    else:
        text, against, along = f"its direct effect, which hurts by {number(-one.lost)}, is gone", "take back", "add"
    text = f"backup of {name}: {text}; later heads and MLPs together"
    text += f" {against if one.compensation > 0 else along} {abs(one.compensation):.0%} of that"
    changes = sorted(one.changes.items(), key=lambda item: -item[1] / one.lost)
    rising = [f"{one.components[i]} {change / one.lost:.1%}" for i, change in changes[:3] if change / one.lost > 0.005]
    return (
        text
        + (f"; those that work against it {against} {one.backup:.1%}" if one.backup > 0.005 else "")
        + (f", most of it {', '.join(rising)}" if rising else "")
    )


def additivity_words(result: Ablation) -> list[str]:
    """What the joint effect of all chosen sites says, and which two interact most either way."""
    if (one := result.additivity) is None:
        return []
    names, single = [result.names.name(site) for site in one.sites], one.single.mean(-1).tolist()
    joint, total = float(one.whole.mean()), sum(single)
    least = ADDITIVE * max(abs(total), abs(joint))
    lines = [
        f"additivity of {' '.join(names)}: joint effect {number(joint)}, sum {number(total)};"
        f" {_meaning(single, joint - total, least)} ({joint - total:+.3g})"
    ]
    of_two = one.interactions.mean(-1)
    pairs = sorted((float(of_two[i, j]), i, j) for i in range(len(names)) for j in range(i + 1, len(names)))
    for most, (interaction, i, j) in (("positive", pairs[-1]), ("negative", pairs[0])):
        if len(names) > 2 and interaction * (1 if most == "positive" else -1) > least:
            words = _of_two((names[i], names[j]), (single[i], single[j]), interaction, least)
            lines.append(f"the most {most} interaction of two sites is {interaction:+.3g}: {words}")
    return lines


def _meaning(single: Sequence[float], interaction: float, least: float) -> str:
    """What the interaction of some sites says; `single`: their effects, of which `least` is none."""
    if abs(interaction) <= least:
        return "about additive: each acts by itself"
    positive = interaction > 0
    name = f"{'positive' if positive else 'negative'} interaction: "
    if min(single) >= -least and (max(single) > least or positive):  # what has no effect alone, by the joint one
        return name + (
            "they back each other up, and losing all costs more than losing each"
            if positive
            else "they share their effect, as on one path, where losing one costs what losing all does"
        )
    if max(single) <= least:
        return name + (
            "they share the harm that they do, as on one path"
            if positive
            else "they do harm in each other's place, and losing all gains more than losing each"
        )
    return name + (
        "some hurt by working against those that help" if positive else "those that help make up for those that hurt"
    )


def _of_two(names: tuple[str, str], single: tuple[float, float], interaction: float, least: float) -> str:
    """The same of two sites, by name."""
    (low, worse), (high, better) = sorted(zip(single, names, strict=True), key=lambda item: item[0])
    if low < -least and high > least:
        return f"{worse} hurts and works against {better}" if interaction > 0 else f"{better} makes up for {worse}"
    return f"{names[0]} and {names[1]}: " + _meaning(single, interaction, least).partition(": ")[2]


def _sites_table(result: Ablation, title: str, most: int) -> Table:
    """The sites with the largest effects."""
    rows = sorted(result.rows(), key=lambda row: -abs(row["effect"]))[:most]
    header = ["site", "effect", "std", "share", "norm ratio", "norm z", "shift"]
    cells = [
        [
            row["name"] + (f" ({row['label']})" if row["position"] and row["label"] != row["position"] else ""),
            *(thousandths(row[key]) for key in ("effect", "std", "share", "norm_ratio", "norm_z")),
            shift_text(row["shift"], row["shifted"]),
        ]
        for row in rows
    ]
    return Table(title, header, cells)


def _areas(curve: Curve) -> str:
    return ", ".join(f"{name} {number(area)}" for name, area in curve.areas.items())


def _effects_section(result: Ablation) -> Section:
    """Maps of effects and the sites with the largest."""
    blocks: list[Block] = [
        f"One site at a time gets {result.stands_in} in the clean run. An effect is the loss after − the loss before:"
        " positive means that the site helps. Share: of the way from the clean to the corrupted run."
    ]
    for one in result.maps:
        name = f"{one.grid.kind.name}_effect"
        blocks.append(Figure(name, partial(_draw_effects, result, one), f"effects {name}"))
    blocks.append(_sites_table(result, "", MOST_ON_PAGE))
    count = sum(len(one.grid) for one in result.maps)
    if count > MOST_ON_PAGE:
        blocks.append(f"{MOST_ON_PAGE} of {count:,} sites; patch.csv has all.")
    shifted = sum(bool(row["shifted"]) for row in result.rows())
    blocks.append(
        f"{shifted:,} of {count:,} sites are marked * as shifted: what stands in lies outside the range of their clean"
        " values, by norm or by Mahalanobis distance (shift; 1 is the usual distance of a clean value), so their effect"
        " is partly that of an input the model never sees."
    )
    return Section("Effects", blocks)


def _curve_section(result: Ablation) -> Section:
    """The knock-out curve; empty where there is none."""
    if (curve := result.curve) is None:
        return Section("", [])
    text = (
        "Sites are ablated one after the other, each with all before it. Area under loss after − before, over the share"
        f" of sites ablated: {_areas(curve)}."
    )
    return Section(
        "Knock-out curve", [text, Figure("knockout", partial(_draw_curve, result, curve), "knock-out curve")]
    )


def _backup_section(result: Ablation) -> Section:
    """For each ablated site a picture and the parts that restore most."""
    blocks: list[Block] = []
    if result.backups:
        blocks.append(
            "The direct effect of a head or MLP is what it writes to the final residual stream in the direction of the"
            " answers' logit difference, with the last norm's scale that of the clean run. Grey: what comes before the"
            " ablated site."
        )
    header = ["what restores most", "before", "after", "change", "std", "restored"]
    for i, one in enumerate(result.backups, 1):
        rows = [row for row in result.backup_rows() if row["ablated"] == result.names.name(one.site)]
        rows.sort(key=lambda row: -(row["restored"] or 0.0))
        keys = ("before", "after", "change", "std", "restored")
        cells = [[row["component"], *(thousandths(row[key]) for key in keys)] for row in rows[:MOST_RISING]]
        blocks.append(_sentence(backup_words(result, one)))
        blocks.append(Figure(f"backup_{i}", partial(_draw_backup, result, one), f"backup_{i}"))
        if one.compensation is not None and rows:
            blocks.append(Table("", header, cells))
    return Section("Backup", blocks)


def _additivity_section(result: Ablation) -> Section:
    """The interaction of each two sites and of all together; empty where it was not asked for."""
    if (one := result.additivity) is None:
        return Section("", [])
    cells = [
        [row["sites"], *(thousandths(row[key]) for key in ("joint", "sum", "interaction", "std"))]
        for row in result.additivity_rows()
    ]
    header = ["ablated together", "joint effect", "sum of effects", "interaction", "std"]
    return Section(
        "Additivity",
        [
            *map(_sentence, additivity_words(result)),
            Figure("interactions", partial(_draw_interactions, result, one), "interactions"),
            Table("", header, cells),
        ],
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _draw_effects(result: Ablation, one: Ablated) -> Drawing:
    """Draw a map of the effects of one kind of site."""
    title = f"{one.grid.kind.name} ablated by {result.value}: loss after − before ({result.metric})"
    return draw_grid(one.grid, one.effect, "effect (positive: it helps)", title)


def _draw_curve(result: Ablation, curve: Curve) -> Drawing:
    """Draw the metric while sites go one after the other; the band is all random orders."""
    sign = -1 if result.scale.larger_is_better else 1
    clean, corrupted = float(result.scale.clean.mean()), float(result.scale.corrupted.mean())
    named = curve.ranked is not None and curve.counts[-1] < MOST_NAMED
    figure = new_figure((7.2, 4.4 if named else 3.8))
    axes = figure.add_subplot()
    for value, label in ((clean, "clean run"), (corrupted, "corrupted run")):
        axes.axhline(value, color="0.55", linewidth=0.8, linestyle="--")
        style: dict[str, Any] = {"fontsize": 7, "color": "0.4", "ha": "right", "va": "bottom"}
        axes.annotate(label, (1, value), (-2, 2), ("axes fraction", "data"), textcoords="offset points", **style)
    if len(curve.shuffled):
        found = clean + sign * curve.shuffled.mean(-1).numpy()
        axes.fill_between(curve.counts, found.min(0), found.max(0), color=GREY, alpha=0.2, linewidth=0)
        label = f"random, mean of {len(found)} (area {curve.areas['random']:.3g})"
        axes.plot(curve.counts, found.mean(0), color="#6b737d", linewidth=1.2, label=label)
    if curve.ranked is not None:
        found = clean + sign * curve.ranked.mean(-1).numpy()
        label = f"by {curve.ranking} (area {curve.areas[curve.ranking]:.3g})"
        dots = "o" if len(curve.counts) <= MOST_NAMED else None
        axes.plot(curve.counts, found, color=BLUE, linewidth=1.5, marker=dots, markersize=3, label=label)
    if named:
        names = ["none", *(f"+ {result.names.name(site)}" for site in curve.sites)]
        axes.set_xticks(range(len(names)), names, fontsize=7, rotation=90, parse_math=False)
    axes.set(
        xlabel="sites ablated" if not named else "sites ablated, one more at each step",
        ylabel=result.metric,
        title=f"Knock-out curve, by {result.value} (area: under loss after − before)",
    )
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _draw_backup(result: Ablation, one: Backup) -> Drawing:
    """Draw how the direct effect of every head and MLP changes once a site is ablated."""
    nodes, later = [result.graph[name] for name in one.components], set(one.later)
    n_layers, heads = result.graph.config.n_layers, result.graph.config.n_heads
    with_mlps = any(node.kind == "mlp" for node in nodes)
    values = np.full((n_layers, heads + with_mlps), np.nan)
    for i, (node, change) in enumerate(zip(nodes, one.change.mean(-1).tolist(), strict=True)):
        if i in later:
            values[node.layer, node.unit if node.kind == "head" else heads] = change
    columns = [*map(str, range(heads)), *["MLP"] * with_mlps]
    title = f"{result.names.name(one.site)} ablated: direct effects on the logits, after − before"
    rows = list(map(str, range(n_layers)))
    return draw_heatmap(Heatmap(values, rows, columns, ("layer", "head"), f"change (it loses {one.lost:.3g})", title))


def _draw_interactions(result: Ablation, one: Additivity) -> Drawing:
    """Draw the joint effect − the sum of each two sites."""
    names = [result.names.name(site) for site in one.sites]
    values = one.interactions.mean(-1).numpy().copy()
    np.fill_diagonal(values, np.nan)
    title = f"Joint effect of two sites − the sum of their effects ({result.metric})"
    return draw_heatmap(Heatmap(values, names, names, ("site", "site"), "interaction (joint − sum)", title))

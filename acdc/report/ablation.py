"""What an ablation found, for people: the sites that matter most, the curve, what rises, and how sites interact."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from acdc.patching.ablated import Ablation, Backup
from acdc.report.grades import image
from acdc.report.html import Section, table
from acdc.report.numbers import number, thousandths
from acdc.report.patch.sites import shift_text

MOST_ON_CONSOLE = 10
MOST_ON_PAGE = 50
MOST_RISING = 8
ADDITIVE = 0.05  # of the sum: an interaction that is called none

_HEADER = ["site", "effect", "std", "share", "norm ratio", "norm z", "shift"]


def effects_table(result: Ablation) -> Table:
    """The sites with the largest effects."""
    shown = Table(title="The sites that matter most", title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(_HEADER):
        shown.add_column(Text(name), justify="right" if i else "left", overflow="fold")
    for row in _rows(result, MOST_ON_CONSOLE):
        shown.add_row(*map(Text, row))
    return shown


def summary_lines(result: Ablation) -> list[str]:
    """Curve, backup and additivity, a line each."""
    lines = []
    if result.curve is not None:
        areas = ", ".join(f"{name} {number(area)}" for name, area in result.curve.areas.items())
        lines.append(f"area under the knock-out curve: {areas}")
    lines += [backup_words(result, one) for one in result.backups]
    return lines + additivity_words(result)


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


def effects_section(result: Ablation, pictures: Sequence[Path]) -> Section:
    """Maps of effects and the sites with the largest."""
    html = (
        f"<p>One site at a time gets {escape(result.stands_in)} in the clean run. An effect is the loss after − the"
        " loss before: positive means that the site helps. Share: of the way from the clean to the corrupted run.</p>"
    )
    html += "".join(image(path, f"effects {path.stem}") for path in pictures)
    rows = [[escape(cell) for cell in row] for row in _rows(result, MOST_ON_PAGE)]
    html += table(_HEADER, rows, numeric=range(1, 7))
    count = sum(len(one.grid) for one in result.maps)
    if count > MOST_ON_PAGE:
        html += f"<p>{MOST_ON_PAGE} of {count:,} sites; patch.csv has all.</p>"
    shifted = sum(bool(row["shifted"]) for row in result.rows())
    html += (
        f"<p>{shifted:,} of {count:,} sites are marked * as shifted: what stands in lies outside the range of their"
        " clean values, by norm or by Mahalanobis distance (shift; 1 is the usual distance of a clean value), so their"
        " effect is partly that of an input the model never sees.</p>"
    )
    return Section("Effects", html)


def curve_section(result: Ablation, pictures: Sequence[Path]) -> Section:
    """The knock-out curve."""
    if result.curve is None:
        return Section("", "")
    html = "<p>Sites are ablated one after the other, each with all before it. "
    areas = result.curve.areas
    html += "Area under loss after − before, over the share of sites ablated: "
    html += ", ".join(f"{escape(name)} {number(area)}" for name, area in areas.items()) + ".</p>"
    return Section("Knock-out curve", html + "".join(image(path, "knock-out curve") for path in pictures))


def backup_section(result: Ablation, pictures: Sequence[Path]) -> Section:
    """For each ablated site a picture and the parts that restore most."""
    parts = []
    for one, path in zip(result.backups, pictures, strict=True):
        rows = [row for row in result.backup_rows() if row["ablated"] == result.names.name(one.site)]
        rows.sort(key=lambda row: -(row["restored"] or 0.0))
        cells = [[escape(row["component"]), *map(thousandths, _numbers(row))] for row in rows[:MOST_RISING]]
        header = ["what restores most", "before", "after", "change", "std", "restored"]
        parts.append(f"<p>{escape(_sentence(backup_words(result, one)))}</p>{image(path, path.stem)}")
        if one.compensation is not None and rows:
            parts.append(table(header, cells, numeric=range(1, 6)))
    lead = (
        "<p>The direct effect of a head or MLP is what it writes to the final residual stream in the direction of the"
        " answers' logit difference, with the last norm's scale that of the clean run. Grey: what comes before the"
        " ablated site.</p>"
    )
    return Section("Backup", lead + "".join(parts) if parts else "")


def additivity_section(result: Ablation, pictures: Sequence[Path]) -> Section:
    """The interaction of each two sites and of all together."""
    rows = result.additivity_rows()
    cells = [
        [escape(row["sites"]), *(thousandths(row[k]) for k in ("joint", "sum", "interaction", "std"))] for row in rows
    ]
    html = "".join(f"<p>{escape(_sentence(line))}</p>" for line in additivity_words(result))
    html += "".join(image(path, "interactions") for path in pictures)
    html += table(["ablated together", "joint effect", "sum of effects", "interaction", "std"], cells, range(1, 5))
    return Section("Additivity", html if rows else "")


def _rows(result: Ablation, most: int) -> list[list[str]]:
    rows = sorted(result.rows(), key=lambda row: -abs(row["effect"]))
    return [
        [
            row["name"] + (f" ({row['label']})" if row["position"] and row["label"] != row["position"] else ""),
            *(thousandths(row[key]) for key in ("effect", "std", "share", "norm_ratio", "norm_z")),
            shift_text(row["shift"], row["shifted"]),
        ]
        for row in rows[:most]
    ]


def _numbers(row: dict[str, Any]) -> list[float | None]:
    return [row[key] for key in ("before", "after", "change", "std", "restored")]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."

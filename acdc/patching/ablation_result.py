"""What ablating sites gives: effects, the knock-out curve, backup and additivity, as rows and arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from acdc.graph import Graph
from acdc.patching.activation_result import axes_of
from acdc.patching.backup import Backup
from acdc.patching.ranking import NamedSites
from acdc.patching.shift import Shift
from acdc.patching.sites import Grid, Site
from acdc.process import undisturbed
from acdc.result import Labelled, Result, as_table


@dataclass(frozen=True)
class Scale:
    """Both ends of the scale.

    Attributes
    ----------
    clean, corrupted : torch.Tensor
        The metric of each pair in the two runs, `pair`, in the metric's own direction.
    larger_is_better : bool
        The metric's direction.
    """

    clean: Tensor
    corrupted: Tensor
    larger_is_better: bool

    def effects(self, values: Tensor) -> Tensor:
        """Loss after − loss before, of metrics `... pair`: positive means that what was ablated helps."""
        return self.clean - values if self.larger_is_better else values - self.clean

    @property
    def gap(self) -> float | None:
        """The mean loss of the corrupted − that of the clean run; None where they do not differ."""
        gap = float(self.effects(self.corrupted).mean())
        size = max(1.0, abs(float(self.clean.mean())), abs(float(self.corrupted.mean())))
        return gap if abs(gap) > 1e-6 * size else None

    def share(self, effect: float) -> float | None:
        """An effect as a share of the gap."""
        return None if self.gap is None else effect / self.gap


@dataclass(frozen=True)
class Ablated:
    """Every site of a grid ablated alone.

    Attributes
    ----------
    grid : Grid
    values : torch.Tensor
        The metric of each pair, `layer unit place pair`.
    effects : torch.Tensor
        Loss after − loss before, `layer unit place pair`.
    shift : Shift
        How far the values put in lie from clean ones.
    """

    grid: Grid
    values: Tensor
    effects: Tensor
    shift: Shift

    @property
    def effect(self) -> Tensor:
        """The mean over pairs, `layer unit place`."""
        return self.effects.mean(-1)

    @property
    def importance(self) -> Tensor:
        return self.effect


@dataclass(frozen=True)
class Curve:
    """Sites ablated cumulatively.

    Attributes
    ----------
    ranking : str
        What the sites are ordered by; `random` has no order of its own.
    sites : tuple of Site
        The sites in this order.
    counts : tuple of int
        How many sites are ablated at each point, from 0 to all.
    ranked : torch.Tensor or None
        The effects, `point pair`; None for `random`.
    shuffled : torch.Tensor
        The effects in random orders, `order point pair`.
    """

    ranking: str
    sites: tuple[Site, ...]
    counts: tuple[int, ...]
    ranked: Tensor | None
    shuffled: Tensor

    @undisturbed
    def area(self, effects: Tensor) -> float:
        """Area under the mean effect (trapezoid), over the share of sites that are ablated: the mean effect on the
        way; larger means that what matters goes earlier."""
        shares = torch.tensor(self.counts, dtype=torch.float64) / self.counts[-1]
        return float(torch.trapezoid(effects.mean(-1), shares))

    @property
    def areas(self) -> dict[str, float]:
        """The area of the ranking, and the mean area of random orders."""
        found = {} if self.ranked is None else {self.ranking: self.area(self.ranked)}
        if len(self.shuffled):
            found["random"] = sum(map(self.area, self.shuffled)) / len(self.shuffled)
        return found


@dataclass(frozen=True)
class Additivity:
    """A set of sites, ablated alone, in pairs and all together.

    Attributes
    ----------
    single : torch.Tensor
        The effect of each site alone, `site pair`.
    joint : torch.Tensor
        The effect of each two sites together, `site site pair`; on the diagonal that of one alone.
    whole : torch.Tensor
        The effect of all sites together, `pair`.
    """

    sites: tuple[Site, ...]
    single: Tensor
    joint: Tensor
    whole: Tensor

    @property
    def interactions(self) -> Tensor:
        """Joint effect − sum of the two, `site site pair`; 0 on the diagonal."""
        found = self.joint - self.single[:, None] - self.single[None]
        found[range(len(self.sites)), range(len(self.sites))] = 0
        return found

    @property
    def interaction(self) -> Tensor:
        """The joint effect of all sites − the sum of their effects, `pair`."""
        return self.whole - self.single.sum(0)


@dataclass(frozen=True)
class Ablation(Result):
    """The result of `patch=ablation`.

    Attributes
    ----------
    maps : tuple of Ablated
        A map for each kind of site.
    names : NamedSites
        The names of the sites.
    scale : Scale
    metric : str
    value, over : str
        What was put in, and which prompts it is of.
    subset : str
        The name of the choice of sites; empty where all were ablated.
    curve : Curve or None
        None where it was not asked for.
    backups : tuple of Backup
        One for each site that was looked at.
    additivity : Additivity or None
        None where it was not asked for.
    graph : Graph
        The model's graph.
    backup_wanted : bool
        Whether backups were asked for.
    """

    maps: tuple[Ablated, ...]
    names: NamedSites
    scale: Scale
    metric: str
    value: str
    over: str
    subset: str
    curve: Curve | None
    backups: tuple[Backup, ...]
    additivity: Additivity | None
    graph: Graph
    backup_wanted: bool

    @property
    def stands_in(self) -> str:
        """What stood in, for people."""
        return {
            "zero": "zero",
            "mean": f"the mean over all tokens of the {self.over} prompts",
            "mean_by_position": f"the mean over the {self.over} prompts at the same position",
            "resample": f"the value of another pair's {self.over} prompt",
        }[self.value]

    def ranked(self) -> list[tuple[Site, Tensor]]:
        """Every site with its effects, the strongest help first."""
        found = [pair for one in self.maps for pair in zip(one.grid, one.effects.flatten(0, -2), strict=True)]
        return sorted(found, key=lambda item: -float(item[1].mean()))

    def rows(self) -> list[dict[str, Any]]:
        """A row a site, as in `patch.csv`."""
        rows = []
        for one in self.maps:
            shift, values = one.shift, one.values.mean(-1).flatten()
            norms = zip(shift.norm_ratio.flatten().tolist(), shift.norm_z.flatten().tolist(), strict=True)
            each = zip(one.grid, one.effects.flatten(0, -2), values.tolist(), norms, shift.columns(), strict=True)
            for site, effects, metric, (norm_ratio, norm_z), shifted in each:
                rows.append(
                    {
                        "site": site.kind,
                        "layer": site.layer,
                        "head": site.head,
                        "position": site.place.name,
                        "value": self.value,
                        **self._measured(effects),
                        "subset": self.subset,
                        "label": site.place.label,
                        "neuron": site.neuron,
                        "metric": metric,
                        "name": self.names.name(site),
                        "norm_ratio": _known(norm_ratio),
                        "norm_z": _known(norm_z),
                        **shifted,
                    }
                )
        return rows

    def curve_rows(self) -> list[dict[str, Any]]:
        """A row a point of the knock-out curve, as in `knockout.csv`; `order` numbers the random ones."""
        if self.curve is None:
            return []
        curves: list[tuple[str, int | None, Tensor]] = []
        if self.curve.ranked is not None:
            curves.append((self.curve.ranking, None, self.curve.ranked))
        curves += [("random", i, effects) for i, effects in enumerate(self.curve.shuffled)]
        rows = []
        for ranking, order, points in curves:
            for count, effects in zip(self.curve.counts, points, strict=True):
                last = self.names.name(self.curve.sites[count - 1]) if count and order is None else ""
                head = {"ranking": ranking, "order": order, "ablated": count, "last": last}
                sign = -1 if self.scale.larger_is_better else 1
                metric = float(self.scale.clean.mean()) + sign * float(effects.mean())
                rows.append({**head, "metric": metric, **self._measured(effects)})
        return rows

    def backup_rows(self) -> list[dict[str, Any]]:
        """A row an ablated site and later head or MLP, as in `backup.csv`."""
        rows = []
        for one in self.backups:
            for i in one.later:
                changes = one.change[i]
                rows.append(
                    {
                        "ablated": self.names.name(one.site),
                        "component": one.components[i],
                        "before": float(one.before[i].mean()),
                        "after": float(one.after[i].mean()),
                        "change": float(changes.mean()),
                        "std": _std(changes),
                        "restored": one.restored(float(changes.mean())),
                        "n": len(changes),
                    }
                )
        return rows

    def additivity_rows(self) -> list[dict[str, Any]]:
        """A row a pair of sites and, last, one for all of them, as in `additivity.csv`."""
        if (one := self.additivity) is None:
            return []
        names, count = [self.names.name(site) for site in one.sites], len(one.sites)
        found = [
            ([names[i], names[j]], one.joint[i, j], one.single[[i, j]].sum(0))
            for i in range(count)
            for j in range(i + 1, count)
        ]
        if count > 2:
            found.append((names, one.whole, one.single.sum(0)))
        return [
            {
                "sites": " ".join(which),
                "joint": float(joint.mean()),
                "sum": float(total.mean()),
                "interaction": float((joint - total).mean()),
                "std": _std(joint - total),
                "n": len(joint),
            }
            for which, joint, total in found
        ]

    def tables(self) -> dict[str, pd.DataFrame]:
        return {
            "patch": as_table(self.rows()),
            "knockout": as_table(self.curve_rows()),
            "backup": as_table(self.backup_rows()),
            "additivity": as_table(self.additivity_rows()),
        }

    def arrays(self) -> dict[str, dict[str, Labelled]]:
        """Return the arrays of `patch.npz`.

        `SITE_effect` is `layer unit place`; `SITE_effect_pairs` has a last axis for the pairs; `SITE_shift`.
        `SITE_layers`, `SITE_units` (heads or neurons; −1: all together) and `SITE_places` are the labels of the axes.
        `knockout…`, `backup…` and `interaction…` are there as far as they were asked for.
        """
        axes = ("layer", "unit", "place")
        runs = (("clean", self.scale.clean), ("corrupted", self.scale.corrupted))
        arrays = {name: Labelled(("pair",), values.numpy()) for name, values in runs}
        for one in self.maps:
            name = one.grid.kind.name
            arrays[f"{name}_effect"] = Labelled(axes, one.effect.numpy())
            arrays[f"{name}_effect_pairs"] = Labelled((*axes, "pair"), one.effects.numpy())
            arrays[f"{name}_shift"] = Labelled(axes, one.shift.distance.numpy())
            arrays |= axes_of(one.grid)
        if (curve := self.curve) is not None:
            arrays["knockout_counts"] = Labelled(("point",), np.array(curve.counts))
            arrays["knockout_sites"] = Labelled(("site",), self._names(curve.sites))
            arrays["knockout_random"] = Labelled(("order", "point", "pair"), curve.shuffled.numpy())
            if curve.ranked is not None:
                arrays["knockout_ranked"] = Labelled(("point", "pair"), curve.ranked.numpy())
        if self.backups:
            first = self.backups[0]
            after = torch.stack([one.after for one in self.backups])
            arrays["backup_ablated"] = Labelled(("site",), self._names([one.site for one in self.backups]))
            arrays["backup_components"] = Labelled(("component",), np.array(first.components))
            arrays["backup_before"] = Labelled(("component", "pair"), first.before.numpy())
            arrays["backup_after"] = Labelled(("site", "component", "pair"), after.numpy())
        if self.additivity is not None:
            arrays["interaction_sites"] = Labelled(("site",), self._names(self.additivity.sites))
            arrays["interaction"] = Labelled(("site", "site"), self.additivity.interactions.mean(-1).numpy())
        return {"patch": arrays}

    def summary(self) -> dict[str, object]:
        """Return both ends of the scale, how much was ablated, and the main findings."""
        site, effects = max(self.ranked(), key=lambda item: float(item[1].mean()))
        summary: dict[str, object] = {
            "metric": self.metric,
            "clean": float(self.scale.clean.mean()),
            "corrupted": float(self.scale.corrupted.mean()),
            "sites": sum(len(one.grid) for one in self.maps),
            "pairs": len(self.scale.clean),
            "shifted": sum(bool(row["shifted"]) for row in self.rows()),
            "strongest": self.names.name(site),
            "strongest_effect": float(effects.mean()),
        }
        if self.curve is not None:
            areas = self.curve.areas
            summary |= {"knockout_area": areas.get(self.curve.ranking), "knockout_area_random": areas.get("random")}
        for one in self.backups:
            summary[f"compensation_{self.names.name(one.site)}"] = one.compensation
        if rows := self.additivity_rows():
            summary |= {"joint_effect": rows[-1]["joint"], "interaction": rows[-1]["interaction"]}
        return summary

    def notes(self) -> tuple[str, ...]:
        if self.backup_wanted and not self.backups:
            return ("backup: none of the sites has both a direct effect on the logits and a head or MLP behind it",)
        return ()

    def _names(self, sites: Sequence[Site]) -> np.ndarray:
        return np.array([self.names.name(site) for site in sites])

    def _measured(self, effects: Tensor) -> dict[str, Any]:
        effect = float(effects.mean())
        return {"effect": effect, "std": _std(effects), "share": self.scale.share(effect), "n": len(effects)}


def _known(value: float) -> float | None:
    """None for NaN."""
    return None if math.isnan(value) else value


def _std(values: Tensor) -> float | None:
    """Over pairs, n − 1 in the denominator."""
    return float(values.std()) if len(values) > 1 else None


def strongest(ranked: Sequence[tuple[Site, Tensor]], count: int) -> list[Site]:
    """The sites with the largest effects, of either sign."""
    return [site for site, _ in sorted(ranked, key=lambda item: -abs(float(item[1].mean())))[:count]]

"""Attribution patching (Nanda 2023; Syed et al. 2023): (source − base) · gradient of the metric at base.

It estimates what activation patching finds, for all sites in one pass forward through both runs and one back.

With the corrections of AtP* (Kramár et al. 2024, arXiv:2403.00745), and with real patching of the same sites beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from acdc.engine.memory import budget_bytes
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.patching import activation, estimates
from acdc.patching.ablation_run import AblationRun
from acdc.patching.activation_result import Patched, SiteMap
from acdc.patching.backup import Backup, find_backup, logit_gap
from acdc.patching.base import Progress, base_and_source, correlation
from acdc.patching.sites import Grid, Site, SiteSettings
from acdc.patching.values import RunValues
from acdc.result import Labelled, Result, as_table
from acdc.settings import option

DOING = ("attribution", "sites")  # what the progress bar says, and what it counts


@dataclass(frozen=True)
class Settings(SiteSettings):
    """Attribution patching: the effect of every site estimated from gradients, beside the real one."""

    name: str = "attribution"
    qk_fix: bool = option(
        False,
        "AtP*: compute the attention pattern anew for q and k sites, so that a saturated softmax hides nothing",
    )
    grad_drop: bool = option(
        False,
        "AtP*: the mean size of the estimate with each layer held fixed in turn, so that effects cannot"
        " cancel; no sign",
    )
    compare: bool = option(True, "patch the same sites for real too, and say where the two disagree")
    disagreements: int = option(
        10,
        "how many sites of a map (a kind and direction) to list where the two differ most",
        least=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.compare and self.disagreements != Settings.disagreements:
            raise ConfigError(
                f"patch.disagreements={self.disagreements} has no effect with patch.compare=false: leave it out"
            )


@dataclass(frozen=True)
class Attributed(Result):
    """The result.

    Attributes
    ----------
    estimated : Patched
        The maps in the form that activation patching gives, without classes.
    agreements : tuple of Agreement
        One for each map, in the same order; empty where nothing was really patched.
    disagreements : tuple of Disagreement
        The sites of each map where estimate and reality differ most.
    corrections : tuple of str
        The names of AtP*'s corrections that were used.
    """

    estimated: Patched
    agreements: tuple[Agreement, ...]
    disagreements: tuple[Disagreement, ...]
    corrections: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """A row a site and direction, as in `attribution.csv`: `patch.csv`'s columns but `class`, for the estimate,
        then `real`, the recovery of real patching, and `difference`, estimate − real."""
        rows = [{key: row[key] for key in row if key != "class"} for row in self.estimated.rows()]
        real = [value for one in self.agreements for value in one.real.recovery.flatten().tolist()]
        for row, value in zip(rows, real, strict=False):
            row |= {"real": value, "difference": row["recovery"] - value}
        return rows

    def disagreement_rows(self) -> list[dict[str, Any]]:
        """Return a row for each site where both differ, as in `disagreements.csv`.

        `estimated` and `real` are importance, 0 for no effect; `direct` and `backup_total` are changes of the logit
        difference over clean − corrupted; `backup` are the heads and how much each moves.
        """
        return [
            {
                "site": one.site.kind,
                "layer": one.site.layer,
                "head": one.site.head,
                "neuron": one.site.neuron,
                "position": one.site.place.name,
                "direction": one.direction,
                "estimated": one.estimated,
                "real": one.real,
                "direct": one.direct,
                "backup": one.backup_heads,
                "backup_total": one.backup_total,
            }
            for one in self.disagreements
        ]

    def furthest(self, one: Agreement) -> list[Disagreement]:
        """Return the disagreements of one map."""
        name = one.real.grid.kind.name, one.real.direction
        return [item for item in self.disagreements if (item.site.kind, item.direction) == name]

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"attribution": as_table(self.rows()), "disagreements": as_table(self.disagreement_rows())}

    def arrays(self) -> dict[str, dict[str, Labelled]]:
        """Return the arrays of `attribution.npz`: those of `patch.npz` for the estimates, and `SITE_DIRECTION_real`."""
        (arrays,) = self.estimated.arrays().values()
        for one in self.agreements:
            arrays[f"{one.real.name}_real"] = Labelled(("layer", "unit", "place"), one.real.recovery.numpy())
        return {"attribution": arrays}

    def summary(self) -> dict[str, object]:
        """Return both ends of the scale, how much was estimated, and the correlations of each map."""
        estimated = self.estimated
        summary: dict[str, object] = {
            "metric": estimated.metric,
            "clean": estimated.clean,
            "corrupted": estimated.corrupted,
            "sites": sum(len(one.grid) for one in estimated.maps),
            "pairs": len(estimated.maps[0].clean),
        }
        for one in estimated.maps:
            summary[f"{one.name}_strongest"] = str(list(one.grid)[int(one.importance.flatten().abs().argmax())])
        for both in self.agreements:
            for what, value in (("pearson", both.pearson), ("spearman", both.spearman)):
                summary[f"{both.real.name}_{what}"] = None if math.isnan(value) else value
        return summary


def check(experiment: Experiment, settings: Settings) -> list[Grid]:
    """The sites, a grid a kind; what cannot be estimated is refused.

    Raises
    ------
    ConfigError, TaskError
        See `acdc.patching.estimates.check`; `qk_fix` without a site that it is for.
    """
    grids = estimates.check(experiment, settings, settings.grad_drop)
    if settings.qk_fix and not any(grid.kind.name in ("q", "k") for grid in grids):
        raise ConfigError("patch.qk_fix=true has no effect without queries or keys: give patch.site=q, k or [q,k]")
    return grids


def patch(experiment: Experiment, settings: Settings, progress: Progress | None = None) -> Attributed:
    """Estimate every chosen site, and where asked for patch it.

    Parameters
    ----------
    progress : callable or None
        Called with the number of sites that are done, and with the number of all; a site that is also patched counts
        twice.

    Raises
    ------
    ConfigError, TaskError
        See `check`.
    """
    grids = check(experiment, settings)
    n_sites = len(settings.directions) * sum(map(len, grids))
    total = n_sites * (1 + settings.compare)

    def after(before: int) -> Progress | None:
        return None if progress is None else lambda done, _: progress(before + done, total)

    maps = estimates.estimate(experiment, settings, settings.qk_fix, settings.grad_drop, after(0))
    estimated = Patched(tuple(maps), experiment.metric_name, settings.choice.subset)
    named = (("QK fix", settings.qk_fix), ("GradDrop", settings.grad_drop))
    corrections = tuple(name for name, used in named if used)
    if not settings.compare:
        return Attributed(estimated, (), (), corrections)
    common = {f.name: getattr(settings, f.name) for f in fields(SiteSettings) if f.name != "name"}
    real = activation.patch(experiment, activation.Settings(**common), after(n_sites))
    agreements = tuple(Agreement(a, b, settings.grad_drop) for a, b in zip(maps, real.maps, strict=True))
    listed = [
        (site, one.real.direction, estimate, truth)
        for one in agreements
        for site, estimate, truth in one.furthest(settings.disagreements)
    ]
    backups = _backups(experiment, settings, [(site, direction) for site, direction, *_ in listed])
    gap = logit_gap(experiment) if listed else 1.0
    disagreements = (Disagreement(*item, backup, gap) for item, backup in zip(listed, backups, strict=True))
    return Attributed(estimated, agreements, tuple(disagreements), corrections)


def _backups(experiment: Experiment, settings: Settings, sites: Sequence[tuple[Site, str]]) -> list[Backup]:
    """Patch each (site, direction) and measure what others then write."""
    memory = budget_bytes(experiment.model.device, settings.memory_gb, "patch")
    found: dict[tuple[Site, str], Backup] = {}
    for direction in dict.fromkeys(direction for _, direction in sites):
        patched, source = base_and_source(direction)
        run = AblationRun(experiment, RunValues(experiment, source, memory // 2), memory // 2, base=patched)
        mine = [site for site, its in sites if its == direction]
        found |= {(one.site, direction): one for one in find_backup(run, mine)}
    return [found[key] for key in sites]


@dataclass(frozen=True)
class Agreement:
    """An estimated map beside the same map really patched.

    Attributes
    ----------
    unsigned : bool
        Whether the estimates have no sign (GradDrop); they are then compared with the mean size of the real effect.
    """

    estimated: SiteMap
    real: SiteMap
    unsigned: bool = False

    @property
    def effects(self) -> tuple[Tensor, Tensor]:
        """Importance as estimated and as it is, each `site`, in the order of the grid."""
        real = self.real.importance
        if self.unsigned:
            unpatched = self.real.clean if self.real.direction == "noise" else self.real.corrupted
            gap = (self.real.clean - self.real.corrupted).mean()
            real = ((self.real.values - unpatched) / gap).abs().mean(-1)
        return self.estimated.importance.flatten(), real.flatten()

    @property
    def pearson(self) -> float:
        """Correlation of the effects over the sites; NaN where one of them does not vary."""
        return correlation(pearsonr, *self.effects)

    @property
    def spearman(self) -> float:
        """Correlation of the effects' ranks; ties have their mean rank."""
        return correlation(spearmanr, *self.effects)

    def furthest(self, most: int) -> list[tuple[Site, float, float]]:
        """The sites where estimate and reality differ most: site, estimated and real importance."""
        estimated, real = self.effects
        order = (estimated - real).abs().argsort(descending=True, stable=True)[:most].tolist()
        sites = list(self.real.grid)
        return [(sites[i], float(estimated[i]), float(real[i])) for i in order]


@dataclass(frozen=True)
class Disagreement:
    """A site where estimate and reality differ, and the heads that may be why.

    Attributes
    ----------
    site : Site
    direction : str
    estimated, real : float
        Importance.
    backup : Backup
        What others write once the site is really patched.
    gap : float
        Clean − corrupted logit difference, the unit of `direct` and of what backup heads do.
    """

    site: Site
    direction: str
    estimated: float
    real: float
    backup: Backup
    gap: float

    @property
    def direct(self) -> float:
        """What the site itself changes directly."""
        return -self.backup.lost / self.gap

    @property
    def backup_heads(self) -> str:
        """The backup heads and how much each moves, as text; empty where there is none."""
        return ", ".join(f"{name} {change / self.gap:+.3f}" for name, change in self.backup.heads.items())

    @property
    def backup_total(self) -> float:
        """How much the backup heads move together."""
        return sum(self.backup.heads.values()) / self.gap

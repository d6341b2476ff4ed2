"""Attribution patching (Nanda 2023; Syed et al. 2023): (source − base) · gradient of the metric at base.

It estimates what activation patching finds, for all sites in one pass forward through both runs and one back.

With the corrections of AtP* (Kramár et al. 2024, arXiv:2403.00745), and with real patching of the same sites beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from acdc.engine.memory import budget_bytes
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.patching import activation, estimates
from acdc.patching.agreement import Agreement, Disagreement
from acdc.patching.backup import find_backups
from acdc.patching.base import Progress
from acdc.patching.result import Patched
from acdc.patching.site_settings import SiteSettings
from acdc.patching.sites import Grid


@dataclass(frozen=True)
class Settings(SiteSettings):
    """What is estimated, besides `SiteSettings`.

    Attributes
    ----------
    qk_fix: for q and k sites the attention pattern is computed anew, and only what follows is taken as linear (AtP*).
    grad_drop: GradDrop (AtP*): the mean of the estimate's size over layers held fixed, so that effects that cancel are
        seen; estimates then have no sign. A pass back for every layer.
    compare: patch the same sites for real too.
    disagreements: how many sites of each map to list where the two differ most.
    """

    name: str = "attribution"
    qk_fix: bool = False
    grad_drop: bool = False
    compare: bool = True
    disagreements: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.disagreements < 0:
            raise ConfigError(f"patch.disagreements={self.disagreements} is not allowed: give 0 or more")
        if not self.compare and self.disagreements != Settings.disagreements:
            raise ConfigError(
                f"patch.disagreements={self.disagreements} has no effect with patch.compare=false: leave it out"
            )


@dataclass(frozen=True)
class Attributed:
    """The result.

    Attributes
    ----------
    estimated: the maps in the form that activation patching gives, without classes. agreements: of each map, in the
    same order; none where nothing was patched for real. disagreements: of each map the sites that differ most.
    """

    estimated: Patched
    agreements: tuple[Agreement, ...]
    disagreements: tuple[Disagreement, ...]

    def rows(self) -> list[dict[str, Any]]:
        """A row a site and direction, as in `attribution.csv`: `patch.csv`'s columns but `class`, for the estimate,
        then `real`, the recovery of real patching, and `difference`, estimate − real."""
        rows = [{key: row[key] for key in row if key != "class"} for row in self.estimated.rows()]
        real = [value for one in self.agreements for value in one.real.recovery.flatten().tolist()]
        for row, value in zip(rows, real, strict=False):
            row |= {"real": value, "difference": row["recovery"] - value}
        return rows

    def disagreement_rows(self) -> list[dict[str, Any]]:
        """A row a site where both differ, as in `disagreements.csv`. `estimated`, `real`: importance, 0 for no effect;
        `direct`, `backup_total`: changes of recovery; `backup`: the heads and how much each moves."""
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
                "direct": one.backup.direct,
                "backup": str(one.backup),
                "backup_total": one.backup.total,
            }
            for one in self.disagreements
        ]

    def arrays(self) -> dict[str, Any]:
        """Arrays for `attribution.npz`: those of `patch.npz` for the estimates, and `SITE_DIRECTION_real`."""
        arrays = self.estimated.arrays()
        for one in self.agreements:
            arrays[f"{one.real.grid.kind.name}_{one.real.direction}_real"] = one.real.recovery.numpy()
        return arrays


def check(experiment: Experiment, settings: Settings) -> list[Grid]:
    """The sites, a grid a kind; what cannot be estimated is refused.

    Raises
    ------
    ConfigError, TaskError: see `acdc.patching.estimates.check`; `qk_fix` without a site that it is for.
    """
    grids = estimates.check(experiment, settings, settings.grad_drop)
    if settings.qk_fix and not any(grid.kind.name in ("q", "k") for grid in grids):
        raise ConfigError("patch.qk_fix=true has no effect without queries or keys: give patch.site=q, k or [q,k]")
    return grids


def patch(experiment: Experiment, settings: Settings, progress: Progress | None = None) -> Attributed:
    """Estimate every chosen site, and where asked for patch it.

    Parameters
    ----------
    progress: is told how many sites are done, and of how many; a site that is also patched counts twice.

    Raises
    ------
    ConfigError, TaskError: see `check`.
    """
    grids = check(experiment, settings)
    n_sites = len(settings.directions) * sum(map(len, grids))
    total = n_sites * (1 + settings.compare)

    def after(before: int) -> Progress | None:
        return None if progress is None else lambda done, _: progress(before + done, total)

    maps = estimates.estimate(experiment, settings, settings.qk_fix, settings.grad_drop, after(0))
    estimated = Patched(tuple(maps), experiment.metric_name, settings.choice.subset)
    if not settings.compare:
        return Attributed(estimated, (), ())
    common = {name: getattr(settings, name) for name in SiteSettings.__dataclass_fields__ if name != "name"}
    real = activation.patch(experiment, activation.Settings(**common), after(n_sites))
    agreements = tuple(Agreement(a, b, settings.grad_drop) for a, b in zip(maps, real.maps, strict=True))
    listed = [
        (site, one.real.direction, estimate, truth)
        for one in agreements
        for site, estimate, truth in one.furthest(settings.disagreements)
    ]
    memory = budget_bytes(experiment.model.device, settings.memory_gb, "patch")
    backups = find_backups(experiment, [(site, direction) for site, direction, *_ in listed], memory)
    disagreements = (Disagreement(*item, backup) for item, backup in zip(listed, backups, strict=True))
    return Attributed(estimated, agreements, tuple(disagreements))

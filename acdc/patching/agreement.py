"""How well estimates agree with real patching on the same sites, and where they do not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from acdc.patching.backup import Backup
from acdc.patching.result import SiteMap
from acdc.patching.sites import Site


@dataclass(frozen=True)
class Agreement:
    """An estimated map beside the same map really patched.

    Attributes
    ----------
    unsigned: the estimates have no sign (GradDrop), so they stand beside the mean over pairs of the effect's size.
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
        return _correlation(*(x.numpy() for x in self.effects))

    @property
    def spearman(self) -> float:
        """Correlation of the effects' ranks; ties have their mean rank."""
        return _correlation(*(_ranks(x.numpy()) for x in self.effects))

    def furthest(self, most: int) -> list[tuple[Site, float, float]]:
        """The sites where estimate and reality differ most: site, estimated and real importance."""
        estimated, real = self.effects
        order = (estimated - real).abs().argsort(descending=True, stable=True)[:most].tolist()
        sites = list(self.real.grid)
        return [(sites[i], float(estimated[i]), float(real[i])) for i in order]


@dataclass(frozen=True)
class Disagreement:
    """A site where estimate and reality differ, and the heads that may be why."""

    site: Site
    direction: str
    estimated: float
    real: float
    backup: Backup


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]

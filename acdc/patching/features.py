"""What patching an autoencoder's features gives: effects, attributions, ranks, and where features are active."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acdc.metrics import ROUNDING
from acdc.model.sae import SparseAutoencoder
from acdc.patching.reconstruction import Reconstruction
from acdc.patching.result import SiteMap
from acdc.process import undisturbed


@dataclass(frozen=True)
class Example:
    """A token on which a feature is active.

    Attributes
    ----------
    token: its text. before: that of the few tokens before it. label: the task's name of the position, or empty.
    run: `clean` or `corrupted`. pair, position: where it is. activation: the feature's, there.
    """

    token: str
    before: str
    label: str
    run: str
    pair: int
    position: int
    activation: float

    def __str__(self) -> str:
        return f"{self.token}{f' ({self.label})' if self.label else ''} {self.activation:.3g}"


@dataclass(frozen=True)
class PatchedFeatures:
    """The result of patching features.

    Attributes
    ----------
    reconstruction: the check that comes first.
    maps: of each direction; the units of a map's grid are features' numbers.
    attributions: of each map, gradient times change, on the scale of its importance: `feature place`; NaN where the
        gradient is nil by definition.
    examples: for each feature the tokens on which it is most active, no token's text twice.
    subset: the name of the choice of features and positions, empty if all were patched.
    """

    sae: SparseAutoencoder
    reconstruction: Reconstruction
    maps: tuple[SiteMap, ...]
    attributions: tuple[Tensor, ...]
    examples: dict[int, list[Example]]
    metric: str
    subset: str

    @property
    def clean(self) -> float:
        return float(self.maps[0].clean.mean())

    @property
    def corrupted(self) -> float:
        return float(self.maps[0].corrupted.mean())

    def effects(self, i: int) -> Tensor:
        """What map i's sites do, `feature place`: recovery when denoising, 1 − recovery when noising."""
        return self.maps[i].importance[0]

    def has_effect(self, i: int) -> bool:
        """Whether any of map i's sites does more than rounding does."""
        return bool((self.effects(i).abs() > ROUNDING).any())

    def correlation(self, i: int) -> float:
        """Spearman's rank correlation of map i's effects with their attributions; NaN where one has no order."""
        return rank_correlation(self.effects(i).flatten(), self.attributions[i].flatten())

    def rows(self) -> list[dict[str, Any]]:
        """A row a feature (and position) and direction, as in `patch.csv`; the rank 1 is the largest size."""
        rows = []
        for i, one in enumerate(self.maps):
            effects, attributions = self.effects(i).flatten(), self.attributions[i].flatten()
            order = ranks(-effects.abs()).tolist(), ranks(-attributions.abs()).tolist()
            known = bool(attributions.isfinite().all())
            numbers = (one.recovery, one.std, one.values.mean(-1))
            columns = (*(t.flatten().tolist() for t in (*numbers, effects, attributions)), *order)
            names = [(feature, place) for feature in one.grid.units for place in one.grid.places]
            for (feature, place), (recovery, std, value, effect, attribution, *rank) in zip(
                names, zip(*columns, strict=True), strict=True
            ):
                assert feature is not None
                examples = self.examples[feature]
                rows.append(
                    {
                        "feature": feature,
                        "site": self.sae.hook,
                        "layer": self.sae.layer,
                        "position": place.name,
                        "direction": one.direction,
                        "recovery": recovery,
                        "std": std if len(one.clean) > 1 else None,
                        "n": len(one.clean),
                        "subset": self.subset,
                        "label": place.label,
                        "effect": effect,
                        "attribution": attribution if known else None,
                        "rank_effect": int(rank[0]),
                        "rank_attribution": int(rank[1]) if known else None,
                        "metric": value,
                        "activation": examples[0].activation if examples else 0.0,
                        "tokens": " | ".join(map(str, examples)),
                    }
                )
        return rows

    def arrays(self) -> dict[str, Any]:
        """Arrays for `patch.npz`: `DIRECTION` is recovery, `feature place`; `DIRECTION_pairs` has a last axis for the
        pairs; `DIRECTION_attribution`; `features` and `places` name the axes; `active` has every active feature."""
        grid = self.maps[0].grid
        arrays: dict[str, Any] = {
            "features": np.array(grid.units, dtype=np.int64),
            "places": [place.name for place in grid.places],
            "active": self.reconstruction.active.cpu().numpy(),
            "clean": self.maps[0].clean.numpy(),
            "corrupted": self.maps[0].corrupted.numpy(),
        }
        for one, attribution in zip(self.maps, self.attributions, strict=True):
            arrays[one.direction] = one.recovery[0].numpy()
            arrays[f"{one.direction}_pairs"] = one.recoveries[0].numpy()
            arrays[f"{one.direction}_attribution"] = attribution.numpy()
        return arrays


@undisturbed
def ranks(values: Tensor) -> Tensor:
    """The ranks of values from 1, the smallest, on; equal ones in the order in which they come."""
    return torch.empty_like(values, dtype=torch.long).scatter_(
        0, values.argsort(stable=True), torch.arange(1, len(values) + 1)
    )


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's: Pearson's correlation of the ranks, equal values sharing the mean of theirs."""
    if len(a) < 2 or not bool(a.isfinite().all() and b.isfinite().all()):
        return float("nan")

    def mean_ranks(values: Tensor) -> Tensor:
        _, which, counts = values.unique(return_inverse=True, return_counts=True)
        last = counts.cumsum(0).double()
        return (last - (counts - 1) / 2)[which]

    x, y = (r - r.mean() for r in map(mean_ranks, (a, b)))
    spread = float((x.square().sum() * y.square().sum()).sqrt())
    return float((x * y).sum()) / spread if spread > 0 else float("nan")

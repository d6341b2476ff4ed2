"""What patching an autoencoder's features gives: effects, attributions, ranks, and where features are active."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from acdc.metrics import ROUNDING
from acdc.model.sae import SparseAutoencoder
from acdc.patching.activation_result import SiteMap
from acdc.patching.base import correlation
from acdc.patching.sae_reconstruction import Reconstruction
from acdc.result import Labelled, Result, as_table


@dataclass(frozen=True)
class Example:
    """A token on which a feature is active.

    Attributes
    ----------
    token : str
        The token's text.
    before : str
        The text of a few tokens before it.
    label : str
        The task's name of the position, or empty.
    run : str
        `clean` or `corrupted`.
    pair, position : int
        The number of the pair, and the token's position in it.
    activation : float
        How active the feature is there.
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
class PatchedFeatures(Result):
    """The result of patching features.

    Attributes
    ----------
    reconstruction : Reconstruction
        The check that comes first.
    maps : tuple of SiteMap
        One for each direction; the units of a map's grid are the features' numbers.
    attributions : tuple of torch.Tensor
        Gradient times change for each map, on the scale of its importance, `feature place`; NaN where the gradient is
        zero by definition.
    examples : dict of int to list of Example
        For each feature the tokens on which it is most active, no token's text twice.
    subset : str
        The name of the choice of features and positions, empty if all were patched.
    warnings : tuple of str
        What the reader should be warned of.
    """

    sae: SparseAutoencoder
    reconstruction: Reconstruction
    maps: tuple[SiteMap, ...]
    attributions: tuple[Tensor, ...]
    examples: dict[int, list[Example]]
    metric: str
    subset: str
    warnings: tuple[str, ...] = ()

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
        return correlation(spearmanr, self.effects(i), self.attributions[i])

    def rows(self) -> list[dict[str, Any]]:
        """A row a feature (and position) and direction, as in `patch.csv`; the rank 1 is the largest size."""
        rows = []
        for i, one in enumerate(self.maps):
            effects, attributions = self.effects(i).flatten(), self.attributions[i].flatten()
            order = (rankdata(-values.abs().numpy(), "ordinal").tolist() for values in (effects, attributions))
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

    def site_name(self, i: int, site: int) -> str:
        """Return the name of a site (feature × place) of map i, as a reader sees it."""
        grid = self.maps[i].grid
        feature, place = grid.units[site // len(grid.places)], grid.places[site % len(grid.places)]
        return f"{feature} @{place.label}" if grid.by == "feature_position" else str(feature)

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"patch": as_table(self.rows())}

    def arrays(self) -> dict[str, dict[str, Labelled]]:
        """Return the arrays of `patch.npz`.

        `DIRECTION` is the recovery, `feature place`; `DIRECTION_pairs` has a last axis for the pairs;
        `DIRECTION_attribution`. `features` and `places` are the labels of the axes; `active` has every active feature.
        """
        first, axes = self.maps[0], ("feature", "place")
        arrays = {
            "features": Labelled(("feature",), np.array(first.grid.units, dtype=np.int64)),
            "places": Labelled(("place",), np.array([place.name for place in first.grid.places])),
            "active": Labelled(("active",), self.reconstruction.active.cpu().numpy()),
            "clean": Labelled(("pair",), first.clean.numpy()),
            "corrupted": Labelled(("pair",), first.corrupted.numpy()),
        }
        for one, attribution in zip(self.maps, self.attributions, strict=True):
            arrays[one.direction] = Labelled(axes, one.recovery[0].numpy())
            arrays[f"{one.direction}_pairs"] = Labelled((*axes, "pair"), one.recoveries[0].numpy())
            arrays[f"{one.direction}_attribution"] = Labelled(axes, attribution.numpy())
        return {"patch": arrays}

    def summary(self) -> dict[str, object]:
        """Return both ends of the scale, the reconstruction, and the best feature of each direction."""
        check = self.reconstruction
        summary: dict[str, object] = {
            "metric": self.metric,
            "clean": self.clean,
            "corrupted": self.corrupted,
            "sae": self.sae.name,
            "site": self.sae.site,
            "pairs": len(self.maps[0].clean),
            "features": self.sae.d_sae,
            "active": len(check.active),
            "patched": len(self.maps[0].grid.units),
            "l0": check.l0,
            "explained": check.explained,
            "explained_later": check.explained_later,
            "spliced": check.metric,
            "spliced_recovery": check.recovered,
            "loss": check.loss,
            "loss_recovered": check.loss_recovered,
        }
        for i, one in enumerate(self.maps):
            best = int(self.effects(i).flatten().abs().argmax())
            summary[f"{one.direction}_strongest"] = self.site_name(i, best)
            summary[f"{one.direction}_recovery"] = float(one.recovery.flatten()[best])
            summary[f"{one.direction}_rank_correlation"] = self.correlation(i)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in summary.items()}

    def notes(self) -> tuple[str, ...]:
        return self.warnings

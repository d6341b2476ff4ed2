"""What causal tracing gives: the effect of restoring each state, with its standard error, as rows and arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from acdc.patching.positions import Place
from acdc.process import undisturbed
from acdc.result import Labelled, Result, as_table


@dataclass(frozen=True)
class TraceMap:
    """The states of one site.

    Attributes
    ----------
    window : int
        How many layers are restored together.
    values : torch.Tensor
        The metric of each pair with a state restored, the mean over the draws, `layer pos pair`, NaN where a pair has
        no such token.
    """

    site: str
    window: int
    values: Tensor


@dataclass(frozen=True)
class Effects:
    """The effects of one site's states, `layer place`, as means over the pairs that have such a token.

    Attributes
    ----------
    indirect : torch.Tensor
        The metric restored − noised, positive where restoring helps.
    std : torch.Tensor
        The standard deviation over the pairs (n − 1 in the denominator); NaN of a single pair.
    se : torch.Tensor
        The standard error, std / √n.
    recovery : torch.Tensor
        (restored − noised) / (clean − noised) of the mean metric.
    metric : torch.Tensor
        The mean metric with the state restored.
    n : torch.Tensor
        The number of pairs, `place`.
    total : torch.Tensor
        The metric clean − noised of the same pairs, `place`, positive where noise harms.
    """

    indirect: Tensor
    std: Tensor
    se: Tensor
    recovery: Tensor
    metric: Tensor
    n: Tensor
    total: Tensor


@dataclass(frozen=True)
class Traced(Result):
    """The result of causal tracing.

    Attributes
    ----------
    subject : Place
        The noised tokens.
    larger_is_better : bool
        The metric's direction; effects are positive where restoring helps either way.
    clean : torch.Tensor
        The metric of each pair, `pair`.
    noised : torch.Tensor
        The metric under each draw of the noise, `draw pair`.
    noise_std : float
        The standard deviation of the noise.
    by : str
        How places are told apart.
    """

    maps: tuple[TraceMap, ...]
    places: tuple[Place, ...]
    subject: Place
    metric: str
    larger_is_better: bool
    clean: Tensor
    noised: Tensor
    noise_std: float
    by: str

    @property
    def total_effects(self) -> Tensor:
        """clean − noised of each pair, the mean over the draws, `pair`; positive where noise harms."""
        return self._sign * (self.clean - self.noised.mean(0))

    @property
    def _sign(self) -> int:
        return 1 if self.larger_is_better else -1

    def is_noised(self, place: Place) -> bool:
        """Whether the place is noised, in some pair at least."""
        return any(here & there for here, there in zip(place.tokens, self.subject.tokens, strict=True))

    @undisturbed
    def effects(self, one: TraceMap) -> Effects:
        """The effects of a site's states. A pair's is the mean over its tokens in the place."""
        columns = []
        for place in self.places:
            pairs = [pair for pair, tokens in enumerate(place.tokens) if tokens]
            means = [one.values[:, sorted(place.tokens[pair]), pair].mean(1) for pair in pairs]
            columns.append((torch.stack(means, -1), torch.tensor(pairs)))
        effects = [self._sign * (values - self.noised.mean(0)[pairs]) for values, pairs in columns]
        n = torch.tensor([len(pairs) for _, pairs in columns])
        indirect = torch.stack([effect.mean(-1) for effect in effects], -1)
        alone = torch.full(indirect.shape[:1], float("nan"), dtype=indirect.dtype)
        std = torch.stack([effect.std(-1) if effect.shape[-1] > 1 else alone for effect in effects], -1)
        metric = torch.stack([values.mean(-1) for values, _ in columns], -1)
        total = torch.stack([self.total_effects[pairs].mean() for _, pairs in columns])
        return Effects(indirect, std, std / n.double().sqrt(), indirect / total, metric, n, total)

    def rows(self) -> list[dict[str, Any]]:
        """A row a state, as in `patch.csv`; what does not exist (the spread of one pair) is None."""
        rows = []
        for one in self.maps:
            effects = self.effects(one)
            for layer in range(len(effects.indirect)):
                for i, place in enumerate(self.places):
                    at = (layer, i)
                    rows.append(
                        {
                            "site": one.site,
                            "layer": layer,
                            "window": one.window,
                            "position": place.name,
                            "recovery": _finite(effects.recovery[at]),
                            "effect": _finite(effects.indirect[at]),
                            "se": _finite(effects.se[at]),
                            "std": _finite(effects.std[at]),
                            "n": int(effects.n[i]),
                            "draws": len(self.noised),
                            "label": place.label,
                            "noised": self.is_noised(place),
                            "metric": _finite(effects.metric[at]),
                            "total_effect": _finite(effects.total[i]),
                        }
                    )
        return rows

    def ranked(self, site: str) -> list[dict[str, Any]]:
        """The rows of a site, the state that brings back most first."""
        rows = (row for row in self.rows() if row["site"] == site)
        return sorted(rows, key=lambda row: -math.inf if row["recovery"] is None else row["recovery"], reverse=True)

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"patch": as_table(self.rows())}

    def arrays(self) -> dict[str, dict[str, Labelled]]:
        """Return the arrays of `patch.npz`.

        `SITE_recovery`, `SITE_effect`, `SITE_se` and `SITE_std` are `layer place`; `SITE_pairs` is the metric of each
        pair at every token, `layer position pair`, NaN behind a prompt's end. `n`, `total_effect` and `places` are
        `place`, `clean` is `pair`, `noised` is `draw pair`, and `subject` is `pair 2` (start, end).
        """
        spans = np.array([(min(tokens), max(tokens) + 1) for tokens in self.subject.tokens])
        arrays = {
            "clean": Labelled(("pair",), self.clean.numpy()),
            "noised": Labelled(("draw", "pair"), self.noised.numpy()),
            "subject": Labelled(("pair", "end"), spans),
            "noise_std": Labelled((), np.array(self.noise_std)),
            "places": Labelled(("place",), np.array([place.name for place in self.places])),
        }
        for one in self.maps:
            effects = self.effects(one)
            arrays["n"] = Labelled(("place",), effects.n.numpy())
            arrays["total_effect"] = Labelled(("place",), effects.total.numpy())
            by_name = {"recovery": effects.recovery, "effect": effects.indirect, "se": effects.se, "std": effects.std}
            for name, values in by_name.items():
                arrays[f"{one.site}_{name}"] = Labelled(("layer", "place"), values.numpy())
            arrays[f"{one.site}_pairs"] = Labelled(("layer", "position", "pair"), one.values.numpy())
            arrays[f"{one.site}_window"] = Labelled((), np.array(one.window))
        return {"patch": arrays}

    def summary(self) -> dict[str, object]:
        """Return both ends of the scale, the noise, and the best state of each site."""
        summary: dict[str, object] = {
            "metric": self.metric,
            "clean": float(self.clean.mean()),
            "noised": float(self.noised.mean()),
            "total_effect": float(self.total_effects.mean()),
            "noise_std": self.noise_std,
            "draws": len(self.noised),
            "pairs": len(self.clean),
            "states": len(self.rows()),
        }
        for one in self.maps:
            best = self.ranked(one.site)[0]
            summary[f"{one.site}_strongest"] = f"{best['layer']} @{best['label']}"
            summary |= {f"{one.site}_{key}": best[key] for key in ("recovery", "effect", "se")}
        return summary


def _finite(value: Tensor) -> float | None:
    return float(value) if math.isfinite(value) else None

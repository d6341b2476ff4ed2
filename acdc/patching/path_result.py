"""What path patching gives: recovery along every path, as rows and arrays; of levels, who was followed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from acdc.graph import Graph
from acdc.patching.activation_result import Measured
from acdc.patching.path_choice import Path
from acdc.patching.positions import Place
from acdc.result import Labelled, Result, as_table


@dataclass(frozen=True)
class PathMap(Measured):
    """Paths patched in one direction.

    Attributes
    ----------
    values : torch.Tensor
        The metric of each pair along each path, `path pair`, in the metric's own direction.
    clean, corrupted : torch.Tensor
        The metric of each pair in the two runs, `pair`.
    level : int
        The level of a search backward, counted from 1; 0 where there is no such search.
    followed : tuple of str
        The senders whose own feeders are the next level, the strongest first.
    """

    direction: str
    paths: tuple[Path, ...]
    values: Tensor
    clean: Tensor
    corrupted: Tensor
    level: int = 0
    followed: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`noise`, or of levels `noise_level1`."""
        return f"{self.direction}_level{self.level}" if self.level else self.direction

    def effects(self) -> dict[Path, float]:
        """The effect of each path: `importance`."""
        return dict(zip(self.paths, self.importance.tolist(), strict=True))

    def strength(self) -> dict[str, float]:
        """Of each sender its largest |effect| on any receiver, the strongest first."""
        found: dict[str, float] = {}
        for path, effect in self.effects().items():
            name = path.senders.name
            found[name] = max(found.get(name, 0.0), abs(effect))
        return dict(sorted(found.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class PatchedPaths(Result):
    """The result of path patching.

    Attributes
    ----------
    maps : tuple of PathMap
        One for each direction, or for each direction and level.
    through : str
        What was allowed to respond, as it was given.
    place : Place
        Where the senders were changed.
    root : str
        The node that levels start from, empty where there are none.
    limit : float
        A sender with a smaller |effect| is not followed.
    graph : Graph
        The model's graph.
    """

    maps: tuple[PathMap, ...]
    metric: str
    through: str
    place: Place
    root: str
    limit: float
    graph: Graph

    @property
    def clean(self) -> float:
        return float(self.maps[0].clean.mean())

    @property
    def corrupted(self) -> float:
        return float(self.maps[0].corrupted.mean())

    def directions(self) -> Iterator[tuple[str, list[PathMap]]]:
        """Each direction with its maps."""
        for direction in dict.fromkeys(one.direction for one in self.maps):
            yield direction, [one for one in self.maps if one.direction == direction]

    def rows(self) -> list[dict[str, Any]]:
        """A row a path, as in `patch.csv`."""
        rows = []
        for one in self.maps:
            numbers = (t.tolist() for t in (one.recovery, one.std, one.importance, one.values.mean(-1)))
            for path, recovery, std, effect, value in zip(one.paths, *numbers, strict=True):
                row = {
                    "senders": path.senders.name,
                    "receivers": path.receivers.name,
                    "through": self.through,
                    "position": self.place.name,
                    "direction": one.direction,
                    "recovery": recovery,
                    "std": std if len(one.clean) > 1 else None,
                    "n": len(one.clean),
                    "effect": effect,
                    "metric": value,
                }
                rows.append({"level": one.level, **row} if one.level else row)
        return rows

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"patch": as_table(self.rows())}

    def arrays(self) -> dict[str, dict[str, Labelled]]:
        """Return the arrays of `patch.npz`.

        `DIRECTION`, or with levels `DIRECTION_levelN`, is the recovery, `path`; `…_pairs` has a last axis for the
        pairs; `…_senders` and `…_receivers` name the paths; `clean` and `corrupted` are the metric, `pair`.
        """
        first = self.maps[0]
        arrays = {end: Labelled(("pair",), getattr(first, end).numpy()) for end in ("clean", "corrupted")}
        for one in self.maps:
            senders, receivers = zip(*((path.senders.name, path.receivers.name) for path in one.paths), strict=True)
            arrays[one.name] = Labelled(("path",), one.recovery.numpy())
            arrays[f"{one.name}_pairs"] = Labelled(("path", "pair"), one.recoveries.numpy())
            arrays[f"{one.name}_senders"] = Labelled(("path",), np.array(senders))
            arrays[f"{one.name}_receivers"] = Labelled(("path",), np.array(receivers))
        return {"patch": arrays}

    def summary(self) -> dict[str, object]:
        """Return both ends of the scale, how many paths there are, and the strongest of each map."""
        summary: dict[str, object] = {
            "metric": self.metric,
            "clean": self.clean,
            "corrupted": self.corrupted,
            "paths": sum(len(one.paths) for one in self.maps),
            "pairs": len(self.maps[0].clean),
        }
        for one in self.maps:
            best = int(one.importance.abs().argmax())
            strongest = one.paths[best]
            summary[f"{one.name}_strongest"] = f"{strongest.senders.name}->{strongest.receivers.name}"
            summary[f"{one.name}_recovery"] = float(one.recovery[best])
            summary[f"{one.name}_effect"] = float(one.importance[best])
            if one.level:
                summary[f"{one.name}_followed"] = ", ".join(one.followed)
        return summary

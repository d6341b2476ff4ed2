"""Where the time of a discovery goes: each part's own seconds, and how near its products come to the machine's best."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

import acdc.engine.incremental
import acdc.engine.readout
import acdc.engine.receiver
import acdc.engine.state
import acdc.model.parts
from acdc.discovery.near_ties import NearTies
from acdc.discovery.verifier import Verifier
from acdc.engine.incremental import IncrementalPruning
from acdc.engine.readout import Readout
from acdc.engine.receiver import Receiver
from acdc.engine.state import CircuitState
from acdc.model.linear import linear
from acdc.model.parts import Mlp

_PARTS: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    ("unembedding and metric", Readout, ("__init__", "losses", "base", "through")),
    ("MLPs", Mlp, ("__call__",)),
    ("heads: projections and attention", CircuitState, ("output",)),
    ("forming candidates", Receiver, ("inputs",)),
    ("forming candidates", acdc.engine.receiver, ("_tails", "_rest")),
    ("forming candidates", IncrementalPruning, ("_received",)),
    ("stored values behind a finished receiver", IncrementalPruning, ("_settle",)),
    ("near-ties and checks in float64", NearTies, ("exact",)),
    ("comparison with the full engine", Verifier, ("look",)),
)
_WHOLE = ("near-ties and checks in float64", "comparison with the full engine")  # what they call is theirs, too
P = ParamSpec("P")
R = TypeVar("R")

_REST = "the loop, the journal, Python"


class Clock:
    """Exclusive seconds and multiplications by part, while `running`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.flop: dict[str, float] = defaultdict(float)
        self._parts = [_REST]
        self._since = 0.0

    def _switch(self) -> None:
        now = time.perf_counter()
        self.seconds[self._parts[-1]] += now - self._since
        self._since = now

    def _timed(self, part: str, function: Callable[P, R]) -> Callable[P, R]:
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            if self._parts[-1] in _WHOLE:
                return function(*args, **kwargs)
            self._switch()
            self._parts.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._parts.pop()

        return timed

    def _counted(self, x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
        self.flop[self._parts[-1]] += 2.0 * x.numel() * W.shape[0]
        return linear(x, W, b)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what runs inside."""
        replaced: list[tuple[Any, str, Any]] = []
        for part, owner, names in _PARTS:
            for name in names:
                replaced.append((owner, name, getattr(owner, name)))
                setattr(owner, name, self._timed(part, getattr(owner, name)))
        for module in (acdc.model.parts, acdc.engine.readout, acdc.engine.incremental, acdc.engine.state):
            replaced.append((module, "linear", linear))
            setattr(module, "linear", self._counted)  # noqa: B010 - mypy knows no assignment to a module's function
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._switch()
            for owner, name, original in replaced:
                setattr(owner, name, original)

    def rows(self) -> list[dict[str, Any]]:
        """A row a part, the longest first: its share of the time, and its products' speed as a share of the best."""
        total, best = sum(self.seconds.values()), best_flop_per_second()
        return [
            {
                "part": part,
                "seconds": seconds,
                "share": seconds / total,
                "gflop": self.flop[part] / 1e9,
                "of_best": self.flop[part] / seconds / best,
            }
            for part, seconds in sorted(self.seconds.items(), key=lambda item: -item[1])
        ]


def best_flop_per_second() -> float:
    """Of a large product in single precision on this machine, now."""
    x, W = torch.randn(1024, 1024), torch.randn(4096, 1024)
    times = []
    with torch.inference_mode():
        for _ in range(8):
            start = time.perf_counter()
            linear(x, W)
            times.append(time.perf_counter() - start)
    return 2.0 * x.numel() * W.shape[0] / min(times)

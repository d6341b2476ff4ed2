"""Effects too close to the threshold for single precision, settled in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.engine.state import CircuitState
from acdc.experiment import Experiment
from acdc.graph import Edge

_SEEN = 16  # near-ties that say how far rounding reaches in this run
_SAFETY = 5.0
_NARROWEST = 1 / 64


class NearTies:
    """Which effects are near-ties, and what they are exactly.

    An effect is a near-tie within ε·(1 + |loss| + RMS of the model's logits) of the threshold. That bounds the error
    which rounding in float32 makes, but is often far above it. So the errors of the near-ties settled so far narrow the
    window, to five times the largest of them and no less than 1/64.

    Parameters
    ----------
    tolerance: ε. engine: `full` or `incremental`, which evaluates in float64 on the CPU, from the edge set alone.
    """

    def __init__(self, experiment: Experiment, tolerance: float, engine: str, memory_gb: float | None) -> None:
        self.experiment, self.tolerance, self.engine, self.memory_gb = experiment, tolerance, engine, memory_gb
        self.scale = 1 + experiment.clean_logits.double().square().mean().sqrt().item()
        self.seen, self.largest = 0, 0.0
        self._losses_of: Callable[[Sequence[EdgeMask]], list[float]] | None = None

    def holds(self, effect: float, threshold: float, loss: float) -> bool:
        """Whether an effect is one, where the loss before the removal is `loss`."""
        share = 1.0 if self.seen < _SEEN else min(1.0, max(_SAFETY * self.largest, _NARROWEST))
        return abs(effect - threshold) < share * self._window(loss)

    def learn(self, rounding: float, loss: float) -> None:
        """Take note of the error that the effect of a near-tie had."""
        self.seen += 1
        self.largest = max(self.largest, rounding / self._window(loss)) if self.tolerance else 0.0

    def settle(self, mask: EdgeMask, edge: Edge) -> tuple[float, float]:
        """The loss with and without an edge, in float64."""
        if self._losses_of is None:  # many runs have no near-tie
            exact = self.experiment.to("cpu", torch.float64)
            full = self.engine == "full"
            self._losses_of = FullEngine(exact, self.memory_gb).losses if full else CircuitState(exact, mask).losses_of
        before, after = self._losses_of([mask, mask.without(edge)])
        return before, after

    def _window(self, loss: float) -> float:
        return self.tolerance * (self.scale + abs(loss))

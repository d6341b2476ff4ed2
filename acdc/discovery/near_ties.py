"""Effects too close to the threshold for the run's precision, settled in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.engine.state import CircuitState
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.model.parts import LanguageModel

_SEEN = 8  # near-ties of a layer that say how far rounding reaches there
_SAFETY = 5.0
_NARROWEST = 1 / 64
_WITHOUT_NORMS = 64.0


def rounding_unit(model: LanguageModel) -> float:
    """The relative error of one operation in the precision that a model computes in."""
    if model.device.type == "cuda" and model.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        return 2.0**-10
    return float(torch.finfo(model.dtype).eps)


class NearTies:
    """Which effects are near-ties, and what they are exactly.

    An effect is a near-tie within ε·(1 + |loss| + RMS of the model's logits) of the threshold, for float32; lower
    precision widens that in proportion, l2 by the slope of a square, and a model without norms, where nothing keeps
    activations small, by what its largest ones are. It is taken as the reach of rounding, and is often far above it. So
    the errors of the near-ties settled so far set the window anew, to five times the largest of them and no less than
    1/64; each layer on its own, since rounding grows toward the input.

    Parameters
    ----------
    tolerance: ε. engine: `full` or `incremental`, which evaluates in float64 on the CPU, from the edge set alone.
    memory_gb: bounds what the full engine takes there; the incremental one holds the values of all pairs.
    """

    def __init__(self, experiment: Experiment, tolerance: float, engine: str, memory_gb: float | None) -> None:
        self.experiment, self.engine, self.memory_gb = experiment, engine, memory_gb
        self.tolerance = tolerance * max(1.0, rounding_unit(experiment.model) / torch.finfo(torch.float32).eps)
        logits = experiment.clean_logits.double()
        self.scale = 1 + logits.square().mean().sqrt().item()
        if experiment.model.final_norm.kind == "none":
            self.scale = _WITHOUT_NORMS * (1 + logits.abs().max().item() + experiment.clean_stream.abs().max().item())
        self.errors: dict[int, list[float]] = {}  # by layer, in units of the whole window
        self._losses_of: Callable[[Sequence[EdgeMask]], list[float]] | None = None

    @property
    def seen(self) -> int:
        """How many have been settled."""
        return sum(map(len, self.errors.values()))

    def holds(self, receiver: str, effect: float, threshold: float, loss: float) -> bool:
        """Whether the effect of a receiver's edge is one, where the loss before the removal is `loss`."""
        errors = self.errors.get(self.experiment.graph[receiver].layer, [])
        reach = _SAFETY * max(errors, default=0.0)
        share = max(reach, 1.0 if len(errors) < _SEEN else _NARROWEST)
        return abs(effect - threshold) < share * self.reach(loss)

    def learn(self, receiver: str, rounding: float, loss: float) -> None:
        """Take note of the error that the effect of a near-tie had."""
        window = self.reach(loss)
        self.errors.setdefault(self.experiment.graph[receiver].layer, []).append(rounding / window if window else 0.0)

    def reach(self, loss: float) -> float:
        """How far from the threshold a near-tie may lie before anything is known about rounding."""
        slope = 1 + 2 * abs(loss) ** 0.5 if self.experiment.metric_name == "l2" else 1.0
        return self.tolerance * slope * (self.scale + abs(loss))

    def settle(self, mask: EdgeMask, edge: Edge) -> tuple[float, float]:
        """The loss with and without an edge, in float64."""
        if self._losses_of is None:  # many runs have no near-tie
            exact = self.experiment.to("cpu", torch.float64)
            full = self.engine == "full"
            self._losses_of = FullEngine(exact, self.memory_gb).losses if full else CircuitState(exact, mask).losses_of
        before, after = self._losses_of([mask, mask.without(edge)])
        return before, after

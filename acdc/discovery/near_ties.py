"""How far rounding reaches in a run, and effects within its reach of the threshold, settled in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.engine.state import CircuitState
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.metrics import SquaredDistance
from acdc.model.parts import LanguageModel
from acdc.process import uses_tf32

_SEEN = 8  # errors that say how far rounding reaches
_SAFETY = 8.0
_WHILE_FEW = 64.0  # more safety, divided by how many errors are known
_NARROWEST = 1 / 64
_WITHOUT_NORMS = 64.0


def rounding_unit(model: LanguageModel) -> float:
    """The relative error of one operation in the precision that a model computes in."""
    if model.device.type == "cuda" and model.dtype == torch.float32 and uses_tf32():
        return 2.0**-10
    return float(torch.finfo(model.dtype).eps)


class NearTies:
    """Which effects are near-ties, and what they are exactly.

    How far rounding reaches is measured: effects that were evaluated in the run's own precision are evaluated again in
    float64, on this model and these pairs. An effect is a near-tie within 8 + 64/n times the largest of the n errors so
    far: those of its own layer, for rounding grows toward the input, or of all layers where its own has fewer than
    eight. Errors are counted in units of ε·(1 + |loss| + RMS of the model's logits), for float32; lower precision
    widens that in proportion, l2 by the slope of a square, and a model without norms, where nothing keeps activations
    small, by what its largest ones are. The window is no narrower than a unit before eight errors are known, nor ever
    than 1/64.

    Parameters
    ----------
    tolerance: ε; 0 switches near-ties off. engine: `full` or `incremental`, which evaluates in float64 on the CPU, from
        the edge set alone. memory_gb: bounds what the full engine takes there; the incremental one holds the values of
        all pairs.

    Attributes
    ----------
    `largest`: the largest error seen, as a share of the window that was in use: above 1 it was too narrow.
    """

    def __init__(self, experiment: Experiment, tolerance: float, engine: str, memory_gb: float | None) -> None:
        self.experiment, self.engine, self.memory_gb = experiment, engine, memory_gb
        self.tolerance = tolerance * max(1.0, rounding_unit(experiment.model) / torch.finfo(torch.float32).eps)
        logits = experiment.clean_logits.double()
        self.scale = 1 + logits.square().mean().sqrt().item()
        if experiment.model.final_norm.kind == "none":
            self.scale = _WITHOUT_NORMS * (1 + logits.abs().max().item() + experiment.clean_stream.abs().max().item())
        self.errors: dict[int, list[float]] = {}  # by layer, in units
        self.largest = 0.0
        self._losses_of: Callable[[Sequence[EdgeMask]], list[float]] | None = None

    def holds(self, receiver: str, effect: float, threshold: float, loss: float) -> bool:
        """Whether the effect of a receiver's edge is one, where the loss before the removal is `loss`."""
        return abs(effect - threshold) < self.window(receiver, effect, loss)

    def window(self, receiver: str, effect: float, loss: float) -> float:
        """How far from the threshold a near-tie may lie."""
        errors = self.errors.get(self.experiment.graph[receiver].layer, [])
        if len(errors) < _SEEN:
            errors = [error for layer in self.errors.values() for error in layer]
        measured = (_SAFETY + _WHILE_FEW / len(errors)) * max(errors) if errors else 0.0
        return max(measured, _NARROWEST if len(errors) >= _SEEN else 1.0) * self.unit(loss, loss + effect)

    def learn(self, receiver: str, error: float, effect: float, loss: float) -> None:
        """Take note of the error that an effect had."""
        if unit := self.unit(loss, loss + effect):
            self.largest = max(self.largest, error / self.window(receiver, effect, loss))
            self.errors.setdefault(self.experiment.graph[receiver].layer, []).append(error / unit)

    def unit(self, *losses: float) -> float:
        """What rounding is expected to reach, where these losses are compared, before anything is measured."""
        loss = max(map(abs, losses))
        slope = 1 + 2 * loss**0.5 if isinstance(self.experiment.measured, SquaredDistance) else 1.0
        return self.tolerance * slope * (self.scale + loss)

    def settle(self, mask: EdgeMask, edge: Edge) -> tuple[float, float]:
        """The loss with and without an edge, in float64."""
        before, after = self.exact([mask, mask.without(edge)])
        return before, after

    def exact(self, masks: Sequence[EdgeMask]) -> list[float]:
        """The loss of each mask, in float64."""
        if self._losses_of is None:
            exact = self.experiment.to("cpu", torch.float64)
            full, everything = self.engine == "full", EdgeMask.all(masks[0].graph)
            self._losses_of = (
                FullEngine(exact, self.memory_gb).losses if full else CircuitState(exact, everything).losses_of
            )
        return self._losses_of(masks)

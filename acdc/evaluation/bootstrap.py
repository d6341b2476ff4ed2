"""Percentile bootstrap over pairs (Efron 1979): how much numbers would differ on other pairs of the same kind."""

from __future__ import annotations

import torch
from torch import Tensor

from acdc.evaluation.faithfulness import Measured
from acdc.metrics import ROUNDING
from acdc.process import undisturbed

Interval = tuple[float, float]


@undisturbed
def resamples(n_pairs: int, draws: int, seed: int = 0) -> Tensor:
    """Indices of pairs drawn with replacement, `draw pair`; the same seed gives the same ones."""
    return torch.randint(n_pairs, (draws, n_pairs), generator=torch.Generator().manual_seed(seed))


@undisturbed
def intervals(measured: Measured, draws: int = 1000, confidence: float = 0.95, seed: int = 0) -> dict[str, Interval]:
    """Intervals of `circuit` (the metric), `recovery`, `kl`, `accuracy` and `agreement`.

    Pairs are resampled whole: circuit, model and empty circuit on the same ones. A draw in which model and empty
    circuit do not differ has no recovery and is left out of that interval; where all are, so is the interval.
    """
    chosen = resamples(len(measured.clean), draws, seed)

    def means(values: Tensor) -> Tensor:
        return values.cpu()[chosen].mean(-1)

    own, clean, corrupted = means(measured.circuit["metric"]), means(measured.clean), means(measured.corrupted)
    differ = (clean - corrupted).abs() > ROUNDING * torch.maximum(clean.abs(), corrupted.abs()).clamp_min(1)
    samples = {"circuit": own, "recovery": ((own - corrupted) / (clean - corrupted))[differ]}
    samples |= {name: means(values) for name, values in measured.circuit.items() if name != "metric"}
    samples["kl"] = samples["kl"].clamp_min(0)  # rounding can make it −1e-8
    return {name: percentiles(values, confidence) for name, values in samples.items() if len(values)}


def percentiles(samples: Tensor, confidence: float = 0.95) -> Interval:
    """The central interval that holds this share of the samples, `draw`; between samples by straight lines."""
    tail = (1 - confidence) / 2
    low, high = torch.quantile(samples.double(), samples.new_tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high

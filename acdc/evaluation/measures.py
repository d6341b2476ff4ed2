"""What sets of edges do on every pair, by complete evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.circuit import Circuit
from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.experiment import Experiment
from acdc.metrics import KLDivergence, bind, recovery
from acdc.process import undisturbed

_LOGITS = 2**26  # numbers held at once


@dataclass(frozen=True)
class PerPair:
    """Measures of some sets of edges on every pair, each `variant pair`, in float64.

    Attributes
    ----------
    metric : Tensor
        The metric in its own direction.
    kl : Tensor
        KL(model ‖ circuit) in nats.
    agreement : Tensor or None
        1 where the top token is the model's; None for a model with one output.
    accuracy : Tensor or None
        1 where the top token is an answer; None for a model with one output.
    """

    metric: Tensor
    kl: Tensor
    agreement: Tensor | None
    accuracy: Tensor | None

    def __getitem__(self, variant: int) -> dict[str, Tensor]:
        """Return the measures of one set of edges, each `pair`."""
        every = {"metric": self.metric, "kl": self.kl, "accuracy": self.accuracy, "agreement": self.agreement}
        return {name: values[variant] for name, values in every.items() if values is not None}

    @classmethod
    def joined(cls, parts: Sequence[PerPair]) -> PerPair:
        """Put the variants of several parts behind each other."""

        def optional(values: list[Tensor | None]) -> Tensor | None:
            there = [value for value in values if value is not None]
            return torch.cat(there) if there else None

        return cls(
            torch.cat([part.metric for part in parts]),
            torch.cat([part.kl for part in parts]),
            optional([part.agreement for part in parts]),
            optional([part.accuracy for part in parts]),
        )


@undisturbed
def per_pair(experiment: Experiment, masks: Sequence[EdgeMask], engine: FullEngine | None = None) -> PerPair:
    """Measure sets of edges on every pair.

    Parameters
    ----------
    experiment : Experiment
    masks : sequence of EdgeMask
    engine : FullEngine, optional
    """
    engine = engine or FullEngine(experiment)
    per_variant = len(experiment.readouts) * experiment.model.W_U.shape[1]
    step = max(1, min(engine.max_variants, _LOGITS // per_variant))
    starts = range(0, len(masks), step)
    return PerPair.joined([measure_logits(experiment, engine.logits(masks[i : i + step])) for i in starts])


@undisturbed
@torch.no_grad()
def measure_logits(experiment: Experiment, logits: Tensor) -> PerPair:
    """Measure the logits of some variants, `variant readout vocabulary`."""
    metric = experiment.metric
    of_metric = metric.values(logits if metric.columns is None else logits[..., metric.columns])
    # None is below 0; rounding can make it −1e-8.
    kl = bind(KLDivergence(), experiment.readouts, experiment.clean_logits).values(logits).clamp(min=0)
    of_metric = kl if experiment.metric_name == "kl_div" else of_metric
    agreement = accuracy = None
    if logits.shape[-1] > 1:
        top = logits.argmax(-1, keepdim=True)
        own = experiment.clean_logits.argmax(-1, keepdim=True)
        agreement = experiment.mean_by_pair((top == own)[..., 0])
        accuracy = experiment.mean_by_pair((top == _answers(experiment)).any(-1))
    return PerPair(experiment.mean_by_pair(of_metric), experiment.mean_by_pair(kl), agreement, accuracy)


def _answers(experiment: Experiment) -> Tensor:
    """Return the answers at each readout, `readout answer`; the full model's top token where a pair has none."""
    answers, own = experiment.readouts.answers, experiment.clean_logits.argmax(-1, keepdim=True)
    return torch.where((answers >= 0).any(-1, keepdim=True), answers, own) if answers.shape[1] else own


@dataclass(frozen=True)
class Measured:
    """What a circuit does on each pair, beside the whole model and the model without any edge.

    Attributes
    ----------
    circuit : dict of str to Tensor
        The circuit's measures, each `pair`.
    clean, corrupted : Tensor
        The metric with all edges and with none, `pair`.
    of_model : dict of str to Tensor
        The whole model's measures, each `pair`.
    """

    circuit: dict[str, Tensor]
    clean: Tensor
    corrupted: Tensor
    of_model: dict[str, Tensor]

    def summary(self) -> dict[str, float]:
        """Return `circuit` (the metric), `recovery` and the other measures, each as its mean over the pairs."""
        own = float(self.circuit["metric"].mean())
        share = recovery(own, float(self.clean.mean()), float(self.corrupted.mean()))
        others = {name: float(values.mean()) for name, values in self.circuit.items() if name != "metric"}
        return {"circuit": own, "recovery": share, **others}

    def on(self, pairs: Sequence[int]) -> Measured:
        """Return the same on some of the pairs."""
        chosen = list(pairs)
        return Measured(
            {name: values[chosen] for name, values in self.circuit.items()},
            self.clean[chosen],
            self.corrupted[chosen],
            {name: values[chosen] for name, values in self.of_model.items()},
        )


@undisturbed
def measure(experiment: Experiment, circuits: Sequence[Circuit], engine: FullEngine | None = None) -> list[Measured]:
    """Measure circuits of one graph on every pair.

    Parameters
    ----------
    experiment : Experiment
    circuits : sequence of Circuit
    engine : FullEngine, optional
    """
    if not circuits:
        return []
    graph = circuits[0].graph
    masks = [EdgeMask.all(graph), EdgeMask.of(graph, []), *(EdgeMask.of(graph, circuit) for circuit in circuits)]
    measured = per_pair(experiment, masks, engine)
    clean, corrupted = measured.metric[0], measured.metric[1]
    return [Measured(measured[i + 2], clean, corrupted, measured[0]) for i in range(len(circuits))]

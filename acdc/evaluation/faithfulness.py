"""How well a circuit alone does what the whole model does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from acdc.circuit import Circuit
from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.experiment import Experiment
from acdc.metrics import make_metric, recovery
from acdc.process import undisturbed

_LOGITS = 2**26  # numbers held at once


@dataclass(frozen=True)
class PerPair:
    """Measures of some sets of edges on every pair, each `variant pair`, in float64.

    `metric` in its own direction; `kl` = KL(model ‖ circuit) in nats; `agreement`: 1 where the top token is the
    model's; `accuracy`: 1 where it is an answer. The last two are None for a model with one output.
    """

    metric: Tensor
    kl: Tensor
    agreement: Tensor | None
    accuracy: Tensor | None

    def __getitem__(self, variant: int) -> dict[str, Tensor]:
        """The measures of one set of edges, each `pair`."""
        every = {"metric": self.metric, "kl": self.kl, "accuracy": self.accuracy, "agreement": self.agreement}
        return {name: values[variant] for name, values in every.items() if values is not None}


@undisturbed
def per_pair(experiment: Experiment, masks: Sequence[EdgeMask], engine: FullEngine | None = None) -> PerPair:
    """Measure sets of edges by complete evaluations."""
    engine = engine or FullEngine(experiment)
    per_variant = len(experiment.readouts) * experiment.model.W_U.shape[1]
    step = max(1, min(engine.max_variants, _LOGITS // per_variant))
    parts = [
        measure_logits(experiment, engine.logits(masks[start : start + step])) for start in range(0, len(masks), step)
    ]

    def joined(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    metric, kl = joined("metric"), joined("kl")
    assert metric is not None
    assert kl is not None
    return PerPair(metric, kl, joined("agreement"), joined("accuracy"))


@undisturbed
@torch.no_grad()
def measure_logits(experiment: Experiment, logits: Tensor) -> PerPair:
    """Measure the logits of some variants, `variant readout vocabulary`."""
    metric = experiment.metric
    of_metric = metric.values(logits if metric.columns is None else logits[..., metric.columns])
    # None is below 0; rounding can make it −1e-8.
    kl = make_metric("kl_div", experiment.readouts, experiment.clean_logits).values(logits).clamp(min=0)
    of_metric = kl if experiment.metric_name == "kl_div" else of_metric
    agreement = accuracy = None
    if logits.shape[-1] > 1:
        top = logits.argmax(-1, keepdim=True)
        own = experiment.clean_logits.argmax(-1, keepdim=True)
        agreement = experiment.by_pair((top == own)[..., 0])
        accuracy = experiment.by_pair((top == _answers(experiment)).any(-1))
    return PerPair(experiment.by_pair(of_metric), experiment.by_pair(kl), agreement, accuracy)


def _answers(experiment: Experiment) -> Tensor:
    """Answers at each readout, `readout answer`; where a pair has none, the full model's top token stands for them."""
    answers, own = experiment.readouts.answers, experiment.clean_logits.argmax(-1, keepdim=True)
    return torch.where((answers >= 0).any(-1, keepdim=True), answers, own) if answers.shape[1] else own


@dataclass(frozen=True)
class Measured:
    """A circuit between the model and nothing, on each pair: `circuit`'s measures, and the metric of the others.

    `clean`, `corrupted`: the metric with all edges and with none, `pair`. `of_model`: the whole model's measures.
    """

    circuit: dict[str, Tensor]
    clean: Tensor
    corrupted: Tensor
    of_model: dict[str, Tensor]

    def summary(self, pairs: Tensor | None = None) -> dict[str, float]:
        """`circuit` (the metric), `recovery` and the means of the other measures, over all pairs or some of them.

        `pairs`: indices, which may repeat, as a bootstrap has them.
        """

        def mean(values: Tensor) -> float:
            return float((values if pairs is None else values[pairs]).mean())

        own = mean(self.circuit["metric"])
        numbers = {"circuit": own, "recovery": recovery(own, mean(self.clean), mean(self.corrupted))}
        numbers |= {name: mean(values) for name, values in self.circuit.items() if name != "metric"}
        return numbers


@undisturbed
def measure(experiment: Experiment, circuits: Sequence[Circuit], engine: FullEngine | None = None) -> list[Measured]:
    """Circuits of one graph on every pair, by complete evaluations."""
    if not circuits:
        return []
    graph = circuits[0].graph
    masks = [EdgeMask.all(graph), EdgeMask.of(graph, []), *(EdgeMask.of(graph, circuit) for circuit in circuits)]
    measured = per_pair(experiment, masks, engine)
    clean, corrupted = measured.metric[0], measured.metric[1]
    return [Measured(measured[i + 2], clean, corrupted, measured[0]) for i in range(len(circuits))]


@undisturbed
def faithfulness(experiment: Experiment, circuit: Circuit) -> dict[str, Any]:
    """The metric of the model, of nothing and of the circuit, and what that says, by complete evaluations.

    Returns `clean`, `corrupted` (no edge kept) and `circuit` in the metric's own direction, `recovery` =
    (circuit − corrupted) / (clean − corrupted), `kl` = KL(model ‖ circuit) in nats, `accuracy` and `accuracy_model`
    (shares in which the top token of the circuit and of the model is an answer), `agreement` (the share in which the
    circuit's top token is the model's; these three not for a model with one output), `edges_kept`, `edges_total`.
    """
    (measured,) = measure(experiment, [circuit])
    return as_numbers(measured, circuit)


@undisturbed
def as_numbers(measured: Measured, circuit: Circuit) -> dict[str, Any]:
    """What `faithfulness` returns, from the values on each pair."""
    numbers: dict[str, Any] = {"clean": float(measured.clean.mean()), "corrupted": float(measured.corrupted.mean())}
    numbers |= measured.summary()
    if "accuracy" in measured.of_model:
        numbers["accuracy_model"] = float(measured.of_model["accuracy"].mean())
    return numbers | {"edges_kept": len(circuit), "edges_total": len(circuit.graph)}


@undisturbed
def by_partner(experiment: Experiment, circuit: Circuit) -> list[dict[str, Any]]:
    """`faithfulness` with each corrupted partner alone: how much the numbers depend on which one is taken.

    Empty where the pairs have one partner, or not all the same number of them.
    """
    counts = {len(pair.corrupted) for pair in experiment.pairs}
    if len(counts) != 1 or counts == {1} or experiment.ablation.name not in ("corrupted", "mean"):
        return []
    return [faithfulness(experiment.with_partner(partner), circuit) for partner in range(counts.pop())]

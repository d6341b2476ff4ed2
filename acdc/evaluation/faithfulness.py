"""How well a circuit alone does what the whole model does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from acdc.circuit import Circuit
from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.experiment import Experiment
from acdc.metrics import make_metric, recovery


def faithfulness(experiment: Experiment, circuit: Circuit) -> dict[str, Any]:
    """The metric of the model, of nothing and of the circuit, and what that says, by complete evaluations.

    Returns `clean`, `corrupted` (no edge kept) and `circuit` in the metric's own direction, `recovery` =
    (circuit − corrupted) / (clean − corrupted), `kl` = KL(model ‖ circuit) in nats, `accuracy` and `accuracy_model`
    (shares in which the top token of the circuit and of the model is an answer; not for a model with one output),
    `edges_kept`, `edges_total`.
    """
    engine = FullEngine(experiment)
    masks = [EdgeMask.all(circuit.graph), EdgeMask.of(circuit.graph, []), EdgeMask.of(circuit.graph, circuit)]
    metric = experiment.metric
    clean, corrupted, own = (metric.from_loss(loss) for loss in engine.losses(masks))
    kl = make_metric("kl_div", experiment.readouts, experiment.clean_logits)
    with torch.no_grad():
        logits = engine.logits(masks[2:])[0]
        divergence = kl.value(logits).item()
    right = {}
    if logits.shape[-1] > 1:
        right = {
            "accuracy": accuracy(logits, experiment),
            "accuracy_model": accuracy(experiment.clean_logits, experiment),
        }
    return {
        "clean": clean,
        "corrupted": corrupted,
        "circuit": own,
        "recovery": recovery(own, clean, corrupted),
        "kl": max(divergence, 0.0),  # rounding can make it −1e-8
        **right,
        "edges_kept": len(circuit),
        "edges_total": len(circuit.graph),
    }


def accuracy(logits: Tensor, experiment: Experiment) -> float:
    """The share of what the metric reads in which the top token is an answer; `logits`: `readout vocabulary`.

    Where a pair has no answers, the full model's top token stands for them.
    """
    answers = experiment.readouts.answers
    own = experiment.clean_logits.argmax(-1, keepdim=True)
    answers = torch.where((answers >= 0).any(-1, keepdim=True), answers, own) if answers.shape[1] else own
    right = (logits.argmax(-1, keepdim=True) == answers).any(-1)
    return float((right * experiment.readouts.weight).sum())


def by_partner(experiment: Experiment, circuit: Circuit) -> list[dict[str, Any]]:
    """`faithfulness` with each corrupted partner alone: how much the numbers depend on which one is taken.

    Empty where the pairs have one partner, or not all the same number of them.
    """
    counts = {len(pair.corrupted) for pair in experiment.pairs}
    if len(counts) != 1 or counts == {1} or experiment.ablation.name not in ("corrupted", "mean"):
        return []
    return [faithfulness(experiment.with_partner(partner), circuit) for partner in range(counts.pop())]

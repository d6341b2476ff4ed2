"""How well a circuit alone does what the whole model does."""

from __future__ import annotations

from typing import Any

import torch

from acdc.circuit import Circuit
from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.experiment import Experiment
from acdc.metrics import make_metric, recovery


def faithfulness(experiment: Experiment, circuit: Circuit) -> dict[str, Any]:
    """The metric of the model, of nothing and of the circuit, and what that says, by complete evaluations.

    Returns `clean`, `corrupted` (no edge kept) and `circuit` in the metric's own direction, `recovery` =
    (circuit − corrupted) / (clean − corrupted), `kl` = KL(model ‖ circuit) in nats, `edges_kept`, `edges_total`.
    """
    engine = FullEngine(experiment)
    masks = [EdgeMask.all(circuit.graph), EdgeMask.of(circuit.graph, []), EdgeMask.of(circuit.graph, circuit)]
    metric = experiment.metric
    clean, corrupted, own = (metric.from_loss(loss) for loss in engine.losses(masks))
    kl = make_metric("kl_div", experiment.readouts, experiment.clean_logits)
    with torch.no_grad():
        divergence = kl.value(engine.logits(masks[2:])[0]).item()
    return {
        "clean": clean,
        "corrupted": corrupted,
        "circuit": own,
        "recovery": recovery(own, clean, corrupted),
        "kl": divergence,
        "edges_kept": len(circuit),
        "edges_total": len(circuit.graph),
    }

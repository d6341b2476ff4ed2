"""Edge pruning (Bhaskar et al. 2024, arXiv:2406.16778): gates on edges, trained to a target sparsity.

Every edge and every sender has a gate; an edge is open as far as its own and its sender's gate are. Lagrange
multipliers, trained against the gates, hold the share of closed edges (and, where asked, of closed senders) at a target
that rises from 0 to its full height during the first steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from acdc.circuit import Circuit
from acdc.discovery.base import Decision, Observer, Store
from acdc.discovery.hard_concrete import (
    Plan,
    TrainedMethod,
    Training,
    draw,
    gated_circuit,
    open_share,
)
from acdc.discovery.selection import least_with_path
from acdc.engine.mask import EdgeMask
from acdc.experiment import Experiment
from acdc.settings import option

SCORE = "the smaller log α of its own and its sender's gate, after training: positive means more open than closed"
_OPEN_AT_FIRST = 4.0  # log α


@dataclass(frozen=True)
class EdgePruning(TrainedMethod):
    """Edge pruning (Bhaskar et al. 2024): hard-concrete gates on edges and senders, trained to a target sparsity."""

    to_keep_more: ClassVar[str] = "give a lower method.sparsity"

    name: str = "edge_pruning"
    sparsity: float = option(0.9, "the share of edges to close", above=0, below=1)
    node_sparsity: float | None = option(
        None,
        "the share of senders to close; null leaves that to the edges",
        above=0,
        below=1,
    )
    warmup: float = option(0.8, "the share of the steps in which the target rises from 0", above=0, below=1)
    lr: float = option(0.1, "learning rate of the gates; the paper has 0.8 and 3000 steps", above=0)
    multiplier_lr: float = option(0.3, "learning rate of the Lagrange multipliers that hold the target", above=0)

    def discover(
        self,
        experiment: Experiment,
        observer: Observer | None = None,
        replay: Sequence[Decision] = (),
        store: Store | None = None,
    ) -> Circuit:
        """Train the gates; the circuit has the edges of the largest scores, as many as the target leaves.

        Raises
        ------
        ConfigError: see `check`. RunError: training diverged.
        """
        self.check(experiment)
        graph = experiment.graph
        there = EdgeMask.all(graph).ports.to(experiment.model.device)
        targets = {"edges": self.sparsity, "senders": self.node_sparsity}

        def masks(parameters: Mapping[str, Tensor], generator: torch.Generator) -> tuple[Tensor, None]:
            return there * draw(parameters["edges"], generator) * draw(parameters["senders"], generator), None

        def penalty(parameters: Mapping[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
            edges, senders = open_share(parameters["edges"]), open_share(parameters["senders"])
            closed = {"edges": 1 - (edges * senders)[there].mean(), "senders": 1 - senders.mean()}
            rise = min(1.0, (step + 1) / (self.warmup * self.steps))
            total = edges.new_zeros(())
            for name, target in targets.items():
                if target is not None:
                    off, multipliers = closed[name] - rise * target, parameters[f"{name}.multipliers"]
                    total = total + multipliers[0] * off + multipliers[1] * off**2
            return total, {"sparsity": float(closed["edges"].detach()), "target": rise * self.sparsity}

        generator = torch.Generator().manual_seed(self.seed)
        gates = {
            name: _OPEN_AT_FIRST + 0.01 * torch.randn(shape, generator=generator)
            for name, shape in (("edges", there.shape), ("senders", there.shape[1:]))
        }
        multipliers = {f"{name}.multipliers": torch.zeros(2) for name, target in targets.items() if target is not None}
        rates = dict.fromkeys(gates, self.lr) | dict.fromkeys(multipliers, self.multiplier_lr)
        trained = Training(experiment, self, Plan(gates, multipliers, rates, masks, penalty)).run(observer, store)
        found = torch.minimum(trained["edges"], trained["senders"]).double().tolist()
        scores = {edge: found[graph.port_index[edge.receiver]][graph.sender_index[edge.sender]] for edge in graph}
        best = sorted(scores, key=lambda edge: -scores[edge])
        asked = round((1 - self.sparsity) * len(graph))
        by_default = self.sparsity == EdgePruning.sparsity and self.prune  # raised where nothing would be left
        n_edges = max(asked, least_with_path(graph, best)) if by_default else asked
        circuit = gated_circuit(experiment, self, scores, best[:n_edges], SCORE)
        circuit.metrics["asked"] = asked
        return circuit

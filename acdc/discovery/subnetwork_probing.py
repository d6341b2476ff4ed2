"""Subnetwork probing (Cao, Sanh and Rush 2021, arXiv:2104.03514) as the ACDC paper compares with it: gates on nodes.

Every query, key and value of a head and every MLP's output has a gate; the loss is the circuit's, plus a price for
gates that are open. A closed gate gives the node its ablated value. What is left are the edges between open nodes.
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
    log_alpha_of,
    open_share,
)
from acdc.engine.mask import EdgeMask
from acdc.experiment import Experiment
from acdc.graph import Edge, Graph
from acdc.settings import option

SCORE = "the smaller log α of the gates at its ends, after training: positive means that both are more open than closed"
_OPEN_AT_FIRST = 0.9  # as in the original's code


@dataclass(frozen=True)
class SubnetworkProbing(TrainedMethod):
    """Subnetwork probing (Cao et al. 2021): hard-concrete gates on heads' q, k, v and on MLPs, at a price for"
    " open ones.
    """

    to_keep_more: ClassVar[str] = "give a lower method.price"

    name: str = "subnetwork_probing"
    price: float = option(3.0, "λ: what it costs, in units of the loss, that all gates are open", above=0)
    lr: float = option(0.1, "learning rate", above=0)

    def discover(
        self,
        experiment: Experiment,
        observer: Observer | None = None,
        replay: Sequence[Decision] = (),
        store: Store | None = None,
    ) -> Circuit:
        """Train the gates; the circuit has the edges between nodes whose gates are more than half open.

        Raises
        ------
        ConfigError: see `check`. RunError: training diverged.
        """
        self.check(experiment)
        graph = experiment.graph
        gated = [port for port in graph.ports if port != "logits"]
        at = torch.tensor([graph.port_index[port] for port in gated])
        mlps = [sender for sender in graph.senders if sender in graph.port_index]
        all_edges = EdgeMask.all(graph).ports.float().to(experiment.model.device)
        columns = torch.tensor([graph.sender_index[mlp] for mlp in mlps], dtype=torch.long)
        of_mlps = torch.tensor([gated.index(mlp) for mlp in mlps], dtype=torch.long)

        def masks(parameters: Mapping[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
            gates = draw(parameters["gates"], generator)
            senders = torch.ones(len(graph.senders), device=gates.device).index_put(
                (columns.to(gates.device),), gates[of_mlps]
            )
            ports = torch.ones(len(graph.ports), device=gates.device).index_put((at.to(gates.device),), gates)
            return all_edges * senders, ports

        def penalty(parameters: Mapping[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
            share = open_share(parameters["gates"]).mean()
            return self.price * share, {"open": float(share.detach())}

        start = torch.full((len(gated),), log_alpha_of(_OPEN_AT_FIRST))
        training = Training(experiment, self, Plan({"gates": start}, {}, {"gates": self.lr}, masks, penalty))
        trained = training.run(observer, store)["gates"].double().tolist()
        scores = edge_scores(graph, dict(zip(gated, trained, strict=True)))
        return gated_circuit(experiment, self, scores, [edge for edge in scores if scores[edge] > 0], SCORE)


def edge_scores(graph: Graph, gates: Mapping[str, float]) -> dict[Edge, float]:
    """Of each edge the smaller log α at its ends; a head as a sender has the largest of its q, k and v.

    Parameters
    ----------
    gates: log α of every port but the logits. The input and the logits have none.
    """

    def of_sender(sender: str) -> float:
        return max((gates[port] for port in graph.ports_of(sender) if port in gates), default=float("inf"))

    senders = {sender: of_sender(sender) for sender in graph.senders}
    return {edge: min(senders[edge.sender], gates.get(edge.receiver, max(gates.values()))) for edge in graph}

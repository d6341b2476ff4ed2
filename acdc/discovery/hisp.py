"""HISP: head importance scores (Michel, Levy and Neubig 2019, arXiv:1905.10650), as the original ACDC compares them.

A node is scored by |activation · gradient| in the clean run, the loss's derivative by a mask on it, the mean over pairs
of its size. As in the original's code, each head's q, k and v and each MLP are nodes, and the scores of a layer are
divided by their norm. An edge stays as long as both its ends do, so its score is the smaller one of the sender's and
the receiver's: a head as a sender stays as long as its q, k or v does (their largest score); `input` and `logits`
always stay (score 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from acdc.discovery.base import Observer, Store
from acdc.discovery.scores import BlockMethod, Piece, Work, add_up, check_gradients, check_slope
from acdc.engine.gradients import GradientRun
from acdc.experiment import Experiment
from acdc.graph import Graph


@dataclass(frozen=True)
class HISP(BlockMethod):
    """HISP (Michel et al. 2019): importance of heads and MLPs, |activation · gradient|; an edge has its weaker"
    " end's.
    """

    meaning: ClassVar[str] = (
        "the smaller importance of its two ends, |activation · gradient of the loss| as a share of the layer's norm;"
        " importance has no sign"
    )

    name: str = "hisp"

    def check(self, experiment: Experiment) -> None:
        """ConfigError where the method has nothing to say: see `check_gradients` and `check_slope`."""
        check_gradients(experiment, self)
        check_slope(experiment, self)

    def scores(self, experiment: Experiment, observer: Observer, store: Store) -> Tensor:

        def pieces(block: Experiment) -> Iterator[Piece]:
            yield lambda: _importance(block)

        work = Work(pieces, 1, self.memory_gb)
        importance = add_up(experiment, work, observer, store)[:, 0]
        return edge_scores(experiment.graph, importance)


def _importance(block: Experiment) -> Tensor:
    """Σ over rows of |activation · gradient| of each port's node, `port sender`, the same for every sender."""
    graph = block.graph
    scores = torch.zeros(len(graph.ports), len(graph.senders), dtype=torch.float64)
    for at in GradientRun.computed(block).at_ports():
        if at.value is not None and at.value_gradient is not None:
            by_row = (at.value.double() * at.value_gradient.double()).sum((-2, -1))
            scores[at.rows] = by_row.abs().sum(-1, keepdim=True).cpu()
    return scores


def edge_scores(graph: Graph, importance: Tensor) -> Tensor:
    """Scores of edges, `port sender`, from those of ports, `port`."""
    receivers, senders = torch.ones(len(graph.ports), dtype=torch.float64), []
    for i in range(graph.config.n_layers):
        layer = graph.layer_ports(i)
        receivers[layer] = importance[layer] / importance[layer].norm().clamp_min(1e-6)
    for name in graph.senders:
        senders.append(max((receivers[graph.port_index[p]].item() for p in graph.ports_of(name)), default=1.0))
    return torch.minimum(receivers[:, None], torch.tensor(senders, dtype=torch.float64))

"""Information flow routes (Ferrando and Voita 2024, arXiv:2403.00824), on edges between heads, MLPs and ports.

How much of a receiver's input a sender makes: its proximity max(0, ‖x‖₁ − ‖x − s‖₁), where s is what the sender writes
and x all that the receiver reads, as a share of the sum over the receiver's senders; the mean over positions and pairs.
The clean run alone is looked at, not the metric.

MIB has the same, but for the input: there it writes the token embeddings only, though receivers read the position
embeddings too (`position_embedding=False`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from acdc.discovery.base import Observer, Store
from acdc.discovery.scores import BlockMethod, Piece, Work, add_up
from acdc.engine.gradients import sender_outputs
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.model.forward import streams
from acdc.settings import option


@dataclass(frozen=True)
class InformationFlow(BlockMethod):
    """Information flow routes (Ferrando and Voita 2024): the sender's share of the receiver's input, clean run only."""

    meaning: ClassVar[str] = (
        "the share of the receiver's input that the sender makes in the clean run, by its proximity to that"
        " input; it has no sign, and says nothing of the metric"
    )

    name: str = "information_flow"
    select: str = "greedy"
    position_embedding: bool = option(True, "part of what the input writes; false: token embeddings only, as in MIB")

    def check(self, experiment: Experiment) -> None:
        """ConfigError where more edges are asked for than there are, or position embeddings are a sender of"
        " their own.
        """
        super().check(experiment)
        if experiment.graph.config.split_embedding and not self.position_embedding:
            raise ConfigError(
                "method.position_embedding=false leaves out what is a sender of its own here, input.pos: leave"
                " it true, or give graph.split_embedding=false"
            )

    def scores(self, experiment: Experiment, observer: Observer, store: Store) -> Tensor:
        rows_of_pair = torch.tensor(experiment.batch.source).bincount()
        n_pairs = len(experiment.pairs)

        def pieces(block: Experiment) -> Iterator[Piece]:
            weights = 1 / (n_pairs * rows_of_pair[torch.tensor(block.batch.source)].double())
            yield lambda: _shares(block, weights, self.position_embedding)

        work = Work(pieces, 1, self.memory_gb)
        return add_up(experiment, work, observer, store)


@torch.no_grad()
def _shares(block: Experiment, weights: Tensor, position_embedding: bool) -> Tensor:
    """Σ over rows of weight times the mean share over a row's positions: `port sender`."""
    graph, lengths = block.graph, block.batch.lengths
    written = sender_outputs(block.model, block.clean)
    if not position_embedding:
        written[0] = block.model.W_E[block.batch.clean]
    attention, mlp, final = streams(block.model, block.clean)
    n_positions = final.shape[1]
    real = torch.arange(n_positions, device=lengths.device) < lengths[:, None]
    of_position = real * (weights.to(lengths.device) / lengths)[:, None]  # row pos
    scores = torch.zeros(len(graph.ports), len(graph.senders), dtype=torch.float64)

    def share(rows: slice, x: Tensor) -> None:
        n_senders = graph.n_senders_of(graph.ports[rows.start])
        whole = x.norm(p=1, dim=-1)
        near = torch.stack([(whole - (x - s).norm(p=1, dim=-1)).clamp_min(0) for s in written[:n_senders]]).double()
        total = near.sum(0)
        shares = torch.where(total > 0, near / total, 0.0)
        scores[rows, :n_senders] = (shares * of_position).sum((-2, -1)).cpu()

    for i, x in enumerate(attention):
        share(slice(graph.head_ports(i, "q").start, graph.head_ports(i, "v").stop), x)
        mlp_row = graph.mlp_port(i)
        if mlp_row is not None:
            share(slice(mlp_row, mlp_row + 1), mlp[i])
    share(slice(len(graph.ports) - 1, len(graph.ports)), final)
    return scores

"""Information flow routes (Ferrando and Voita 2024, arXiv:2403.00824), on edges between heads, MLPs and ports.

How much of a receiver's input a sender makes: its proximity max(0, ‖x‖₁ − ‖x − s‖₁), where s is what the sender writes
and x all that the receiver reads, as a share of the sum over the receiver's senders; the mean over positions and pairs.
The clean run alone is looked at, not the metric.

MIB has the same, but for the input: there it writes the token embeddings only, though receivers read the position
embeddings too (`position_embedding=False`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.circuit import Circuit
from acdc.discovery.base import Decision, Observer, Store
from acdc.discovery.scores import Piece, ScoringSettings, Work, add_up, to_circuit
from acdc.discovery.selection import check_selection
from acdc.engine.gradients import bytes_per_row, sender_outputs
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.model.forward import streams

SCORE = (
    "the share of the receiver's input that the sender makes in the clean run, by its proximity to that input; it has"
    " no sign, and says nothing of the metric"
)


@dataclass(frozen=True)
class Settings(ScoringSettings):
    """The method's options.

    Attributes
    ----------
    select: greedy from the logits unless told otherwise, as in the paper and in MIB, since every receiver's shares add
        up to 1, however little it matters.
    position_embedding: whether position embeddings are part of what the input writes; False leaves them out, as MIB
        does. The same where a model has none.
    """

    name: str = "information_flow"
    select: str = "greedy"
    position_embedding: bool = True


def check(experiment: Experiment, settings: Settings) -> None:
    """ConfigError where more edges are asked for than there are, or position embeddings are a sender of their own."""
    check_selection(experiment.graph, settings)
    if experiment.graph.config.split_embedding and not settings.position_embedding:
        raise ConfigError(
            "method.position_embedding=false leaves out what is a sender of its own here, input.pos: leave it true, or"
            " give graph.split_embedding=false"
        )


def discover(
    experiment: Experiment,
    settings: Settings,
    observer: Observer | None = None,
    replay: Sequence[Decision] = (),
    store: Store | None = None,
) -> Circuit:
    """Score every edge, and keep those that `settings.select` says; ConfigError as in `check`."""
    check(experiment, settings)
    rows_of_pair = torch.tensor(experiment.batch.source).bincount()
    n_pairs = len(experiment.pairs)

    def pieces(block: Experiment) -> Iterator[Piece]:
        weights = 1 / (n_pairs * rows_of_pair[torch.tensor(block.batch.source)].double())
        yield lambda: _shares(block, weights, settings.position_embedding)

    work = Work(pieces, 1, bytes_per_row(experiment), settings.memory_gb)
    return to_circuit(experiment, settings, add_up(experiment, work, observer, store), SCORE)


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

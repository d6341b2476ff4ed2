"""Causal scrubbing (Chan et al. 2022, "Causal Scrubbing: a method for rigorously testing interpretability hypotheses").

A circuit states the hypothesis that only its edges matter. So every input that it calls unimportant may come from any
other prompt of the data. Each node of the circuit is evaluated on its own prompt along the circuit's edges. Every edge
outside the circuit carries its sender's output in the full model on another pair's clean prompt, drawn separately for
each edge and each prompt.

The paper unfolds the graph into a tree, in which a node is drawn anew for every path that leads from it. Here each edge
is drawn once, whatever paths lead through it. Positions have to match, so a prompt is replaced by others of its length;
a pair for which there are none is left out.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

import torch
from torch import Tensor

from acdc.circuit import Circuit
from acdc.engine.full import FullEngine, Needed
from acdc.engine.mask import EdgeMask
from acdc.errors import TaskError
from acdc.evaluation.measures import PerPair, measure_logits
from acdc.experiment import Experiment
from acdc.process import undisturbed

NO_OTHER = "no pair has another clean prompt of its length beside it"


def scrubbable(experiment: Experiment) -> list[int]:
    """Return the pairs for which another pair has another clean prompt of the same length."""
    prompts = {pair.clean for pair in experiment.pairs}
    of_length = Counter(len(prompt) for prompt in prompts)
    return [i for i, pair in enumerate(experiment.pairs) if of_length[len(pair.clean)] > 1]


@undisturbed
@torch.no_grad()
def scrub(experiment: Experiment, circuit: Circuit, draws: int = 10, seed: int = 0) -> PerPair:
    """Measure the pairs that are `scrubbable` with the unimportant inputs resampled, one variant a draw.

    A removed projection edge leaves its port without any important input. The experiment's ablation plays no part.

    Parameters
    ----------
    experiment : Experiment
    circuit : Circuit
    draws : int
    seed : int

    Raises
    ------
    TaskError
        No pair is scrubbable.
    """
    chosen = scrubbable(experiment)
    if not chosen:
        raise TaskError(f"causal scrubbing cannot be measured: {NO_OTHER}")
    if len(chosen) < len(experiment.pairs):
        experiment = experiment.with_pairs(chosen)
    engine = FullEngine(experiment)
    resampled = _Resampled(experiment, circuit)
    graph, present = experiment.graph, resampled.present[None]
    everything = torch.ones(1, len(graph.ports), dtype=torch.bool)
    needed = Needed.of(graph, present, everything)
    results = []
    for draw in range(draws):
        streams, start = [], 0
        for part in engine.parts or [engine]:
            stop = start + len(part.experiment.batch.source)
            added = partial(resampled.added, part.experiment, slice(start, stop), (seed * draws + draw))
            streams.append(part.stream(present, None, needed, added))
            start = stop
        results.append(measure_logits(experiment, experiment.model.unembed(torch.cat(streams, 1))))

    return PerPair.joined(results)


class _Resampled:
    """What ports receive through the edges outside a circuit.

    Attributes
    ----------
    others : Tensor
        The rows that may stand for each row, `row choice`; of each row the first `counts` are meant.
    """

    def __init__(self, experiment: Experiment, circuit: Circuit) -> None:
        self.experiment, self.graph = experiment, experiment.graph
        mask = EdgeMask.of(circuit.graph, circuit)
        self.present = mask.ports & mask.projections[:, None]
        self.removed = EdgeMask.all(self.graph).ports & ~self.present
        prompts = [experiment.pairs[i].clean for i in experiment.batch.source]
        others = [[j for j, other in enumerate(prompts) if other != own and len(other) == len(own)] for own in prompts]
        self.counts = torch.tensor([len(row) for row in others])
        width = int(self.counts.max())
        self.others = torch.tensor([row + row[:1] * (width - len(row)) for row in others])

    def added(self, part: Experiment, rows: slice, seed: int, ports: Tensor) -> Tensor:
        """Return what resampling adds to the ablated inputs of some ports, for some rows: `port row pos d_model`."""
        total = torch.stack([self._of_port(part, rows, seed, port) for port in ports.tolist()])
        is_logits = ports.tolist() == [len(self.graph.ports) - 1]
        return part.read(total)[:, None] if is_logits else total

    def _of_port(self, part: Experiment, rows: slice, seed: int, port: int) -> Tensor:
        """Return the same for one port, `row pos d_model`."""
        clean, ablated, model = self.experiment.clean, part.ablated, self.experiment.model
        total = torch.zeros_like(part.clean_stream)
        of_layers: dict[int, list[tuple[int, Tensor]]] = {}
        for index, drawn in self._draws(seed, port).items():
            sender, drawn = self.graph[self.graph.senders[index]], drawn[rows].to(model.device)
            if sender.kind == "head":
                of_layers.setdefault(sender.layer, []).append((sender.unit, drawn))
                continue
            is_mlp = sender.kind == "mlp"
            theirs, own = (
                (clean.mlps[sender.layer], ablated.mlps[sender.layer])
                if is_mlp
                else (clean.inputs[index], ablated.inputs[index])
            )
            total += theirs[drawn] - own
        for layer, of_heads in of_layers.items():  # one product for all heads of a layer
            heads = [head for head, _ in of_heads]
            z = torch.stack([clean.heads[layer, head][drawn] for head, drawn in of_heads]) - ablated.heads[layer, heads]
            total += model.layers[layer].write_together(z, heads)
        return total

    def _draws(self, seed: int, port: int) -> dict[int, Tensor]:
        """Draw, for each sender whose edge to a port is removed, a row in the place of each row."""
        senders = self.removed[port].nonzero()[:, 0].tolist()
        generator = torch.Generator().manual_seed(seed * len(self.graph.ports) + port)
        chosen = torch.rand(len(senders), len(self.counts), generator=generator, dtype=torch.float64) * self.counts
        rows = torch.arange(len(self.counts)).expand(len(senders), -1)
        return dict(zip(senders, self.others[rows, chosen.long()], strict=True))

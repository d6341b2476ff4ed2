"""The circuit of a compiled or hand-built model, from its weights.

Backward from the logits, a node at a time. For a node whose output is needed:

1. An edge is *felt* if the sender's change (clean − ablated output, on the task's pairs), times the weights with which
   the port reads (W_Q, W_K, W_V, W_in, W_U), is not zero at a position that is needed: the sender writes into a
   subspace that the port reads.
2. A set of felt edges is *enough* if the node, given the others' ablated values, still writes what its readers read
   (those further on that are in the circuit already, through their own weights). Every minimal set that is enough
   counts, so that of two branches that can stand in for each other (an OR gate) both are in.
3. The edges of the minimal sets are in the circuit, and their senders' outputs are needed.

The logits are needed at the positions that the pairs read. No metric, no threshold and no order of edges enter. What
the truth depends on is the ablation and the pairs: a part that writes the same whatever the words are cannot be told
from a constant by prompts that differ in their words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from acdc.ablation import Values
from acdc.errors import ConfigError
from acdc.evaluation.ground_truth import Truth, with_projections
from acdc.experiment import Experiment
from acdc.graph import LETTERS, Edge, Graph
from acdc.model.forward import streams
from acdc.model.parts import LanguageModel, Layer, Mlp
from acdc.process import undisturbed

MOST_FELT = 14  # all subsets of a node's felt edges are tried


@undisturbed
@torch.no_grad()
def derive_truth(experiment: Experiment, projection_edges: bool = False, tolerance: float = 1e-3) -> Truth:
    """Derive the circuit from the weights, for the experiment's pairs and ablation; its metric does not matter.

    Parameters
    ----------
    experiment : Experiment
    projection_edges : bool
        Whether the graph has them.
    tolerance : float
        What counts as zero, relative to the largest value that the port reads. tracr's attention is sharp but not
        exact, to about 1e-6.

    Raises
    ------
    ConfigError
        A model with layer norm, where what is read is not linear in what is written; or a node that feels more than 14
        edges.
    """
    graph = Graph(experiment.model.config, projection_edges)
    edges = _Derivation(experiment.to("cpu", torch.float64), tolerance).run()
    source = f"the weights of {experiment.model.name}, with ablation={experiment.ablation.name}"
    return Truth(experiment.task.name, "derived", graph, with_projections(frozenset(edges), graph), (source,))


@dataclass(frozen=True)
class _Port:
    """What a port reads.

    Attributes
    ----------
    weights : Tensor
        `d_model read`.
    needed : Tensor
        Where its reading is needed, `row pos`.
    clean : Tensor
        What it reads in the clean run, `row pos d_model`.
    """

    weights: Tensor
    needed: Tensor
    clean: Tensor

    def reads(self, change: Tensor) -> Tensor:
        """Return the change that the port sees, as a share of the largest value it reads: a number."""
        seen = (change @ self.weights)[self.needed].abs()
        scale = (self.clean @ self.weights)[self.needed].abs()
        return (seen.max() / scale.max().clamp_min(1.0)) if seen.numel() else torch.tensor(0.0)


class _Derivation:
    def __init__(self, experiment: Experiment, tolerance: float) -> None:
        self.experiment, self.tolerance = experiment, tolerance
        self.model: LanguageModel = experiment.model
        self.graph: Graph = experiment.graph
        norms = {self.model.final_norm.kind} | {layer.norm.kind for layer in self.model.layers}
        if norms != {"none"} or self.model.config.parallel_attn_mlp:
            raise ConfigError(
                f"the circuit of {self.model.name} cannot be derived from its weights: that is for compiled and"
                " hand-built models without layer norm (give a published truth, or a circuit file)"
            )
        clean, ablated = (self._written(values) for values in (experiment.clean, experiment.ablated))
        self.change = {sender: clean[sender] - ablated[sender] for sender in clean}
        self.attention_in, self.mlp_in, self.final = streams(self.model, experiment.clean)
        self.readers: dict[str, list[_Port]] = {sender: [] for sender in self.graph.senders}
        self.edges: list[Edge] = []

    def run(self) -> list[Edge]:
        read = torch.zeros_like(self.experiment.batch.clean, dtype=torch.bool)
        read[self.experiment.readouts.row, self.experiment.readouts.position] = True
        logits = _Port(self.model.W_U, read, self.final)
        self._node({"logits": logits}, lambda x: self.model.unembed(x["logits"]), [_identity(self.model, read)])
        for i in range(len(self.model.layers) - 1, -1, -1):
            layer = self.model.layers[i]
            mlp = self.graph.mlp(i)
            if layer.mlp is not None and mlp is not None and self.readers[mlp]:
                self._mlp(mlp, layer.mlp, self.mlp_in[i])
            for head, name in enumerate(self.graph.heads(i)):
                if self.readers[name]:
                    self._head(name, layer, head, self.attention_in[i])
        return self.edges

    def _mlp(self, name: str, mlp: Mlp, clean: Tensor) -> None:
        readers = self.readers[name]
        port = _Port(mlp.W_in, _any([reader.needed for reader in readers]), clean)
        self._node({name: port}, lambda x: mlp(x[name]), readers)

    def _head(self, name: str, layer: Layer, head: int, clean: Tensor) -> None:
        readers = self.readers[name]
        queries = _any([reader.needed for reader in readers])
        allowed = ~self.experiment.attention_mask.expand(len(queries), -1, -1)  # row query key
        keys = (allowed & queries[:, :, None]).any(1)
        names = dict(zip(LETTERS, self.graph.ports_of(name), strict=True))
        ports = {
            names[letter]: _Port(layer.weights(letter)[0][head], queries if letter == "q" else keys, clean)
            for letter in LETTERS
        }
        one = slice(head, head + 1)

        def output(x: dict[str, Tensor]) -> Tensor:
            q, k, v = (layer.project(letter, x[names[letter]][None], one) for letter in LETTERS)
            return layer.write(layer.mix(q, k, v, self.experiment.attention_mask), one)[0]

        self._node(ports, output, readers)

    def _node(
        self, ports: dict[str, _Port], output: Callable[[dict[str, Tensor]], Tensor], readers: list[_Port]
    ) -> None:
        """Put the edges of a node into the circuit, and tell their senders who reads them."""
        felt = [
            Edge(sender, name)
            for name, port in ports.items()
            for sender in self.graph.senders_of(name)
            if port.reads(self.change[sender]) > self.tolerance
        ]
        if len(felt) > MOST_FELT:
            raise ConfigError(
                f"{self.graph.node_of(felt[0].receiver)} reads {len(felt)} senders, too many for the sets of them to be"
                " tried: a truth can be derived for compiled and hand-built models"
            )

        def written(kept: frozenset[Edge]) -> Tensor:
            inputs = {name: port.clean.clone() for name, port in ports.items()}
            for edge in felt:
                if edge not in kept:
                    inputs[edge.receiver] -= self.change[edge.sender]
            return output(inputs)

        whole = written(frozenset(felt))
        minimal: list[frozenset[Edge]] = []
        for size in range(len(felt) + 1):
            for some in map(frozenset, combinations(felt, size)):
                if any(smaller <= some for smaller in minimal):
                    continue
                change = written(some) - whole
                if all(reader.reads(change) <= self.tolerance for reader in readers):
                    minimal.append(some)
        for edge in felt:
            if any(edge in some for some in minimal):
                self.edges.append(edge)
                self.readers[edge.sender].append(ports[edge.receiver])

    def _written(self, values: Values) -> dict[str, Tensor]:
        """Return every sender's output, `row pos d_model`."""
        written = dict(zip(self.graph.inputs, values.inputs, strict=True))
        for sender in self.graph.senders:
            node = self.graph[sender]
            if node.kind == "head":
                one = slice(node.unit, node.unit + 1)
                written[sender] = self.model.layers[node.layer].write(values.heads[node.layer, one], one)[0]
            elif node.kind == "mlp":
                written[sender] = values.mlps[node.layer]
        return written


def _any(masks: list[Tensor]) -> Tensor:
    return torch.stack(masks).any(0)


def _identity(model: LanguageModel, read: Tensor) -> _Port:
    """Return the reader of the logits: every column, at the positions that are read."""
    n = model.W_U.shape[1]
    return _Port(torch.eye(n, dtype=model.dtype), read, torch.zeros(*read.shape, n, dtype=model.dtype))

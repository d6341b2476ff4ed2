"""From hypothesis to circuit, as it was done by hand (Wang et al. 2022; Nanda 2023): attribute, patch, path-patch.

1. Attribution patching ranks heads and MLPs: (corrupted − clean) output times the gradient, whose mean over the clean
   and the corrupted run is taken.
2. The best of them are patched for real, noising and denoising; those that matter either way survive.
3. Every direct path from the input or a survivor to a survivor's q, k, v, an MLP or the logits is patched, both ways.
4. Paths that matter either way, and lie on a way from the input to the logits, are the circuit.

Effects are shares of the way between the clean and the corrupted metric.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from acdc import discovery
from acdc.circuit import Circuit
from acdc.discovery.base import Decision, Method, NoObserver, Observer, Store
from acdc.discovery.eap import EAP
from acdc.discovery.scores import check_gradients, check_two_runs
from acdc.engine.full import FullEngine
from acdc.engine.joint import JointRun, Replaced
from acdc.engine.mask import EdgeMask
from acdc.engine.memory import budget_bytes
from acdc.engine.resumed import ResumedRun
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.metrics import recovery
from acdc.patching import path
from acdc.patching.base import batch_bytes, blocks, ends, runs_of
from acdc.settings import option

SCORE = (
    "the larger effect, by size, of noising and denoising the direct path; 1 is all of the way from corrupted to clean"
)


@dataclass(frozen=True)
class AttributionToCircuit(Method):
    """From hypothesis to circuit, as by hand: attribute, patch the best nodes, path-patch between those that matter."""

    scores_every_edge: ClassVar[bool] = False
    in_comparison: ClassVar[Mapping[str, object]] = {"compare": False}  # ACDC has a row of its own there
    to_keep_more: ClassVar[str] = "give a lower method.node_limit or method.path_limit"

    name: str = "attribution_to_circuit"
    candidates: int = option(16, "heads and MLPs that are patched, the best by attribution", least=1)
    node_limit: float = option(
        0.02,
        "a candidate survives if noising or denoising it moves the metric by this share of the way from clean"
        " to corrupted",
        least=0,
    )
    path_limit: float = option(0.005, "the same for a direct path between survivors", least=0)
    compare: bool = option(
        True,
        "run ACDC too, at the task's threshold, and say what the two circuits share and what each recovers",
    )
    memory_gb: float | None = option(None, "what temporary tensors may take; null is a share of what is free", above=0)

    def check(self, experiment: Experiment) -> None:
        """What cannot be done is refused.

        Raises
        ------
        ConfigError: an ablation other than `corrupted`; a comparison with ACDC where the task has no threshold.
        TaskError: the metric is the same on clean and corrupted prompts.
        """
        named = EAP(name=self.name)  # the first step's demands, in this method's name
        check_gradients(experiment, named)
        check_two_runs(experiment, named, "another method")
        path.check(experiment, path.Settings())
        if self.compare and experiment.default_threshold is None:
            raise ConfigError(
                f"task={experiment.task.name} has no threshold of its own for metric={experiment.metric_name} to"
                " run ACDC with: give method.compare=false"
            )

    def discover(
        self,
        experiment: Experiment,
        observer: Observer | None = None,
        replay: Sequence[Decision] = (),
        store: Store | None = None,
    ) -> Circuit:
        """Find the circuit; an edge's score is the larger of its path's two effects, by size.

        `metrics["steps"]` tells what each step found: `attributed` (every node's estimate), `patched` (noising and
        denoising effect of each candidate) and `survivors`. A killed run begins again.

        Raises
        ------
        ConfigError, TaskError: see `check`.
        """
        self.check(experiment)
        observer, metric = observer or NoObserver(), experiment.metric
        observer.started(experiment.graph, metric.from_loss(metric.loss_of_model(experiment.clean_logits)))
        attributed = attribute(experiment, self.memory_gb)
        observer.progressed(1, 3, {})
        candidates = sorted(attributed, key=lambda node: -abs(attributed[node]))[: self.candidates]
        patched = patch_nodes(experiment, candidates, self.memory_gb)
        survivors = [node for node in candidates if max(map(abs, patched[node])) >= self.node_limit]
        observer.progressed(2, 3, {})
        effects = patch_paths(experiment, survivors, self.memory_gb)
        observer.progressed(3, 3, {})
        found = {edge: effect for edge, effect in effects.items() if abs(effect) >= self.path_limit}
        circuit = Circuit(
            experiment.graph,
            Circuit(experiment.graph, found).on_path().edges,
            effects,
            model=experiment.model.name,
            task=experiment.task.name,
            method={**asdict(self), "score": SCORE},
        )
        circuit.metrics = {
            "decisions": 0,
            "near_ties": 0,
            "scored": len(effects),
            "steps": {
                "attributed": attributed,
                "patched": {node: {"noise": noise, "denoise": denoise} for node, (noise, denoise) in patched.items()},
                "survivors": survivors,
            },
        }
        if self.compare:
            circuit.metrics["acdc"] = beside_acdc(experiment, circuit, self.memory_gb)
        return circuit


def beside_acdc(experiment: Experiment, circuit: Circuit, memory_gb: float | None = None) -> dict[str, Any]:
    """ACDC's circuit at the task's threshold: its size, what it does alone, what it shares with this one, its time."""
    start = time.monotonic()
    plain = discovery.discover(experiment, "acdc", memory_gb=memory_gb)
    seconds = time.monotonic() - start
    graph = experiment.graph
    masks = [EdgeMask.all(graph), EdgeMask.of(graph, []), EdgeMask.of(graph, plain)]
    clean, corrupted, alone = map(experiment.metric.from_loss, FullEngine(experiment).losses(masks))
    return {
        "threshold": plain.method["threshold"],
        "edges": len(plain),
        "circuit": alone,
        "recovery": recovery(alone, clean, corrupted),
        "seconds": round(seconds, 3),
        "shared": len(plain & circuit),
        "jaccard": plain.jaccard(circuit),
        "only_here": sorted(map(str, set(circuit) - set(plain))),
        "only_acdc": sorted(map(str, set(plain) - set(circuit))),
    }


def attribute(experiment: Experiment, memory_gb: float | None = None) -> dict[str, float]:
    """Every head's and MLP's attribution: what its output's change would do to the loss, to first order.

    The sum over its edges, since a node's gradient is the sum of those at the ports that read it; positive helps.
    """
    total = dict.fromkeys((node for node in experiment.graph.senders if node not in experiment.graph.inputs), 0.0)
    for edge, score in discovery.discover(experiment, "clean_corrupted", memory_gb=memory_gb).tested.items():
        if edge.sender in total:
            total[edge.sender] += score
    return total


def patch_nodes(
    experiment: Experiment, nodes: Sequence[str], memory_gb: float | None = None
) -> dict[str, tuple[float, float]]:
    """Noising and denoising effect of each head or MLP: 1 − recovery and recovery of the metric's mean."""
    memory = budget_bytes(experiment.model.device, memory_gb)
    clean, corrupted = (float((values * experiment.readouts.weight).sum()) for values in ends(experiment))
    values = torch.zeros(2, len(nodes), dtype=torch.float64)
    for block in blocks(experiment, memory):
        runs = list(runs_of(block).values())
        at_once = max(1, batch_bytes(memory) // JointRun(runs[0]).bytes_per_variant())
        for i, (base, source) in enumerate((runs, runs[::-1])):
            for start in range(0, len(nodes), at_once):
                some = nodes[start : start + at_once]
                found = JointRun(base).metric_values(_outputs(some, source)) * block.readouts.weight
                values[i, start : start + len(some)] += found.double().sum(-1).cpu()
    noise, denoise = ([recovery(value, clean, corrupted) for value in row] for row in values.tolist())
    return {node: (1 - noise[i], denoise[i]) for i, node in enumerate(nodes)}


def _outputs(nodes: Sequence[str], source: ResumedRun) -> dict[tuple[str, int], Replaced]:
    """In the i-th variant the i-th node's output is the source's."""
    device, replaced = source.model.device, {}
    for i, name in enumerate(nodes):
        node = source.graph[name]
        is_head = node.kind == "head"
        key = ("head_output" if is_head else "mlp_out", node.layer)
        if key not in replaced:
            shape = (len(nodes), source.model.layers[node.layer].n_heads, 1, 1, 1) if is_head else (len(nodes), 1, 1, 1)
            value = source.values.heads[node.layer] if is_head else source.values.mlps[node.layer]
            replaced[key] = Replaced(torch.zeros(shape, dtype=torch.bool, device=device), value)
        where: Tensor = replaced[key].where
        where[(i, node.unit) if is_head else i] = True
    return replaced


def patch_paths(experiment: Experiment, nodes: Sequence[str], memory_gb: float | None = None) -> dict[Edge, float]:
    """The effect of every direct path from the input or one of these nodes to one of them or the logits.

    Of the noising and the denoising effect the larger by size.
    """
    graph = experiment.graph
    receivers = [port for node in nodes for port in graph.ports_of(node)]
    settings = path.Settings(
        senders=[*graph.inputs, *nodes], receivers=[*receivers, "logits"], direction="both", memory_gb=memory_gb
    )
    effects: dict[Edge, float] = {}
    for one in path.patch(experiment, settings).maps:
        for patched, effect in one.effects().items():
            edge = Edge(patched.senders.name, patched.receivers.name)
            effects[edge] = max(effects.get(edge, 0.0), effect, key=abs)
    return {edge: effects[edge] for edge in graph if edge in effects}

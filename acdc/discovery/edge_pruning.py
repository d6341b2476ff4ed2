"""Edge pruning (Bhaskar et al. 2024, arXiv:2406.16778): gates on edges, trained to a target sparsity.

Every edge and every sender has a gate; an edge is open as far as its own and its sender's gate are. Lagrange
multipliers, trained against the gates, hold the share of closed edges (and, where asked, of closed senders) at a target
that rises from 0 to its full height during the first steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.circuit import Circuit
from acdc.discovery.base import Decision, Observer, Store
from acdc.discovery.hard_concrete import (
    Plan,
    Training,
    TrainingSettings,
    check_training,
    draw,
    gated_circuit,
    open_share,
)
from acdc.discovery.selection import least_with_path
from acdc.engine.mask import EdgeMask
from acdc.errors import ConfigError
from acdc.experiment import Experiment

SCORE = "the smaller log α of its own and its sender's gate, after training: positive means more open than closed"
TO_KEEP_MORE = "give a lower method.sparsity"
_OPEN_AT_FIRST = 4.0  # log α


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """The method's options.

    Attributes
    ----------
    sparsity: the share of edges to close. node_sparsity: the share of senders to close; None leaves that to the edges.
    warmup: the share of the steps in which the targets rise. lr, multiplier_lr: learning rates of the gates and of the
        Lagrange multipliers.
    """

    name: str = "edge_pruning"
    sparsity: float = 0.9
    node_sparsity: float | None = None
    warmup: float = 0.8
    lr: float = 0.1
    multiplier_lr: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("sparsity", "node_sparsity", "warmup"):
            if (value := getattr(self, option)) is not None and not 0 < value < 1:
                raise ConfigError(f"method.{option}={value} is not allowed: give a number between 0 and 1")
        for option in ("lr", "multiplier_lr"):
            if not getattr(self, option) > 0:
                raise ConfigError(f"method.{option}={getattr(self, option)} is not allowed: give more than 0")


def check(experiment: Experiment, settings: Settings) -> None:
    """ConfigError for a precision that cannot be trained in."""
    check_training(experiment, settings)


def discover(
    experiment: Experiment,
    settings: Settings,
    observer: Observer | None = None,
    replay: Sequence[Decision] = (),
    store: Store | None = None,
) -> Circuit:
    """Train the gates; the circuit has the edges of the largest scores, as many as the target leaves.

    Raises
    ------
    ConfigError: see `check`. RunError: training diverged.
    """
    check(experiment, settings)
    graph = experiment.graph
    there = EdgeMask.all(graph).ports.to(experiment.model.device)
    targets = {"edges": settings.sparsity, "senders": settings.node_sparsity}

    def masks(parameters: Mapping[str, Tensor], generator: torch.Generator) -> tuple[Tensor, None]:
        return there * draw(parameters["edges"], generator) * draw(parameters["senders"], generator), None

    def penalty(parameters: Mapping[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        edges, senders = open_share(parameters["edges"]), open_share(parameters["senders"])
        closed = {"edges": 1 - (edges * senders)[there].mean(), "senders": 1 - senders.mean()}
        rise = min(1.0, (step + 1) / (settings.warmup * settings.steps))
        total = edges.new_zeros(())
        for name, target in targets.items():
            if target is not None:
                off, multipliers = closed[name] - rise * target, parameters[f"{name}.multipliers"]
                total = total + multipliers[0] * off + multipliers[1] * off**2
        return total, {"sparsity": float(closed["edges"].detach()), "target": rise * settings.sparsity}

    generator = torch.Generator().manual_seed(settings.seed)
    gates = {
        name: _OPEN_AT_FIRST + 0.01 * torch.randn(shape, generator=generator)
        for name, shape in (("edges", there.shape), ("senders", there.shape[1:]))
    }
    multipliers = {f"{name}.multipliers": torch.zeros(2) for name, target in targets.items() if target is not None}
    rates = dict.fromkeys(gates, settings.lr) | dict.fromkeys(multipliers, settings.multiplier_lr)
    trained = Training(experiment, settings, Plan(gates, multipliers, rates, masks, penalty)).run(observer, store)
    found = torch.minimum(trained["edges"], trained["senders"]).double().tolist()
    scores = {edge: found[graph.port_index[edge.receiver]][graph.sender_index[edge.sender]] for edge in graph}
    best = sorted(scores, key=lambda edge: -scores[edge])
    asked = round((1 - settings.sparsity) * len(graph))
    by_default = settings.sparsity == Settings.sparsity and settings.prune  # raised where nothing would be left
    n_edges = max(asked, least_with_path(graph, best)) if by_default else asked
    circuit = gated_circuit(experiment, settings, scores, best[:n_edges], SCORE)
    circuit.metrics["asked"] = asked
    return circuit

"""Masks that are trained: hard-concrete gates on a circuit (Louizos, Welling and Kingma 2018, arXiv:1712.01312).

A gate is drawn anew at every step: mostly 0 or 1, sometimes between, and differentiable in its parameter log α. A
closed gate lets the ablated value through (interchange ablation), an open one what the circuit computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from acdc.circuit import Circuit
from acdc.discovery.base import Method, NoObserver, NoStore, Observer, Store
from acdc.discovery.selection import least_with_path
from acdc.engine.full import FullEngine
from acdc.engine.memory import budget_bytes, row_blocks
from acdc.errors import ConfigError, RunError
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.metrics import BoundMetric, KLDivergence, bind
from acdc.settings import option

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # temperature and the ends of the stretched interval, as everybody has them
FURTHEST = math.log(100)  # log α stays within ±, so that a gate can come back: further out there is hardly a gradient
LOSSES = ("auto", "kl_div", "metric")
_STEPS_BETWEEN_SAVES = 50
_NO_LIMIT = 2.0**20  # GB: the batches are small already


def draw(log_alpha: Tensor, generator: torch.Generator) -> Tensor:
    """Gates between 0 and 1, both ends included; drawn on the CPU, so that they are the same on every device."""
    noise = torch.rand(log_alpha.shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(log_alpha)
    return _stretched(((noise.log() - (-noise).log1p() + log_alpha) / BETA).sigmoid())


def certain(log_alpha: Tensor) -> Tensor:
    """The gates without noise."""
    return _stretched(log_alpha.sigmoid())


def open_share(log_alpha: Tensor) -> Tensor:
    """The probability that a gate is not 0."""
    return (log_alpha - BETA * math.log(-GAMMA / ZETA)).sigmoid()


def log_alpha_of(gate: float) -> float:
    """The log α whose gate without noise is `gate`, strictly between 0 and 1."""
    p = (gate - GAMMA) / (ZETA - GAMMA)
    return math.log(p / (1 - p))


def _stretched(s: Tensor) -> Tensor:
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


@dataclass(frozen=True)
class TrainedMethod(Method):
    """A method that trains masks."""

    steps: int = option(500, "of training", least=1)
    batch_size: int = option(16, "pairs at a step", least=1)
    loss: str = option(
        "auto",
        "kl_div (to the full model's logits) or metric, the experiment's own; auto: the metric where it is"
        " kl_div or l2, else kl_div",
        LOSSES,
    )
    seed: int = option(0, "of the gates that are drawn", least=0, below=2**63)
    memory_gb: float | None = option(
        None,
        "what temporary tensors may take; null is a share of what is free",
        above=0,
    )
    prune: bool = option(True, "drop edges that are on no path from the input to the logits")

    def check(self, experiment: Experiment) -> None:
        """ConfigError for a precision that cannot be trained in."""
        if experiment.model.dtype != torch.float32:
            raise ConfigError(
                f"model.dtype={str(experiment.model.dtype).removeprefix('torch.')} does not fit method={self.name},"
                " which trains: give float32"
            )

    def resolved(self, experiment: Experiment) -> dict[str, Any]:
        return {"loss": loss_of(experiment, self)}


@dataclass(frozen=True)
class Plan:
    """What is trained.

    Attributes
    ----------
    gates: their log α, by name. multipliers: what else is trained, to make the loss large. rates: learning rates.
    masks: draws gates and makes masks of the full engine of them: `port sender`, and `port` for projections (None: all
        open).
    penalty: what is added to the loss at a step, and numbers worth a curve.
    """

    gates: dict[str, Tensor]
    multipliers: dict[str, Tensor]
    rates: dict[str, float]
    masks: Callable[[Mapping[str, Tensor], torch.Generator], tuple[Tensor, Tensor | None]]
    penalty: Callable[[Mapping[str, Tensor], int], tuple[Tensor, dict[str, float]]]


class Training:
    """Trains by Adam, on one batch of pairs after another."""

    def __init__(self, experiment: Experiment, settings: TrainedMethod, plan: Plan) -> None:
        self.experiment, self.settings, self.plan = experiment, settings, plan
        device = experiment.model.device
        all_of_them = plan.gates | plan.multipliers
        self.parameters = {name: p.to(device, torch.float32).requires_grad_() for name, p in all_of_them.items()}
        self.means = {name: torch.zeros_like(self.parameters[name]) for name in plan.gates}  # over the steps so far
        groups = [
            {"params": [p], "lr": plan.rates[name], "maximize": name in plan.multipliers}
            for name, p in self.parameters.items()
        ]
        self.optimizer = torch.optim.Adam(groups, eps=1e-12)  # a gate's own gradient is small where there are many
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.batches = list(_batches(experiment, settings))

    def run(self, observer: Observer | None, store: Store | None) -> dict[str, Tensor]:
        """log α of the trained gates, on the CPU. Of gates that are equal, being as far out as they can be, those that
        were further open during training have a little more.

        Raises
        ------
        RunError: training diverged, or what is in the store is of another run.
        """
        observer, store, metric = observer or NoObserver(), store or NoStore(), self.experiment.metric
        observer.started(self.experiment.graph, metric.from_loss(metric.loss_of_model(self.experiment.clean_logits)))
        for step in range(self._restore(store.load()), self.settings.steps):
            self.optimizer.zero_grad()
            loss = self._backward(step, *self.plan.masks(self.parameters, self.generator))
            if not math.isfinite(loss):
                raise RunError(f"method={self.settings.name}: the loss is {loss} at step {step}: lower method.lr")
            penalty, values = self.plan.penalty(self.parameters, step)
            penalty.backward()
            self.optimizer.step()
            with torch.no_grad():
                for name, mean in self.means.items():
                    mean += (self.parameters[name].clamp_(-FURTHEST, FURTHEST) - mean) / (step + 1)
            if (step + 1) % _STEPS_BETWEEN_SAVES == 0:
                store.save(self._state(step + 1))
            observer.progressed(step + 1, self.settings.steps, {"loss": loss, **values})
        return {name: (self.parameters[name].detach() + 0.01 * mean).cpu() for name, mean in self.means.items()}

    def _backward(self, step: int, ports: Tensor, projections: Tensor | None) -> float:
        """The loss of a step's batch under masks; its gradient flows to the parameters."""
        engine, metric, weight = self.batches[step % len(self.batches)]
        stream = engine.stream(ports[None], None if projections is None else projections[None])
        loss = metric.loss(engine.model.unembed(stream, metric.columns)).sum() / weight
        loss.backward()
        return float(loss.detach())

    # What a killed run goes on with.

    def _state(self, step: int) -> dict[str, Tensor]:
        state = {"step": torch.tensor(step), "generator": self.generator.get_state()}
        state |= {f"{name}.mean": mean for name, mean in self.means.items()}
        for name, p in self.parameters.items():
            moments = self.optimizer.state[p]
            state |= {name: p.detach(), **{f"{name}.{key}": moments[key] for key in ("exp_avg", "exp_avg_sq")}}
        return state

    def _restore(self, state: Mapping[str, Tensor]) -> int:
        """The step to go on with."""
        if not state:
            return 0
        if not all(name in state and state[name].shape == p.shape for name, p in self.parameters.items()):
            raise RunError("the stored state is of another run: start anew in another folder")
        step = state["step"].float()
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(state[name])
                if name in self.means:
                    self.means[name].copy_(state[f"{name}.mean"])
                moments = {key: state[f"{name}.{key}"].to(p) for key in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[p] = {"step": step.clone(), **moments}
        self.generator.set_state(state["generator"])
        return int(step)


def loss_of(experiment: Experiment, settings: TrainedMethod) -> str:
    """The loss that is used: `kl_div` or `metric`."""
    if settings.loss != "auto":
        return settings.loss
    return "metric" if experiment.measured.compares_with_model else "kl_div"


def _batches(experiment: Experiment, settings: TrainedMethod) -> Iterator[tuple[FullEngine, BoundMetric, float]]:
    """Engine, loss and share of the weight of each batch."""
    n_rows, n_positions = experiment.batch.clean.shape
    config = experiment.model.config
    mlp = experiment.model.layers[0].mlp
    hidden = 0 if mlp is None else 4 * mlp.W_in.shape[1] // config.d_model
    # What a backward pass needs: of each layer the inputs and projections of its ports, its patterns and neurons.
    vectors = config.n_layers * (24 * config.n_heads + hidden + 8) + len(experiment.graph.senders)
    per_row = vectors * n_positions * config.d_model * experiment.model.W_E.element_size()
    fit = max(1, budget_bytes(experiment.model.device, settings.memory_gb) // per_row)
    n_batches = -(-n_rows // min(settings.batch_size, fit))
    rows = -(-n_rows // n_batches)
    for part in row_blocks(experiment, rows):
        own = loss_of(experiment, settings) == "metric"
        metric = part.metric if own else bind(KLDivergence(), part.readouts, part.clean_logits)
        yield FullEngine(part, memory_gb=_NO_LIMIT), metric, float(part.readouts.weight.sum())


def gated_circuit(
    experiment: Experiment, settings: TrainedMethod, scores: dict[Edge, float], kept: Iterable[Edge], meaning: str
) -> Circuit:
    """The circuit of trained gates; `scores`: of every edge, `meaning` says in a sentence what a score is."""
    graph, chosen = experiment.graph, {edge: scores[edge] for edge in kept}
    path_at = least_with_path(graph, sorted(scores, key=lambda edge: -scores[edge]))
    circuit = Circuit(
        graph,
        chosen,
        scores,
        model=experiment.model.name,
        task=experiment.task.name,
        method={**asdict(settings), "score": meaning},
        metrics={"decisions": 0, "near_ties": 0, "scored": len(scores), "chosen": len(chosen), "path_at": path_at},
    )
    if settings.prune:
        circuit.edges = circuit.on_path().edges
    return circuit

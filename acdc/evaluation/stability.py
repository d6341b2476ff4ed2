"""Stability: how much of a circuit is found again on other pairs, by another seed of the task, in another order.

`pairs`: the experiment's own pairs, drawn with replacement. `seeds`: the task's pairs by other seeds. `orders`: the
same pairs in a model whose heads are numbered otherwise within their layers, so that the search comes to them in
another order; names are translated back. A method that goes by no order finds the same circuit in all of them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from statistics import fmean
from typing import Any

import torch

from acdc import discovery
from acdc.circuit import Circuit
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.model.parts import LanguageModel, Layer
from acdc.process import undisturbed
from acdc.settings import from_mapping
from acdc.tasks.base import TaskSettings

KINDS = ("pairs", "seeds", "orders")


@dataclass(frozen=True)
class Stability:
    """Circuits found again, by what was changed. `circuit`: the one they are held against."""

    circuit: Circuit
    found: Mapping[str, Sequence[Circuit]]

    def summary(self, kind: str) -> dict[str, float]:
        """Jaccard index with the circuit (`mean`, `min`, `max`) and between the new ones (`between`), `edges` kept."""
        found = self.found[kind]
        with_it = [self.circuit.jaccard(other) for other in found]
        between = [a.jaccard(b) for a, b in combinations(found, 2)]
        values = {"mean": fmean(with_it), "min": min(with_it), "max": max(with_it)}
        values |= {"between": fmean(between)} if between else {}
        return values | {"edges": fmean(map(len, found))}

    def recurrence(self) -> dict[Edge, float]:
        """The share of all circuits found again that have an edge, for every edge of any, the most frequent first."""
        every = [circuit for found in self.found.values() for circuit in found]
        counts = Counter({edge: 0 for edge in self.circuit})
        counts.update(edge for circuit in every for edge in circuit)
        return {edge: count / len(every) for edge, count in counts.most_common()}

    def as_dict(self) -> dict[str, Any]:
        recurrence = {str(edge): share for edge, share in self.recurrence().items()}
        return {kind: self.summary(kind) for kind in self.found} | {"recurrence": recurrence}


def settings_of(circuit: Circuit, label: str = "the circuit") -> Any:
    """The settings of the method that found a circuit, as its file has them.

    Raises
    ------
    ConfigError: it names no method, or one that is not there or has other options.
    """
    name = circuit.method.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{label} names no method, so it cannot be found again: leave out job.stability")
    known = discovery.load(name).Settings
    options = {field.name for field in fields(known)}
    return from_mapping(known, {key: value for key, value in circuit.method.items() if key in options}, "method")


@undisturbed
def stability(
    experiment: Experiment,
    circuit: Circuit,
    settings: TaskSettings,
    runs: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Stability:
    """Find the circuit again, `runs` times for each of `KINDS`, by its own method.

    Parameters
    ----------
    settings: of the task; a file of pairs has no seeds.
    """
    method, rng = settings_of(circuit), random.Random(seed)
    n = len(experiment.pairs)
    kinds = KINDS if settings.name != "pairs" else ("pairs", "orders")
    found: dict[str, list[Circuit]] = {kind: [] for kind in kinds}
    for i in range(runs):
        for kind in kinds:
            if kind == "pairs":
                some = experiment.with_pairs(sorted(rng.choices(range(n), k=n)))
                again = discovery.discover(some, method)
            elif kind == "seeds":
                again = discovery.discover(_with_seed(experiment, settings, settings.seed + 1 + i), method)
            else:
                again = discover_in_order(experiment, method, random_order(experiment.model, rng))
            found[kind].append(again)
            progress(sum(map(len, found.values())), runs * len(kinds))
    return Stability(circuit, found)


def _with_seed(experiment: Experiment, settings: TaskSettings, seed: int) -> Experiment:
    task = replace(settings, seed=seed)
    return Experiment.build(experiment.model, task, experiment.metric_name, experiment.ablation)


Order = list[list[int]]  # for each layer, which head of the model comes in each place


def random_order(model: LanguageModel, rng: random.Random) -> Order:
    """Heads in any order; with grouped-query attention groups in any order, and heads inside their group."""
    order = []
    for layer in model.layers:
        groups = layer.W_K.shape[0]
        size = layer.n_heads // groups
        order.append(
            [
                group * size + head
                for group in rng.sample(range(groups), groups)
                for head in rng.sample(range(size), size)
            ]
        )
    return order


def reordered(model: LanguageModel, order: Order) -> LanguageModel:
    """The model with its heads in other places; what it computes is the same."""

    def with_order(layer: Layer, heads: list[int]) -> Layer:
        size = layer.n_heads // layer.W_K.shape[0]
        at = {"Q": torch.tensor(heads), "O": torch.tensor(heads)}
        at["K"] = at["V"] = torch.tensor([head // size for head in heads[::size]])
        named: dict[str, Any] = {
            f"{kind}_{letter}": getattr(layer, f"{kind}_{letter}") for kind in "Wb" for letter in "QKV"
        }
        named["W_O"] = layer.W_O
        moved: Any = {name: None if t is None else t[at[name[-1]]] for name, t in named.items()}
        return replace(layer, **moved)

    layers = tuple(with_order(layer, heads) for layer, heads in zip(model.layers, order, strict=True))
    return replace(model, layers=layers)


@undisturbed
def discover_in_order(experiment: Experiment, method: Any, order: Order) -> Circuit:
    """A circuit found with heads in other places, in the model's own names."""
    model = reordered(experiment.model, order)
    circuit = discovery.discover(replace(experiment, model=model), method)

    def own(name: str) -> str:
        row = circuit.graph[name]
        return str(row._replace(unit=order[row.layer][row.unit])) if row.kind == "head" else name

    def renamed(effects: Mapping[Edge, float]) -> dict[Edge, float]:
        return {Edge(own(edge.sender), own(edge.receiver)): effect for edge, effect in effects.items()}

    return replace(circuit, edges=renamed(circuit.edges), tested=renamed(circuit.tested))

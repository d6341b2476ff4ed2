"""Stability: how much of a circuit is found again when one thing is changed.

`pairs`: the experiment's own pairs, drawn with replacement. `seeds`: the task's pairs by other seeds. `orders`: the
same pairs in a model whose heads are numbered differently within their layers, so that the search comes to them in
another order; names are translated back. A method that does not depend on the order finds the same circuit in all of
them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import Any

import torch

from acdc import discovery
from acdc.circuit import Circuit
from acdc.errors import AcdcError, ConfigError
from acdc.evaluation.pair_filter import keep_good
from acdc.evaluation.part import PartByCircuit
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.model.parts import LanguageModel, Layer
from acdc.process import undisturbed
from acdc.settings import from_mapping, options
from acdc.tasks.base import TaskSettings

KINDS = ("pairs", "seeds", "orders")


@dataclass(frozen=True)
class Stability:
    """Circuits that were found again.

    Attributes
    ----------
    circuit : Circuit
        The one they are held against.
    found : mapping of str to sequence of Circuit
        By what was changed.
    randoms : sequence of Circuit
        Random circuits of the same size.
    """

    circuit: Circuit
    found: Mapping[str, Sequence[Circuit]]
    randoms: Sequence[Circuit] = ()

    def summary(self, kind: str) -> dict[str, float]:
        """Return Jaccard indices with the circuit (`mean`, `min`, `max`) and of each two (`between`), and `edges`."""
        found = self.found[kind]
        values = self._jaccard(found)
        between = [a.jaccard(b) for a, b in combinations(found, 2)]
        values |= {"between": fmean(between)} if between else {}
        return values | {"edges": fmean(map(len, found))}

    def of_randoms(self) -> dict[str, float]:
        """Return the same of the random circuits; empty where there are none."""
        return self._jaccard(self.randoms) | {"edges": len(self.circuit)} if self.randoms else {}

    def _jaccard(self, others: Sequence[Circuit]) -> dict[str, float]:
        values = [self.circuit.jaccard(other) for other in others]
        return {"mean": fmean(values), "min": min(values), "max": max(values)}

    def recurrence(self) -> dict[Edge, float]:
        """Return for every edge of any circuit the share of those found again that have it, the most frequent first."""
        every = [circuit for found in self.found.values() for circuit in found]
        counts = Counter({edge: 0 for edge in self.circuit})
        counts.update(edge for circuit in every for edge in circuit)
        return {edge: count / len(every) for edge, count in counts.most_common()}

    def as_dict(self) -> dict[str, object]:
        values: dict[str, object] = {kind: self.summary(kind) for kind in self.found}
        values["recurrence"] = {str(edge): share for edge, share in self.recurrence().items()}
        return values | ({"random": self.of_randoms()} if self.randoms else {})

    def measures(self) -> dict[str, object]:
        rows = {f"jaccard, {kind}, {key}": n for kind in self.found for key, n in self.summary(kind).items()}
        return {**rows, **({"jaccard, random, mean": self.of_randoms()["mean"]} if self.randoms else {})}

    def numbers(self) -> dict[str, object]:
        return {f"jaccard_{kind}": self.summary(kind)["mean"] for kind in self.found}


@dataclass(frozen=True)
class StabilityPart(PartByCircuit[Stability]):
    """How much of each circuit is found again. `runs`: how many searches of each kind."""

    name = "stability"
    runs: int = 0


@undisturbed
def stability_of_circuits(
    experiment: Experiment,
    circuits: Mapping[str, Circuit],
    randoms: Mapping[str, Sequence[Circuit]],
    settings: TaskSettings,
    runs: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> StabilityPart:
    """Find each circuit again with one thing changed. The parameters are those of `stability`."""
    found: dict[str, Stability | str] = {}
    for name, circuit in circuits.items():
        try:
            again = stability(experiment, circuit, settings, runs, seed, progress)
            found[name] = replace(again, randoms=randoms[name])
        except AcdcError as error:  # pairs that another seed does not give, say: the other parts are worth having
            found[name] = str(error)
    return StabilityPart(found, "", runs)


def settings_of(circuit: Circuit, label: str = "the circuit") -> discovery.Method:
    """Return the settings of the method that found a circuit, as its file has them.

    Raises
    ------
    ConfigError
        It names no method, or a method that does not exist or has other options.
    """
    name = circuit.method.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{label} names no method, so it cannot be found again: leave out job.stability")
    known = discovery.METHODS.load(name)
    return from_mapping(known, {key: value for key, value in circuit.method.items() if key in options(known)})


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
    experiment : Experiment
    circuit : Circuit
    settings : TaskSettings
        A file of pairs has no seeds.
    runs : int
    seed : int
    progress : callable
        Is told how many searches are done, and of how many.
    """
    method, rng = settings_of(circuit), random.Random(seed)
    n = len(experiment.pairs)
    kinds = KINDS if not settings.from_file else ("pairs", "orders")
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
    again = replace(settings, seed=seed)
    fresh = experiment.with_task(again)
    return keep_good(fresh, again) if again.filter else fresh


Order = list[list[int]]  # for each layer, which head of the model comes in each place


def random_order(model: LanguageModel, rng: random.Random) -> Order:
    """Draw an order of the heads; with grouped-query attention, of the groups and of the heads in each group."""
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
    """Return the model with its heads in other places; it computes the same."""

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
    """Find a circuit with the heads in other places; it has the model's own names."""
    model = reordered(experiment.model, order)
    circuit = discovery.discover(replace(experiment, model=model, runs=None), method)

    def own(name: str) -> str:
        row = circuit.graph[name]
        return str(row._replace(unit=order[row.layer][row.unit])) if row.kind == "head" else name

    def renamed(effects: Mapping[Edge, float]) -> dict[Edge, float]:
        return {Edge(own(edge.sender), own(edge.receiver)): effect for edge, effect in effects.items()}

    return replace(circuit, edges=renamed(circuit.edges), tested=renamed(circuit.tested))

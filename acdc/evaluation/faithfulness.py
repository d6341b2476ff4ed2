"""How well a circuit alone does what the whole model does: on its own pairs, on fresh ones, and scrubbed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.evaluation.fresh import fresh_experiment
from acdc.evaluation.measures import Measured, measure
from acdc.evaluation.part import PartByCircuit, Spread
from acdc.evaluation.scrubbing import NO_OTHER, scrub, scrubbable
from acdc.experiment import Experiment
from acdc.metrics import ROUNDING
from acdc.process import undisturbed
from acdc.tasks.base import TaskSettings

Interval = tuple[float, float]
MEASURES = ("circuit", "recovery", "kl", "accuracy", "agreement")


@undisturbed
def faithfulness(experiment: Experiment, circuit: Circuit) -> dict[str, Any]:
    """Measure the model, the circuit, and the model without any edge, by complete evaluations.

    Returns
    -------
    dict
        `clean`, `corrupted` (no edge kept) and `circuit`: the metric in its own direction. `recovery` = (circuit −
        corrupted) / (clean − corrupted). `kl` = KL(model ‖ circuit) in nats. `edges_kept`, `edges_total`. For a model
        with more than one output also `accuracy` and `accuracy_model`, the shares in which the top token of the circuit
        and of the model is an answer, and `agreement`, the share in which the circuit's top token is the model's.
    """
    (measured,) = measure(experiment, [circuit])
    return as_numbers(measured, circuit)


@undisturbed
def as_numbers(measured: Measured, circuit: Circuit) -> dict[str, Any]:
    """Return what `faithfulness` returns, from the values on each pair."""
    numbers: dict[str, Any] = {"clean": float(measured.clean.mean()), "corrupted": float(measured.corrupted.mean())}
    numbers |= measured.summary()
    if "accuracy" in measured.of_model:
        numbers["accuracy_model"] = float(measured.of_model["accuracy"].mean())
    return numbers | {"edges_kept": len(circuit), "edges_total": len(circuit.graph)}


@undisturbed
def by_partner(experiment: Experiment, circuit: Circuit) -> list[dict[str, Any]]:
    """Measure `faithfulness` with each corrupted partner alone, to see how much depends on which one is taken.

    Returns
    -------
    list of dict
        Empty where the pairs have one partner each, or not all the same number of partners.
    """
    counts = {len(pair.corrupted) for pair in experiment.pairs}
    if len(counts) != 1 or counts == {1} or experiment.ablation.name not in ("corrupted", "mean"):
        return []
    return [faithfulness(experiment.with_partner(partner), circuit) for partner in range(counts.pop())]


@undisturbed
def intervals(measured: Measured, draws: int = 1000, confidence: float = 0.95, seed: int = 0) -> dict[str, Interval]:
    """Estimate how much numbers would differ on other pairs: percentile bootstrap over the pairs (Efron 1979).

    Pairs are resampled whole: circuit, model and empty circuit on the same pairs. A draw in which the model and the
    empty circuit do not differ has no recovery and is left out of its interval.

    Parameters
    ----------
    measured : Measured
    draws : int
    confidence : float
        The share of the draws that an interval holds.
    seed : int

    Returns
    -------
    dict of str to (float, float)
        Intervals of `circuit` (the metric), `recovery`, `kl`, `accuracy` and `agreement`; `recovery` is missing where
        no draw has one.
    """
    n = len(measured.clean)
    chosen = torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(seed))  # draw pair

    def means(values: Tensor) -> Tensor:
        return values.cpu()[chosen].mean(-1)

    own, clean, corrupted = means(measured.circuit["metric"]), means(measured.clean), means(measured.corrupted)
    differ = (clean - corrupted).abs() > ROUNDING * torch.maximum(clean.abs(), corrupted.abs()).clamp_min(1)
    samples = {"circuit": own, "recovery": ((own - corrupted) / (clean - corrupted))[differ]}
    samples |= {name: means(values) for name, values in measured.circuit.items() if name != "metric"}
    samples["kl"] = samples["kl"].clamp_min(0)  # rounding can make it −1e-8
    tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    ends = {name: torch.quantile(values.double(), tails).tolist() for name, values in samples.items() if len(values)}
    return {name: (low, high) for name, (low, high) in ends.items()}


@dataclass(frozen=True)
class Alone:
    """A circuit's numbers on some pairs.

    Attributes
    ----------
    numbers : mapping of str to number
        As `faithfulness` has them; `recovery` is None where the model with and without its edges gives the same.
    intervals : mapping of str to (float, float)
        Bootstrap intervals; empty where none were asked for.
    """

    numbers: Mapping[str, Any]
    intervals: Mapping[str, Interval]

    def measures(self, what: str = "") -> dict[str, object]:
        rows: dict[str, object] = {f"{key}{what}": value for key, value in self.numbers.items()}
        for key, ends in self.intervals.items():
            rows |= {f"{key}{what}, {end}": x for end, x in zip(("low", "high"), ends, strict=True)}
        return rows

    def as_dict(self) -> dict[str, Any]:
        return {**self.numbers, **({"intervals": dict(self.intervals)} if self.intervals else {})}


@dataclass(frozen=True)
class Scrubbed:
    """A circuit under causal scrubbing.

    Attributes
    ----------
    pairs, left_out : int
        How many pairs are measured, and how many cannot be.
    draws : Spread or None
        The circuit's numbers over the draws; recovery is on the same scale as elsewhere.
    ends : mapping of str to float
        The metric on these pairs: `clean` (all edges), `corrupted` (none), and `nothing` (scrubbed, no edge important).
    """

    pairs: int
    left_out: int
    draws: Spread | None = None
    ends: Mapping[str, float] | None = None

    def counts(self) -> dict[str, int]:
        return {"pairs": self.pairs, "left_out": self.left_out}

    def as_dict(self) -> dict[str, object]:
        return {**self.counts(), **(self.ends or {}), **(self.draws.as_dict() if self.draws else {})}


@dataclass(frozen=True)
class Faithfulness:
    """What a circuit does alone, and what it is held against.

    Attributes
    ----------
    own : Alone
        On the pairs of the experiment.
    fresh : Alone or None
        On fresh pairs.
    scrubbed : Scrubbed or None
    random : Spread or None
        Of random circuits of the same size.
    by_partner : sequence of dict
        The numbers with each corrupted partner alone.
    """

    own: Alone
    fresh: Alone | None
    scrubbed: Scrubbed | None
    random: Spread | None
    by_partner: Sequence[Mapping[str, Any]] = ()

    @property
    def drawn(self) -> dict[str, Spread]:
        """What comes of several draws, by name."""
        scrubbed = {"scrubbed": self.scrubbed.draws} if self.scrubbed and self.scrubbed.draws else {}
        return scrubbed | ({"random": self.random} if self.random else {})

    def as_dict(self) -> dict[str, object]:
        values: dict[str, object] = self.own.as_dict()
        values |= {"fresh": self.fresh.as_dict()} if self.fresh else {}
        values |= {"scrubbed": self.scrubbed.as_dict()} if self.scrubbed else {}
        values |= {"random": self.random.as_dict()} if self.random else {}
        return values | ({"by_partner": list(self.by_partner)} if self.by_partner else {})

    def measures(self) -> dict[str, object]:
        rows = self.own.measures() | (self.fresh.measures(", fresh pairs") if self.fresh else {})
        rows |= {f"{key}, scrubbed": n for key, n in self.scrubbed.counts().items()} if self.scrubbed else {}
        for what, spread in self.drawn.items():
            rows |= {f"{key}, {what}": value for key, value in spread.mean.items()}
            rows |= {f"{key}, {what}, sd": value for key, value in spread.sd.items()}
        return rows | {f"{key}, partner {i}": v for i, one in enumerate(self.by_partner) for key, v in one.items()}

    def numbers(self) -> dict[str, object]:
        values = dict(self.own.numbers)
        if self.fresh:
            values |= {f"fresh_{key}": self.fresh.numbers[key] for key in MEASURES if key in self.fresh.numbers}
        values |= {f"scrubbed_{key}": n for key, n in self.scrubbed.counts().items()} if self.scrubbed else {}
        for what, spread in self.drawn.items():
            values |= {f"{what}_{key}": value for key, value in spread.mean.items()}
        return values


@dataclass(frozen=True)
class FaithfulnessPart(PartByCircuit[Faithfulness]):
    """How well each circuit does alone.

    Attributes
    ----------
    metric : str
    fresh_absent : str
        Why there are no fresh pairs.
    remarks : tuple of str
        What has to be said, one line each.
    """

    name = "faithfulness"
    metric: str = ""
    fresh_absent: str = ""
    remarks: tuple[str, ...] = ()

    def document(self) -> object:
        values = {name: one.as_dict() for name, one in self.findings.items()}
        return values | ({"fresh_absent": self.fresh_absent} if self.fresh_absent else {})

    def summary(self) -> dict[str, object]:
        return {"circuits": len(self.found), "metric": self.metric, **super().summary()}


@dataclass(frozen=True)
class Asked:
    """What is asked about each circuit alone.

    Attributes
    ----------
    fresh_size : int or None
        How many fresh pairs to make: 0 for none, None for as many as there are pairs.
    fresh_seed : int or None
        Of the fresh pairs; None takes the one after the task's own.
    bootstrap : int
        Draws for the intervals; 0 for none.
    confidence : float
    scrubs : int
        Draws of causal scrubbing; 0 for none.
    seed : int
    """

    fresh_size: int | None = None
    fresh_seed: int | None = None
    bootstrap: int = 1000
    confidence: float = 0.95
    scrubs: int = 10
    seed: int = 0


@undisturbed
def faithfulness_of_circuits(
    experiment: Experiment,
    circuits: Mapping[str, Circuit],
    randoms: Mapping[str, Sequence[Circuit]],
    task: TaskSettings,
    asked: Asked,
) -> FaithfulnessPart:
    """Measure each circuit alone; of a single one also with each corrupted partner alone.

    Parameters
    ----------
    experiment : Experiment
    circuits : mapping of str to Circuit
    randoms : mapping of str to sequence of Circuit
        By the circuit's name, random circuits of its size.
    task : TaskSettings
        Makes the fresh pairs.
    asked : Asked
    """
    fresh, absent = None, ""
    if asked.fresh_size != 0:
        try:
            fresh = fresh_experiment(experiment, task, asked.fresh_seed, asked.fresh_size)
        except AcdcError as error:
            absent = str(error)
    found: dict[str, Faithfulness | str] = {}
    for name, circuit in circuits.items():
        one = _measure(experiment, circuit, randoms[name], fresh, asked)
        if len(circuits) == 1:
            one = replace(one, by_partner=[_finite(numbers) for numbers in by_partner(experiment, circuit)])
        found[name] = one
    remarks = [f"no fresh pairs: {absent}"] if absent else []
    remarks += [f"{name} has no path from the input to the logits" for name, c in circuits.items() if not c.on_path()]
    remarks += _not_scrubbed(experiment) if asked.scrubs else []
    return FaithfulnessPart(found, "", experiment.metric_name, absent, tuple(remarks))


def _measure(
    experiment: Experiment, circuit: Circuit, randoms: Sequence[Circuit], fresh: Experiment | None, asked: Asked
) -> Faithfulness:
    """Measure everything about one circuit; the random ones are evaluated with it."""
    own, *rivals = measure(experiment, [circuit, *randoms])
    on_fresh = None
    if fresh is not None:
        (other,) = measure(fresh, [circuit])
        on_fresh = _alone(other, circuit, asked, pairs=len(fresh.pairs))
    scrubbed = _scrub(experiment, circuit, own, asked) if asked.scrubs else None
    random = Spread.of([one.summary() for one in rivals]) if rivals else None
    return Faithfulness(_alone(own, circuit, asked), on_fresh, scrubbed, random)


def _alone(measured: Measured, circuit: Circuit, asked: Asked, **more: int) -> Alone:
    ends: dict[str, Interval] = {}
    if asked.bootstrap and len(measured.clean) > 1:
        ends = intervals(measured, asked.bootstrap, asked.confidence, asked.seed)
    return Alone({**_finite(as_numbers(measured, circuit)), **more}, ends)


def _scrub(experiment: Experiment, circuit: Circuit, own: Measured, asked: Asked) -> Scrubbed:
    chosen = scrubbable(experiment)
    left_out = len(experiment.pairs) - len(chosen)
    if not chosen:
        return Scrubbed(0, left_out)
    some = own.on(chosen)
    scrubbed = scrub(experiment, circuit, asked.scrubs, asked.seed)
    nothing = scrub(experiment, Circuit(circuit.graph, {}), asked.scrubs, asked.seed)
    draws = [replace(some, circuit=scrubbed[i]).summary() for i in range(asked.scrubs)]
    ends = {"clean": some.clean, "corrupted": some.corrupted, "nothing": nothing.metric}
    return Scrubbed(len(chosen), left_out, Spread.of(draws), {name: float(x.mean()) for name, x in ends.items()})


def _not_scrubbed(experiment: Experiment) -> list[str]:
    """Say where not every pair can be scrubbed."""
    n_pairs, n_chosen = len(experiment.pairs), len(scrubbable(experiment))
    if n_chosen == 0:
        return [f"scrubbed: could not be measured, since {NO_OTHER}"]
    if n_chosen < n_pairs:
        return [
            f"scrubbed: on {n_chosen} of {n_pairs} pairs; {n_pairs - n_chosen} are left out, since no other pair has a"
            " clean prompt of their length"
        ]
    return []


def _finite(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Replace a recovery that does not exist by None."""
    return {**numbers, "recovery": numbers["recovery"] if math.isfinite(numbers["recovery"]) else None}

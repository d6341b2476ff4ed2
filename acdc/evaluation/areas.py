"""MIB's areas (Mueller et al. 2025, arXiv:2504.13151): how well the best edges do alone, in circuits of all sizes.

The best int(fraction · edges) edges are kept, less those on no path from the input to the logits. f is the recovery of
what is left, (m(C) − m(∅)) / (m(N) − m(∅)), of the experiment's own metric (MIB's is the logit difference). By the
trapezoidal rule over the fractions, from the first to the last:

CPR, the integrated circuit performance ratio, is the area under f, of edges ranked by score: more is better.
CMD, the integrated circuit-model distance, is the area between f and 1, of edges ranked by size: less is better.

In a small graph a fraction may stand for no edge; f is 0 there. Where many scores tie, the areas depend on the order of
equals (`acdc.evaluation.ranking`). In the circuit file of an ACDC run all untested edges tie, with 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from acdc.circuit import Circuit
from acdc.engine.full import FullEngine
from acdc.errors import ConfigError
from acdc.evaluation.part import PartByCircuit, Spread
from acdc.evaluation.ranking import Ranking, Size, random_scores, strengths, tied
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.process import undisturbed

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Areas:
    """What the best edges do at each of `FRACTIONS`.

    Attributes
    ----------
    signed : tuple of Size
        Of the edges ranked by score.
    absolute : tuple of Size
        Of the edges ranked by the size of their scores.
    """

    signed: tuple[Size, ...]
    absolute: tuple[Size, ...]

    @classmethod
    def of(cls, signed: Ranking, absolute: Ranking) -> Areas:
        """Evaluate both rankings at `FRACTIONS`."""
        sizes = [int(fraction * len(signed.graph)) for fraction in FRACTIONS]
        return cls(tuple(signed.at(sizes)), tuple(absolute.at(sizes)))

    @property
    def cpr(self) -> float:
        return float(np.trapezoid([size.recovery for size in self.signed], FRACTIONS))

    @property
    def cmd(self) -> float:
        return float(np.trapezoid([abs(1 - size.recovery) for size in self.absolute], FRACTIONS))

    def numbers(self) -> dict[str, float]:
        return {"cpr": self.cpr, "cmd": self.cmd}


@undisturbed
def areas(
    experiment: Experiment, scores: Mapping[Edge, float], engine: FullEngine | None = None, last_first: bool = False
) -> Areas:
    """Measure CPR and CMD of some scores.

    Parameters
    ----------
    experiment : Experiment
    scores : mapping of Edge to float
        An edge without a score has 0. Scores of projection edges, which MIB does not know, are left out.
    engine : FullEngine, optional
    last_first : bool
        Reverse the order of edges of equal score, to see how much the areas depend on it.

    Raises
    ------
    ConfigError
        The model gives the same with and without its edges, so there is no f.
    """
    engine = engine or FullEngine(experiment)
    signed, absolute = (Ranking(experiment, scores, size, False, engine, last_first) for size in (False, True))
    return Areas.of(signed, absolute)


@dataclass(frozen=True)
class AreasOfCircuit:
    """The areas of a circuit's scores.

    Attributes
    ----------
    circuit : Circuit
    areas : Areas
    tied : int
        How many edges have a score of the same size as another edge.
    reversed : Areas or None
        The areas with the order of equals reversed, where scores tie.
    randoms : tuple of Areas
        The areas of random scores.
    """

    circuit: Circuit
    areas: Areas
    tied: int
    reversed: Areas | None
    randoms: tuple[Areas, ...]

    @property
    def random(self) -> Spread | None:
        return Spread.of([one.numbers() for one in self.randoms]) if self.randoms else None

    @property
    def note(self) -> str:
        """What ties mean for the areas, and what to do about them."""
        if not self.tied:
            return ""
        method, total = self.circuit.method.get("name"), len(self.circuit.graph)
        unscored, text = total - len(self.circuit.tested), ""
        if unscored:
            why = ", since ACDC did not test them," if method == "acdc" else ""
            text = f"{unscored:,} of {total:,} edges have no score{why} and count as 0. "
        text += (
            f"{self.tied:,} edges tie with another and are ranked in the order of ACDC's tests, not by what they do;"
            " another program, MIB's too, may rank them otherwise and find other areas."
        )
        if method == "acdc_scores":
            return text + " More thresholds (method.thresholds) tell more of them apart."
        return text + (" method=acdc_scores gives every edge a score by ACDC." if unscored else "")

    def as_dict(self) -> dict[str, object]:
        points = [
            {"fraction": x, "edges": a.on_path, "f": a.recovery, "edges_absolute": b.on_path, "f_absolute": b.recovery}
            for x, a, b in zip(FRACTIONS, self.areas.signed, self.areas.absolute, strict=True)
        ]
        values: dict[str, object] = {**self.areas.numbers(), "points": points}
        values |= {"random": self.random.as_dict()} if self.random else {}
        values |= {"scored": len(self.circuit.tested), "tied": self.tied}
        return values | ({"note": self.note, "ties_reversed": self.reversed.numbers()} if self.reversed else {})

    def measures(self) -> dict[str, object]:
        rows: dict[str, object] = {**self.areas.numbers(), "tied edges": self.tied}
        rows |= {f"{key}, ties reversed": n for key, n in self.reversed.numbers().items()} if self.reversed else {}
        rows |= {f"{key}, random": n for key, n in self.random.mean.items()} if self.random else {}
        for how, sizes in (("score", self.areas.signed), ("size", self.areas.absolute)):
            rows |= {f"f at {x:g}, by {how}": size.recovery for x, size in zip(FRACTIONS, sizes, strict=True)}
        return rows

    def numbers(self) -> dict[str, object]:
        return {**self.areas.numbers(), "tied_edges": self.tied}


class AreasPart(PartByCircuit[AreasOfCircuit]):
    """The areas of each circuit that has scores."""

    name = "areas"


@undisturbed
def areas_of_circuits(
    experiment: Experiment, circuits: Mapping[str, Circuit], random: int = 0, seed: int = 0
) -> AreasPart:
    """Measure the areas of the scores of each circuit that has some (`tested`).

    Parameters
    ----------
    experiment : Experiment
    circuits : mapping of str to Circuit
    random : int
        How many random scores are measured too.
    seed : int
        Draws the random scores.
    """
    engine, graph = FullEngine(experiment), experiment.graph
    found: dict[str, AreasOfCircuit | str] = {}
    try:
        drawn = random_scores(graph, random if any(one.tested for one in circuits.values()) else 0, seed)
        randoms = tuple(areas(experiment, scores, engine) for scores in drawn)
        for name, circuit in circuits.items():
            scores = strengths(circuit)
            if not scores:
                found[name] = "no scores"
                continue
            ties = tied(graph, scores)
            reversed_ = areas(experiment, scores, engine, last_first=True) if ties else None
            found[name] = AreasOfCircuit(circuit, areas(experiment, scores, engine), ties, reversed_, randoms)
    except ConfigError as error:
        return AreasPart(dict.fromkeys(circuits, str(error)), str(error))
    return AreasPart(found)

"""What one part of an evaluation says about circuits, and what the parts share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import ClassVar, Generic, Protocol, TypeVar

import pandas as pd

from acdc.circuit import Circuit
from acdc.result import Result

Row = tuple[str, str, str, object]  # circuit, known circuit it is held against or "", measure, value


class Part(Result):
    """One part of an evaluation.

    Attributes
    ----------
    name : str
        Its key in `evaluate.json`.
    """

    name: ClassVar[str]

    def document(self) -> object:
        """Return what stands in `evaluate.json`."""
        raise NotImplementedError

    def rows(self) -> list[Row]:
        """Return the lines of `evaluate.csv`."""
        return []


class Finding(Protocol):
    """What a part says about one circuit."""

    def as_dict(self) -> dict[str, object]:
        """Return what stands in `evaluate.json`."""

    def measures(self) -> dict[str, object]:
        """Return the lines of `evaluate.csv`: measure to value."""

    def numbers(self) -> dict[str, object]:
        """Return the numbers for `metrics.json`."""


F = TypeVar("F", bound=Finding)


@dataclass(frozen=True)
class PartByCircuit(Part, Generic[F]):
    """A part that looks at each circuit by itself.

    Attributes
    ----------
    found : mapping of str to finding or str
        By the circuit's name what was found, or why nothing could be.
    absent : str
        Why no circuit could be looked at.
    """

    found: Mapping[str, F | str]
    absent: str = ""

    @property
    def findings(self) -> dict[str, F]:
        """The circuits about which something was found."""
        return {name: one for name, one in self.found.items() if not isinstance(one, str)}

    def document(self) -> object:
        if self.absent:
            return {"absent": self.absent}
        return {n: {"absent": one} if isinstance(one, str) else one.as_dict() for n, one in self.found.items()}

    def rows(self) -> list[Row]:
        return [(name, "", key, value) for name, one in self.findings.items() for key, value in one.measures().items()]

    def summary(self) -> dict[str, object]:
        return {key: n for one in self.findings.values() for key, n in one.numbers().items()} if self.single else {}

    @property
    def single(self) -> bool:
        """Whether the evaluation is of one circuit."""
        return len(self.found) == 1


@dataclass(frozen=True)
class Spread:
    """The mean and the standard deviation of numbers over some draws; None where no draw has a finite number.

    Attributes
    ----------
    mean, sd : mapping of str to float or None
        By the number's name.
    """

    mean: Mapping[str, float | None]
    sd: Mapping[str, float | None]

    @classmethod
    def of(cls, draws: Sequence[Mapping[str, float]]) -> Spread:
        """Take numbers that are not finite out."""
        names = dict.fromkeys(name for one in draws for name in one)
        columns = {name: [one[name] for one in draws if math.isfinite(one.get(name, math.nan))] for name in names}
        return cls(
            {name: fmean(column) if column else None for name, column in columns.items()},
            {name: pstdev(column) if column else None for name, column in columns.items()},
        )

    def as_dict(self) -> dict[str, object]:
        return {"mean": dict(self.mean), "sd": dict(self.sd)}


@dataclass(frozen=True)
class Evaluation(Result):
    """Everything that an evaluation says.

    Attributes
    ----------
    about : mapping of str to object
        What was evaluated; stands first in `evaluate.json`.
    parts : sequence of Part
    """

    about: Mapping[str, object]
    parts: Sequence[Part]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return `evaluate`, with a row for each circuit, known circuit it is held against, and measure."""
        rows = [row for part in self.parts for row in part.rows()]
        return {"evaluate": pd.DataFrame(rows, columns=["circuit", "against", "measure", "value"], dtype=object)}

    def documents(self) -> dict[str, object]:
        return {"evaluate": {**self.about, **{part.name: part.document() for part in self.parts}}}

    def circuits(self) -> dict[str, Circuit]:
        return {name: circuit for part in self.parts for name, circuit in part.circuits().items()}

    def summary(self) -> dict[str, object]:
        return {key: value for part in self.parts for key, value in part.summary().items()}

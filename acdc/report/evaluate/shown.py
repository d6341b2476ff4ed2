"""What the views of an evaluation's parts share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from acdc.evaluation.part import Finding, PartByCircuit
from acdc.report.view import Section, Table

F = TypeVar("F", bound=Finding)


class Shown(NamedTuple):
    """What is shown of one part: items for the console, sections of the page."""

    console: list[str | Table]
    sections: list[Section]


def by_circuit(part: PartByCircuit[F]) -> Iterator[tuple[str, str, F]]:
    """Yield what was found about each circuit, with what tells it from other circuits in titles and in file names."""
    for i, (name, one) in enumerate(part.found.items()):
        if not isinstance(one, str):
            yield ("", "", one) if part.single else (f" · {name}", f"_{i}", one)

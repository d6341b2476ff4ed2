"""Circuits out of whatever holds them: a circuit file, a file of scores, the folder of a run or of a sweep."""

from __future__ import annotations

import json
import math
from pathlib import Path

from acdc.circuit import FORMAT, Circuit
from acdc.errors import FormatError
from acdc.formats.mib import read_mib_json


def read_circuits(path: str | Path) -> dict[str, Circuit]:
    """Every circuit that is there, by a name: of its file, or of its run's folder.

    A folder stands for its own `circuit.json` or, where it has none, for those of all runs below it.

    Raises
    ------
    FormatError: nothing is there, or something else than a circuit.
    """
    path = Path(path)
    if not path.is_dir():
        return {path.name: read_circuit(path)}
    if (path / "circuit.json").is_file():
        return {path.name: read_circuit(path / "circuit.json")}
    found = sorted(path.glob("**/circuit.json"), key=_in_order)
    if not found:
        raise FormatError(f"circuit={path}: there is no circuit.json in this folder or below it")
    return {str(file.parent.relative_to(path)): read_circuit(file) for file in found}


def read_circuit(path: str | Path) -> Circuit:
    """A circuit.json, or a circuit or scores in MIB's JSON; `tested` holds the scores.

    Raises
    ------
    FormatError: the file is missing or is something else.
    """
    try:
        data = json.loads(Path(path).read_text())
    except OSError as error:
        raise FormatError(f"circuit={path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise FormatError(f"circuit={path} is not JSON: {error}; give a circuit.json or MIB's JSON") from error
    if isinstance(data, dict) and data.get("format") == FORMAT:
        circuit = Circuit.from_dict(data, str(path))
    elif isinstance(data, dict) and "cfg" in data:
        circuit = read_mib_json(path)
    else:
        raise FormatError(
            f"circuit={path} is neither a circuit.json ('format': {FORMAT!r}) nor MIB's JSON ('cfg', 'nodes', 'edges')"
        )
    for edge, score in {**circuit.edges, **circuit.tested}.items():
        if not math.isfinite(score):
            raise FormatError(f"circuit={path}: the score of {edge} is {score}, but must be a finite number")
        if edge not in circuit.graph:
            raise FormatError(f"circuit={path}: the edge {edge} does not exist in its model: {circuit.graph.config}")
    return circuit


def _in_order(file: Path) -> list[tuple[bool, int, str]]:
    """Run 10 behind run 9."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in file.parts]

"""Circuits out of whatever holds them: a circuit file, a file of scores, the folder of a run or of a sweep."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from acdc.circuit import FORMAT, Circuit
from acdc.errors import FormatError
from acdc.formats.autocircuit import from_autocircuit, is_autocircuit
from acdc.formats.graphml import read_graphml
from acdc.formats.mib import read_mib_json
from acdc.formats.mib_pt import from_mib_pt, is_mib_pt
from acdc.formats.original import from_original, is_original
from acdc.formats.pickles import is_pickle, load, shown


def read_circuits(path: str | Path) -> dict[str, Circuit]:
    """Every circuit that is there, by a name: of its file, or of its run's folder.

    A folder stands for its own `circuit.json` or, where it has none, for those of all runs below it. A file is known by
    what is in it: circuit.json, GraphML, MIB's JSON and .pt, the original ACDC's edges, AutoCircuit's scores. A file
    of several score dictionaries gives each by its file and its own name.

    Raises
    ------
    FormatError: nothing is there, or something else than a circuit.
    """
    path = Path(path)
    if not path.is_dir():
        return {f"{path.name}:{name}" if name else path.name: circuit for name, circuit in _read(path).items()}
    if (path / "circuit.json").is_file():
        return {path.name: read_circuit(path / "circuit.json")}
    found = sorted(path.glob("**/circuit.json"), key=_in_order)
    if not found:
        raise FormatError(f"circuit={path}: there is no circuit.json in this folder or below it")
    return {str(file.parent.relative_to(path)): read_circuit(file) for file in found}


def read_circuit(path: str | Path) -> Circuit:
    """The one circuit, or the one set of scores, in a file; `tested` holds the scores.

    Raises
    ------
    FormatError: the file is missing, is something else, or holds several.
    """
    found = _read(Path(path))
    if len(found) > 1:
        raise FormatError(f"circuit={path} holds {len(found)} circuits, not one: {', '.join(found)}")
    return next(iter(found.values()))


def _read(path: Path) -> dict[str, Circuit]:
    source = f"circuit={path}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{source} cannot be read: {error.strerror}") from error
    if is_pickle(data):
        found = _from_pickle(load(data, source), source)
    elif data.lstrip().startswith(b"<"):
        found = {"": read_graphml(path)}
    else:
        found = {"": _from_json(data, path, source)}
    for name, circuit in found.items():
        _check(circuit, f"{source} {name}".strip())
    return found


def _from_pickle(content: Any, source: str) -> dict[str, Circuit]:
    if is_mib_pt(content):
        return {"": from_mib_pt(content, source)}
    if is_original(content):
        return {"": from_original(content, source)}
    if is_autocircuit(content):
        return from_autocircuit(content, source)
    raise FormatError(
        f"{source} is neither MIB's .pt ('cfg', 'edges_scores', …), nor a list or dict of the original ACDC's edges,"
        f" nor AutoCircuit's scores by hook: it holds {shown(content)}"
    )


def _from_json(data: bytes, path: Path, source: str) -> Circuit:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{source} is not JSON: {error}; give a circuit.json, MIB's JSON or .pt, GraphML, edges of the original"
            " ACDC or scores of AutoCircuit"
        ) from error
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return Circuit.from_dict(content, str(path))
    if isinstance(content, dict) and "cfg" in content:
        return read_mib_json(path)
    raise FormatError(
        f"{source} is neither a circuit.json ('format': {FORMAT!r}) nor MIB's JSON ('cfg', 'nodes', 'edges')"
    )


def _check(circuit: Circuit, source: str) -> None:
    for edge, score in (*circuit.edges.items(), *circuit.tested.items()):
        if not math.isfinite(score):
            raise FormatError(f"{source}: the score of {edge} is {score}, but must be a finite number")
        if edge not in circuit.graph:
            raise FormatError(f"{source}: the edge {edge} does not exist in its model: {circuit.graph.config}")


def _in_order(file: Path) -> list[tuple[bool, int, str]]:
    """Run 10 behind run 9."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in file.parts]

"""GraphML: a circuit for Gephi, yEd, Cytoscape or networkx.

Vertices are senders and ports, as in `Circuit.to_networkx`: circuit edges have `kind="edge"`, a numeric `effect` and
their `order` of decision; a port leads on to its head by an edge of `kind="inside"`. The graph's own attributes
rebuild the model's graph.

`label` and `weight` are for people's programs: Gephi takes them by these names (its weights must be positive, so
`weight` is |effect|, and the sum of what enters the port on an edge inside), yEd by its Properties Mapper.
"""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree.ElementTree import ParseError

import networkx as nx

from acdc.circuit import Circuit
from acdc.errors import FormatError
from acdc.files import write_atomically

NO_EFFECT = 1e-12  # the weight of an edge with effect 0, as Gephi drops edges without weight


def write_graphml(circuit: Circuit, path: str | Path) -> None:
    """Write a circuit's kept edges with their effects."""
    view = circuit.to_networkx()
    view.graph.update(model=circuit.model, task=circuit.task)
    for name, data in view.nodes(data=True):
        data["label"] = name
    for order, edge in enumerate(circuit):
        weight = abs(circuit.edges[edge]) or NO_EFFECT
        view.edges[edge].update(label=f"{circuit.edges[edge]:.3g}", order=order, weight=weight)
    for port, _, data in view.edges(data=True):
        if data["kind"] == "inside":
            data["weight"] = sum(into["weight"] for _, _, into in view.in_edges(port, data=True))
    buffer = io.BytesIO()
    nx.write_graphml(view, buffer)
    write_atomically(path, buffer.getvalue())


def read_graphml(path: str | Path) -> Circuit:
    """Read what `write_graphml` wrote; FormatError if the file is missing or is something else."""
    try:
        view: nx.DiGraph[str] = nx.DiGraph(nx.read_graphml(path))
        circuit = Circuit.from_networkx(view)
        order = {edge: int(view.edges[edge].get("order", 0)) for edge in circuit}
    except OSError as error:
        raise FormatError(f"the GraphML file {path} cannot be read: {error.strerror}") from error
    except (ParseError, nx.NetworkXError, KeyError, TypeError, ValueError, AttributeError, SyntaxError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(f"{path} is not a circuit in GraphML, as write_graphml makes it: {reason}") from error
    circuit.edges = dict(sorted(circuit.edges.items(), key=lambda item: order[item[0]]))
    circuit.model, circuit.task = str(view.graph.get("model", "")), str(view.graph.get("task", ""))
    return circuit

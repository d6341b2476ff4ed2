"""Which paths: the names of senders and receivers, and how the two are combined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from acdc.errors import ConfigError
from acdc.graph import Edge, Graph

SWEEPS = ("both", "senders", "receivers", "none")
WORDS = {"heads": "head", "mlps": "mlp"}  # names for all nodes of a kind

Names = list[str] | str | None


@dataclass(frozen=True)
class Group:
    """Nodes or ports that are patched together, and what they are called."""

    name: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Path:
    """`senders`: nodes that get the source's output. `receivers`: ports that are told."""

    senders: Group
    receivers: Group

    def __str__(self) -> str:
        return f"{self.senders.name} → {self.receivers.name}"

    def exists(self, graph: Graph) -> bool:
        """Whether a sender comes before a receiver."""
        return any(Edge(s, r) in graph for s in self.senders.members for r in self.receivers.members)


def paths_of(graph: Graph, senders: Names, receivers: Names, sweep: str = "both") -> list[Path]:
    """The paths of a sweep, receiver by receiver.

    Parameters
    ----------
    senders : Names
        Nodes, `heads`, `mlps`; None is all nodes.
    receivers : Names
        Ports, heads (q, k and v together), MLPs, `logits`, `heads`, `mlps`; None is all ports.
    sweep : str
        Which of the two are taken one at a time; the others go together.

    Raises
    ------
    ConfigError
        A name that the model does not have or that has no path, or receivers that would have no effect.
    """
    sending, receiving = _senders(graph, senders, "senders"), _receivers(graph, receivers)
    every = [Path(s, r) for r in receiving for s in sending if Path(s, r).exists(graph)]
    for key, given, groups in (("senders", senders, sending), ("receivers", receivers, receiving)):
        joined = {getattr(path, key) for path in every}
        lost = [] if given is None else [group.name for group in groups if group not in joined]
        if lost:
            other = "receivers" if key == "senders" else "senders"
            raise ConfigError(
                f"patch.{key}={lost[0]} has no path to or from any of patch.{other}: a sender must come before its"
                " receiver; leave it out"
            )
    if sweep in ("receivers", "none"):
        sending = [_together(sending, senders)]
    if sweep in ("senders", "none"):
        receiving = [_together(receiving, receivers)]
        if "logits" in receiving[0].members and len(receiving[0].members) > 1:
            raise ConfigError(
                f"patch.sweep={sweep} takes the logits together with other receivers, which have no effect then (the"
                " logits' input is what was recorded): leave logits out of patch.receivers, or give patch.sweep=both"
            )
    return [Path(s, r) for r in receiving for s in sending if Path(s, r).exists(graph)]


def ports_of(graph: Graph, name: str) -> tuple[str, ...]:
    """The ports that a name stands for: a port itself, the q, k and v of a head; of an input or anything else none."""
    if name in graph.port_index:
        return (name,)
    return graph.ports_of(name) if name in graph.sender_index else ()


def through_nodes(graph: Graph, names: list[str] | str) -> frozenset[str]:
    """The nodes of `patch.through`, which may respond.

    Raises
    ------
    ConfigError
        A name that the model does not have, or an input.
    """
    if names in ("none", ["none"], []):
        return frozenset()
    nodes = {node for group in _senders(graph, names, "through") for node in group.members}
    if inputs := sorted(nodes.intersection(graph.inputs)):
        raise ConfigError(f"patch.through={inputs[0]} has nothing before it to respond to: leave it out")
    return frozenset(nodes)


def root_ports(graph: Graph, name: str) -> tuple[str, ...]:
    """The ports of the node of `patch.from`; ConfigError if there is none."""
    if ports := ports_of(graph, name):
        return ports
    raise ConfigError(f"patch.from={name} is nothing that receives: give logits or {_known(graph, ports=True)}")


def _senders(graph: Graph, names: Names, key: str) -> list[Group]:
    def members(name: str) -> tuple[str, ...]:
        return (name,) if name in graph.sender_index else graph.inputs if name == "input" else ()

    return _groups(graph, names, key, graph.senders, members)


def _receivers(graph: Graph, names: Names) -> list[Group]:
    return _groups(graph, names, "receivers", graph.ports, lambda name: ports_of(graph, name))


def _groups(
    graph: Graph, names: Names, key: str, every: Sequence[str], members: Callable[[str], tuple[str, ...]]
) -> list[Group]:
    if names is None:
        return [Group(name, (name,)) for name in every]
    groups = []
    for given in [names] if isinstance(names, str) else names:
        nodes = [given]
        if given in WORDS:
            nodes = [node for node in graph.senders if graph[node].kind == WORDS[given]]
        groups += [Group(node, members(node)) for node in nodes]
        if not nodes or not members(nodes[0]):
            first = {"receivers": "logits, ", "senders": f"{', '.join(graph.inputs)}, ", "through": "none, "}[key]
            first += "heads, " if graph.config.attn_only else "heads, mlps, "
            last = ", or null for all" if key != "through" else ""
            raise ConfigError(
                f"patch.{key}={given} is not in this model: give {first}{_known(graph, key == 'receivers')}{last}"
            )
    if not groups:
        raise ConfigError(f"patch.{key} is empty: give names, or null for all")
    return list(dict.fromkeys(groups))


def _known(graph: Graph, ports: bool) -> str:
    """The names that a model has, in few words."""
    last = graph.config.n_layers - 1
    first_head, last_head = graph.heads(0)[0], graph.heads(last)[-1]
    names = f"{first_head} to {last_head}"
    if ports:
        names += f" (or a port of one, such as {graph.ports_of(first_head)[0]})"
    return names if graph.config.attn_only else f"{names}, {graph.mlp(0)} to {graph.mlp(last)}"


def _together(groups: Sequence[Group], names: Names) -> Group:
    """All of them as one."""
    members = tuple(dict.fromkeys(member for group in groups for member in group.members))
    given = [names] if isinstance(names, str) else names
    return Group("all" if given is None else "+".join(given), members)

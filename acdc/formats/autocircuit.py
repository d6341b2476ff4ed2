"""AutoCircuit's scores (UFO-101/auto-circuit, `PruneScores`): a dict of one tensor for every module that receives.

Keys are `blocks.{L}.hook_q_input`, `hook_k_input` and `hook_v_input` (each a tensor [n_heads, n_senders]),
`blocks.{L}.hook_mlp_in` and `blocks.{last}.hook_resid_post` ([n_senders]). Senders are in the order of `Graph.senders`:
the input, then every layer's heads and its MLP, as far as they stand before the receiver. With `separate_qkv=False` a
head has one input, `hook_attn_in`; its score is that of all three ports.

AutoCircuit's files are such dicts alone, by algorithm, or by task and algorithm. They hold scores only: which edges are
the circuit is a matter of how many one takes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from acdc.circuit import Circuit
from acdc.errors import FormatError
from acdc.formats.pickles import numbers, shown
from acdc.graph import Edge, Graph, GraphConfig

RECEIVER = re.compile(r"blocks\.(\d+)\.(hook_[qkv]_input|hook_attn_in|hook_mlp_in|hook_resid_post)")


def is_autocircuit(content: Any) -> bool:
    """Whether something is a dict of tensors by hook, alone or in up to two dicts of dicts."""
    return isinstance(content, Mapping) and any(True for _ in _score_dicts(content, ()))


def from_autocircuit(content: Mapping[str, Any], source: str) -> dict[str, Circuit]:
    """The scores of every dict that is there, as circuits without kept edges, by "task/algorithm" ("" for one alone).

    An infinite score (ACDC's, of an edge that no threshold removed) becomes twice the largest finite one.

    Raises
    ------
    FormatError: a tensor is missing or has another shape than such a model gives it.
    """
    return {name: _circuit(scores, f"{source} {name}".strip()) for name, scores in _score_dicts(content, ())}


def _score_dicts(content: Mapping[Any, Any], names: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if any(isinstance(key, str) and RECEIVER.fullmatch(key) for key in content):
        yield "/".join(names), content
    elif len(names) < 2:
        for key, inner in content.items():
            if isinstance(inner, Mapping):
                yield from _score_dicts(inner, (*names, shown(key).strip("'")))


def _circuit(scores: Mapping[str, Any], source: str) -> Circuit:
    tensors = _by_hook(scores, source)
    graph = Graph(_shape(tensors, source))
    wanted = {_hook(port, graph, tensors): port for port in graph.ports}
    if missing := [hook for hook in wanted if hook not in tensors]:
        raise FormatError(f"{source}: there are no scores of {missing[0]}")
    if unknown := [hook for hook in tensors if hook not in wanted]:
        raise FormatError(f"{source}: {unknown[0]} receives nothing in a model of this shape: {graph.config}")
    for hook, port in wanted.items():
        shape = [graph.config.n_heads] * (graph[port].kind == "head") + [graph.n_senders_of(port)]
        if list(tensors[hook].shape) != shape:
            raise FormatError(
                f"{source}: the scores of {hook} should have shape {shape}, but have {list(tensors[hook].shape)};"
                " scores by token position are not read"
            )
    values = {hook: tensor.tolist() for hook, tensor in tensors.items()}
    tested: dict[Edge, float] = {}
    for port in graph.ports:
        node, row = graph[port], values[_hook(port, graph, tensors)]
        row = row[node.unit] if node.kind == "head" else row
        tested |= {Edge(sender, port): row[i] for i, sender in enumerate(graph.senders_of(port))}
    largest = max((abs(score) for score in tested.values() if math.isfinite(score)), default=0.0)
    bound = 2 * largest or 1.0
    tested = {edge: math.copysign(bound, score) if math.isinf(score) else score for edge, score in tested.items()}
    return Circuit(graph, {}, {edge: tested[edge] for edge in graph}, unsaid=("d_model",))


def _by_hook(scores: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    tensors = {}
    for hook, value in scores.items():
        if not isinstance(hook, str) or not RECEIVER.fullmatch(hook):
            raise FormatError(f"{source}: {shown(hook)} is no receiver of a transformer as AutoCircuit names it")
        tensor = numbers(value)
        if tensor is None:
            raise FormatError(f"{source}: the scores of {hook} are no tensor of numbers: {shown(value)}")
        tensors[hook] = tensor
    return tensors


def _shape(tensors: Mapping[str, Tensor], source: str) -> GraphConfig:
    """The model's shape as the tensors' own shapes tell it; AutoCircuit does not say its width."""
    heads = [tensor for hook, tensor in tensors.items() if hook.endswith(("_input", "hook_attn_in"))]
    ends = [int(hook.split(".")[1]) for hook in tensors if hook.endswith("hook_resid_post")]
    if len(ends) != 1 or ends[0] >= len(tensors) or not heads or heads[0].dim() < 2:
        raise FormatError(
            f"{source} has no scores of one whole transformer: there should be one hook_resid_post, and tensors"
            " [n_heads, n_senders] of the heads' inputs; scores by token position or of single nodes are not read"
        )
    mlp = tensors.get("blocks.0.hook_mlp_in")
    return GraphConfig(
        n_layers=ends[0] + 1,
        n_heads=heads[0].shape[0],
        d_model=0,
        parallel_attn_mlp=mlp is not None and mlp.shape[-1:] == (1,),
        attn_only=mlp is None,
    )


def _hook(port: str, graph: Graph, tensors: Mapping[str, Tensor]) -> str:
    """AutoCircuit's name of a port's module."""
    node = graph[port]
    if node.kind == "logits":
        return f"blocks.{graph.config.n_layers - 1}.hook_resid_post"
    if node.kind == "mlp":
        return f"blocks.{node.layer}.hook_mlp_in"
    common = f"blocks.{node.layer}.hook_attn_in"
    return common if common in tensors else f"blocks.{node.layer}.hook_{node.letter}_input"

"""The full engine against the oracle, against hooks of TransformerLens, and against finite differences."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from experiments import KINDS, experiment, naive_loss, oracle_logits, random_mask, random_pairs, rows_of, small
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.experiment import Experiment
from acdc.graph import Edge, Graph, GraphSettings
from acdc.metrics import METRICS
from acdc.model import LanguageModel, ModelSettings, load_model
from acdc.model.parts import Layer
from acdc.tasks.base import Pair, Task

ABLATIONS = ("corrupted", "zero", "mean")


@pytest.mark.parametrize("lengths", [(5, 5, 5), (3, 6, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_all_edges_are_the_clean_run_and_none_the_corrupted(kind: str, lengths: tuple[int, ...]) -> None:
    it, pairs = small(kind), random_pairs(0, lengths)
    one = experiment(it, pairs)
    engine, none = FullEngine(one), EdgeMask.of(one.graph, [])
    whole, empty = engine.logits([EdgeMask.all(one.graph), none])
    swapped = [dataclasses.replace(pair, clean=pair.corrupted) for pair in pairs]
    for logits, these in ((whole, pairs), (empty, swapped)):
        rows = rows_of(these)
        expected = [it.bridge(rows.clean[i : i + 1, : rows.lengths[i]])[0, rows.positions[i]] for i in range(3)]
        torch.testing.assert_close(logits, torch.stack(expected), rtol=0, atol=1e-4)
    assert float((whole - empty).abs().max()) > 0.1


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("projection_edges", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_any_mask_is_the_oracles(kind: str, projection_edges: bool, ablation: str) -> None:
    it, pairs = small(kind), random_pairs(1)
    one = experiment(it, pairs, ablation=ablation)
    graph = Graph(one.model.config, projection_edges)
    drawn = [random_mask(graph, seed, share) for seed, share in enumerate((0.0, 0.2, 0.5, 0.8, 0.97, 1.0))]
    logits = FullEngine(one).logits([mask for _, mask in drawn])
    rows = rows_of(pairs)
    for ours, (edges, _) in zip(logits, drawn, strict=True):
        expected = oracle_logits(it.truth, rows, edges, ablation, projection_edges)
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("ablation", ["corrupted", "zero"])
@pytest.mark.parametrize("kind", KINDS)
def test_unequal_lengths_positions_and_partners(kind: str, ablation: str) -> None:
    """Every pair, partner and position as if it were alone."""
    it = small(kind, n_layers=3)
    pairs = random_pairs(2, lengths=(4, 7, 5), positions=2, partners=2)
    one = experiment(it, pairs, ablation=ablation)
    edges, mask = random_mask(one.graph, 3, 0.7)
    expected = oracle_logits(it.truth, rows_of(pairs), edges, ablation)
    ours = FullEngine(one).logits([mask])[0]
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("metric", METRICS.built_in)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "attention_only"])
def test_losses_are_the_metrics_definition(kind: str, metric: str) -> None:
    it = small(kind)
    pairs = random_pairs(4, lengths=(4, 6), positions=2, partners=2, n_answers=2)
    one = experiment(it, pairs, metric)
    rows = rows_of(pairs)
    full = oracle_logits(it.truth, rows, one.graph)
    drawn = [random_mask(one.graph, seed) for seed in range(3)]
    losses = FullEngine(one).losses([mask for _, mask in drawn])
    for loss, (edges, _) in zip(losses, drawn, strict=True):
        expected = naive_loss(metric, rows, oracle_logits(it.truth, rows, edges), full)
        assert loss == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_many_masks_are_evaluated_in_batches_that_fit() -> None:
    one = experiment(small("gpt2"), random_pairs(0))
    masks = [random_mask(one.graph, seed)[1] for seed in range(23)]
    at_once, sparing = FullEngine(one), FullEngine(one, memory_gb=1e-4)
    assert sparing.max_variants < 23
    assert at_once.losses(masks) == pytest.approx(sparing.losses(masks), abs=1e-5)
    assert at_once.losses(masks[:1]) == pytest.approx(at_once.losses(masks)[:1], abs=1e-5)
    columns = torch.tensor([8, 1])
    torch.testing.assert_close(at_once.logits(masks, columns), at_once.logits(masks)[..., columns])


def test_two_inputs_are_ablated_apart(tmp_path: Path) -> None:
    """Without `input.tok` into the logits, these see the corrupted token at the clean position, and the reverse."""
    path = make_checkpoint("gpt2", tmp_path)
    model, _ = load_model(ModelSettings("local", str(path), device="cpu"), GraphSettings(split_embedding=True))
    pairs = random_pairs(0)
    one = experiment(model, pairs, ablation="zero")
    clean = torch.tensor([pair.clean for pair in pairs])
    everything = set(one.graph)
    for name, other in (
        ("input.tok", model.W_pos[: clean.shape[1]].expand(4, -1, -1)),
        ("input.pos", model.W_E[clean]),
    ):
        mask = EdgeMask.of(one.graph, everything - {Edge(name, "logits")})
        gone = (model.embed(clean).sum(0) - other)[:, -1]
        full = one.read(one.clean_stream)
        torch.testing.assert_close(FullEngine(one).logits([mask])[0], model.unembed(full - gone), rtol=0, atol=1e-5)
    corrupted = experiment(model, pairs)
    change = corrupted.ablated.inputs - corrupted.clean.inputs
    assert not bool(change[1].any())  # positions are those of the clean prompt
    assert bool(change[0].any())


# Hooks of TransformerLens: one edge, or one sender to a whole group of grouped-query attention, patched by hand.


def hooked(kind: str, path: Path) -> tuple[LanguageModel, Any]:
    model, bridge = load_model(ModelSettings("local", str(path), device="cpu"))
    for switch in ("set_use_split_qkv_input", "set_use_attn_result", "set_use_hook_mlp_in"):
        getattr(bridge, switch)(True)
    return model, bridge


def sender_change(bridge: Any, sender: str, clean: Tensor, corrupted: Tensor) -> Tensor:
    """What a sender writes on the corrupted prompts minus what it writes on the clean ones."""

    def written(tokens: Tensor) -> Tensor:
        _, cache = bridge.run_with_cache(tokens)
        if sender == "input":
            return cache["blocks.0.hook_in"]
        layer, _, head = sender[1:].partition(".h")
        if sender[0] == "m":
            return cache[f"blocks.{layer}.hook_mlp_out"]
        return cache[f"blocks.{layer}.attn.hook_result"][:, :, int(head)]

    return written(corrupted) - written(clean)


def patched_logits(bridge: Any, receiver: str, group: int | None, change: Tensor, clean: Tensor) -> Tensor:
    """The clean run with a receiver's input changed, by the hook for it, which must fire once."""
    fired = 0
    layer, _, rest = receiver[1:].partition(".h")

    def patch(value: Tensor, hook: Any) -> Tensor:
        nonlocal fired
        fired += 1
        value = value.clone()
        if group is None:
            return value + change
        value[:, :, group] += change
        return value

    if receiver == "logits":
        name = "ln_final.hook_in"
    elif receiver[0] == "m":
        name = f"blocks.{layer}.hook_mlp_in"
    else:
        name = f"blocks.{layer}.hook_{rest[-2]}_input"
    logits = bridge.run_with_hooks(clean, fwd_hooks=[(name, patch)])
    assert fired == 1, name
    return logits[:, -1]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama_tied", "gpt_neox", "gpt_neox_sequential"])
def test_removing_an_edge_is_what_hooks_do(kind: str, tmp_path: Path) -> None:
    """Every sender to every kind of receiver, on four heads (two groups, where the family has groups)."""
    model, bridge = hooked(kind, make_checkpoint(kind, tmp_path, n_layers=2, n_heads=4))
    pairs = random_pairs(5)
    rows = rows_of(pairs)
    one = experiment(model, pairs)
    graph, engine = one.graph, FullEngine(one)
    everything = set(graph)
    size = 2 if kind.startswith("llama") else 1  # heads that share keys and values
    tested = 0
    for sender in graph.senders:
        change = sender_change(bridge, sender, rows.clean, rows.corrupted)
        for receiver in ("a1.h2<q>", "a1.h0<k>", "a1.h3<v>", "m0", "m1", "a0.h1<q>", "a0.h3<k>", "logits"):
            if Edge(sender, receiver) not in graph:
                continue
            group, removed = None, {Edge(sender, receiver)}
            if "<" in receiver:
                node, letter = receiver[:-3], receiver[-2]
                group = int(node.partition(".h")[2])
                if letter != "q" and size > 1:
                    group //= size
                    heads = range(group * size, (group + 1) * size)
                    removed = {Edge(sender, f"{node.split('.')[0]}.h{head}<{letter}>") for head in heads}
            expected = patched_logits(bridge, receiver, group, change, rows.clean)
            ours = engine.logits([EdgeMask.of(graph, everything - removed)])[0]
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)
            tested += 1
    assert tested > 30
    # The last patch matters, or the comparison would show nothing.
    assert float((expected.detach() - one.clean_logits).abs().max()) > 1e-3


@pytest.mark.parametrize(("name", "length"), [("gpt-nano-sort", 6), ("stories260K", 12)])
def test_removing_an_edge_of_a_real_model_is_what_hooks_do(name: str, length: int, shared: Path) -> None:
    model, bridge = hooked(name, shared / "data/models" / name)
    pairs = random_pairs(6, (length,) * 3, vocabulary=3 if name == "gpt-nano-sort" else 500, n_answers=1)
    rows = rows_of(pairs)
    one = experiment(model, pairs)
    graph, engine = one.graph, FullEngine(one)
    size = graph.config.n_heads // (graph.config.n_key_value_heads or graph.config.n_heads)
    for sender, receiver in [
        ("input", "a0.h0<q>"), ("m0", "a2.h1<q>"), ("a0.h1", "m1"), ("a1.h0", "a2.h0<k>"), ("m1", "a2.h0<v>"),
        ("a2.h2", "m2"), ("m0", "logits"), ("a2.h1", "logits"),
    ]:  # fmt: skip
        group, removed = None, {Edge(sender, receiver)}
        if "<" in receiver:
            group = int(receiver[:-3].partition(".h")[2])
            if receiver[-2] != "q":
                removed |= {Edge(sender, receiver.replace(".h0<", f".h{head}<")) for head in range(size)}
        change = sender_change(bridge, sender, rows.clean, rows.corrupted)
        expected = patched_logits(bridge, receiver, group, change, rows.clean)
        ours = engine.logits([EdgeMask.of(graph, set(graph) - removed)])[0]
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


# Differentiable masks.


def loss_of_floats(engine: FullEngine, ports: Tensor, projections: Tensor | None = None) -> Tensor:
    one = engine.experiment
    logits = one.model.unembed(engine.stream(ports[None], projections), one.metric.columns)
    return one.metric.loss(logits)[0]


@pytest.mark.parametrize("metric", METRICS.built_in)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "attention_only", "bidirectional"])
def test_gradient_in_the_mask_is_the_slope(kind: str, metric: str) -> None:
    pairs = random_pairs(7, lengths=(4, 5), positions=2)
    one = experiment(small(kind), pairs, metric).to("cpu", torch.float64)
    engine = FullEngine(one)
    present = EdgeMask.all(one.graph).ports
    generator = torch.Generator().manual_seed(0)
    ports = (torch.rand(present.shape, generator=generator, dtype=torch.float64) * present).requires_grad_()
    loss_of_floats(engine, ports).backward()
    assert ports.grad is not None
    rng = random.Random(1)
    step = 1e-6
    for edge in rng.sample(list(one.graph), 12):
        at = one.graph.port_index[edge.receiver], one.graph.sender_index[edge.sender]
        with torch.no_grad():
            up, down = ports.clone(), ports.clone()
            up[at] += step
            down[at] -= step
            slope = float(loss_of_floats(engine, up) - loss_of_floats(engine, down)) / (2 * step)
        assert float(ports.grad[at]) == pytest.approx(slope, rel=1e-4, abs=1e-7), str(edge)


def test_gradient_in_the_projection_edges_is_the_slope() -> None:
    one = experiment(small("llama"), random_pairs(8)).to("cpu", torch.float64)
    engine = FullEngine(one)
    ports = EdgeMask.all(one.graph).ports.double()
    projections = torch.full((1, len(one.graph.ports)), 0.6, dtype=torch.float64, requires_grad=True)
    loss_of_floats(engine, ports, projections).backward()
    assert projections.grad is not None
    for port in ("a0.h0<q>", "a1.h1<k>", "a1.h0<v>"):
        row = one.graph.port_index[port]
        with torch.no_grad():
            up, down = projections.clone(), projections.clone()
            up[0, row] += 1e-6
            down[0, row] -= 1e-6
            slope = float(loss_of_floats(engine, ports, up) - loss_of_floats(engine, ports, down)) / 2e-6
        assert float(projections.grad[0, row]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_where_there_is_no_edge_the_mask_has_no_effect() -> None:
    """Ones where the graph has no edge change nothing: a layer cannot see what comes behind it."""
    one = experiment(small("gpt2"), random_pairs(0)).to("cpu", torch.float64)
    engine = FullEngine(one)
    ports = EdgeMask.all(one.graph).ports.double()
    assert float(loss_of_floats(engine, ports)) == float(loss_of_floats(engine, torch.ones_like(ports)))


# Relabelling heads.


def relabelled(model: LanguageModel, orders: list[list[int]]) -> LanguageModel:
    """The model with head i of layer l being the old head `orders[l][i]`; groups move as wholes."""

    def moved(layer: Layer, order: list[int]) -> Layer:
        group = layer.n_heads // layer.W_K.shape[0]
        groups = [order[i] // group for i in range(0, layer.n_heads, group)]
        chosen = {"W_Q": order, "b_Q": order, "W_O": order, "W_K": groups, "b_K": groups, "W_V": groups, "b_V": groups}
        return dataclasses.replace(
            layer, **{name: None if (w := getattr(layer, name)) is None else w[at] for name, at in chosen.items()}
        )

    return dataclasses.replace(model, layers=tuple(map(moved, model.layers, orders)))


@st.composite
def relabellings(draw: st.DrawFn) -> tuple[str, list[list[int]], int, float]:
    kind = draw(st.sampled_from(KINDS))
    orders = []
    for _ in range(2):
        if kind.startswith("llama"):  # groups of two
            groups = draw(st.permutations([[0, 1], [2, 3]]))
            orders.append([head for group in groups for head in draw(st.permutations(group))])
        else:
            orders.append(draw(st.permutations(range(4))))
    return kind, orders, draw(st.integers(0, 10**6)), draw(st.sampled_from([0.2, 0.5, 0.9]))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(relabellings())
def test_relabelling_heads_relabels_the_circuit(drawn: tuple[str, list[list[int]], int, float]) -> None:
    kind, orders, seed, share = drawn
    model, pairs = small(kind, n_heads=4).parts, random_pairs(seed % 7)
    graph = Graph(model.config, projection_edges=seed % 2 == 0)
    edges, mask = random_mask(graph, seed, share)

    def new_name(name: str) -> str:
        if name[0] != "a":
            return name
        layer, _, rest = name[1:].partition(".h")
        return f"a{layer}.h{orders[int(layer)].index(int(rest[0]))}{rest[1:]}"

    renamed = EdgeMask.of(graph, [Edge(*map(new_name, edge)) for edge in edges])
    before, after = (experiment(m, pairs).to("cpu", torch.float64) for m in (model, relabelled(model, orders)))
    logits = FullEngine(after).logits([renamed])
    torch.testing.assert_close(logits, FullEngine(before).logits([mask]), rtol=0, atol=1e-9)


# Masks.


@given(st.sampled_from(["gpt2", "gpt_neox", "attention_only"]), st.booleans(), st.integers(0, 10**6))
def test_a_mask_holds_its_edges(kind: str, projection_edges: bool, seed: int) -> None:
    graph = Graph(small(kind).parts.config, projection_edges)
    edges, mask = random_mask(graph, seed)
    held = {
        Edge(sender, port)
        for i, port in enumerate(graph.ports)
        for j, sender in enumerate(graph.senders)
        if mask.ports[i, j]
    } | {graph.projection_of(port) for i, port in enumerate(graph.ports) if "<" in port and mask.projections[i]}
    assert {edge for edge in held if edge in graph} == set(edges)
    assert not held - set(edges) or not projection_edges
    everything = EdgeMask.of(graph, graph)
    assert torch.equal(everything.ports, EdgeMask.all(graph).ports)
    for receiver, _ in graph.test_order:
        node = receiver.split("<")[0].split("[")[0]
        used = receiver == "logits" or any(edge.sender == node for edge in edges)
        if projection_edges and "<" in receiver:
            used = used and graph.projection_of(receiver) in edges
        assert mask.is_used(receiver) == used
    for edge in edges[:5]:
        expected = EdgeMask.of(graph, [other for other in edges if other != edge])
        assert torch.equal(mask.without(edge).ports, expected.ports)
        assert torch.equal(mask.without(edge).projections, expected.projections)
    assert torch.equal(mask.ports, EdgeMask.of(graph, edges).ports)


def test_rows_of_a_layers_ports() -> None:
    graph = Graph(small("gpt2").parts.config)
    for layer in range(2):
        for letter in "qkv":
            assert list(graph.ports[graph.head_ports(layer, letter)]) == [
                f"a{layer}.h{head}<{letter}>" for head in range(2)
            ]
        mlp_port, mlp_sender = graph.mlp_port(layer), graph.mlp_sender(layer)
        assert mlp_port is not None
        assert mlp_sender is not None
        assert graph.ports[mlp_port] == graph.senders[mlp_sender] == f"m{layer}"
        assert list(graph.senders[graph.head_senders(layer)]) == [f"a{layer}.h{head}" for head in range(2)]
        assert len(graph.ports[graph.layer_ports(layer)]) == 7
    without = Graph(small("attention_only").parts.config)
    assert without.mlp(0) is without.mlp_port(0) is without.mlp_sender(0) is None


@pytest.mark.parametrize("task", ["ioi", "greater_than", "gendered_pronoun", "induction"])
def test_bundled_model_whole_and_empty(task: str) -> None:
    one = Experiment.build("pocket", task, size=6)
    whole, empty = FullEngine(one).logits([EdgeMask.all(one.graph), EdgeMask.of(one.graph, [])])
    swapped = [
        Pair(list(p.corrupted[0]), list(p.clean), position=list(p.positions))
        for p in one.pairs
        if len(p.corrupted) == 1
    ]
    assert len(swapped) == 6
    corrupted = Experiment.build(one.model, Task("swapped", swapped, "kl_div"))
    torch.testing.assert_close(whole, one.clean_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(empty, corrupted.clean_logits, rtol=0, atol=1e-4)
    assert float((whole - empty).abs().max()) > 1

"""Trained gates: their distribution by drawing them, what they find where the answer is known, and killed runs."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments import experiment, random_pairs, small

from acdc import Experiment
from acdc.discovery import discover
from acdc.discovery.base import NoObserver
from acdc.discovery.hard_concrete import certain, draw, log_alpha_of, open_share
from acdc.discovery.subnetwork_probing import edge_scores
from acdc.errors import AcdcError
from acdc.graph import Edge

METHODS = ("subnetwork_probing", "edge_pruning")


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 2.0])
def test_gates_are_hard_concrete(log_alpha: float) -> None:
    """By its definition: a logistic variable, squeezed, stretched to (−0.1, 1.1) and cut."""
    gates = draw(torch.full((200_000,), log_alpha), torch.Generator().manual_seed(0))
    assert gates.min() >= 0
    assert gates.max() <= 1
    error = 4 / math.sqrt(len(gates))
    assert (gates > 0).float().mean().item() == pytest.approx(open_share(torch.tensor(log_alpha)).item(), abs=error)
    # P(gate < 1/2) = P(u < σ(−log α)), since 1/2 is the middle of the stretched interval.
    assert (gates < 0.5).float().mean().item() == pytest.approx(1 / (1 + math.exp(log_alpha)), abs=error)


def test_a_gate_without_noise() -> None:
    assert certain(torch.tensor([-50.0, 0.0, 50.0])).tolist() == [0.0, 0.5, 1.0]
    for gate in (0.1, 0.5, 0.9):
        assert certain(torch.tensor(log_alpha_of(gate))).item() == pytest.approx(gate, abs=1e-6)


def test_an_edge_is_as_open_as_its_ends() -> None:
    graph = experiment(small("gpt2"), random_pairs(1)).graph
    gates = {port: float(i) for i, port in enumerate(graph.ports) if port != "logits"}
    scores = edge_scores(graph, gates)
    assert set(scores) == set(graph)
    assert scores[Edge("a0.h0", "m1")] == max(gates[f"a0.h0<{letter}>"] for letter in "qkv")
    assert scores[Edge("m0", "a1.h1<k>")] == min(gates["m0"], gates["a1.h1<k>"])
    assert scores[Edge("input", "a0.h1<v>")] == gates["a0.h1<v>"]
    assert scores[Edge("m1", "logits")] == gates["m1"]


def test_edge_pruning_finds_a_compiled_circuit() -> None:
    """tracr's reverse with corrupted values: by its weights, tok → a3.h0<v> and a3.h0 → logits do all of it."""
    one = Experiment.build(task="tracr_reverse", model="tracr_reverse")
    truth = {Edge("input.tok", "a3.h0<v>"), Edge("a3.h0", "logits")}
    circuit = discover(one, "edge_pruning", steps=100, lr=0.3, sparsity=1 - len(truth) / len(one.graph))
    assert set(circuit) == truth


def test_subnetwork_probing_finds_the_nodes_of_a_compiled_circuit() -> None:
    """Gates on nodes cannot tell edges from the inputs apart, which have none."""
    one = Experiment.build(task="tracr_reverse", model="tracr_reverse")
    circuit = discover(one, "subnetwork_probing", steps=100, price=0.1)
    inputs = {Edge(sender, receiver) for sender in one.graph.inputs for receiver in ("a3.h0<v>", "logits")}
    assert set(circuit) == inputs | {Edge("a3.h0", "logits")}


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
def test_the_target_sparsity_is_held(kind: str) -> None:
    seen: list[dict[str, float]] = []

    class Watch(NoObserver):
        def progressed(self, done: int, total: int, values: Any) -> None:
            seen.append(dict(values))

    one = experiment(small(kind), random_pairs(5, (5, 4, 5)))
    circuit = discover(
        one,
        "edge_pruning",
        sparsity=0.6,
        steps=150,
        lr=0.3,
        multiplier_lr=0.3,
        observer=Watch(),
        prune=False,
        batch_size=2,
    )
    # Some forty edges and few senders: a single sender closes several edges.
    assert sum(values["sparsity"] for values in seen[-50:]) / 50 == pytest.approx(0.6, abs=0.15)
    assert len(circuit) == round(0.4 * len(one.graph))
    closed, kept = (set(one.graph) - set(circuit), set(circuit))
    assert max(circuit.tested[edge] for edge in closed) <= min(circuit.tested[edge] for edge in kept)


def test_a_higher_price_leaves_fewer_gates_open() -> None:
    one = experiment(small("gpt2"), random_pairs(5))
    sizes = [len(discover(one, "subnetwork_probing", steps=150, price=price)) for price in (0.01, 1000.0)]
    assert sizes[0] > sizes[1] == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_training_goes_on(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acdc.discovery.hard_concrete._STEPS_BETWEEN_SAVES", 4)

    class Store:
        def __init__(self) -> None:
            self.saved: dict[str, torch.Tensor] = {}

        def load(self) -> dict[str, torch.Tensor]:
            return self.saved

        def save(self, tensors: Any) -> None:
            self.saved = {name: tensor.clone() for name, tensor in tensors.items()}

    class Killed(Exception):
        pass

    class Killer(NoObserver):
        def progressed(self, done: int, total: int, values: Any) -> None:
            if done == 10:
                raise Killed

    one, store = experiment(small("gpt2"), random_pairs(5)), Store()
    whole = discover(one, method, steps=20, batch_size=2)
    with pytest.raises(Killed):
        discover(one, method, steps=20, batch_size=2, observer=Killer(), store=store)
    assert int(store.saved["step"]) == 8
    resumed = discover(one, method, steps=20, batch_size=2, store=store)
    assert resumed.tested == pytest.approx(whole.tested, abs=1e-6)
    store.saved = {"step": torch.tensor(3)}
    with pytest.raises(AcdcError, match="another run"):
        discover(one, method, steps=20, store=store)


_MEMORY = """
import resource, sys
from pathlib import Path
from checkpoints import make_checkpoint
from experiments import random_pairs
from acdc import Experiment, discover
from acdc.tasks.base import Task

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

model = make_checkpoint("gpt2", Path(sys.argv[1]), n_layers=8, n_heads=8, d_head=32)
one = Experiment.build(model, Task("random", random_pairs(0, (16,) * 8), "logit_diff"))
_ = one.ablated, one.metric
before = peak()
discover(one, "edge_pruning", steps=2, batch_size=8, memory_gb=0.25)
print("grew by", peak() - before)
"""


@pytest.mark.slow
def test_training_takes_the_memory_it_is_given(tmp_path: Path) -> None:
    """As the system counts it, holes in the heap with it; in a process of its own, whose largest size it is."""
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert float(done.stdout.split()[-1]) < 0.25


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("edge_pruning", {"sparsity": 1.0}, r"method\.sparsity=1\.0"),
        ("edge_pruning", {"lr": 0.0}, r"method\.lr=0\.0"),
        ("subnetwork_probing", {"price": -1.0}, r"method\.price"),
        ("subnetwork_probing", {"steps": 0}, r"method\.steps=0"),
        ("subnetwork_probing", {"loss": "l1"}, "auto, kl_div, metric"),
    ],
)
def test_wrong_options(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AcdcError, match=message):
        discover(experiment(small("gpt2"), random_pairs(5)), method, **options)

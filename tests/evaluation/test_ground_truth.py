"""Known circuits: the published sets, what is derived from weights, and ACDC held against them."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from acdc import Circuit, Experiment, discover
from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.errors import ConfigError, FormatError
from acdc.evaluation.derive import derive_truth
from acdc.evaluation.grading import grade
from acdc.evaluation.ground_truth import Truth, load_truth, names, published
from acdc.evaluation.known import known_circuits
from acdc.graph import Edge, Graph, GraphConfig
from acdc.model import ModelSettings
from acdc.tasks import TASKS


def edges(text: str) -> frozenset[Edge]:
    """`a->b c->d` as edges."""
    return frozenset(map(Edge.parse, text.split()))


def experiment_of(name: str, ablation: str, **options: Any) -> Experiment:
    settings = ModelSettings(name=name, device="cpu")
    return Experiment.build(settings, name, ablation=ablation, **options)


# The published sets. The counts are those of the papers and of the original's code.


@pytest.mark.parametrize(
    ("name", "heads", "plain", "with_projections"),
    [
        ("ioi", 26, 963, 1041),
        ("greater_than", 9, 235, 262),
        ("docstring", 6, 24, 37),
        ("tracr_reverse", 2, 11, 15),
        ("tracr_proportion", 1, 7, 10),
        ("tracr_reverse_resample", 1, 2, 3),
        ("tracr_proportion_resample", 1, 3, 4),
    ],
)
def test_published_circuits_have_the_stated_sizes(name: str, heads: int, plain: int, with_projections: int) -> None:
    truth = published(name)
    assert (len(truth.heads), len(truth.edges)) == (heads, plain)
    whole = published(name, Graph(truth.graph.config, projection_edges=True))
    assert len(whole.edges) == with_projections
    assert {edge for edge in whole.edges if not edge.is_projection} == truth.edges
    assert all(edge in whole.graph for edge in whole.edges)
    assert truth.sources
    assert name in names()


def test_the_original_counts_its_projections_by_heads() -> None:
    """One for each of q, k and v of every head of the IOI and greater-than circuits; the docstring one has fewer."""
    for name, n in (("ioi", 78), ("greater_than", 27), ("docstring", 13)):
        config = published(name).graph.config
        assert sum(edge.is_projection for edge in published(name, Graph(config, True)).edges) == n


def test_ioi_edge_by_edge() -> None:
    """A second reading of the rules: which edges between heads there are, and what surrounds MLPs."""
    truth = published("ioi")
    movers = ["9.9", "10.0", "9.6", "10.10", "10.6", "10.2", "10.1", "11.2", "9.7", "9.0", "11.9", "10.7", "11.10"]
    inhibition, induction, duplicate, previous = "7.3 7.9 8.6 8.10", "5.5 5.8 5.9 6.9", "0.1 0.10 3.0", "2.2 4.11"
    expected = {(a, b, "q") for a in inhibition.split() for b in movers}
    expected |= {(a, b, x) for a in f"{induction} {duplicate}".split() for b in inhibition.split() for x in "kv"}
    expected |= {(a, b, x) for a in previous.split() for b in induction.split() for x in "kv"}
    between = {(e.sender[1:].replace("h", ""), e.receiver[1:-3].replace("h", ""), e.receiver[-2])
               for e in truth.edges if e.sender.startswith("a") and e.receiver.startswith("a")}  # fmt: skip
    assert between == expected
    assert {e.sender for e in truth.edges if e.receiver == "m0"} == {"input", "a0.h1", "a0.h10"}
    assert {e.receiver for e in truth.edges if e.sender == "m10"} == (
        {"m11", "logits"} | {f"a11.h{h}<{x}>" for h in (2, 9, 10) for x in "qkv"}
    )
    assert {e.sender for e in truth.edges if e.receiver == "logits" and e.sender[0] == "a"} == {
        "a" + mover.replace(".", ".h") for mover in movers
    }
    assert truth.positions[Edge("a8.h6", "a9.h9<q>")] == ("end",)
    assert truth.positions[Edge("a4.h11", "a5.h5<k>")] == ("S1+1",)
    assert Edge("m0", "a5.h5<k>") not in truth.positions


def test_docstring_edge_by_edge() -> None:
    assert published("docstring").edges == edges(
        "input->a0.h5<v> a0.h5->a1.h4<v> input->a1.h4<v> input->a1.h2<q> input->a1.h2<k> a0.h5->a1.h2<q>"
        " a0.h5->a1.h2<k> input->a2.h0<q> input->a2.h0<k> a0.h5->a2.h0<q> a0.h5->a2.h0<k> a1.h4->a2.h0<v>"
        " a1.h4->a3.h0<q> a2.h0->a3.h0<k> a1.h2->a3.h0<k> input->a3.h0<v> a0.h5->a3.h0<v> a3.h0->logits"
        " a1.h4->a3.h6<q> a2.h0->a3.h6<k> a1.h2->a3.h6<k> input->a3.h6<v> a0.h5->a3.h6<v> a3.h6->logits"
    )


def test_positions_are_labels_of_the_tasks(task_labels: dict[str, set[str]]) -> None:
    for name in ("ioi", "greater_than", "docstring"):
        used = {label for labels in published(name).positions.values() for label in labels}
        assert used <= task_labels[name]


@pytest.fixture(scope="module")
def task_labels() -> dict[str, set[str]]:
    """The labels that the tasks give their pairs, with the bundled model's tokenizer."""
    from transformers import PreTrainedTokenizerFast

    from acdc.model.load import POCKET
    from acdc.tasks.base import Tokenizer

    own = PreTrainedTokenizerFast.from_pretrained(POCKET)
    labels = {}
    for name in ("ioi", "greater_than", "docstring"):
        labels[name] = set(TASKS.load(name)(size=1).build(Tokenizer(own, len(own))).pairs[0].labels)
    return labels


def test_the_embedding_may_be_split_or_not() -> None:
    whole = published("tracr_proportion", Graph(GraphConfig(2, 1, 13)))
    assert whole.edges == edges("input->m0 m0->a1.h0<v> input->a1.h0<q> input->a1.h0<k> a1.h0->logits")
    split = published("docstring", Graph(GraphConfig(4, 8, 512, attn_only=True, split_embedding=True)))
    assert len(split.edges) == 24 + 8  # eight edges from the input, twice


def test_a_circuit_of_another_model_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"ioi is one of gpt2 \(12 layers of 12 heads\); this model has 4 layers of 4"
    ):
        published("ioi", Graph(GraphConfig(4, 4, 128)))
    with pytest.raises(ConfigError, match="no circuit is published for 'sentiment'; there are docstring"):
        published("sentiment")


@pytest.mark.parametrize(
    ("name", "ablation", "labels"),
    [
        ("tracr_reverse", "zero", {"derived", "published"}),
        ("tracr_reverse", "corrupted", {"derived", "published", "published_resample"}),
        ("tracr_reverse", "mean", {"derived", "published"}),
        ("gate_or", "zero", {"derived"}),
    ],
)
def test_the_resample_sets_are_of_corrupted_ablation(name: str, ablation: str, labels: set[str]) -> None:
    assert known_circuits(experiment_of(name, ablation))[0].keys() == labels


# What is derived from the weights.

REVERSE = (
    "a3.h0->logits m2->a3.h0<q> input.pos->a3.h0<k> input.tok->a3.h0<v> m1->m2 m0->m1 input.tok->m1 input.pos->m1"
    " input.tok->m0"
)
PROPORTION = "a1.h0->logits m0->a1.h0<v> input.tok->m0"
GATE = "m0->logits a0.h0->m0 a0.h1->m0 input->a0.h0<v> input->a0.h1<v>"
SMALL = Graph(GraphConfig(1, 2, 4))
TRUTH = Truth("small", "derived", SMALL, edges(GATE))


@pytest.mark.parametrize(
    ("name", "ablation", "options", "expected"),
    [
        ("tracr_reverse", "zero", {}, f"{REVERSE} a0.h0->m0 input.tok->a0.h0<v>"),
        ("tracr_reverse", "zero", {"length": 4}, REVERSE),  # the longest sequence needs no length
        ("tracr_reverse", "corrupted", {}, "a3.h0->logits input.tok->a3.h0<v>"),
        ("tracr_proportion", "zero", {}, f"{PROPORTION} input.pos->a1.h0<q> input.pos->a1.h0<k>"),
        ("tracr_proportion", "corrupted", {}, PROPORTION),
        ("gate_or", "zero", {}, GATE),
        ("gate_or", "corrupted", {}, GATE),
        ("gate_and", "zero", {"inputs": "all"}, GATE),
        ("gate_and", "corrupted", {"corruption": "resample"}, GATE),
        # The mean over the pairs and noise hide what is the same in every prompt, as corrupted prompts do.
        ("tracr_reverse", "mean", {}, "a3.h0->logits input.tok->a3.h0<v>"),
        ("tracr_reverse", "noise", {}, "a3.h0->logits input.tok->a3.h0<v>"),
        ("tracr_proportion", "mean", {}, PROPORTION),
        ("tracr_proportion", "noise", {}, PROPORTION),
        ("gate_or", "mean", {}, GATE),
        ("gate_and", "mean", {}, GATE),
        ("gate_or", "noise", {}, ""),  # one pair has no spread, so noise is nothing
        ("gate_and", "noise", {}, ""),
        ("gate_or", "noise", {"inputs": "all"}, GATE),
    ],
)
@pytest.mark.parametrize("tolerance", [1e-4, 1e-2])
def test_derived_circuits(name: str, ablation: str, options: dict[str, Any], expected: str, tolerance: float) -> None:
    assert derive_truth(experiment_of(name, ablation, **options), tolerance=tolerance).edges == edges(expected)


@pytest.mark.parametrize("ablation", ["zero", "corrupted"])
@pytest.mark.parametrize(("name", "options"), [("gate_or", {}), ("gate_and", {}), ("gate_or", {"inputs": "all"})])
def test_gates_against_every_circuit_there_is(name: str, options: dict[str, Any], ablation: str) -> None:
    """Of all 2^13 circuits, those that give the model's output on every input and have nothing to spare."""
    experiment = experiment_of(name, ablation, **options)
    graph = experiment.graph
    all_edges = list(graph)
    engine = FullEngine(experiment)
    circuits = [frozenset(e for e, kept in zip(all_edges, bits, strict=True) if kept)
                for bits in product((False, True), repeat=len(all_edges))]  # fmt: skip
    losses = engine.losses([EdgeMask.of(graph, circuit) for circuit in circuits])
    enough = [circuit for circuit, loss in zip(circuits, losses, strict=True) if loss < 1e-9]
    minimal: list[frozenset[Edge]] = []
    for circuit in sorted(enough, key=len):
        if not any(smaller <= circuit for smaller in minimal):
            minimal.append(circuit)
    assert derive_truth(experiment).edges == frozenset().union(*minimal)
    assert len(minimal) == (2 if name == "gate_or" and not options else 1)


@pytest.mark.parametrize("ablation", ["zero", "corrupted", "mean", "noise"])
@pytest.mark.parametrize("name", ["tracr_reverse", "tracr_proportion"])
def test_a_derived_circuit_is_enough_and_has_nothing_to_spare(name: str, ablation: str) -> None:
    experiment = experiment_of(name, ablation)
    truth = derive_truth(experiment).edges
    masks = [EdgeMask.of(experiment.graph, truth), *(EdgeMask.of(experiment.graph, truth - {e}) for e in truth)]
    alone, *without = FullEngine(experiment).losses(masks)
    assert alone < 1e-9
    assert min(without) > 1e-3


def test_a_model_with_layer_norm_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be derived from its weights"):
        derive_truth(Experiment.build("pocket", "ioi", size=2))


def test_a_truth_from_a_circuit_file(tmp_path: Path) -> None:
    Circuit(SMALL, dict.fromkeys(TRUTH.edges, 1.0)).save(tmp_path / "mine.json")
    truth = load_truth(tmp_path / "mine.json", Graph(SMALL.config, True))
    assert (truth.name, truth.kind) == ("mine", "file")
    assert truth.edges == TRUTH.edges | edges("a0.h0<v>->a0.h0[v] a0.h1<v>->a0.h1[v]")
    with pytest.raises(FormatError, match="which this model does not have"):
        load_truth(tmp_path / "mine.json", Graph(GraphConfig(1, 1, 4)))


# ACDC itself.


@pytest.mark.parametrize("engine", ["incremental", "full"])
@pytest.mark.parametrize(
    ("name", "ablation", "options", "share"),
    [
        ("tracr_reverse", "zero", {}, (15, 15)),
        ("tracr_reverse", "corrupted", {}, (3, 15)),  # 0.200 in the original's table
        ("tracr_proportion", "zero", {"prompts": "original", "size": 50}, (10, 10)),
        ("tracr_proportion", "corrupted", {"prompts": "original", "size": 50}, (6, 10)),  # 0.600
        ("tracr_proportion", "zero", {}, (8, 10)),
        ("tracr_proportion", "corrupted", {}, (4, 10)),
    ],
)
def test_acdc_against_the_originals_sets(
    name: str, ablation: str, options: dict[str, Any], share: tuple[int, int], engine: str
) -> None:
    experiment = experiment_of(name, ablation, **options)
    circuit = discover(experiment, threshold=1e-5, projection_edges=True, engine=engine)
    graded = grade(circuit, published(name, circuit.graph))
    assert (graded.edges.points[0].right, graded.edges.true) == share
    assert graded.edges.points[0].precision == 1.0
    assert graded.edges.auc("pessimistic") == pytest.approx(share[0] / share[1])
    assert grade(circuit, derive_truth(experiment, projection_edges=True)).edges.auc() == 1.0


def test_acdc_keeps_one_branch_of_an_or_gate() -> None:
    experiment = experiment_of("gate_or", "zero")
    kept = frozenset(discover(experiment, threshold=1e-3))
    assert kept == edges("m0->logits a0.h0->m0 input->a0.h0<v>")
    assert kept < derive_truth(experiment).edges
    assert frozenset(discover(experiment_of("gate_or", "zero", inputs="all"), threshold=1e-3)) == edges(GATE)
    assert frozenset(discover(experiment_of("gate_and", "zero"), threshold=1e-3)) == edges(GATE)


def test_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json
    import sys

    from benchmarks import ground_truth as benchmark

    wanted = ("tracr_reverse", "gate_or")
    some = tuple(sweep for sweep in benchmark.SWEEPS if sweep.task in wanted and not sweep.options)
    monkeypatch.setattr(benchmark, "SWEEPS", some)
    monkeypatch.setattr(benchmark, "THRESHOLDS", [1e-5, 1e-1])
    monkeypatch.setattr(sys, "argv", ["ground_truth", "--output", str(tmp_path)])
    assert benchmark.main() == 0
    rows = json.loads((tmp_path / "ground_truth.json").read_text())
    assert all(set(row) == {"task", "prompts", "ablation", "truth", "rule", "auc"} for row in rows)
    assert {row["prompts"] for row in rows} == {"default"}
    areas = {tuple(row[key] for key in ("task", "ablation", "truth", "rule")): row["auc"] for row in rows}
    assert len(areas) == len(rows)
    assert areas["tracr_reverse", "zero", "published", "pessimistic"] == pytest.approx(1.0)
    assert areas["tracr_reverse", "corrupted", "published", "pessimistic"] == pytest.approx(0.2)
    assert areas["gate_or", "zero", "derived", "pessimistic"] == pytest.approx(4 / 7)
    assert sorted(path.name for path in (tmp_path / "roc").iterdir()) == sorted(
        f"{task}_{ablation}.{kind}" for task in wanted for ablation in ("zero", "corrupted") for kind in ("svg", "png")
    )
    # With thresholds so large that nothing is left, the areas fall, and the benchmark says so.
    monkeypatch.setattr(benchmark, "THRESHOLDS", [100.0])
    assert benchmark.main() == 1


def test_values_are_exact_in_either_precision() -> None:
    """The derivation works in float64, whatever the experiment's own."""
    experiment = experiment_of("tracr_reverse", "zero")
    assert derive_truth(experiment).edges == derive_truth(experiment.to("cpu", torch.float64)).edges

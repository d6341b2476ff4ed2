"""From hypothesis to circuit, each step against something slower."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import as_process, read_json
from experiments import experiment, random_pairs, small

from acdc import Circuit, Experiment
from acdc.discovery import discover
from acdc.discovery.attribution_to_circuit import attribute, patch_nodes, patch_paths
from acdc.engine.full import FullEngine
from acdc.engine.joint import JointRun, Replaced
from acdc.engine.mask import EdgeMask
from acdc.engine.resumed import ResumedRun
from acdc.errors import AcdcError
from acdc.evaluation.faithfulness import faithfulness
from acdc.graph import Edge, Graph, node_of, parse_node

KINDS = ("gpt2", "llama", "gpt_neox")


def shares(one: Experiment, masks: list[EdgeMask]) -> list[float]:
    """1 − recovery of circuits, by complete evaluations."""
    clean, corrupted, *losses = FullEngine(one).losses([EdgeMask.all(one.graph), EdgeMask.of(one.graph, []), *masks])
    return [1 - (loss - corrupted) / (clean - corrupted) for loss in losses]


def out_of(graph: Graph, node: str) -> list[Edge]:
    return [edge for edge in graph if edge.sender == node]


@pytest.mark.parametrize("kind", KINDS)
def test_noising_a_node_removes_the_edges_from_it(kind: str) -> None:
    one = experiment(small(kind), random_pairs(4, (5, 4, 5), partners=2), "logit_diff")
    nodes = [sender for sender in one.graph.senders if sender != "input"]
    found = patch_nodes(one, nodes)
    masks = [EdgeMask.of(one.graph, set(one.graph) - set(out_of(one.graph, node))) for node in nodes]
    for (noise, _), expected in zip(found.values(), shares(one, masks), strict=True):
        assert noise == pytest.approx(expected, abs=1e-4)
    # Denoising is noising with clean and corrupted prompts exchanged: 1 − recovery there is recovery here.
    pairs = random_pairs(4, (5, 5, 5))
    turned = [type(p)(p.corrupted, p.clean, p.answers, p.wrong_answers, p.position) for p in pairs]
    there, here = (patch_nodes(experiment(small(kind), some, "logit_diff"), nodes) for some in (turned, pairs))
    for node in nodes:
        assert here[node][1] == pytest.approx(there[node][0], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_noising_a_path_removes_its_edge(kind: str) -> None:
    one = experiment(small(kind), random_pairs(4), "logit_diff")
    nodes = ["a0.h1", "m0", "a1.h0"]
    found = patch_paths(one, nodes)
    assert set(found) == {
        edge for edge in one.graph if edge.sender in ("input", *nodes) and node_of(edge.receiver) in (*nodes, "logits")
    }
    expected = dict(zip(found, shares(one, [EdgeMask.all(one.graph).without(edge) for edge in found]), strict=True))
    for edge, effect in found.items():
        assert abs(effect) >= abs(expected[edge]) - 1e-4  # or denoising does more
    assert any(effect == pytest.approx(expected[edge], abs=1e-4) for edge, effect in found.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_node_is_attributed_the_slope_of_the_loss(kind: str) -> None:
    """By finite differences, along the way from its clean to its corrupted output, in both runs."""
    one = experiment(small(kind), random_pairs(4), "logit_diff").to("cpu", torch.float64)
    runs, step = [ResumedRun(one, values) for values in (one.clean, one.ablated)], 1e-5
    for name, estimate in attribute(one).items():
        node, slopes = parse_node(name), []
        for run in runs:
            losses = []
            for sign in (1, -1):
                if node.kind == "head":
                    key, at = ("head_output", node.layer), (slice(None), node.unit)
                    values = [values.heads[node.layer] for values in (run.values, one.ablated, one.clean)]
                    where = torch.zeros(1, values[0].shape[0], 1, 1, 1, dtype=torch.bool)
                else:
                    key, at = ("mlp_out", node.layer), (slice(None),)
                    values = [values.mlps[node.layer] for values in (run.values, one.ablated, one.clean)]
                    where = torch.zeros(1, 1, 1, 1, dtype=torch.bool)
                where[at] = True
                moved = values[0] + sign * step * (values[1] - values[2])
                found = JointRun(run).metric_values({key: Replaced(where, moved)})
                losses.append(float(one.metric.as_loss((found * one.readouts.weight).sum())))
            slopes.append((losses[0] - losses[1]) / (2 * step))
        assert estimate == pytest.approx(sum(slopes) / 2, abs=1e-6), name


def test_a_compiled_circuit_is_found() -> None:
    """tracr's reverse with corrupted values: by its weights, tok → a3.h0<v> and a3.h0 → logits do all of it."""
    circuit = discover(Experiment.build(task="tracr_reverse"), "attribution_to_circuit", compare=False)
    assert set(circuit) == {Edge("input.tok", "a3.h0<v>"), Edge("a3.h0", "logits")}
    assert circuit.metrics["steps"]["survivors"] == ["a3.h0"]


def test_the_steps_by_hand_give_the_same_circuit() -> None:
    """As docs/attribution_to_circuit.md has them."""
    one = experiment(small("llama"), random_pairs(4), "logit_diff")
    estimates = attribute(one)
    best = sorted(estimates, key=lambda node: -abs(estimates[node]))[:4]
    effects = patch_nodes(one, best)
    nodes = [node for node in best if max(map(abs, effects[node])) >= 0.05]
    found = Circuit(one.graph, {edge: e for edge, e in patch_paths(one, nodes).items() if abs(e) >= 0.02})
    options = {"candidates": 4, "node_limit": 0.05, "path_limit": 0.02, "compare": False}
    circuit = discover(one, "attribution_to_circuit", **options)
    assert set(found.on_path()) == set(circuit)
    assert 0 < len(circuit) < len(circuit.tested)


def test_acdc_beside_it_recovers_what_acdc_recovers() -> None:
    """Against the two methods run apart, and the evaluation of circuits."""
    one = Experiment.build(task="ioi", size=6)
    circuit, plain = (discover(one, method) for method in ("attribution_to_circuit", "acdc"))
    beside, alone = circuit.metrics["acdc"], faithfulness(one, plain)
    assert beside["circuit"] == pytest.approx(alone["circuit"], abs=1e-4)
    assert beside["recovery"] == pytest.approx(alone["recovery"], abs=1e-5)
    assert (beside["edges"], beside["threshold"]) == (len(plain), plain.method["threshold"])
    assert beside["shared"] == len(set(plain) & set(circuit))


def test_memory_decides_nothing() -> None:
    one = experiment(small("llama"), random_pairs(6, (5, 4, 5), partners=2), "logit_diff")
    found, tight = (discover(one, "attribution_to_circuit", compare=False, memory_gb=gb) for gb in (None, 1e-6))
    assert attribute(one, 1e-6) == pytest.approx(attribute(one), abs=1e-5)
    assert tight.tested == pytest.approx(found.tested, abs=1e-5)
    assert tight.metrics["steps"]["attributed"] == pytest.approx(found.metrics["steps"]["attributed"], abs=1e-5)


def test_without_a_threshold_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(AcdcError, match=r"method\.compare=false"):
        discover(experiment(small("gpt2"), random_pairs(4), "logit_diff"), "attribution_to_circuit")


def test_what_cannot_be_done_is_refused_in_its_own_name() -> None:
    model = small("gpt2")
    with pytest.raises(AcdcError, match=r"^ablation=zero does not fit method=attribution_to_circuit, .*corrupted, or"):
        discover(experiment(model, random_pairs(4), "logit_diff", ablation="zero"), "attribution_to_circuit")
    half = experiment(model, random_pairs(4), "logit_diff").to("cpu", torch.float16)
    with pytest.raises(AcdcError, match=r"^model.dtype=float16 .* which method=attribution_to_circuit needs"):
        discover(half, "attribution_to_circuit")


def test_the_experiment_as_a_user_runs_it(tmp_path: Path) -> None:
    done = as_process("experiment=attribution_to_circuit", "task.size=8", "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Jaccard" in done.stdout
    metrics = read_json(tmp_path / "out" / "metrics.json")
    assert metrics["acdc"]["shared"] <= min(metrics["acdc"]["edges"], metrics["edges_kept"])
    assert len(metrics["acdc"]["only_here"]) == metrics["edges_kept"] - metrics["acdc"]["shared"]
    report = (tmp_path / "out" / "report.html").read_text()
    assert "From hypothesis to circuit" in report
    assert "Beside ACDC" in report

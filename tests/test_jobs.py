"""The jobs besides the discovery, tried the way a user would."""

from __future__ import annotations

import csv
import json
import math
import re
from itertools import combinations
from pathlib import Path

import pytest
import torch
from commands import PAIRS, Case, as_process, assert_refused, make_case, read_json
from pages import html_of
from test_check_job import model_prefers
from transformers import AutoModelForCausalLM

from acdc import Circuit, Edge, Experiment, Graph, GraphConfig
from acdc.cli import run
from acdc.evaluation.faithfulness import by_partner, faithfulness
from acdc.evaluation.grading import GradesPart, grade_all
from acdc.evaluation.ground_truth import published
from acdc.evaluation.random_circuits import random_circuits
from acdc.formats.mib import write_mib_json
from acdc.formats.reading import read_circuit
from acdc.report.evaluate.grades import shown
from acdc.tasks import TASKS


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


# The evaluation.


def evaluate(case: Case, circuit: Path, **options: object) -> int:
    arguments = case.arguments(job="evaluate", circuit=circuit, **options)
    return run([*arguments, "job.parts=[faithfulness,grades]", "hydra.run.dir=out"])


def test_whole_empty_and_found_circuits(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What is known without an engine: everything is the model, nothing is no edges."""
    assert run([*case.arguments(), "hydra.run.dir=found"]) == 0
    found = Circuit.load(here / "found" / "circuit.json")
    (here / "all" / "whole").mkdir(parents=True)
    (here / "all" / "none").mkdir()
    Circuit(found.graph, dict.fromkeys(found.graph, 1.0)).save(here / "all" / "whole" / "circuit.json")
    Circuit(found.graph, {}).save(here / "all" / "none" / "circuit.json")
    capfd.readouterr()
    assert evaluate(case, here / "all") == 0
    results = read_json(here / "out" / "evaluate.json")["faithfulness"]
    assert results["whole"]["recovery"] == pytest.approx(1)
    assert results["whole"]["kl"] == pytest.approx(0, abs=1e-6)
    assert results["none"]["recovery"] == 0
    model = AutoModelForCausalLM.from_pretrained(case.model)
    with torch.no_grad():
        best = [int(model(torch.tensor([pair["clean"]])).logits[0, -1].argmax()) for pair in PAIRS]
    right = sum(token in pair["answers"] for token, pair in zip(best, PAIRS, strict=True)) / len(PAIRS)
    assert results["whole"]["accuracy"] == results["whole"]["accuracy_model"] == pytest.approx(right)
    values = [model_prefers(case, pair["clean"], pair["answers"][0], pair["wrong_answers"][0]) for pair in PAIRS]
    assert results["whole"]["clean"] == pytest.approx(sum(values) / len(values), abs=1e-4)
    out = capfd.readouterr().out
    assert re.search(r"not graded: no circuit is published for the task pairs\n", out)

    # The circuit of a run has the numbers that the run gave it, also by way of MIB's file.
    for name in ("circuit.json", "circuit.mib.json"):
        arguments = case.arguments(job="evaluate", circuit=here / "found" / name)
        assert run([*arguments, "job.parts=[faithfulness]", f"hydra.run.dir={name}.out"]) == 0
        metrics = read_json(here / f"{name}.out" / "metrics.json")
        for key in ("clean", "corrupted", "circuit", "recovery", "kl", "edges_kept"):
            assert metrics[key] == pytest.approx(found.metrics[key], abs=1e-6)
    rows = rows_of(here / "circuit.json.out" / "evaluate.csv")
    (recovery,) = [row for row in rows if row["measure"] == "recovery"]
    assert float(recovery["value"]) == pytest.approx(found.metrics["recovery"], abs=1e-6)


def mann_whitney(scores: dict[str, float], true: set[str]) -> float:
    """The share of pairs of a right and a wrong item in which the right one has the higher score; a tie is half."""
    right = [score for name, score in scores.items() if name in true]
    wrong = [score for name, score in scores.items() if name not in true]
    return sum((a > b) + (a == b) / 2 for a in right for b in wrong) / (len(right) * len(wrong))


# What acdc.evaluation.derive says of tracr's reverse with corrupted prompts: FIELD's and the literature's resample set.
REVERSE = {"input.tok->a3.h0<v>", "a3.h0->logits"}


def test_a_score_file_is_graded(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Scores by hand, with ties; the areas by counting pairs of right and wrong edges."""
    graph = Experiment.build(task="tracr_reverse").graph
    scores = {str(edge): ((7 * i) % 13 - 6) / 2 for i, edge in enumerate(graph)}
    kept = {Edge.parse(name): score for name, score in scores.items() if score >= 2.5}
    Circuit(graph, kept, {Edge.parse(n): s for n, s in scores.items()}).save(here / "scores.json")
    arguments = ["job=evaluate", "circuit=scores.json", "task=tracr_reverse", "job.parts=[grades]"]
    assert run([*arguments, "hydra.run.dir=out"]) == 0
    metrics = read_json(here / "out" / "metrics.json")
    names = {str(edge) for edge in kept}
    assert metrics["derived_edges_precision"] == pytest.approx(len(names & REVERSE) / len(names))
    assert metrics["derived_edges_recall"] == pytest.approx(len(names & REVERSE) / 2)
    assert metrics["derived_edges_auc_trapezoid"] == pytest.approx(mann_whitney(scores, REVERSE))
    assert metrics["published_resample_edges_auc_trapezoid"] == metrics["derived_edges_auc_trapezoid"]
    (against,) = [
        one for one in read_json(here / "out" / "evaluate.json")["grades"]["against"] if one["label"] == "derived"
    ]
    assert set(against["circuits"]["scores.json"]["missed_edges"]) == REVERSE - names
    assert set(against["circuits"]["scores.json"]["extra_edges"]) == names - REVERSE
    for name in ("roc_edges.svg", "roc_edges.png", "roc_nodes.svg", "roc_nodes.png"):
        assert (here / "out" / name).stat().st_size > 3000
    page = (here / "out" / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 2
    assert "Miller et al. 2024" in page
    assert "pessimistic" in capfd.readouterr().out
    assert run([*arguments, "job.absolute=true", "hydra.run.dir=abs"]) == 0
    sizes = {name: abs(score) for name, score in scores.items()}
    randoms = random_circuits(read_circuit(here / "scores.json"), 10)
    recalls = [sum(str(edge) in REVERSE for edge in circuit) / len(REVERSE) for circuit in randoms]
    assert against["circuits"]["scores.json"]["random"]["edges_recall"] == pytest.approx(sum(recalls) / 10)
    assert "recall, random" in " ".join(page.split())
    area = read_json(here / "abs" / "metrics.json")["derived_edges_auc_trapezoid"]
    assert area == pytest.approx(mann_whitney(sizes, REVERSE))


def test_a_published_circuit_is_graded_by_mibs_file(here: Path) -> None:
    """The docstring circuit without its two heads of layer 3, which is 24 edges less those that touch one of them."""
    truth = published("docstring")
    less = {edge: 1.0 for edge in truth.edges if not {"a3.h0", "a3.h6"} & {part[:5] for part in edge}}
    write_mib_json(Circuit(truth.graph, less), here / "less.json")
    (graded,) = grade_all({"less": read_circuit(here / "less.json")}, {"published": truth})
    assert graded.points["less"].rates()["edges_recall"] == pytest.approx(len(less) / 24)
    assert graded.points["less"].rates()["edges_precision"] == 1
    assert len(graded.missed("less")) == 24 - len(less)
    (section,) = shown(GradesPart("docstring", [graded], [])).sections
    page = html_of(section)
    assert "published: the positions at which 23 edges read" in page  # of input->a2.h0<k> it is not known
    assert re.search(r"B_def\+1</td>\s*<td[^>]*>a1\.h4-&gt;a2\.h0&lt;v&gt;</td>", page)


def test_a_truth_of_ones_own(case: Case, here: Path) -> None:
    assert run([*case.arguments(), "hydra.run.dir=found"]) == 0
    found = Circuit.load(here / "found" / "circuit.json")
    Circuit(found.graph, dict(list(found.edges.items())[::2])).save(here / "half.json")
    assert evaluate(case, here / "found", job__truth="half.json") == 0
    metrics = read_json(here / "out" / "metrics.json")
    half = (len(found) + 1) // 2
    assert (metrics["file_edges_recall"], metrics["file_edges_precision"]) == (1, pytest.approx(half / len(found)))


def test_a_sweep_is_graded_as_one_curve(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The gate: whatever the threshold, ACDC keeps one of two branches, 4 of 7 edges; a huge one keeps nothing."""
    arguments = ["-m", "task=gate_or", "ablation=zero", "method.projection_edges=true", "task.check=off"]
    assert run([*arguments, "method.threshold=1e-3,1e-2,100", "hydra.sweep.dir=sweep"]) == 0
    comparison = read_json(here / "sweep" / "comparison.json")
    assert comparison["jaccard"] == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert run(["job=evaluate", "circuit=sweep", "task=gate_or", "ablation=zero", "hydra.run.dir=out"]) == 0
    metrics = read_json(here / "out" / "metrics.json")
    assert metrics["circuits"] == 3
    assert metrics["derived_edges_auc_pessimistic"] == pytest.approx(4 / 7)
    assert metrics["derived_edges_auc_trapezoid"] == pytest.approx(4 / 7 + 3 / 7 / 2)
    assert "circuits" in capfd.readouterr().out


WRONG = [
    (["job=evaluate"], ["job=evaluate needs circuit=FILE"]),
    (["circuit=x.json"], ["circuit=FILE is for job=evaluate"]),
    (["job=evaluate", "circuit=x.json"], ["x.json cannot be read"]),
    (["job=evaluate", "circuit=5"], ["circuit=5", "null"]),
    (["job=evaluate", "circuit=empty"], ["there is no circuit.json"]),
    (["job=evaluate", "circuit=list.json"], ["list.json is neither", "acdc-circuit", "cfg"]),
    (["job=evaluate", "circuit=nan.json"], ["nan.json", "input->logits", "must be a finite number"]),
    (["job=evaluate", "circuit=stranger.json"], ["stranger.json", "m9->logits", "does not exist"]),
    (["job=evaluate", "circuit=mixed"], ["some of these circuits have projection edges", "method.projection_edges"]),
    (["job=evaluate", "circuit=other.json"], ["other.json is a circuit of another model", "n_layers 7"]),
    (["job=evaluate", "circuit=empty", "job.absolute=1"], ["job.absolute=1", "true or false"]),
    (["job=check", "job.truth=x"], ["job.truth does not exist"]),
    (["task.filter=[foo]"], ["task.filter=foo is not known", "correct, flips"]),
    (["task.filter=correct:1"], ["correct takes no number"]),
    (["task.filter=minimal:2"], ["leaves none of the 32 pairs", "minimal:2 32"]),
    (["task.frequencies=none.json"], ["none.json", "cannot be read"]),
    (["task.partners=0"], ["task.partners=0", "1 or more"]),
    (["task=sentiment", "task.partners=50"], ["task.partners=50", "only 10"]),
    (["graph.split_embedding=1"], ["graph.split_embedding=1", "true or false or null"]),
    (["model.split_embedding=true"], ["model.split_embedding does not exist"]),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_wrong_words(arguments: list[str], said: list[str], here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "empty").mkdir()
    (here / "list.json").write_text("[1]")
    Circuit(Graph(GraphConfig(7, 4, 128)), {}).save(here / "other.json")
    pocket = Graph(GraphConfig(4, 4, 128))
    content = Circuit(pocket, {Edge("input", "logits"): 1.0}).as_dict()
    (here / "nan.json").write_text(json.dumps({**content, "tested": {"input->logits": math.nan}}))
    (here / "stranger.json").write_text(json.dumps({**content, "tested": {"m9->logits": 1}}))
    for projections in (True, False):
        (here / "mixed" / str(projections)).mkdir(parents=True)
        Circuit(Graph(pocket.config, projections), {}).save(here / "mixed" / str(projections) / "circuit.json")
    assert_refused([*arguments, "hydra.run.dir=out"], capfd, *said)
    assert not (here / "out").exists()


# Several corruptions.


def test_the_circuits_of_a_sweep_are_compared(here: Path) -> None:
    done = as_process("-m", "task.corruption=abc,flipped", "task.size=4", "hydra.sweep.dir=sweep", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    found = {
        name: {(edge["sender"], edge["receiver"]) for edge in read_json(here / "sweep" / run / "circuit.json")["edges"]}
        for name, run in (("abc", "0"), ("flipped", "1"))
    }
    core, union = set.intersection(*found.values()), set.union(*found.values())
    comparison = read_json(here / "sweep" / "comparison.json")
    assert [one["label"] for one in comparison["circuits"]] == ["abc", "flipped"]
    assert {tuple(name.split("->")) for name in comparison["core"]} == core
    (row,) = rows_of(here / "sweep" / "comparison.csv")
    assert (row["first"], row["second"], row["shared_edges"]) == ("abc", "flipped", str(len(core)))
    assert float(row["jaccard"]) == pytest.approx(len(core) / len(union))
    assert "the common core" in (here / "sweep" / "comparison.html").read_text()
    assert f"keep {len(core)} edges in common" in done.stdout
    assert re.search(rf"abc +{len(found['abc'])} .* 1.00 +{len(core) / len(union):.2f}", done.stdout)


def test_the_spread_over_partners(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With each partner alone it is what a file with that partner gives; together the losses average."""
    partners = [{**pair, "corrupted": [pair["corrupted"], [1, 1, 1, 1], [0, 2, 4, 6]]} for pair in PAIRS]
    alone = [[{**pair, "corrupted": pair["corrupted"][i]} for pair in partners] for i in range(3)]
    for name, pairs in (("all", partners), *((str(i), pairs) for i, pairs in enumerate(alone))):
        (here / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    assert run([*case.arguments(task__path="all.jsonl", method__threshold=0.005), "hydra.run.dir=found"]) == 0
    circuit = Circuit.load(here / "found" / "circuit.json")
    values = []
    for name in ("0", "1", "2"):
        one = Experiment.build(case.model, "pairs", path=str(here / f"{name}.jsonl"), size=None)
        values.append(faithfulness(one, circuit))
    together = Experiment.build(case.model, "pairs", path=str(here / "all.jsonl"), size=None)
    for mine, theirs in zip(by_partner(together, circuit), values, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)
    assert circuit.metrics["circuit"] == pytest.approx(sum(v["circuit"] for v in values) / 3, abs=1e-6)
    recoveries = [v["recovery"] for v in values]
    assert circuit.metrics["partner_recovery_min"] == pytest.approx(min(recoveries), abs=1e-6)
    assert circuit.metrics["partner_recovery_max"] == pytest.approx(max(recoveries), abs=1e-6)
    assert "The choice of corrupted prompts" in (here / "found" / "report.html").read_text()
    out = " ".join(capfd.readouterr().out.split())
    assert f"recovery {min(recoveries):.1%} to {max(recoveries):.1%}" in out
    assert f"recovery {circuit.metrics['recovery']:.1%} on the pairs it was found on" in out


# Token and position embeddings apart.


@pytest.mark.parametrize("split", [True, False])
def test_a_split_embedding_and_mibs_format(
    split: bool, case: Case, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*case.arguments(graph__split_embedding=str(split).lower()), "hydra.run.dir=found"]) == 0
    assert (here / "found" / "circuit.mib.json").exists() is not split
    assert (here / "found" / "circuit.mib.pt").exists() is not split
    console, log = " ".join(capfd.readouterr().out.split()), (here / "found" / "run.log").read_text()
    for told in (console, log, (here / "found" / "report.html").read_text()):
        assert told.count("circuit.mib.json is not written") == split
    senders = set(Circuit.load(here / "found" / "circuit.json").graph.senders)
    assert ({"input.tok", "input.pos"} <= senders, "input" in senders) == (split, not split)
    assert evaluate(case, here / "found" / "circuit.json") == 0  # the embedding is as the file has it
    has, given = str(split).lower(), str(not split).lower()
    arguments = case.arguments(job="evaluate", circuit="found/circuit.json", graph__split_embedding=given)
    said = f"was found with graph.split_embedding={has}, this is {given}: set graph.split_embedding={has}, or leave it"
    assert_refused([*arguments, "hydra.run.dir=other"], capfd, "circuit.json", said)


def test_every_two_partners_differ() -> None:
    for name in TASKS.built_in:
        if name in ("pairs", "gate_or", "gate_and"):
            continue
        several = {"greater_than": "random_earlier", "subject_verb_agreement": "other_noun"}
        corruption = several.get(name, TASKS.load(name)().corruption)
        experiment = Experiment.build(task=name, size=4, partners=3, corruption=corruption)
        single = Experiment.build(task=name, size=4, corruption=corruption)
        for pair in experiment.pairs:
            assert len(pair.corrupted) == 3
            assert all(a != b for a, b in combinations((pair.clean, *pair.corrupted), 2))
        assert experiment.pairs[0].clean == single.pairs[0].clean or name == "greater_than"
        assert experiment.pairs[0].corrupted[0] == single.pairs[0].corrupted[0] or name == "greater_than"

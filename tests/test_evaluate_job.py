"""The evaluation job: its parts, what they write, and what is refused before anything is written."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path

import pytest
import yaml
from commands import Case, assert_refused, make_case, read_json
from PIL import Image

from acdc import Experiment
from acdc.circuit import Circuit
from acdc.cli import run
from acdc.evaluation.areas import areas
from acdc.graph import Edge
from acdc.jobs.settings import OF_SEVERAL, PARTS, EvaluateSettings


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A random GPT-2 and five pairs of token ids, of which three are the task's."""
    made = make_case(tmp_path_factory.mktemp("case"))
    more = (
        {"clean": [1, 5, 2, 3], "corrupted": [1, 6, 2, 4], "answers": [8], "wrong_answers": [9]},
        {"clean": [7, 5, 1, 1], "corrupted": [7, 3, 1, 2], "answers": [2], "wrong_answers": [3]},
    )
    with made.pairs.open("a") as file:
        file.writelines(json.dumps(pair) + "\n" for pair in more)
    return made


@pytest.fixture(scope="module")
def found(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("found") / "run"
    assert run([*case.arguments(task__size=3), f"hydra.run.dir={folder}"]) == 0
    return folder / "circuit.json"


def values_of(path: Path) -> dict[str, str]:
    with path.open() as file:
        return {row["measure"]: row["value"] for row in csv.DictReader(file)}


def test_every_part(case: Case, found: Path, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = {"random": 2, "bootstrap": 50, "scrubs": 2, "knockouts": 6, "permutations": 20, "inflated": 10}
    options = {f"job__{key}": value for key, value in few.items()} | {"job__stability": 2, "job__prune": "true"}
    arguments = case.arguments(job="evaluate", circuit=found, task__size=3, **options)
    assert run([*arguments, "hydra.run.dir=out"]) == 0
    out = capfd.readouterr().out
    results, circuit = read_json(here / "out" / "evaluate.json"), Circuit.load(found)
    assert set(PARTS) <= set(results)
    name = found.name
    own = results["faithfulness"][name]
    assert own["recovery"] == pytest.approx(circuit.metrics["recovery"], abs=1e-5)
    assert own["intervals"]["recovery"][0] <= own["recovery"] <= own["intervals"]["recovery"][1]
    assert own["fresh"]["pairs"] == 2  # what task.size has left out of the file
    assert 0 <= own["agreement"] <= 1
    assert set(own["scrubbed"]) == {"pairs", "left_out", "clean", "corrupted", "mean", "sd", "nothing"}
    assert len(results["completeness"][name]["knockouts"]) == 6
    worth = results["minimality"][name]["worth"]
    assert set(worth) == {str(edge) for edge in circuit}
    assert results["minimality"][name]["below"] == sum(value < 0.02 for value in worth.values())
    assert set(results["hypotheses"][name]) == {"equivalence", "independence", "minimality"}
    assert len(results["areas"][name]["points"]) == 10
    assert set(results["stability"][name]) == {"pairs", "orders", "recurrence", "random"}  # a file has no seeds
    pruned = Circuit.load(here / "out" / "circuit.pruned.json")
    gone = results["minimality"][name]["pruned"]["removed"]
    assert set(circuit) - set(pruned) == set(map(Edge.parse, gone))
    assert all(worth >= 0.02 for worth in pruned.edges.values())

    rows, metrics = values_of(here / "out" / "evaluate.csv"), read_json(here / "out" / "metrics.json")
    for key in ("recovery", "recovery, fresh pairs", "recovery, low", "recovery, scrubbed", "recovery, random", "cmd"):
        assert float(rows[key]) is not None
    assert float(rows["equivalence test, p_value"]) == pytest.approx(metrics["equivalence_p_value"])
    assert float(rows["jaccard, orders, mean"]) == pytest.approx(metrics["jaccard_orders"])
    for plot in ("completeness", "minimality", "areas"):
        assert len(Image.open(here / "out" / f"{plot}.png").convert("L").getcolors()) > 20
    page = (here / "out" / "report.html").read_text()
    for words in ("fresh pairs", "Completeness", "Minimality", "Shi et al. 2024", "CPR", "Stability", "Pruned again"):
        assert words in page
    assert page.count("data:image/svg+xml;base64,") == 3
    assert "random circuits (2)" in out
    assert "pruned again at τ = 0.02" in out


def test_a_circuit_is_evaluated_as_it_was_found(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its own numbers come out again, though nothing of this is the default."""
    how = case.arguments(metric="prob_diff", ablation="zero", task__size=3, task__seed=1, model__dtype="float64")
    assert run([*how, "hydra.run.dir=found"]) == 0
    circuit = Circuit.load(here / "found" / "circuit.json")
    few = ["job=evaluate", "job.parts=[faithfulness]", "job.random=0", "job.scrubs=0", "task.check=off"]
    for i, source in enumerate(("found", "found/circuit.json")):
        assert run([*few, f"circuit={source}", f"hydra.run.dir=out{i}"]) == 0
        metrics, results = (read_json(here / f"out{i}" / f"{name}.json") for name in ("metrics", "evaluate"))
        for key in ("clean", "corrupted", "circuit", "recovery", "kl"):
            assert metrics[key] == pytest.approx(circuit.metrics[key], abs=1e-6)
        assert (results["metric"], results["ablation"], results["notes"]) == ("prob_diff", "zero", [])
        asked = yaml.safe_load((here / f"out{i}" / ".hydra" / "config.yaml").read_text())
        used = yaml.safe_load((here / f"out{i}" / "resolved.yaml").read_text())
        assert (asked["task"]["name"], used["task"]["name"]) == ("ioi", "pairs")
        assert "method" not in used
    # What is given counts, a key or a group, and is said where it differs.
    given = ["task.size=2", "ablation=mean", "metric=prob_diff"]
    assert run([*few, "circuit=found", *given, "hydra.run.dir=out"]) == 0
    used = yaml.safe_load((here / "out" / "resolved.yaml").read_text())
    assert (used["task"]["size"], used["task"]["seed"], used["task"]["path"]) == (2, 1, str(case.pairs))
    assert read_json(here / "out" / "evaluate.json")["notes"] == [
        "found was found with task.size=3, and is evaluated with task.size=2",
        "found was found with ablation=zero, and is evaluated with ablation=mean",
    ]
    assert "found with ablation=zero" in capfd.readouterr().out
    # Another task is taken as it is given, with the options that it has by itself.
    path = case.pairs
    assert run([*few, "circuit=found", "task=pairs", f"task.path={path}", "task.check=off", "hydra.run.dir=other"]) == 0
    used = yaml.safe_load((here / "other" / "resolved.yaml").read_text())
    assert (used["task"]["size"], used["task"]["seed"], used["metric"]["name"]) == (None, 0, "prob_diff")


def test_circuits_of_a_sweep_are_called_by_what_differs(case: Case, here: Path) -> None:
    swept = {"method__threshold": "0.01,100", "ablation": "zero"}
    assert run(["-m", *case.arguments(**swept), "hydra.sweep.dir=sweep"]) == 0
    few = ["job=evaluate", "job.parts=[faithfulness]", "job.random=0", "job.scrubs=0", "task.check=off"]
    assert run([*few, "circuit=sweep", "hydra.run.dir=out"]) == 0
    results = read_json(here / "out" / "evaluate.json")
    assert results["circuits"] == ["method.threshold=0.01", "method.threshold=100"]
    assert results["ablation"] == "zero"
    for i, name in enumerate(results["circuits"]):
        own = read_json(here / "sweep" / str(i) / "metrics.json")
        assert results["faithfulness"][name]["recovery"] == pytest.approx(own["recovery"], abs=1e-5)


@pytest.mark.parametrize(
    ("group", "values", "said"),
    [
        ("task", {"name": "marker.build"}, "circuit.json was found with task=marker.build"),
        ("task", {"name": "ioi", "_target_": "marker.build"}, "task._target_=marker.build stands in a file"),
        (
            "ablation",
            {"name": "corrupted", "_target_": "marker.build"},
            "ablation._target_=marker.build stands in",
        ),
        ("model", {"name": "local", "path": 5}, "model.path=5 is not allowed"),
        ("task", {"name": "pairs", "path": "/nowhere.jsonl"}, "/nowhere.jsonl"),
    ],
)
def test_what_a_file_names_is_not_run(
    group: str,
    values: dict[str, object],
    said: str,
    found: Path,
    here: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (here / "marker.py").write_text("from pathlib import Path\nPath('ran').touch()\ndef build(**_): ...\n")
    monkeypatch.syspath_prepend(here)
    content = read_json(found)
    content["provenance"]["settings"][group] = values
    (here / "circuit.json").write_text(json.dumps(content))
    assert_refused(["job=evaluate", "circuit=circuit.json", "hydra.run.dir=out"], capfd, said)
    assert {path.name for path in here.iterdir()} == {"marker.py", "circuit.json"}


def test_the_same_seed_says_the_same(case: Case, found: Path, here: Path) -> None:
    arguments = case.arguments(job="evaluate", circuit=found, job__knockouts=5)
    parts = "job.parts=[faithfulness,completeness]"
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run([*arguments, parts, f"job.seed={seed}", f"hydra.run.dir={name}"]) == 0
    a, b, c = (read_json(here / name / "evaluate.json") for name in "abc")
    assert set(PARTS) & set(a) == {"faithfulness", "completeness"}
    assert a == b
    assert a["completeness"] != c["completeness"]
    assert "no fresh pairs" in (here / "a" / "report.html").read_text()  # the file is used up


def test_kl_has_no_better_and_scores_may_be_missing(case: Case, found: Path, here: Path) -> None:
    """KL compares with the model; the logit difference stands for it. A circuit without scores has no areas."""
    circuit = Circuit.load(found)
    circuit.tested.clear()
    circuit.method.clear()
    circuit.save(here / "bare.json")
    arguments = case.arguments(job="evaluate", circuit="bare.json", metric="kl_div")
    parts = "job.parts=[hypotheses,areas,minimality]"
    assert run([*arguments, parts, "job.inflated=5", "job.random=0", "hydra.run.dir=out"]) == 0
    results = read_json(here / "out" / "evaluate.json")
    assert results["areas"] == {"bare.json": {"absent": "no scores"}}
    assert results["hypotheses"]["bare.json"]["equivalence"]["p_value"] is not None
    assert "threshold" not in results["minimality"]["bare.json"]


def test_ties_are_told(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An ACDC run tests no edge into what it has dropped; where those stand in a ranking, no score says."""
    assert run([*case.arguments(method__threshold=0.3), "hydra.run.dir=run"]) == 0
    circuit = Circuit.load(here / "run" / "circuit.json")
    scores, graph = circuit.tested, circuit.graph
    assert 0 < len(scores) < len(graph)
    parts = ["job.parts=[areas]", "job.random=0"]
    capfd.readouterr()
    assert run([*case.arguments(job="evaluate", circuit="run"), *parts, "hydra.run.dir=out"]) == 0
    (own,) = read_json(here / "out" / "evaluate.json")["areas"].values()
    unscored = len(graph) - len(scores)
    assert own["tied"] >= unscored
    assert own["scored"] == len(scores)
    page, console = (here / "out" / "report.html").read_text(), " ".join(capfd.readouterr().out.split())
    for told in (page, console, own["note"]):
        assert f"{unscored:,} of {len(graph):,} edges have no score" in told
        assert f"{own['tied']:,} edges tie with another" in told
        assert "method=acdc_scores" in told
    one = Experiment.build(case.model, "pairs", path=str(case.pairs), size=None)
    far = {edge: scores.get(edge, 0.0) + 1e-9 * i for i, edge in enumerate(graph)}  # the last of equals goes first
    assert own["ties_reversed"]["cpr"] == pytest.approx(areas(one, far).cpr, abs=1e-6)
    rows = values_of(here / "out" / "evaluate.csv")
    assert float(rows["cpr, ties reversed"]) == own["ties_reversed"]["cpr"]
    assert float(rows["tied edges"]) == own["tied"] == read_json(here / "out" / "metrics.json")["tied_edges"]

    rng = random.Random(0)
    every = {edge: rng.gauss(0, 3) for edge in graph}
    for name, strength in (("eap", abs), ("edge_pruning", math.exp)):  # gates: log α, of which −5 is no strong edge
        Circuit(graph, dict(every), every, method={"name": name}).save(here / f"{name}.json")
        given = case.arguments(job="evaluate", circuit=f"{name}.json")
        assert run([*given, *parts, f"hydra.run.dir={name}"]) == 0
        (own,) = read_json(here / name / "evaluate.json")["areas"].values()
        assert own["tied"] == 0
        assert "note" not in own
        assert own["cmd"] == pytest.approx(areas(one, {e: strength(score) for e, score in every.items()}).cmd)


def test_what_several_circuits_are_asked() -> None:
    assert EvaluateSettings().chosen(1) == tuple(part for part in PARTS if part != "stability")
    assert EvaluateSettings().chosen(2) == OF_SEVERAL
    assert EvaluateSettings(stability=1).chosen(1) == PARTS
    assert EvaluateSettings(parts=["areas"]).chosen(5) == ("areas",)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("job.parts=[foo]", ["job.parts=foo", "faithfulness, completeness"]),
        ("job.parts=[]", ["job.parts=[]", "choose of"]),
        ("job.parts=areas", ["job.parts=areas", "a list or null"]),
        ("job.random=-1", ["job.random=-1", "0 or more"]),
        ("job.random_kind=trees", ["job.random_kind=trees", "paths or edges"]),
        ("job.knockout_kind=layers", ["job.knockout_kind=layers", "nodes or edges"]),
        ("job.knockout_size=0", ["job.knockout_size=0", "1 or more"]),
        ("job.knockout_size=99", ["job.knockout_size=99", "nodes of circuit.json", "smaller"]),
        ("job.confidence=1", ["job.confidence=1", "between 0 and 1"]),
        ("job.epsilon=0.5", ["job.epsilon=0.5", "between 0 and 0.5"]),
        ("job.parts=[stability]", ["job.stability=0", "give both"]),
        ("job.parts=[areas] job.stability=2", ["job.stability=2", "no effect"]),
        ("job.parts=[areas] job.prune=true", ["job.prune=true", "no effect", "minimality"]),
        ("job.truth=nowhere.json", ["nowhere.json"]),
    ],
)
def test_refused(
    case: Case, found: Path, here: Path, capfd: pytest.CaptureFixture[str], options: str, said: list[str]
) -> None:
    assert_refused([*case.arguments(job="evaluate", circuit=found), *options.split()], capfd, *said)
    assert not list(here.iterdir())


def test_refused_for_what_the_file_lacks(
    case: Case, found: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    circuit = Circuit.load(found)
    circuit.method.clear()
    circuit.save(here / "bare.json")
    arguments = case.arguments(job="evaluate", circuit="bare.json")
    assert_refused([*arguments, "job.prune=true"], capfd, "job.threshold=NUMBER", "bare.json")
    assert_refused([*arguments, "job.stability=2"], capfd, "bare.json names no method")
    (here / "two" / "a").mkdir(parents=True)
    (here / "two" / "b").mkdir()
    for name in "ab":
        Circuit.load(found).save(here / "two" / name / "circuit.json")
    arguments = case.arguments(job="evaluate", circuit="two")
    assert_refused([*arguments, "job.prune=true"], capfd, "job.prune=true writes one circuit")


@pytest.mark.parametrize("lengths", [(4, 4, 5), (3, 4, 5)])
def test_what_cannot_be_scrubbed_is_left_out_and_said(
    case: Case, found: Path, here: Path, capfd: pytest.CaptureFixture[str], lengths: tuple[int, ...]
) -> None:
    pairs = [
        {"clean": [*range(i, i + n)], "corrupted": [*range(i, i + n - 1), 0], "answers": [8], "wrong_answers": [9]}
        for i, n in enumerate(lengths)
    ]
    (here / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    few = {"job__random": 0, "job__bootstrap": 0, "job__scrubs": 2, "job__parts": "[faithfulness]"}
    arguments = case.arguments(job="evaluate", circuit=found, task__path="pairs.jsonl", **few)
    assert run([*arguments, "hydra.run.dir=out"]) == 0
    out, page = capfd.readouterr().out, (here / "out" / "report.html").read_text()
    metrics, rows = read_json(here / "out" / "metrics.json"), values_of(here / "out" / "evaluate.csv")
    left_out = 1 if lengths[0] == lengths[1] else 3
    assert (metrics["scrubbed_pairs"], metrics["scrubbed_left_out"]) == (3 - left_out, left_out)
    assert rows["left_out, scrubbed"] == str(left_out)
    said = "on 2 of 3 pairs; 1 are left out" if left_out == 1 else "could not be measured"
    assert said in " ".join(out.split())
    assert said in page
    assert ("scrubbed_recovery" in metrics) == (left_out == 1)

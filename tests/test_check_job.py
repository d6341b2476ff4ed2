"""`job=check`, the table before a discovery, and filters."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from commands import PAIRS, Case, assert_refused, contents, make_case, read_json
from transformers import AutoModelForCausalLM

from acdc import Circuit, Experiment
from acdc.cli import run
from acdc.tasks.base import Pair, Task


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def model_prefers(case: Case, prompt: list[int], right: int, wrong: int) -> float:
    """The logit difference by Hugging Face."""
    model = AutoModelForCausalLM.from_pretrained(case.model)
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1]
    return float(logits[right] - logits[wrong])


def test_the_check_writes_and_shows_every_pair(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    counts = here / "counts.json"
    counts.write_text(json.dumps({str(token): 100 - token for token in range(10)}))  # 0 is the most frequent
    arguments = case.arguments(job="check", task__check="warn", task__frequencies="counts.json")
    assert run([*arguments, "hydra.run.dir=out"]) == 0
    names = {"pairs.csv", "pairs.json", "report.html", "metrics.json", "run.json", "run.log", "resolved.yaml", ".hydra"}
    assert {path.name for path in (here / "out").iterdir()} == names
    rows = rows_of(here / "out" / "pairs.csv")
    assert [row["where"] for row in rows] == [f"{case.pairs} line {i}" for i in (1, 2, 3)]
    for row, pair in zip(rows, PAIRS, strict=True):
        clean, corrupted = pair["clean"], pair["corrupted"]
        at = [i for i in range(4) if clean[i] != corrupted[i]]
        assert (row["differing"], row["first_difference"]) == (str(len(at)), str(at[0]))
        assert row["positions"] == " ".join(map(str, at))
        assert row["clean_ranks"] == " ".join(str(clean[i] + 1) for i in at)
        assert row["corrupted_ranks"] == " ".join(str(corrupted[i] + 1) for i in at)
        values = [
            model_prefers(case, prompt, pair["answers"][0], pair["wrong_answers"][0]) for prompt in (clean, corrupted)
        ]
        assert float(row["logit_diff_clean"]) == pytest.approx(values[0], abs=1e-4)
        assert float(row["logit_diff_corrupted"]) == pytest.approx(values[1], abs=1e-4)
        assert (row["outcome"] == "opposite") == (values[0] * values[1] < 0)
    content = read_json(here / "out" / "pairs.json")
    assert content["frequencies"] == "the counts in counts.json"
    assert content["summary"]["pairs"] == len(content["pairs"]) == 3
    assert content["filters"]["minimal:2"] == 3
    page = (here / "out" / "report.html").read_text()
    out = capfd.readouterr().out
    for words in ("same length and structure", "frequency of swapped tokens", "the counts in counts.json"):
        assert words in " ".join(out.split())
        assert words in page
    assert re.search(r"task\.filter=\[minimal:2\] +leaves 3 of 3, drops 0", out)
    assert "1: 5 → 6 (6, 7), 3: 3 → 4 (4, 5)" in page
    assert out.count("5 → 6 (6, 7)") == 1


def test_a_check_that_is_to_be_an_error_shows_the_pairs_first(
    case: Case, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "twice.jsonl").write_text(2 * (json.dumps(PAIRS[0]) + "\n"))
    arguments = case.arguments(job="check", task__path="twice.jsonl", task__check="error")
    assert run([*arguments, "hydra.run.dir=out"]) == 2
    captured = capfd.readouterr()
    assert "repeats a pair" in " ".join(captured.out.split())
    assert captured.err.startswith("acdc: task.check=error: 1 of 2 pairs repeat an earlier one")
    assert captured.err.count("\n") == 1
    assert (here / "out" / "report.html").exists()
    # Before a discovery nothing is made.
    assert_refused([*arguments, "job=discover", "hydra.run.dir=other"], capfd, "1 of 2 pairs repeat an earlier one")
    assert not (here / "other").exists()


def test_prompts_without_a_common_token_are_an_error(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pair = {"clean": "So Mary is", "corrupted": "the year 17", "answers": [" she"], "wrong_answers": [" he"]}
    (here / "unlike.jsonl").write_text(json.dumps(pair) + "\n")
    arguments = ["task=pairs", "task.path=unlike.jsonl", "task.check=error", "hydra.run.dir=out"]
    said = "in 1 of 1 pairs fewer than 50% of the tokens stand at the same place in both prompts"
    assert_refused(arguments, capfd, "task.check=error", said, "unlike.jsonl line 1")
    assert not (here / "out").exists()


def test_a_finished_check_is_not_done_again(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*case.arguments(job="check"), "hydra.run.dir=out"]) == 0
    before = contents(here / "out")
    assert run(["resume=out"]) == 0
    assert capfd.readouterr().out.endswith("the run in out is finished\n")
    assert contents(here / "out") == before
    (here / "out" / "run.json").unlink()  # as if it had been killed
    (here / "out" / "report.html").unlink()
    assert run(["resume=out"]) == 0
    assert contents(here / "out").keys() == before.keys()
    assert contents(here / "out")["report.html"] == before["report.html"]


def test_the_table_comes_before_a_discovery(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for check, shown in (("warn", True), ("off", False)):
        assert run([*case.arguments(task__check=check), f"hydra.run.dir={check}"]) == 0
        out = capfd.readouterr().out
        assert ("task.filter would leave" in out) is shown
        assert ("What each filter would leave" in (here / check / "report.html").read_text()) is shown
        assert out.index("The pairs of pairs") < out.index("edges kept") if shown else "The pairs of" not in out


def test_a_filter_keeps_the_good_pairs_and_says_how_many_fell_out(
    case: Case, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps(pair) + "\n" for pair in (*PAIRS, PAIRS[0], {**PAIRS[1], "corrupted": [4, 3, 1, 6]})]
    (here / "five.jsonl").write_text("".join(lines))
    arguments = case.arguments(task__path="five.jsonl", task__filter="[unique,minimal:1]")
    assert run([*arguments, "hydra.run.dir=out"]) == 0
    note = "task.filter keeps 1 of 5 pairs; fell out: unique 1, minimal:1 3"
    assert f"note: {note}\n" in capfd.readouterr().out
    assert note in (here / "out" / "report.html").read_text()
    assert read_json(here / "out" / "circuit.json")["provenance"]["pairs"] == 1
    # The circuit is that of the pair by itself.
    (here / "one.jsonl").write_text(lines[4])
    assert run([*case.arguments(task__path="one.jsonl"), "hydra.run.dir=one"]) == 0
    circuits = [Circuit.load(here / name / "circuit.json").edges for name in ("out", "one")]
    assert circuits[0] == pytest.approx(circuits[1])


def test_filters_in_python_and_a_task_of_ones_own_model() -> None:
    every = Experiment.build(task="tracr_reverse")
    assert every.model.name == "tracr_reverse"
    assert every.graph.inputs == ("input.tok", "input.pos")
    kept = Experiment.build(task="tracr_reverse", filter="minimal:1")
    one_differs = [
        pair for pair in every.pairs if sum(a != b for a, b in zip(pair.clean, pair.corrupted[0], strict=True)) == 1
    ]
    assert [pair.clean for pair in kept.pairs] == [pair.clean for pair in one_differs]
    assert (
        kept.notes[-1]
        == f"task.filter keeps {len(one_differs)} of 27 pairs; fell out: minimal:1 {27 - len(one_differs)}"
    )
    gate = Task("mine", [Pair([1, 3], [0, 2])], "l2", model="gate_or")
    assert Experiment.build(task=gate).model.name == "gate_or"

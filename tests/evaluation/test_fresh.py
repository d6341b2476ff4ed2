"""Fresh pairs are of the task and do not occur among the first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from acdc.errors import TaskError
from acdc.evaluation.fresh import fresh_experiment
from acdc.experiment import Experiment
from acdc.tasks import TASKS


def test_other_prompts_of_the_same_kind() -> None:
    settings = TASKS.load("gendered_pronoun")(size=8, filter=["correct"])
    one = Experiment.build(task=settings)
    fresh = fresh_experiment(one, settings, size=5)
    assert len(fresh.pairs) == 5
    cleans = [pair.clean for pair in fresh.pairs]
    assert len(set(cleans)) == 5
    assert not set(cleans) & {pair.clean for pair in one.pairs}
    assert (fresh.metric_name, fresh.ablation, fresh.model) == (one.metric_name, one.ablation, one.model)
    other = fresh_experiment(one, settings, seed=9, size=5)
    assert [pair.clean for pair in other.pairs] != cleans
    same = fresh_experiment(one, settings, seed=0, size=12)  # the task's own seed: its pairs are dropped too
    assert not {pair.clean for pair in same.pairs} & {pair.clean for pair in one.pairs}


def test_a_task_that_has_no_more() -> None:
    settings = TASKS.load("gate_or")()
    with pytest.raises(TaskError, match="fresh pairs"):
        fresh_experiment(Experiment.build(task=settings, ablation="zero"), settings)


def test_a_file_has_those_that_were_left_out(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    lines = [{"clean": [i, 5, 6], "corrupted": [i, 7, 6], "answers": [8], "wrong_answers": [9]} for i in range(6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = TASKS.load("pairs")(path=str(path), size=4)
    one = Experiment.build(task=settings)
    fresh = fresh_experiment(one, settings)
    assert {pair.clean for pair in fresh.pairs} | {p.clean for p in one.pairs} == {(i, 5, 6) for i in range(6)}
    assert len(fresh.pairs) == 2
    whole = TASKS.load("pairs")(path=str(path))
    with pytest.raises(TaskError, match="no fresh pairs"):
        fresh_experiment(Experiment.build(task=whole), whole)

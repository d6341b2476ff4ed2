"""`benchmarks.same_results` on files made by hand: it passes over what may differ, and sees every other change."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch

from benchmarks import same_results

DECISION = {"sender": "m3", "receiver": "logits", "effect": 0.25, "kept": True, "metric": 12.8}
RUN: dict[str, Any] = {
    "decisions": [DECISION, {**DECISION, "sender": "a3.h3"}],
    "circuit": {"format": "acdc-circuit", "edges": [DECISION], "metrics": {"recovery": 0.9}, "provenance": "May"},
    "metrics": {"recovery": 0.9, "seconds": 1.0, "edges": 5, "none": None},
    "rows": [{"name": "0.h1", "effect": 0.5, "seconds": 1.0}, {"name": "0.h2", "effect": "nan", "seconds": 2.0}],
    "array": np.array([[1.0, np.nan], [2.0, 3.0]]),
    "tensor": torch.tensor([True, False]),
    "effect": 0.5,
    "port": "q",
    "file": "run.log",
}


def write(folder: Path, **changes: Any) -> Path:
    """The files of a run, `RUN` with changes."""
    run = RUN | changes
    (folder / "run").mkdir(parents=True)
    (folder / "run/decisions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in run["decisions"]))
    (folder / "run/circuit.json").write_text(json.dumps(run["circuit"]))
    (folder / "run/metrics.json").write_text(json.dumps(run["metrics"]))
    with (folder / "run/patch.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(run["rows"][0]))
        writer.writeheader()
        writer.writerows(run["rows"])
    np.savez(folder / "run/patch.npz", values=run["array"], labels=np.array(["a0.h1"]))
    torch.save({"in_graph": run["tensor"], "cfg": {"n_layers": 1}}, folder / "run/circuit.mib.pt")
    graph = nx.DiGraph([("input", "logits", {"effect": run["effect"]})])
    nx.write_graphml(graph, folder / "run/circuit.graphml")
    (folder / "run/circuit.dot").write_text(f'digraph {{ "input" -> "a0.h1":{run["port"]} [color="red"] }}')
    (folder / "run" / run["file"]).write_text("some time")
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"decisions": [DECISION, {**DECISION, "sender": "L3H3", "effect": 0.25 + 1e-7}]},
        {"circuit": {**RUN["circuit"], "provenance": "June", "version": 2}},
        {"metrics": {**RUN["metrics"], "seconds": 3.0}},
        {"rows": [{**row, "name": row["name"].replace("0.", "a0."), "seconds": 9} for row in RUN["rows"]]},
        {"array": RUN["array"] * (1 + 1e-7)},
    ],
)
def test_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    count, differ = same_results.compare(write(tmp_path / "old"), write(tmp_path / "new", **changes))
    assert differ == []
    assert count > 30


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decisions": [DECISION, {**DECISION, "sender": "a3.h2"}]}, "decisions.jsonl [1].sender: a3.h3 → a3.h2"),
        ({"decisions": [{**DECISION, "kept": False}, RUN["decisions"][1]]}, "decisions.jsonl [0].kept: True → False"),
        ({"decisions": RUN["decisions"][::-1]}, "decisions.jsonl [0].sender: m3 → a3.h3"),
        ({"decisions": [DECISION]}, "decisions.jsonl length: 2 → 1"),
        ({"circuit": {**RUN["circuit"], "edges": []}}, "circuit.json edges length: 1 → 0"),
        ({"metrics": {**RUN["metrics"], "recovery": 0.90001}}, "metrics.json recovery: 0.9 → 0.90001"),
        ({"metrics": {**RUN["metrics"], "none": 0}}, "metrics.json none: None → 0"),
        ({"metrics": {**RUN["metrics"], "more": 1}}, "metrics.json more: only in NEW"),
        ({"rows": RUN["rows"][::-1]}, "patch.csv rows[0].name: 0.h1 → 0.h2"),
        ({"rows": [{**row, "p": 1} for row in RUN["rows"]]}, "patch.csv columns length: 2 → 3"),
        ({"array": RUN["array"] + 0.5}, "patch.npz values: 3 of 4 values, the first 1.0 → 1.5"),
        ({"array": RUN["array"][:1]}, "patch.npz values: shape (2, 2) → (1, 2)"),
        ({"tensor": torch.tensor([True, True])}, "circuit.mib.pt in_graph: 1 of 2 values, the first 0.0 → 1.0"),
        ({"effect": 0.4}, "circuit.graphml input->logits.effect: 0.5 → 0.4"),
        ({"port": "k"}, "circuit.dot input->a0.h1 q: only in OLD"),
        ({"file": "other.log"}, "run.log: only OLD writes it"),
    ],
)
def test_every_change_is_seen(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    _, differ = same_results.compare(write(tmp_path / "old"), write(tmp_path / "new", **changes))
    assert f"run/{said}" in differ


def test_a_command_brings_along_what_it_reads() -> None:
    assert same_results.chosen("^evaluate: ") == ["default", "evaluate"]
    assert same_results.chosen("no such command") == []

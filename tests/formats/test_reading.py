"""`acdc job=evaluate circuit=FILE` with one circuit in the files of every program."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from commands import Case, assert_refused, make_case, read_json
from foreign import edges_pkl, prune_scores

from acdc.circuit import Circuit
from acdc.cli import run
from acdc.errors import FormatError
from acdc.formats.graphml import write_graphml
from acdc.formats.mib import write_mib_json
from acdc.formats.mib_pt import write_mib_pt
from acdc.formats.reading import read_circuit
from acdc.graph import Edge, Graph, GraphConfig


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module", params=[False, True], ids=["", "projections"])
def found(case: Case, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A run's folder; without projection edges as most programs have it, and with them as the original does."""
    folder = tmp_path_factory.mktemp("found") / "run"
    arguments = case.arguments(method__projection_edges=str(request.param).lower(), method__threshold=0.002)
    assert run([*arguments, f"hydra.run.dir={folder}"]) == 0
    return folder


def test_a_circuit_has_the_same_numbers_in_every_file(case: Case, found: Path, here: Path) -> None:
    circuit = Circuit.load(found / "circuit.json")
    names = ["circuit.graphml"]
    if circuit.graph.projection_edges:
        (here / "edges.pkl").write_bytes(edges_pkl(circuit.edges, n_layers=2))
        names.append("edges.pkl")
    else:
        names += ["circuit.mib.json", "circuit.mib.pt"]
    assert len(circuit) > 3
    for name in names:
        file = here / name if (here / name).exists() else found / name
        assert (
            run(
                [
                    *case.arguments(job="evaluate", circuit=file, job__parts="[faithfulness]"),
                    f"hydra.run.dir={name}.out",
                ]
            )
            == 0
        )
        metrics = read_json(here / f"{name}.out" / "metrics.json")
        for key in ("clean", "corrupted", "circuit", "recovery", "kl", "edges_kept"):
            assert metrics[key] == pytest.approx(circuit.metrics[key], abs=1e-6), (name, key)


def test_scores_of_autocircuit_are_evaluated(case: Case, here: Path) -> None:
    graph = Graph(GraphConfig(2, 2, 8))
    scores = {str(edge): float(i) for i, edge in enumerate(graph)}
    torch.save({"pairs": {"EAP": prune_scores((2, 2), scores)}}, here / "scores.pkl")
    truth = Circuit(graph, dict.fromkeys(list(graph)[-9:], 1.0))
    truth.save(here / "own.json")
    assert read_circuit(here / "scores.pkl").tested == {edge: float(i) for i, edge in enumerate(graph)}
    arguments = case.arguments(job="evaluate", circuit=here / "scores.pkl", job__truth=here / "own.json")
    assert run([*arguments, "hydra.run.dir=out"]) == 0
    metrics = read_json(here / "out" / "metrics.json")
    assert metrics["edges_kept"] == 0  # scores say no circuit
    assert metrics["file_edges_auc_trapezoid"] == 1  # those of the truth have the largest scores
    assert metrics["circuit"] == pytest.approx(metrics["corrupted"], abs=1e-6)


WRITERS: Mapping[str, Callable[[Circuit, Path], object]] = {
    "graphml": write_graphml,
    "mib.json": write_mib_json,
    "mib.pt": write_mib_pt,
}


@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_file_is_known_by_what_is_in_it(tmp_path: Path, kind: str) -> None:
    edges = {Edge("m0", "logits"): 0.5, Edge("input", "m0"): -0.25}
    WRITERS[kind](Circuit(Graph(GraphConfig(1, 2, 8)), edges), tmp_path / "file.txt")
    assert read_circuit(tmp_path / "file.txt").edges == edges


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is neither a circuit.json"),
        (b"<graphml/>", "is not a circuit in GraphML"),
        (b"PK\x03\x04", "is a damaged pickle or .pt file"),
        (b"\x80\x04.", "is a damaged pickle or .pt file"),
        (b"\x80\x04N.", "it holds None"),
    ],
)
def test_other_files_are_one_line_errors(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(FormatError, match=said) as raised:
        read_circuit(tmp_path / "file")
    assert "\n" not in str(raised.value)
    assert "file" in str(raised.value)


@pytest.mark.parametrize("kind", ["own", "mib"])
@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("shape", "n_layers"), 10**9, "more than any model has"),
        (("shape", "n_heads"), 10**9, "more than any model has"),
        (("score",), 10**400, "OverflowError"),
        (("score",), float("inf"), "must be a finite number"),
        (("score",), float("nan"), "must be a finite number"),
    ],
)
def test_numbers_beyond_all_bounds(tmp_path: Path, kind: str, path: tuple[str, ...], value: float, said: str) -> None:
    """A shape that would fill the memory, an effect that no float holds, one that is none although it was tested."""
    edge = Edge("m0", "logits")
    circuit = Circuit(Graph(GraphConfig(1, 2, 8)), {edge: 0.5}, {edge: 0.5})
    (circuit.save if kind == "own" else partial(write_mib_json, circuit))(tmp_path / "file")
    content = json.loads((tmp_path / "file").read_text())
    if path[0] == "shape":
        content["model" if kind == "own" else "cfg"][path[1]] = value
    elif kind == "own":
        content["edges"][0]["effect"] = value
    else:
        content["edges"][str(edge)]["score"] = value
    (tmp_path / "file").write_text(json.dumps(content))
    with pytest.raises(FormatError, match=said) as raised:
        read_circuit(tmp_path / "file")
    assert "\n" not in str(raised.value)


def test_numbers_repeated_without_end(tmp_path: Path) -> None:
    """A tensor of one stored number that says it has 10¹⁰."""
    scores = prune_scores((2, 2), {str(edge): 0.0 for edge in Graph(GraphConfig(2, 2, 8))})
    torch.save(scores | {"blocks.0.hook_mlp_in": torch.zeros(1).expand(10**10)}, tmp_path / "scores.pt")
    with pytest.raises(FormatError, match="no tensor of numbers"):
        read_circuit(tmp_path / "scores.pt")


def test_the_command_line_refuses_them_too(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "edges.pkl").write_bytes(b"\x80\x02cos\nsystem\nX\x09\x00\x00\x00touch hit\x85R.")
    said = "edges.pkl names os.system"
    assert_refused([*case.arguments(job="evaluate", circuit="edges.pkl"), "hydra.run.dir=out"], capfd, said)
    (here / "edges.pkl").write_bytes(edges_pkl({Edge("m1", "logits"): 1.0, Edge("a1.h7", "logits"): 1.0}, n_layers=2))
    said = "edges.pkl is a circuit of another model: this one has no edge a1.h7->logits"
    assert_refused([*case.arguments(job="evaluate", circuit="edges.pkl"), "hydra.run.dir=out"], capfd, said)
    assert [path.name for path in here.iterdir()] == ["edges.pkl"]

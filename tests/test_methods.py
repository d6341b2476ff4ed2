"""The methods that score every edge, as jobs: what they write, what they refuse, and how they go on when killed."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
from commands import Case, as_process, assert_refused, make_case, read_json, start
from markupsafe import escape

from acdc import Circuit
from acdc.cli import run
from acdc.formats.mib import read_mib_json

METHODS = ("eap", "eap_ig", "clean_corrupted", "exact", "hisp", "information_flow", "random")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"))


def arguments(case: Case, **options: object) -> list[str]:
    """As the case has them, without its threshold of ACDC."""
    given = {"method__threshold": "null", **options}
    return [argument for argument in case.arguments(**given) if argument != "method.threshold=null"]


@pytest.fixture(scope="module")
def runs(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every method, in a process of its own."""
    folder = tmp_path_factory.mktemp("runs") / "out"
    methods = f"method={','.join(METHODS)}"
    done = as_process("-m", *arguments(case), methods, "method.edges=20", f"hydra.sweep.dir={folder}", cwd=case.model)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_every_edge_has_its_score_in_the_files(method: str, runs: Path) -> None:
    folder = runs / str(METHODS.index(method))
    circuit = Circuit.load(folder / "circuit.json")
    assert circuit.method["name"] == method
    assert set(circuit.tested) == set(circuit.graph)
    assert len(circuit) <= 20
    assert circuit.on_path().edges == circuit.edges
    assert all(circuit.tested[edge] == score for edge, score in circuit.edges.items())
    mib = read_mib_json(folder / "circuit.mib.json")
    assert set(mib.edges) == set(circuit.edges)
    assert [mib.tested.get(edge, 0.0) for edge in circuit.graph] == [circuit.tested[edge] for edge in circuit.graph]
    assert (folder / "decisions.jsonl").read_bytes() == b""
    metrics = read_json(folder / "metrics.json")
    assert (metrics["decisions"], metrics["near_ties"], metrics["scored"]) == (0, 0, 46)
    assert metrics["edges_kept"] == metrics["on_path"] == len(circuit)
    assert not (folder / "state.safetensors").exists()
    page = (folder / "report.html").read_text()
    assert "Edges by score" in page
    assert f"{method} kept {len(circuit)} of 46 edges" in page
    assert escape(circuit.method["score"]) in page


def test_a_result_is_shown(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*arguments(case, method="eap"), "method.select=threshold", "method.threshold=0.05"]) == 0
    out = capfd.readouterr().out
    assert "edges scored         46 in " in out
    assert "decisions" not in out


def test_what_cannot_be_done_makes_no_folder(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for options, said in (
        ({"method": "eap", "metric": "kl_div"}, "metric=kl_div has no slope"),
        ({"method": "eap_ig", "ablation": "zero"}, "ablation=zero does not fit method=eap_ig"),
        ({"method": "clean_corrupted", "ablation": "mean"}, "ablation=mean does not fit"),
        ({"method": "exact", "method.edges": 100}, "method.edges=100 is not allowed: this model has 46 edges"),
        ({"method": "random", "method.threshold": 0.1}, "method.threshold=0.1 has no effect"),
        ({"method": "acdc", "metric": "l2"}, "give method.threshold=NUMBER"),
    ):
        assert_refused([*arguments(case, **options), "hydra.run.dir=out"], capfd, said)
        assert not list(here.iterdir())


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    case = make_case(tmp_path, n_layers=2, n_heads=3)
    slowly = arguments(case, method="exact", method__memory_gb=1e-9)  # a row and an edge at a time
    folder, whole = tmp_path / "out", tmp_path / "whole"
    process = start(*slowly, f"hydra.run.dir={folder}", cwd=tmp_path)
    while not (folder / "state.safetensors").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (folder / "circuit.json").exists()
    before = (folder / "state.safetensors").read_bytes()
    assert run([f"resume={folder}"]) == 0
    assert run([*arguments(case, method="exact"), f"hydra.run.dir={whole}"]) == 0
    found, expected = (Circuit.load(path / "circuit.json") for path in (folder, whole))
    assert found.tested == pytest.approx(expected.tested, rel=1e-4, abs=1e-6)
    assert list(found.edges) == list(expected.edges)
    assert not (folder / "state.safetensors").exists()
    (folder / "run.json").unlink()  # as if it had not finished, with a state of another kind
    (folder / "state.safetensors").write_bytes(before[: len(before) // 2])
    assert run([f"resume={folder}"]) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method.select": "threshold", "method.threshold": 1e9}, "give method.threshold="),
        ({"method.edges": 0}, "give method.edges="),
        ({"method": "acdc", "method.threshold": 1e9}, "give a lower method.threshold"),
        ({"method": "subnetwork_probing", "method.steps": 20, "method.price": 1000, "method.lr": 1.0}, "method.price"),
    ],
)
def test_a_circuit_without_a_path_says_so(
    case: Case, here: Path, capfd: pytest.CaptureFixture[str], options: dict[str, object], said: str
) -> None:
    """With what is advised, for methods that score edges, there is one; with one edge less there is none."""
    assert run([*arguments(case, **{"method": "eap"} | options), "hydra.run.dir=out"]) == 0
    out, page = capfd.readouterr().out, (here / "out" / "report.html").read_text()
    assert read_json(here / "out" / "metrics.json")["on_path"] == 0
    for text in (out, page):
        assert "the circuit has no path from the input to the logits" in text
        assert said in text
    if "method" in options:
        return
    (advice,) = re.findall(r"give (method\.\w+=\S+)", " ".join(out.split()))
    at = read_json(here / "out" / "metrics.json")["path_at"]
    scores = sorted(map(abs, Circuit.load(here / "out" / "circuit.json").tested.values()), reverse=True)
    one_less = f"method.edges={at - 1}" if "edges" in advice else f"method.threshold={scores[at - 2]!r}"
    way = [f"method.select={options.get('method.select', 'top_n')}"]
    for asked, has_path in ((advice, True), (one_less, False)):
        assert run([*arguments(case, method="eap"), *way, asked, f"hydra.run.dir={has_path}"]) == 0
        assert (read_json(here / str(has_path) / "metrics.json")["on_path"] > 0) == has_path


@pytest.mark.parametrize("method", ["random", "edge_pruning"])
def test_how_many_of_those_asked_for_are_on_a_path(
    case: Case, here: Path, capfd: pytest.CaptureFixture[str], method: str
) -> None:
    asked = {"random": {"method.edges": 8}, "edge_pruning": {"method.sparsity": 1 - 8 / 46, "method.steps": 20}}[method]
    assert run([*arguments(case, method=method, **asked), "hydra.run.dir=out"]) == 0
    metrics = read_json(here / "out" / "metrics.json")
    assert (metrics["asked"], metrics["chosen"]) == (8, 8)
    assert metrics["on_path"] == metrics["edges_kept"] < 8
    assert f"of 8 chosen edges {metrics['on_path']} are on a path" in capfd.readouterr().out


@pytest.mark.parametrize("method", [*METHODS, "edge_pruning"])
def test_the_default_never_ends_with_nothing(case: Case, here: Path, method: str) -> None:
    few = {"method.steps": 5} if method == "edge_pruning" else {}
    assert run([*arguments(case, method=method, **few), "hydra.run.dir=out"]) == 0
    metrics = read_json(here / "out" / "metrics.json")
    assert metrics["on_path"] > 0
    assert metrics["chosen"] == max(metrics["asked"], metrics["path_at"])

"""The comparison of methods as a job: what it writes, what it refuses, and how it goes on when killed."""

from __future__ import annotations

import csv
import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from commands import Case, as_process, assert_refused, make_case, read_json, start
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from acdc import Circuit, Experiment
from acdc.cli import run
from acdc.discovery import score
from acdc.formats.reading import read_circuits
from acdc.journal import TensorStore
from acdc.model import ModelSettings
from acdc.tasks import TASKS

FEW = "job.methods=[eap,exact]"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"))


def arguments(case: Case, **options: object) -> list[str]:
    given = case.arguments(job="compare", **options)
    return [argument for argument in given if not argument.startswith("method.")]


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def test_as_a_process_on_the_bundled_model(tmp_path: Path) -> None:
    command = ["job=compare", "task=ioi", "model=pocket", "job.methods=[eap,random]", "task.size=8", "job.random=2"]
    done = as_process(*command, "hydra.run.dir=out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = rows_of(tmp_path / "out" / "compare.csv")
    assert list(rows) == ["eap", "random"]
    for row in rows.values():
        assert 0 < int(float(row["edges_at_90"])) <= 479
        assert all(float(row[f"kl_at_{n}"]) >= 0 for n in (5, 10, 20, 50, 100, 200))
        assert all(float(row[key]) is not None for key in ("cpr", "cmd", "seconds", "processor_seconds", "peak_mb"))
        assert (row["auc"], row["note"]) == ("", "")
    assert float(rows["eap"]["cmd"]) < float(rows["random"]["cmd"])
    assert (rows["eap"]["cmd_sd"], float(rows["random"]["cmd_sd"]) > 0) == ("", True)
    assert "The methods in one table" in done.stdout


def test_everything_it_writes(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Three methods, of which one does not fit; the metric has no slope at the full model."""
    methods = "job.methods=[hisp,exact,information_flow]"
    given = [*arguments(case, metric="kl_div"), methods, "job.sizes=[3,9]", "job.fractions=[0.25]", "job.random=2"]
    assert run([*given, "job.equal_size=6", "hydra.run.dir=out"]) == 0
    out, n_edges = here / "out", len(Circuit.load(here / "out" / "methods" / "exact" / "circuit.json").graph)
    rows, whole = rows_of(out / "compare.csv"), read_json(out / "compare.json")
    assert list(rows) == ["exact", "information_flow", "random", "hisp"]
    assert "no slope" in rows["hisp"]["note"]
    assert rows["hisp"]["edges_at_90"] == ""
    sizes = sorted({3, 9, n_edges // 4})
    assert [key for key in rows["exact"] if key.startswith("kl_at") and not key.endswith("_sd")] == [
        f"kl_at_{n}" for n in sizes
    ]
    assert whole["refused"] == {"hisp": rows["hisp"]["note"]}
    assert all(len(one["equal_size"]["names"]) == 6 for one in whole["methods"].values())
    common = set.intersection(*(set(one["equal_size"]["names"]) for one in whole["methods"].values()))
    assert set(whole["shared"]["core"]) == common
    with (out / "curve.csv").open() as file:
        curve = list(csv.DictReader(file))
    assert {row["method"] for row in curve} == {"exact", "information_flow", "random"}
    assert float(curve[-1]["recovery"]) == pytest.approx(1, abs=1e-5)
    metrics = read_json(out / "metrics.json")
    assert metrics["exact_cmd"] == pytest.approx(float(rows["exact"]["cmd"]))
    pictures = ("recovery", "kl", "jaccard", "circuits", "circuit_exact", "circuit_information_flow")
    for name in pictures:
        assert len(Image.open(out / f"{name}.png").convert("L").getcolors()) > 20
        assert (out / f"{name}.svg").read_text().count("<svg") == 1
    page = (out / "report.html").read_text()
    for words in ("The methods in one table", "no slope at the full model", "What they share", "6 best edges"):
        assert words in page
    assert page.count("data:image/svg+xml;base64,") == len(pictures) - 1  # the union can be zoomed
    said = capfd.readouterr().out
    assert "hisp has no numbers: metric=kl_div has no slope" in said
    assert set(read_circuits(out / "methods")) == {"exact", "information_flow", "random", "random_1"}


def test_a_known_circuit_is_graded(here: Path) -> None:
    given = ["job=compare", "task=gate_and", "model=gate_and", "ablation=zero", "job.methods=[exact]", "job.random=3"]
    assert run([*given, "hydra.run.dir=out"]) == 0
    rows = rows_of(here / "out" / "compare.csv")
    assert float(rows["exact"]["auc"]) == 1
    assert float(rows["random"]["auc"]) < 1
    assert len(Image.open(here / "out" / "roc_derived.png").convert("L").getcolors()) > 20


SLOWLY = ["job.methods=[eap,exact]", "job.options={exact:{memory_gb:1e-9}}", "job.random=1"]  # an edge at a time


def assert_goes_on(case: Case, folder: Path) -> None:
    """A stopped comparison goes on with the method that is done and inside the one that was not."""
    state = folder / "methods" / "exact" / "state.safetensors"
    assert not (folder / "compare.csv").exists()
    done = folder / "methods" / "eap" / "circuit.json"
    before, clock = done.read_bytes(), load_file(state)["clock"]
    assert run([f"resume={folder}"]) == 0
    assert done.read_bytes() == before  # not found again
    found = Circuit.load(folder / "methods" / "exact" / "circuit.json")
    assert found.metrics["seconds"] > float(clock[0]) > 0
    model, task = ModelSettings(name="local", path=str(case.model)), TASKS.load("pairs")(path=str(case.pairs))
    expected = score(Experiment.build(model, task, "logit_diff"), "exact")
    assert found.tested == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert list(rows_of(folder / "compare.csv")) == ["eap", "exact", "random"]
    assert not state.exists()
    assert run([f"resume={folder}"]) == 0
    assert done.read_bytes() == before


def test_a_stopped_comparison_goes_on(case: Case, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = []

    def save(store: TensorStore, tensors: Mapping[str, Tensor]) -> None:
        saves.append(store)
        if len(saves) == 20:
            raise KeyboardInterrupt
        kept(store, tensors)

    kept = TensorStore.save
    with monkeypatch.context() as patched:
        patched.setattr(TensorStore, "save", save)
        assert run([*arguments(case), *SLOWLY, "hydra.run.dir=out"]) == 130
    assert len(saves) == 20
    assert_goes_on(case, here / "out")


@pytest.mark.slow
def test_a_killed_comparison_goes_on(tmp_path: Path) -> None:
    case, folder = make_case(tmp_path, n_layers=2, n_heads=3), tmp_path / "out"
    process = start(*arguments(case), *SLOWLY, f"hydra.run.dir={folder}", cwd=tmp_path)
    while not (folder / "methods" / "exact" / "state.safetensors").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert_goes_on(case, folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("job.methods=[foo]", ["job.methods=foo", "acdc_scores, eap"]),
        ("job.methods=[]", ["job.methods=[]", "choose of"]),
        ("job.methods=[acdc]", ["job.methods=acdc", "acdc_scores"]),
        ("job.methods=eap", ["job.methods=eap", "a list or null"]),
        ("job.sizes=[0]", ["job.sizes=0", "1 or more"]),
        ("job.sizes=[5000]", ["job.sizes=5000", "this model has"]),
        ("job.fractions=[1.5]", ["job.fractions=1.5", "more than 0"]),
        ("job.equal_size=5000", ["job.equal_size=5000", "this model has"]),
        ("job.equal_size=0", ["job.equal_size=0", "1 or more"]),
        ("job.random=0", ["job.random=0", "1 or more"]),
        ("job.options=5", ["job.options=5", "a mapping of names to values or null"]),
        ("job.options={exact:5}", ["job.options.exact=5", "a mapping"]),
        ("job.options={hisp:{memory_gb:1}}", ["job.options has hisp", "not among job.methods"]),
        ("job.options={random:{seed:1}}", ["job.options has random", "job.seed"]),
        ("job.options={eap:{edges:5}}", ["job.options.eap.edges has no effect"]),
        ("job.options={eap:{select:threshold}}", ["job.options.eap.select=threshold", "top_n or greedy"]),
        ("job.options={eap:{foo:5}}", ["job.options.eap.foo does not exist"]),
        ("job.truth=nowhere.json", ["nowhere.json"]),
        ("circuit=x.json", ["circuit=FILE is for job=evaluate"]),
    ],
)
def test_refused(case: Case, here: Path, capfd: pytest.CaptureFixture[str], options: str, said: list[str]) -> None:
    given = [FEW] * ("methods" not in options) + options.split()
    assert_refused([*arguments(case), *given, "hydra.run.dir=out"], capfd, *said)
    assert not list(here.iterdir())


def test_refused_for_what_cannot_be_compared(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = [*arguments(case, metric="kl_div"), "job.methods=[eap,hisp]"]
    assert_refused(given, capfd, "no method of job.methods fits", "no slope")
    same = {"clean": [2, 5, 7, 3], "corrupted": [2, 5, 7, 3], "answers": [8], "wrong_answers": [9]}
    (here / "same.jsonl").write_text(json.dumps(same) + "\n")
    assert_refused([*arguments(case, task__path="same.jsonl"), FEW], capfd, "the same with every edge and without any")

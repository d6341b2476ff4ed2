"""The command line, tried the way a user would."""

from __future__ import annotations

import csv
import os
import pty
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import Case, as_process, assert_refused, make_case, read_json, read_lines
from omegaconf import OmegaConf

import acdc
from acdc import discovery, jobs
from acdc.circuit import Circuit
from acdc.cli import CONF, run
from acdc.errors import RunError
from acdc.experiment import Experiment

FILES = {
    "circuit.json",
    "circuit.mib.json",
    "circuit.graphml",
    "circuit.dot",
    "circuit.svg",
    "circuit.png",
    "decisions.jsonl",
    "metrics.json",
    "report.html",
    "run.log",
    "run.json",
    ".hydra",
}
METRICS = {
    "clean",
    "corrupted",
    "circuit",
    "recovery",
    "kl",
    "edges_kept",
    "edges_total",
    "decisions",
    "near_ties",
    "seconds",
    "peak_mb",
}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


# Wrong input.

WRONG: list[tuple[str, list[str]]] = [
    # groups
    ("task=foo", ["task=foo does not exist", "ioi", "pairs"]),
    ("model=foo", ["model=foo does not exist", "pocket", "gpt2"]),
    ("method=foo", ["method=foo does not exist", "acdc"]),
    ("metric=foo", ["metric=foo does not exist", "kl_div", "logit_diff"]),
    ("ablation=foo", ["ablation=foo does not exist", "corrupted, mean, noise, zero"]),
    ("tracker=foo", ["tracker=foo does not exist", "none, wandb"]),
    ("job=foo", ["job=foo does not exist", "discover"]),
    ("experiment=foo", ["experiment=foo does not exist", "ioi_kl"]),
    ("hydra/launcher=foo", ["hydra/launcher=foo does not exist", "basic, joblib"]),
    ("taks=ioi", ["taks does not exist", "task"]),
    ("~task", ["task needs one option"]),
    ("metric=null", ["metric", "takes the name of an option"]),
    ("task=[ioi,induction]", ["task needs one option"]),
    ("task=ioi,induction", ["task=ioi,induction has several values", "-m"]),
    # keys
    ("foo=1", ["foo does not exist", "job, model, task, metric, ablation, method, tracker"]),
    ("+foo=1", ["foo does not exist", "task"]),
    ("+foo.bar=1", ["foo does not exist"]),
    ("method.foo=1", ["method.foo does not exist", "method has name, threshold"]),
    ("+method.foo=1", ["method.foo does not exist", "method has name, threshold"]),
    ("+metric.foo=1", ["metric.foo does not exist"]),
    ("method.threshold.x=1", ["method.threshold.x does not exist", "method has"]),
    ("task=induction task.order=abba", ["task.order does not exist", "length"]),
    ("~method.foo", ["method.foo", "does not exist"]),
    ("hydra.foo=1", ["hydra.foo does not exist", "sweep"]),
    # types
    ("method.threshold=abc", ["method.threshold=abc", "a finite number or null"]),
    ("method.threshold=", ["method.threshold=", "a finite number or null"]),
    ("method.threshold=nan", ["method.threshold=nan", "a finite number"]),
    ("method.threshold=inf", ["method.threshold=inf", "a finite number"]),
    ("method.threshold=true", ["method.threshold=true", "a finite number"]),
    ("method.projection_edges=perhaps", ["method.projection_edges=perhaps", "true or false"]),
    ("task.size=many", ["task.size=many", "a whole number"]),
    ("task.size=1.5", ["task.size=1.5", "a whole number"]),
    ("task.size=null", ["task.size=null", "a whole number"]),
    ("model.path=5", ["model.path=5", "text or null"]),
    ("tracker.tags=x", ["tracker.tags=x", "a list"]),
    # values
    ("task.check=maybe", ["task.check=maybe", "error, warn, off"]),
    ("method.engine=fast", ["method.engine=fast", "incremental, full"]),
    ("method.batch_size=0", ["method.batch_size=0", "auto"]),
    ("method.batch_size=many", ["method.batch_size=many", "auto"]),
    ("model.dtype=int8", ["model.dtype=int8", "float32"]),
    ("ablation.draws=0", ["ablation.draws=0", "1 or more"]),
    ("tracker.mode=foo", ["tracker.mode=foo", "online, offline, disabled"]),
    ("tracker.every=0", ["tracker.every=0", "1 or more"]),
    ("task.name=foo", ["task=foo does not exist"]),
    ("metric.name=foo", ["metric=foo", "logit_diff"]),
    ("method.name=foo", ["method=foo does not exist"]),
    ("job.name=foo", ["job=foo does not exist"]),
    # what is no override
    ("=3", ["'=3' is not KEY=VALUE", "--help"]),
    ("method.threshold", ["'method.threshold' is not KEY=VALUE"]),
    ("method.threshold={", ["'method.threshold={'", "quote"]),
    ("method.threshold=${foo}", ["method.threshold", "foo"]),
    ("method.threshold=???", ["method.threshold"]),
    # flags
    ("--foo", ["--foo", "--help"]),
    ("--cfg foo", ["foo", "job"]),
    ("--cfg job task=foo", ["task=foo does not exist"]),
    ("--help task=foo", ["task=foo does not exist"]),
    ("--config-name other", ["--config-dir"]),
    ("--config-dir nowhere", ["nowhere is not a folder"]),
    ("--experimental-rerun x", ["resume=FOLDER"]),
    ("--resolve", ["--cfg"]),
    # resume
    ("resume=nowhere", ["resume=nowhere", "no run was started there"]),
    ("resume=", ["resume=FOLDER"]),
    ("resume=nowhere task=ioi", ["stands alone"]),
    # sweeps, wrong in one of the combinations
    ("-m task=ioi,foo", ["task=foo does not exist"]),
    ("-m method.threshold=0.1,abc", ["method.threshold=abc"]),
    ("-m method.foo=1,2", ["method.foo does not exist"]),
    ("-m +foo=1,2", ["foo does not exist"]),
    ("-m method.threshold={", ["quote"]),
    ("-m method.engine=full,fast", ["method.engine=fast"]),
    ("-m hydra/launcher=foo task.seed=1,2", ["basic, joblib"]),
    ("-m --cfg job", ["only one of"]),
    ("-m resume=nowhere", ["stands alone"]),
]


@pytest.mark.parametrize(("line", "said"), WRONG, ids=[line for line, _ in WRONG])
def test_wrong_words_are_refused_in_one_line(
    line: str, said: list[str], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert_refused(line.split(" "), capfd, *said)
    assert not list(here.iterdir())


def test_a_word_with_a_space_is_no_override(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert_refused(["a b"], capfd, "'a b' is not KEY=VALUE")


def _text(name: str, text: str) -> Callable[[Path, Case], dict[str, object]]:
    def make(folder: Path, case: Case) -> dict[str, object]:
        (folder / name).write_text(text)
        return {"task__path": folder / name}

    return make


def _model(change: Callable[[Path], object]) -> Callable[[Path, Case], dict[str, object]]:
    def make(folder: Path, case: Case) -> dict[str, object]:
        shutil.copytree(case.model, folder / "model")
        change(folder / "model")
        return {"model__path": folder / "model"}

    return make


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


GOOD = '{"clean": [1, 2], "corrupted": [3, 2]}\n'
WRONG_FILES: dict[str, tuple[Callable[[Path, Case], dict[str, object]], list[str]]] = {
    "no file": (lambda folder, case: {"task__path": folder / "none.jsonl"}, ["task.path", "none.jsonl"]),
    "a folder": (lambda folder, case: {"task__path": folder}, ["task.path"]),
    "no path": (lambda folder, case: {"task__path": "null"}, ["task.path=FILE"]),
    "not JSON": (_text("p.jsonl", GOOD + "{oops\n"), ["p.jsonl line 2", "not JSON"]),
    "no corrupted": (_text("p.jsonl", '{"clean": [1]}\n'), ["p.jsonl line 1", "'corrupted'"]),
    "unequal": (_text("p.jsonl", GOOD + '{"clean": [1, 2], "corrupted": [1]}\n'), ["p.jsonl line 2", "2 tokens", "1"]),
    "both": (
        _text("p.jsonl", '{"clean": [1], "corrupted": [2], "answers": [3], "wrong_answers": [3]}\n'),
        ["p.jsonl line 1", "both an answer and a wrong answer"],
    ),
    "no answers": (_text("p.jsonl", GOOD), ["metric=logit_diff needs answers", "kl_div"]),
    "foreign id": (_text("p.jsonl", '{"clean": [99], "corrupted": [1]}\n'), ["p.jsonl line 1", "99"]),
    "text without tokenizer": (_text("p.jsonl", '{"clean": "a", "corrupted": "b"}\n'), ["tokenizer"]),
    "no model": (lambda folder, case: {"model__path": folder / "none"}, ["none", "config.json"]),
    "empty model": (lambda folder, case: {"model__path": folder}, ["config.json"]),
    "no model path": (lambda folder, case: {"model__path": "null"}, ["model.path=FOLDER"]),
    "damaged config": (_model(lambda m: (m / "config.json").write_text("{oops")), ["config.json is damaged"]),
    "damaged weights": (_model(lambda m: _halve(m / "model.safetensors")), ["model", "cannot be loaded"]),
    "no weights": (_model(lambda m: (m / "model.safetensors").unlink()), ["model", "cannot be loaded"]),
    "no architecture": (_model(lambda m: (m / "config.json").write_text('{"model_type": "foo"}')), ["foo"]),
    "by name": (lambda folder, case: {"model": "gpt2", "model__path": "null"}, ["gpt2", "network"]),
    "no threshold": (
        lambda folder, case: {"metric": "nll", "method__threshold": "null"},
        ["no threshold of its own", "method.threshold=NUMBER"],
    ),
    "task.size": (lambda folder, case: {"task__size": 0}, ["task.size=0"]),
    "task.corruption": (lambda folder, case: {"task__corruption": "xyz"}, ["task.corruption=xyz"]),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
@pytest.mark.parametrize("sweep", [False, True], ids=["run", "sweep"])
def test_wrong_files_are_refused_in_one_line(
    kind: str, sweep: bool, case: Case, here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, said = WRONG_FILES[kind]
    (tmp_path / "data").mkdir()
    arguments = case.arguments(**make(tmp_path / "data", case))
    assert_refused([*(["-m"] if sweep else []), *arguments], capfd, *said)
    assert not list(here.iterdir())


def test_an_answer_of_two_tokens_is_refused(here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.jsonl").write_text(
        '{"clean": "Mary and John", "corrupted": "Mary and Paul", "answers": [" went to"], "wrong_answers": [" a"]}\n'
    )
    assert_refused(["task=pairs", f"task.path={tmp_path / 'p.jsonl'}"], capfd, "line 1", "one token")
    assert not list(here.iterdir())


def test_a_device_that_is_not_there_is_refused(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert_refused(case.arguments(model__device="cuda:77"), capfd, "model.device=cuda:77", "cpu")
    assert not list(here.iterdir())


def test_folders_that_cannot_be_had(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "file").write_text("mine")
    for folder in ("file", "file/below"):
        assert_refused([*case.arguments(), f"hydra.run.dir={folder}"], capfd, "hydra.run.dir", "another folder")
        assert_refused(["-m", *case.arguments(), f"hydra.sweep.dir={folder}"], capfd, "another folder")
    assert [path.name for path in here.iterdir()] == ["file"]
    assert (here / "file").read_text() == "mine"


def test_the_process_says_one_line(here: Path) -> None:
    done = as_process("method.threshold=abc", cwd=here)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "acdc: method.threshold=abc is not allowed: give a finite number or null\n"
    assert not list(here.iterdir())


# A run.


@pytest.fixture(scope="module")
def finished(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "out"
    assert run([*case.arguments(), f"hydra.run.dir={folder}"]) == 0
    return folder


def test_a_run_writes_what_is_promised(finished: Path, case: Case) -> None:
    assert {path.name for path in finished.iterdir()} == FILES
    assert {path.name for path in (finished / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}

    metrics = read_json(finished / "metrics.json")
    assert metrics.keys() >= METRICS
    circuit = read_json(finished / "circuit.json")
    assert (circuit["format"], circuit["version"], circuit["task"]) == ("acdc-circuit", 1, "pairs")
    assert circuit["model"]["n_layers"] == circuit["model"]["n_heads"] == 2
    assert circuit["method"].items() >= {"name": "acdc", "threshold": 0.02, "engine": "incremental"}.items()
    assert circuit["provenance"].keys() >= {"versions", "seed", "order", "device", "time"}
    assert circuit["total_edges"] == metrics["edges_total"]
    assert circuit["metrics"] == metrics

    decisions = read_lines(finished / "decisions.jsonl")
    assert len(decisions) == metrics["decisions"]
    assert all(line.keys() >= {"sender", "receiver", "effect", "kept", "metric"} for line in decisions)
    kept = [(line["sender"], line["receiver"]) for line in decisions if line["kept"]]
    assert 0 < len(kept) == metrics["edges_kept"] < metrics["edges_total"]
    assert kept == [(edge["sender"], edge["receiver"]) for edge in circuit["edges"]]
    assert all(line["kept"] == (line["effect"] >= 0.02) for line in decisions)

    scores = read_json(finished / "circuit.mib.json")["edges"]
    tested = {f"{line['sender']}->{line['receiver']}": line["effect"] for line in decisions}
    assert {name for name, edge in scores.items() if edge["in_graph"]} == {f"{a}->{b}" for a, b in kept}
    assert {name: edge["score"] for name, edge in scores.items()} == {name: tested.get(name, 0.0) for name in scores}
    assert len(Circuit.load(finished / "circuit.json")) == len(kept)
    assert (finished / "circuit.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (finished / "report.html").read_text()
    assert "finished" in (finished / "run.log").read_text()


def test_the_configuration_is_kept(finished: Path, case: Case) -> None:
    config = OmegaConf.load(finished / ".hydra" / "config.yaml")
    assert (config.task.path, config.model.path) == (str(case.pairs), str(case.model))
    assert config.metric.name == "logit_diff"
    assert "hydra" not in config
    assert list(OmegaConf.load(finished / ".hydra" / "overrides.yaml")) == case.arguments()
    hydra = OmegaConf.load(finished / ".hydra" / "hydra.yaml").hydra
    assert hydra.runtime.output_dir == str(finished)
    assert hydra.runtime.choices.task == "pairs"


def test_a_folder_that_holds_a_run_is_refused(finished: Path, case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    arguments = [*case.arguments(), f"hydra.run.dir={finished}"]
    assert_refused(arguments, capfd, "already holds a run", f"resume={finished}")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_negative_threshold_keeps_every_edge(case: Case, here: Path) -> None:
    assert run([*case.arguments(method__threshold=-100), "hydra.run.dir=out"]) == 0
    metrics = read_json(here / "out" / "metrics.json")
    assert metrics["edges_kept"] == metrics["edges_total"]
    assert metrics["recovery"] == pytest.approx(1.0)


def test_a_recovery_that_does_not_exist_is_null(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "same.jsonl").write_text('{"clean": [1, 2], "corrupted": [1, 2], "answers": [3], "wrong_answers": [4]}\n')
    assert run([*case.arguments(task__path="same.jsonl"), "hydra.run.dir=out"]) == 0
    assert read_json(here / "out" / "metrics.json")["recovery"] is None
    assert read_json(here / "out" / "circuit.json")["metrics"]["recovery"] is None
    assert re.search(r"recovery +none", capfd.readouterr().out)


def test_the_default_place_and_the_output(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(case.arguments()) == 0
    captured = capfd.readouterr()
    (report,) = here.glob("outputs/*/*/report.html")
    assert captured.err == ""
    assert captured.out.splitlines()[-1].split() == ["report", str(report)]


# Sweeps.


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep(launcher: str, case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [
        argument for argument in case.arguments() if not argument.startswith(("method.threshold", "task.path"))
    ]
    arguments += [f"task.path={os.path.relpath(case.pairs)}", "method.threshold=0.01,0.05,100", "hydra.sweep.dir=sweep"]
    arguments += [f"hydra/launcher={launcher}", *(["hydra.launcher.n_jobs=2"] if launcher == "joblib" else [])]
    assert run(["-m", *arguments]) == 0
    out, err = capfd.readouterr()
    assert err == ""

    assert [path.name for path in here.iterdir()] == ["sweep"]
    assert {path.name for path in (here / "sweep").iterdir()} == {"0", "1", "2", "multirun.yaml", "sweep.csv"}
    rows = list(csv.DictReader((here / "sweep" / "sweep.csv").open()))
    assert [(row["run"], row["method.threshold"]) for row in rows] == [("0", "0.01"), ("1", "0.05"), ("2", "100")]
    for row in rows:
        folder = here / "sweep" / row["run"]
        assert {path.name for path in folder.iterdir()} == FILES
        assert {path.name for path in (folder / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
        assert OmegaConf.load(folder / ".hydra" / "config.yaml").task.path == str(case.pairs)
        metrics = read_json(folder / "metrics.json")
        assert int(row["edges_kept"]) == metrics["edges_kept"]
        assert float(row["recovery"]) == metrics["recovery"]
    assert int(rows[0]["edges_kept"]) > int(rows[2]["edges_kept"]) == 0

    # A line a job, in the order they end, and the table; nothing that moves.
    lines = out.splitlines()
    assert sorted(line.partition(": ")[0] for line in lines[:3]) == ["0", "1", "2"]
    assert re.match(r"run +method.threshold +edges kept +recovery", lines[3])
    assert "\x1b" not in out
    assert_refused(["-m", *arguments], capfd, "already holds a sweep")


def test_a_failing_job_does_not_stop_a_sweep(
    case: Case, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_at_two(experiment: Experiment, method: object, *rest: object) -> Circuit:
        if getattr(method, "threshold", 0) == 2:
            raise RunError("no luck")
        return discovery.discover(experiment, method, *rest)

    monkeypatch.setattr(jobs, "discovery", SimpleNamespace(discover=fails_at_two, load=discovery.load))
    code = run(["-m", *case.arguments(method__threshold="1,2,3"), "hydra.sweep.dir=sweep"])
    assert code == 2
    assert capfd.readouterr().err == f"acdc: 1: no luck\nacdc: 1 of 3 runs did not finish: see {here / 'sweep'}\n"
    rows = list(csv.DictReader((here / "sweep" / "sweep.csv").open()))
    assert [bool(row["edges_kept"]) for row in rows] == [True, False, True]


def test_a_configuration_may_hold_the_sweep(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "conf" / "experiment").mkdir(parents=True)
    (here / "conf" / "experiment" / "many.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      method.threshold: 1,abc\n"
    )
    arguments = ["--config-dir", "conf", "experiment=many", "hydra.sweep.dir=sweep"]
    plain = [argument for argument in case.arguments() if not argument.startswith("method.threshold")]
    assert_refused([*arguments, *plain], capfd, "method.threshold=abc")
    assert not (here / "sweep").exists()


# Looking around.


def test_help(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["--help", "task=induction"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for folder in CONF.iterdir():
        assert not folder.is_dir() or f"\n  {folder.name} " in text
    words = " ".join(text.split())
    for path in CONF.glob("*/*.yaml"):
        assert path.stem in words
    assert "induction*" in words
    assert "task.length=10 number of tokens that are repeated" in words
    assert "method.threshold=null τ: an edge stays if" in words
    assert "acdc resume=OUT" in words
    assert not list(here.iterdir())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"acdc {acdc.__version__}\n"


def test_the_configuration_can_be_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--cfg", "job", "task=induction", "method.threshold=0.5"]) == 0
    shown = OmegaConf.create(capsys.readouterr().out)
    assert (shown.task.name, shown.task.length, shown.method.threshold) == ("induction", 10, 0.5)
    assert "hydra" not in shown
    assert not list(here.iterdir())


def test_configuration_of_ones_own(case: Case, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = here / "my conf"
    (own / "task").mkdir(parents=True)
    (own / "experiment").mkdir()
    (own / "task" / "mine.yaml").write_text(f"# Mine.\nname: pairs\npath: {case.pairs}\nsize: 2 # of three\n")
    (own / "task" / "ioi.yaml").write_text("name: nonsense\n")
    (own / "experiment" / "whole.yaml").write_text(
        f"# @package _global_\ndefaults:\n  - override /task: mine\n  - override /model: local\n"
        f"model:\n  path: {case.model}\nmethod:\n  threshold: 0.3\n"
    )
    flags = ["--config-dir", str(own)]
    assert run([*flags, "experiment=whole", "hydra.run.dir=out"]) == 0
    config = OmegaConf.load(here / "out" / ".hydra" / "config.yaml")
    assert (config.task.size, config.method.threshold, config.model.path) == (2, 0.3, str(case.model))
    capsys.readouterr()
    assert run([*flags, "--help", "task=mine"]) == 0
    shown = capsys.readouterr().out
    assert "mine*" in shown
    assert re.search(r"task.size=2 +of three", shown)
    assert run([*flags, "--cfg", "job"]) == 0
    assert OmegaConf.create(capsys.readouterr().out).task.name == "ioi"


def test_experiments_pin_a_run_and_give_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--cfg", "job", "experiment=ioi_kl"]) == 0
    pinned = OmegaConf.create(capsys.readouterr().out)
    assert (pinned.metric.name, pinned.method.threshold, pinned.task.size) == ("kl_div", 0.0575, 50)
    assert run(["--cfg", "job", "experiment=ioi_kl", "metric=logit_diff", "method.threshold=1"]) == 0
    changed = OmegaConf.create(capsys.readouterr().out)
    assert (changed.metric.name, changed.method.threshold, changed.task.size) == ("logit_diff", 1, 50)


def test_every_option_of_every_group_composes(capsys: pytest.CaptureFixture[str]) -> None:
    for path in CONF.glob("*/*.yaml"):
        assert run(["--cfg", "job", f"{path.parent.name}={path.stem}"]) == 0, path
    capsys.readouterr()


# Where it runs.


def test_folders_called_conf_and_tasks_do_not_mislead(case: Case, here: Path) -> None:
    (here / "conf" / "task").mkdir(parents=True)
    (here / "conf" / "config.yaml").write_text("defaults:\n  - task: nothing\n")
    (here / "conf" / "task" / "pairs.yaml").write_text("name: nonsense\n")
    (here / "tasks").mkdir()
    for name in ("__init__", "base", "pairs"):
        (here / "tasks" / f"{name}.py").write_text("raise SystemExit('the wrong tasks')\n")
    with (here / "log").open("w") as log:
        code = subprocess.call(
            [sys.executable, "-m", "acdc", *case.arguments(), "hydra.run.dir=out"], cwd=here, stdout=log, stderr=log
        )
    text = (here / "log").read_text()
    assert code == 0, text
    assert "\x1b" not in text  # no colours, no moving cursor where there is no terminal
    assert "\r" not in text
    assert {path.name for path in (here / "out").iterdir()} == FILES


def test_a_terminal_sees_progress(case: Case, here: Path) -> None:
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "acdc", *case.arguments(), "hydra.run.dir=out"]
    process = subprocess.Popen(command, cwd=here, stdout=child, stderr=child, env={**os.environ, "COLUMNS": "80"})
    os.close(child)
    seen = b""
    while chunk := _read(parent):
        seen += chunk
    os.close(parent)
    assert process.wait() == 0
    text = seen.decode()
    assert "loading the model" in text
    assert re.search(r"tested \d+ kept \d+ left logit_diff", re.sub(r"\x1b\[[\d;?]*\w", "", text).replace("\r", ""))
    assert "to go" in text


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other side is closed
        return b""


@pytest.mark.slow
def test_the_wheel_runs_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77", reason="needs setuptools to build a wheel offline")
    root = Path(acdc.__file__).parents[1]
    if not (root / "pyproject.toml").is_file():
        pytest.skip("acdc is installed from a wheel itself")
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("acdc", "tasks", "conf"):
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    pip = [sys.executable, "-m", "pip"]
    quiet = ["--quiet", "--no-deps"]
    wheel_command = [*pip, "wheel", str(source), *quiet, "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run(wheel_command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in [*root.glob("conf/**/*.yaml"), *root.glob("tasks/*.py"), *root.glob("acdc/model/pocket/*.*")]:
        inside = str(path.relative_to(root)) if path.is_relative_to(root / "acdc") else f"acdc/{path.relative_to(root)}"
        assert inside in names
    subprocess.run([*pip, "install", *quiet, "--target", str(site), str(wheel)], check=True, capture_output=True)

    empty = tmp_path / "empty"
    (empty / "conf").mkdir(parents=True)
    (empty / "conf" / "config.yaml").write_text("nonsense: 1\n")
    done = as_process("task.size=2", "hydra.run.dir=out", cwd=empty, env={"PYTHONPATH": str(site)})
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in (empty / "out").iterdir()} == FILES
    shown = as_process("--help", cwd=empty, env={"PYTHONPATH": str(site)})
    assert shown.stdout.rstrip().endswith(str(site / "acdc" / "conf"))

"""The command line, tried the way a user would."""

from __future__ import annotations

import csv
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import Case, as_process, assert_refused, killed_at, make_case, read_json, read_lines
from omegaconf import OmegaConf

import acdc
from acdc import discovery
from acdc.circuit import Circuit
from acdc.cli import run
from acdc.compose import CONF
from acdc.errors import RunError
from acdc.experiment import Experiment
from acdc.jobs import discover as discover_job
from acdc.journal import Journal

FILES = {
    "circuit.json",
    "circuit.mib.json",
    "circuit.mib.pt",
    "circuit.graphml",
    "circuit.dot",
    "circuit.svg",
    "circuit.png",
    "decisions.jsonl",
    "metrics.json",
    "report.html",
    "run.log",
    "run.json",
    "resolved.yaml",
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
    used = OmegaConf.load(finished / "resolved.yaml")
    assert (used.model.device, used.model.dtype, used.graph.split_embedding) == ("cpu", "float32", False)
    assert "patch" not in used
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
    assert {path.name for path in (here / "sweep").iterdir()} == {
        "0",
        "1",
        "2",
        "multirun.yaml",
        "sweep.csv",
        "comparison.csv",
        "comparison.json",
        "comparison.html",
    }
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

    monkeypatch.setattr(discover_job, "discovery", SimpleNamespace(discover=fails_at_two))
    code = run(["-m", *case.arguments(method__threshold="1,2,3"), "hydra.sweep.dir=sweep"])
    assert code == 2
    assert capfd.readouterr().err == f"acdc: 1: no luck\nacdc: 1 of 3 runs did not finish: see {here / 'sweep'}\n"
    rows = list(csv.DictReader((here / "sweep" / "sweep.csv").open()))
    assert [bool(row["edges_kept"]) for row in rows] == [True, False, True]


def test_a_killed_sweep_says_what_can_go_on(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Killed in the second of three runs, with the first one finished."""
    arguments = ["-m", *case.arguments(method__threshold="100,-100,0.05"), "hydra.sweep.dir=sweep"]
    n_logits = 7  # the threshold of 100 leaves the logits' edges tested, and nothing else
    killed_at(n_logits + 3, *arguments, cwd=here)
    sweep = here / "sweep"
    state = (
        f"1 of 3 runs finished (0), run 1 can go on by acdc resume={sweep / '1'}, 1 never started"
        " (method.threshold=0.05)"
    )
    assert_refused([f"resume={sweep}"], capfd, f"resume={sweep} is a sweep: {state}\n")
    assert_refused(arguments, capfd, f"already holds a sweep: {state}; choose another folder")
    with closing(Journal(sweep / "1")):
        assert_refused([f"resume={sweep}"], capfd, "1 of 3 runs finished (0), 1 at work now (1), 1 never started")
    assert run([f"resume={sweep / '1'}"]) == 0
    capfd.readouterr()
    assert_refused([f"resume={sweep}"], capfd, "2 of 3 runs finished (0, 1), 1 never started (method.threshold=0.05)")
    assert not (sweep / "2").exists()


def test_a_sweep_that_lacks_only_its_table(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["-m", *case.arguments(method__threshold="0.05,100"), "hydra.sweep.dir=sweep"]) == 0
    before = (here / "sweep" / "sweep.csv").read_text()
    (here / "sweep" / "sweep.csv").unlink()
    assert run(["resume=sweep"]) == 0
    assert (here / "sweep" / "sweep.csv").read_text() == before
    capfd.readouterr()
    assert run(["resume=sweep"]) == 0
    assert capfd.readouterr().out == f"acdc: the sweep in {here / 'sweep'} is finished\n"
    (here / "sweep" / "multirun.yaml").write_text("hydra: [")
    assert_refused(["resume=sweep"], capfd, "multirun.yaml is damaged")


def test_a_range_has_the_numbers_it_means(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = case.arguments(method__threshold="range(0.05,0.2,0.05)")
    assert run(["-m", *arguments, "hydra.sweep.dir=sweep"]) == 0
    assert "000002" not in capfd.readouterr().out
    rows = list(csv.DictReader((here / "sweep" / "sweep.csv").open()))
    assert [row["method.threshold"] for row in rows] == ["0.05", "0.1", "0.15"]
    assert read_json(here / "sweep" / "2" / "circuit.json")["method"]["threshold"] == 0.15


def test_two_models_are_compared_under_both_names(case: Case, here: Path) -> None:
    other = shutil.copytree(case.model, here / "other")
    arguments = case.arguments(model__path=f"{case.model},{other}")
    assert run(["-m", *arguments, "hydra.sweep.dir=sweep"]) == 0
    title = re.search("<title>(.*)</title>", (here / "sweep" / "comparison.html").read_text())
    assert title
    assert title[1] == f"2 circuits · pairs · {case.model}, {other}"


def test_workers_share_the_cores(case: Case, here: Path) -> None:
    """However many threads each would take by itself, and however many workers are asked for."""
    arguments = [*case.arguments(method__threshold="50,100"), "hydra/launcher=joblib", "hydra.launcher.n_jobs=64"]
    done = as_process("-m", *arguments, "hydra.sweep.dir=sweep", cwd=here, env={"OMP_NUM_THREADS": "8"})
    assert (done.returncode, done.stderr) == (0, "")
    logs = [(here / "sweep" / run / "run.log").read_text() for run in "01"]
    threads = [int(found[1]) for log in logs if (found := re.search(r"threads: (\d+)", log))]
    assert sum(threads) <= max(2, len(os.sched_getaffinity(0)))
    launcher = OmegaConf.load(here / "sweep" / "multirun.yaml").hydra.launcher
    assert launcher.n_jobs <= min(2, len(os.sched_getaffinity(0)))


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
    assert "circuit=null a circuit file" in words
    assert "graph.split_embedding=null token and position embeddings" in words
    assert "hydra.run" not in words.replace("hydra.run.dir=OUT", "")
    assert not list(here.iterdir())


def test_help_lists_what_works(case: Case, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, name, content in (
        ("task", "broken", "name: mytask\nsize: 3\n"),
        ("task", "misspelt", "name: ioi\nsise: 3\n"),
        ("task", "good", f"name: pairs\npath: {case.pairs}\n"),
        ("drawers", "socks", "name: socks\n"),
    ):
        (here / "own" / folder).mkdir(parents=True, exist_ok=True)
        (here / "own" / folder / f"{name}.yaml").write_text(content)
    assert run(["--config-dir", "own", "--help"]) == 0
    listed, _, rest = capsys.readouterr().out.partition("Not listed, because no run can take them")
    assert " good," in listed
    for word in ("broken", "misspelt", "socks", "drawers"):
        assert word not in listed
    said = " ".join(rest.split())
    assert "task=broken task=mytask does not exist; choose one of" in said
    assert "task=misspelt task.sise does not exist" in said
    assert "drawers=socks" in said


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
    assert "task=mine: Mine." in shown
    assert re.search(r"task.size=2 +null: all pairs of the file", shown)
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


def test_every_documented_command_composes(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[1]
    pages = [page.read_text().replace("…", "x") for page in (root / "README.md", *root.glob("docs/*.md"))]
    lines = [line for page in pages for line in page.replace("\\\n", " ").splitlines() if line.startswith("    acdc ")]
    commands = [shlex.split(line, comments=True)[1:] for line in lines]
    assert len(commands) > 40
    for words in commands:
        if "-m" in words:  # the first value of each key
            words = [re.sub(r"=([^\[,]+),.*", r"=\1", word) for word in words if word != "-m"]
        if not any(word.startswith("resume=") for word in words):
            assert run(["--cfg", "job", *words]) == 0, words
    capsys.readouterr()


# Where it runs.


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["ascii", "latin-1", "C"],
)
def test_a_console_that_lacks_letters(env: dict[str, str], case: Case, here: Path) -> None:
    arguments = case.arguments(task__check="warn", job__name="discover")
    done = as_process(*arguments, "hydra.run.dir=out", cwd=here, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "KL(model ? circuit)" in done.stdout
    assert {path.name for path in (here / "out").iterdir()} == FILES
    shown = as_process("--help", cwd=here, env=env)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "method.threshold=null" in shown.stdout
    wrong = as_process("task.corruption=größe", cwd=here, env=env)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


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
    ours = [path for name in ("acdc", "tasks", "conf") for path in (source / name).rglob("*.*")]
    ours = [path for path in ours if path.suffix in (".py", ".yaml", ".json", ".safetensors")]
    assert len(ours) > 50
    for path in ours:
        inside = path.relative_to(source)
        assert str(inside if inside.parts[0] == "acdc" else "acdc" / inside) in names
    subprocess.run([*pip, "install", *quiet, "--target", str(site), str(wheel)], check=True, capture_output=True)

    empty = tmp_path / "empty"
    (empty / "conf").mkdir(parents=True)
    (empty / "conf" / "config.yaml").write_text("nonsense: 1\n")
    done = as_process("task.size=2", "hydra.run.dir=out", cwd=empty, env={"PYTHONPATH": str(site)})
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in (empty / "out").iterdir()} == FILES
    shown = as_process("--help", cwd=empty, env={"PYTHONPATH": str(site)})
    assert shown.stdout.rstrip().endswith(str(site / "acdc" / "conf"))

"""The console and Weights & Biases."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from commands import Case, as_process, assert_refused, killed_at, make_case, read_json, read_lines
from rich.console import Console

from acdc.discovery.base import Decision
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.graph import Edge, Graph, GraphConfig
from acdc.result import as_table
from acdc.tracking import ConsoleTracker, TrackerSettings, WandbTracker, Watchers, check_tracker, say

GPT2 = Graph(GraphConfig(n_layers=12, n_heads=12, d_model=768))
KEPT = Decision(Edge("m11", "logits"), 0.5, True, 3.14159)
GONE = Decision(Edge("m10", "logits"), 0.0, False, 2.71828)


def watch(console: Console) -> None:
    """A run of three decisions, one of them taken over."""
    tracker = ConsoleTracker(console, "logit_diff")
    tracker.SECONDS_BETWEEN_LINES = 0.0
    tracker.started(GPT2, 3.2)
    tracker.replayed(KEPT, 32490)
    tracker.receiver("a11.h11<q>", 32490)
    tracker.decided(GONE, 32489)
    tracker.decided(KEPT, 32488)
    tracker.progress.refresh()
    tracker.receiver("a0.h0<q>", 10)
    tracker.finished({}, {})
    tracker.closed(False)


def test_a_terminal_shows_everything_in_80_columns() -> None:
    screen = io.StringIO()
    watch(Console(file=screen, force_terminal=True, color_system=None, width=80, legacy_windows=False))
    text = screen.getvalue()
    assert "…" not in text  # nothing is cut
    assert "a11.h11<q>" in text
    assert "3 tested 2 kept 32490 left" in text
    assert "logit_diff 3.142" in text
    assert "to go" in text


def test_a_method_without_decisions_shows_how_far_it_is() -> None:
    for terminal in (True, False):
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=terminal, color_system=None, width=80, legacy_windows=False)
        tracker = ConsoleTracker(console, "logit_diff")
        tracker.SECONDS_BETWEEN_LINES = 0.0
        tracker.started(GPT2, 3.2)
        tracker.progressed(30, 3000, {"loss": 0.12345})
        tracker.progress.refresh()
        tracker.finished({}, {})
        tracker.closed(False)
        assert "30 of 3000 loss 0.1235" in screen.getvalue()


def test_no_terminal_gets_plain_lines() -> None:
    screen = io.StringIO()
    watch(Console(file=screen, width=80))
    assert screen.getvalue().splitlines() == [
        "a11.h11<q>: 1 tested 1 kept 32491 left logit_diff 3.142",
        "a0.h0<q>: 3 tested 2 kept 12 left logit_diff 3.142",
    ]


def test_a_quiet_console_gets_nothing() -> None:
    screen = io.StringIO()
    watch(Console(file=screen, force_terminal=True, quiet=True))
    assert screen.getvalue() == ""


def test_lines_are_said_as_they_are() -> None:
    screen = io.StringIO()
    say(Console(file=screen, width=20), "a path [red]that/is/longer/than[/red] the screen :smile:")
    assert screen.getvalue() == "a path [red]that/is/longer/than[/red] the screen :smile:\n"


def test_watchers_tell_everyone() -> None:
    heard: list[tuple[str, str]] = []

    class Listener:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getattr__(self, event: str) -> Any:
            return lambda *_: heard.append((self.name, event))

    watchers = Watchers(Listener("a"), Listener("b"))  # type: ignore[arg-type]
    watchers.started(GPT2, 0.0)
    watchers.receiver("logits", 1)
    watchers.decided(KEPT, 1)
    watchers.replayed(KEPT, 1)
    events = ("started", "receiver", "decided", "replayed")
    assert heard == [(name, event) for event in events for name in ("a", "b")]


# Weights & Biases.


def test_wandb_is_imported_only_where_it_is_asked_for(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    program = (
        "import sys; from acdc.cli import run; code = run(sys.argv[1:]); "
        "print('wandb' in sys.modules, 'torch' in sys.modules, code)"
    )
    command = [sys.executable, "-c", program, *case.arguments(), "hydra.run.dir=out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "False True 0", done.stderr
    # A finished run is looked at without torch.
    command = [sys.executable, "-c", program, "resume=out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "False False 0", done.stderr


def records(path: Path) -> Iterator[Any]:
    """The records of a W&B run file: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # what is left of a block is too short for a record
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # full, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            yield record
            part = b""


def read_back(path: Path) -> dict[str, Any]:
    """What a run file says: id, config, points, summary, the artifact and how it ended."""
    said: dict[str, Any] = {"points": [], "summary": {}}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            said |= {"id": run.run_id, "project": run.project, "group": run.run_group, "tags": list(run.tags)}
            said |= {"entity": run.entity, "name": run.display_name, "job_type": run.job_type}
            said["config"] = {item.key: json.loads(item.value_json) for item in run.config.update}
        elif kind == "history":
            items = record.history.item
            said["points"].append(
                {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
            )
        elif kind == "summary":
            for item in record.summary.update:
                said["summary"][item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        elif kind == "artifact":
            contents = record.artifact.manifest.contents
            said["artifact"] = (record.artifact.type, {entry.path: entry.local_path for entry in contents})
        elif kind == "exit":
            said["exit"] = record.exit.exit_code
    return said


def read_run(folder: Path) -> dict[str, Any]:
    """What the one run file of a run's folder says."""
    (file,) = folder.glob("wandb/*run-*/*.wandb")
    return read_back(file)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A run tracked offline that is stopped behind 20 decisions and gone on with: its folder and both run files."""
    home = tmp_path_factory.mktemp("tracked")
    case: Case = make_case(home)
    options = {"tracker": "wandb", "tracker__mode": "offline", "tracker__project": "mine", "tracker__group": "g"}
    arguments = case.arguments(**options, tracker__tags="[a,b]")
    stop = (
        "import sys; from acdc import journal; from acdc.cli import run\n"
        "write, made = journal.Journal.decided, []\n"
        "def decided(self, decision, remaining):\n"
        "    if len(made) == 20: raise KeyboardInterrupt\n"
        "    made.append(decision); write(self, decision, remaining)\n"
        "journal.Journal.decided = decided\n"
        "sys.exit(run(sys.argv[1:]))"
    )
    folder = home / "out"
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    command = [sys.executable, "-c", stop, *arguments, "hydra.run.dir=out"]
    assert subprocess.run(command, cwd=home, env=env, capture_output=True, timeout=120).returncode == 130
    (first,) = folder.glob("wandb/offline-run-*/*.wandb")
    done = as_process("resume=out", cwd=home)
    assert (done.returncode, done.stderr) == (0, "")
    (second,) = set(folder.glob("wandb/offline-run-*/*.wandb")) - {first}
    assert not (home / "wandb").exists()
    return folder, read_back(first), read_back(second)


def test_wandb_gets_configuration_and_points(tracked: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    folder, first, second = tracked
    for said in (first, second):
        assert (said["project"], said["group"], said["tags"]) == ("mine", "g", ["a", "b"])
        assert said["config"]["method"]["threshold"] == 0.02
        assert said["config"]["task"]["name"] == "pairs"
    decisions = read_lines(folder / "decisions.jsonl")
    points = [point for point in first["points"] + second["points"] if "metric" in point]
    assert [point["_step"] for point in points] == [point["tested"] for point in points]
    assert [point["tested"] for point in points] == list(range(1, len(decisions) + 1))  # none twice, none missing
    for key in ("sender", "receiver", "effect", "metric"):
        assert [point[key] for point in points] == [line[key] for line in decisions]
    kept = [sum(line["kept"] for line in decisions[: i + 1]) for i in range(len(decisions))]
    assert [point["kept"] for point in points] == kept
    assert points[-1]["left"] == kept[-1]


def test_wandb_run_goes_on_under_its_id(tracked: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    folder, first, second = tracked
    assert first["id"] == second["id"] == read_json(folder / "run.json")["wandb_id"]
    assert (first["exit"], second["exit"]) == (1, 0)
    assert len(first["points"]) == 20


def test_wandb_gets_summary_picture_and_artifact(tracked: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    folder, _, said = tracked
    metrics = read_json(folder / "metrics.json")
    for key in ("clean", "corrupted", "circuit", "recovery", "kl", "edges_kept", "decisions"):
        assert said["summary"][key] == pytest.approx(metrics[key])
    assert said["summary"]["metric_name"] == "logit_diff"
    assert said["summary"]["picture._type"] == "image-file"
    (media,) = folder.glob("wandb/offline-run-*/files/" + said["summary"]["picture.path"])
    assert media.read_bytes() == (folder / "circuit.png").read_bytes()
    kind, files = said["artifact"]
    assert kind == "circuit"
    assert files.keys() >= {"circuit.json", "circuit.mib.json", "circuit.graphml", "metrics.json", "report.html"}
    assert files["circuit.json"] == str(folder / "circuit.json")


def test_wandb_gets_what_a_check_finds(tmp_path: Path) -> None:
    case = make_case(tmp_path / "data")
    arguments = case.arguments(job="check", tracker="wandb", tracker__mode="offline")
    done = as_process(*arguments, "hydra.run.dir=out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (file,) = (tmp_path / "out").glob("wandb/offline-run-*/*.wandb")
    said = read_back(file)
    metrics = read_json(tmp_path / "out" / "metrics.json")
    assert said["summary"]["pairs"] == metrics["pairs"] == 3
    assert said["summary"]["accuracy"] == pytest.approx(metrics["accuracy"])
    kind, files = said["artifact"]
    assert (kind, files.keys()) == ("results", {"pairs.csv", "pairs.json", "report.html", "metrics.json"})
    assert (said["id"], said["exit"]) == (read_json(tmp_path / "out" / "run.json")["wandb_id"], 0)


def test_wandb_gets_the_maps_of_a_sweep(tmp_path: Path) -> None:
    case = make_case(tmp_path / "data")
    arguments = case.arguments(job="patch", tracker="wandb", tracker__mode="offline", patch__direction="noise")
    done = as_process(*arguments, "hydra.run.dir=out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (file,) = (tmp_path / "out").glob("wandb/offline-run-*/*.wandb")
    said = read_back(file)
    assert "method" not in said["config"]
    assert said["config"]["patch"]["direction"] == "noise"
    metrics = read_json(tmp_path / "out" / "metrics.json")
    assert said["summary"]["sites"] == metrics["sites"] == 4
    assert said["summary"]["clean"] == pytest.approx(metrics["clean"])
    (media,) = (tmp_path / "out").glob("wandb/offline-run-*/files/" + said["summary"]["head_output_noise.path"])
    assert media.read_bytes() == (tmp_path / "out" / "head_output_noise.png").read_bytes()
    kind, files = said["artifact"]
    names = {"patch.csv", "patch.npz", "head_output_noise.svg", "head_output_noise.png", "report.html", "metrics.json"}
    assert (kind, files.keys()) == ("results", names)


def test_wandb_takes_tables_with_missing_values() -> None:
    logged: dict[str, Any] = {}
    tracker = object.__new__(WandbTracker)
    tracker.tested = tracker.done = 0
    tracker.run = SimpleNamespace(log=lambda shown, step: logged.update(shown))  # type: ignore[assignment]
    rows = [{"n": 1, "x": None, "of": "a"}, {"n": None, "x": 0.5, "of": "b"}, {"n": 2, "x": float("nan"), "of": None}]
    tracker.tables({"found": as_table(rows)})
    assert logged["found"].columns == ["n", "x", "of"]
    assert logged["found"].data == [[1, None, "a"], [None, 0.5, "b"], [2, None, None]]


def test_wandb_online_without_an_account_is_refused_at_once(tmp_path: Path) -> None:
    case = make_case(tmp_path / "data")
    here = tmp_path / "here"
    here.mkdir()
    env = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    done = as_process(*case.arguments(tracker="wandb"), cwd=here, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("acdc: tracker=wandb cannot reach W&B")
    assert done.stderr.endswith("or give tracker.mode=offline\n")
    assert done.stderr.count("\n") == 1
    assert not list(here.iterdir())


def test_after_a_kill_no_point_is_missing(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    arguments = case.arguments(tracker="wandb", tracker__mode="offline")
    killed_at(20, *arguments, "hydra.run.dir=out", cwd=tmp_path)
    out = tmp_path / "out"
    (first,) = out.glob("wandb/*run-*/*.wandb")
    torn = first.read_bytes()
    first.write_bytes(torn[: len(torn) * 2 // 3])  # what the system had not written yet
    assert as_process("resume=out", cwd=tmp_path).returncode == 0
    (second,) = set(out.glob("wandb/*run-*/*.wandb")) - {first}
    parts = [[point for point in read_back(file)["points"] if "metric" in point] for file in (first, second)]
    assert len(parts[0]) < 20
    decisions = read_lines(out / "decisions.jsonl")
    assert [point["_step"] for part in parts for point in part] == list(range(1, len(decisions) + 1))
    assert [point["metric"] for part in parts for point in part] == [line["metric"] for line in decisions]


def test_wandb_gets_what_was_really_used(tmp_path: Path) -> None:
    """The task's own threshold and metric; W&B's own environment where no option is given."""
    env = {
        "WANDB_MODE": "offline",
        "WANDB_PROJECT": "theirs",
        "WANDB_ENTITY": "team",
        "WANDB_RUN_GROUP": "many",
        "WANDB_TAGS": "x, y",
        "WANDB_NAME": "called",
    }
    tracked = ["tracker=wandb", "tracker.group=mine"]
    done = as_process("task=gate_or", "task.check=off", *tracked, "hydra.run.dir=out", cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    said = read_run(tmp_path / "out")
    assert [said[key] for key in ("project", "entity", "group", "name")] == ["theirs", "team", "mine", "called"]
    assert (said["tags"], said["job_type"]) == (["x", "y"], "discover")
    own = Experiment.build(task="gate_or")
    used = yaml.safe_load((tmp_path / "out" / "resolved.yaml").read_text())
    for config in (said["config"], used):
        assert config["metric"]["name"] == own.task.metric
        assert config["method"]["threshold"] == own.task.thresholds[own.task.metric]
        assert config["tracker"]["project"] == "theirs"
        assert "patch" not in config
    asked = yaml.safe_load((tmp_path / "out" / ".hydra" / "config.yaml").read_text())
    assert (asked["metric"]["name"], asked["method"]["threshold"], asked["tracker"]["project"]) == (None, None, None)
    assert f"threshold: {used['method']['threshold']}" in (tmp_path / "out" / "report.html").read_text()


def test_a_sweep_is_told_apart(tmp_path: Path) -> None:
    case = make_case(tmp_path / "data")
    options = {"tracker": "wandb", "tracker__mode": "offline", "method__threshold": "0.05,100"}
    done = as_process("-m", *case.arguments(**options), "hydra.sweep.dir=many", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for run, threshold in (("0", "0.05"), ("1", "100")):
        said = read_run(tmp_path / "many" / run)
        assert (said["group"], said["name"]) == ("many", f"method.threshold={threshold}")
        assert (said["tags"], said["job_type"]) == (["pairs", case.model.name, "acdc"], "discover")


@pytest.mark.parametrize(
    ("option", "env", "said"),
    [
        ("tracker.project=a/b", {}, "tracker.project=a/b"),
        ("tracker.project=" + 200 * "x", {}, "128 characters"),
        ("tracker.tags=[" + 70 * "x" + "]", {}, "between 1 and 64 characters"),
        ("tracker.every=1", {"WANDB_PROJECT": "a:b"}, "tracker.project=a:b"),
        ("tracker.every=1", {"WANDB_MODE": "sideways"}, "WANDB_MODE=sideways is not known"),
    ],
)
def test_what_wandb_would_refuse_is_refused_at_once(
    option: str,
    env: dict[str, str],
    said: str,
    here: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    mode = [] if "WANDB_MODE" in env else ["tracker.mode=offline"]
    assert_refused(["tracker=wandb", *mode, option], capfd, said)
    assert not list(here.iterdir())


@pytest.mark.slow
def test_wandb_without_a_network_does_not_hang(tmp_path: Path) -> None:
    case = make_case(tmp_path / "data")
    here = tmp_path / "here"
    here.mkdir()
    env = {"HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    done = as_process(*case.arguments(tracker="wandb"), cwd=here, env=env)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert not list(here.iterdir())


def test_wandb_that_is_not_installed_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"tracker=wandb.*pip install 'acdc\[wandb\]'"):
        check_tracker(TrackerSettings("wandb", "offline").really())


@pytest.mark.parametrize("settings", [TrackerSettings(), TrackerSettings("wandb", "offline"), TrackerSettings("none")])
def test_nothing_is_reached_where_nothing_need_be(settings: TrackerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acdc.tracking._reach_wandb", lambda: pytest.fail("W&B was looked for"))
    check_tracker(settings)

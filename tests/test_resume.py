"""A run that is stopped at any moment goes on as if it had not been."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Case, assert_refused, contents, make_case, read_json, read_lines, start

from acdc.cli import run
from acdc.discovery.base import Decision
from acdc.journal import Journal


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def whole(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert run([*case.arguments(), f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def stopped_after(whole: Path, tmp_path: Path) -> Callable[[int, bytes], Path]:
    """Makes the folder that a kill leaves behind so many decisions, with what was torn behind them."""

    def make(n_decisions: int, torn: bytes = b"") -> Path:
        folder = tmp_path / "stopped"
        shutil.copytree(whole / ".hydra", folder / ".hydra")
        lines = (whole / "decisions.jsonl").read_bytes().splitlines(keepends=True)
        (folder / "decisions.jsonl").write_bytes(b"".join(lines[:n_decisions]) + torn)
        (folder / "run.json").write_text('{"finished": false, "seconds": 5.0, "wandb_id": "abc"}')
        return folder

    return make


def kept_edges(folder: Path) -> list[dict[str, object]]:
    edges: list[dict[str, object]] = read_json(folder / "circuit.json")["edges"]
    return edges


def n_decisions(folder: Path) -> int:
    path = folder / "decisions.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99, 1.0])
@pytest.mark.parametrize("torn", [b"", b'{"sender": "a0.h1", "rec'], ids=["whole", "torn"])
def test_it_goes_on_from_anywhere(
    share: float, torn: bytes, whole: Path, stopped_after: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    total = n_decisions(whole)
    folder = stopped_after(round(share * total), torn)
    before = contents(folder)
    made: list[Decision] = []
    write = Journal.decided

    def count(journal: Journal, decision: Decision, remaining: int) -> None:
        made.append(decision)
        write(journal, decision, remaining)

    monkeypatch.setattr(Journal, "decided", count)
    assert run([f"resume={folder}"]) == 0

    after = contents(folder)
    assert after["decisions.jsonl"].startswith(before["decisions.jsonl"].removesuffix(torn))
    assert len(made) == total - round(share * total)  # those before were not made again
    assert [line["kept"] for line in read_lines(folder / "decisions.jsonl")] == [
        line["kept"] for line in read_lines(whole / "decisions.jsonl")
    ]
    edges, expected = kept_edges(folder), kept_edges(whole)
    assert [(e["sender"], e["receiver"]) for e in edges] == [(e["sender"], e["receiver"]) for e in expected]
    assert [e["effect"] for e in edges] == pytest.approx([e["effect"] for e in expected], abs=1e-4)
    assert {name for name in after if name.startswith(".hydra")} == {n for n in before if n.startswith(".hydra")}
    assert all(after[name] == before[name] for name in after if name.startswith(".hydra"))
    assert set(after) == set(contents(whole))
    assert read_json(folder / "metrics.json")["seconds"] >= 5.0  # the time of both tries


def test_nothing_but_the_configuration_is_enough(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "early"
    shutil.copytree(whole / ".hydra", folder / ".hydra")
    (folder / ".circuit.json.123.tmp").write_text("half a fi")
    assert run([f"resume={folder}"]) == 0
    assert kept_edges(folder) == kept_edges(whole)
    assert set(contents(folder)) == set(contents(whole))


def test_a_finished_run_is_left_alone(whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in whole.rglob("*")}
    assert run([f"resume={whole}"]) == 0
    assert "finished" in capfd.readouterr().out
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in whole.rglob("*")} == before


def test_a_journal_of_another_run_is_refused(
    stopped_after: Callable[..., Path], whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = stopped_after(3)
    lines = read_lines(folder / "decisions.jsonl")
    lines[1]["sender"] = "a0.h0" if lines[1]["sender"] != "a0.h0" else "a0.h1"
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "decisions.jsonl").write_text(text)
    assert_refused([f"resume={folder}"], capfd, "another run", after="resuming behind 3 decisions\n")
    lines = read_lines(whole / "decisions.jsonl")
    extra = json.dumps({**lines[-1], "receiver": "a0.h0<q>"})
    (folder / "decisions.jsonl").write_text((whole / "decisions.jsonl").read_text() + extra + "\n")
    after = f"resuming behind {len(lines) + 1} decisions\n"
    assert_refused([f"resume={folder}"], capfd, "another run", after=after)
    assert not (folder / "circuit.json").exists()


@pytest.mark.parametrize("line", [b'{"sender": oops}', b"[]", b'{"sender": "input"}', b"\xff\xfe"])
def test_a_damaged_journal_is_refused(
    line: bytes, stopped_after: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = stopped_after(2, line + b"\n" + b"{}\n")
    before = (folder / "decisions.jsonl").read_bytes()
    assert_refused([f"resume={folder}"], capfd, "decisions.jsonl line 3 is damaged")
    assert (folder / "decisions.jsonl").read_bytes() == before


def test_damaged_state_is_refused(stopped_after: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    folder = stopped_after(2)
    (folder / "run.json").write_text("{oops")
    assert_refused([f"resume={folder}"], capfd, "run.json is damaged")
    (folder / "run.json").unlink()
    (folder / ".hydra" / "config.yaml").write_text("task: [")
    assert_refused([f"resume={folder}"], capfd, "config.yaml")
    (folder / ".hydra" / "config.yaml").write_text("{}")
    assert_refused([f"resume={folder}"], capfd, "is missing")


def test_two_cannot_work_in_one_folder(stopped_after: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    folder = stopped_after(2)
    first = Journal(folder)
    assert_refused([f"resume={folder}"], capfd, "another process")
    first.close()
    assert run([f"resume={folder}"]) == 0


def test_stopped_and_killed_for_real(tmp_path: Path) -> None:
    """Ctrl-C, then kill -9, each somewhere in the middle; gone on with from other folders than it was started in."""
    home, elsewhere, folder = tmp_path / "home", tmp_path / "elsewhere", tmp_path / "out"
    home.mkdir()
    elsewhere.mkdir()
    case = make_case(home, n_layers=5, n_heads=4)
    relative = {"task__path": case.pairs.relative_to(home), "model__path": case.model.relative_to(home)}
    slowly = {"method__threshold": 0.001, "method__engine": "full", "method__batch_size": 1}
    arguments = case.arguments(**relative, **slowly)

    process = start(*arguments, f"hydra.run.dir={folder}", cwd=home)
    errors = stop_behind(10, folder, process, signal.SIGINT)
    assert process.returncode == 130
    assert errors == f"acdc: stopped; go on with acdc resume={folder}\n"
    assert (folder / "run.log").read_text().endswith("stopped\n")
    first = contents(folder)

    process = start("resume=out", cwd=tmp_path)
    stop_behind(n_decisions(folder) + 20, folder, process, signal.SIGKILL)
    second = contents(folder)
    assert second["decisions.jsonl"].startswith(first["decisions.jsonl"])
    assert "circuit.json" not in second

    process = start("resume=../out", cwd=elsewhere)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert not list(elsewhere.iterdir())
    third = contents(folder)
    assert third["decisions.jsonl"].startswith(second["decisions.jsonl"].rpartition(b"\n")[0])
    assert all(third[name] == first[name] for name in third if name.startswith(".hydra"))

    whole = tmp_path / "whole"
    assert run([*case.arguments(**slowly), f"hydra.run.dir={whole}"]) == 0
    expected, found = read_lines(whole / "decisions.jsonl"), read_lines(folder / "decisions.jsonl")
    keys = ("sender", "receiver", "kept")
    assert [[line[key] for key in keys] for line in found] == [[line[key] for key in keys] for line in expected]
    edges, whole_edges = kept_edges(folder), kept_edges(whole)
    assert [(e["sender"], e["receiver"]) for e in edges] == [(e["sender"], e["receiver"]) for e in whole_edges]


def stop_behind(n: int, folder: Path, process: subprocess.Popen[str], how: signal.Signals) -> str:
    """Send a signal when so many decisions are made; what the process said on standard error."""
    while n_decisions(folder) < n:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(how)
    return process.communicate(timeout=60)[1]

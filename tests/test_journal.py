"""The journal: what is written is read, what is torn is dropped, what is damaged is said."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acdc.discovery.base import Decision
from acdc.errors import RunError
from acdc.files import write_atomically, write_json
from acdc.graph import Edge
from acdc.journal import Journal, RunState, TensorStore

FINITE = st.floats(allow_nan=False, allow_infinity=False)
DECISIONS = st.builds(
    Decision,
    st.builds(Edge, st.sampled_from(["input", "a0.h1", "m3"]), st.sampled_from(["logits", "a5.h1<q>"])),
    FINITE,
    st.booleans(),
    FINITE,
    st.none() | FINITE,
    st.none() | FINITE,
)


def written(folder: Path, decisions: list[Decision]) -> bytes:
    journal = Journal(folder)
    for decision in decisions:
        journal.decided(decision, 0)
    journal.close()
    return journal.path.read_bytes()


@given(st.lists(DECISIONS, max_size=5), st.data())
def test_whatever_whole_lines_are_left_are_read(
    tmp_path_factory: pytest.TempPathFactory, decisions: list[Decision], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    content = written(folder, decisions)
    cut = data.draw(st.integers(0, len(content)))
    (folder / "decisions.jsonl").write_bytes(content[:cut])
    journal = Journal(folder)
    whole = content[:cut].count(b"\n")
    assert journal.read() == decisions[:whole]
    for decision in decisions[whole:]:  # goes on where it was cut
        journal.decided(decision, 0)
    journal.close()
    assert journal.path.read_bytes() == content


def test_a_line_holds_what_is_promised(tmp_path: Path) -> None:
    content = written(tmp_path, [Decision(Edge("a0.h1", "m3"), 0.25, True, -1.5)])
    expected = {"sender": "a0.h1", "receiver": "m3", "effect": 0.25, "kept": True, "metric": -1.5}
    assert json.loads(content) == expected


@pytest.mark.parametrize(("effect", "metric"), [(math.nan, 0.0), (math.inf, 0.0), (0.0, -math.inf)])
def test_what_is_no_number_is_refused(effect: float, metric: float, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(RunError, match=r"a0\.h1->m3.*dtype"):
        journal.decided(Decision(Edge("a0.h1", "m3"), effect, True, metric), 0)
    journal.close()
    assert journal.path.read_bytes() == b""


def test_one_journal_a_folder(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    with pytest.raises(RunError, match="another process"):
        Journal(tmp_path)
    first.close()
    Journal(tmp_path).close()


def test_one_journal_a_folder_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows locks bytes; a locked one is no content, or others could not read it, and lines go behind the content."""
    locked: set[tuple[str, int]] = set()

    def locking(descriptor: int, mode: int, n_bytes: int) -> None:
        byte = os.readlink(f"/proc/self/fd/{descriptor}"), os.lseek(descriptor, 0, os.SEEK_CUR)
        if (mode, n_bytes) != (2, 1) or byte in locked:
            raise PermissionError(13, "Permission denied")
        locked.add(byte)

    monkeypatch.setattr("acdc.files.sys.platform", "win32")
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.setitem(sys.modules, "fcntl", None)
    line = written(tmp_path, [Decision(Edge("a0.h1", "m3"), 0.25, True, -1.5)])
    assert locked.pop()[1] > 2**20
    assert written(tmp_path, [Decision(Edge("a0.h1", "m3"), 0.25, True, -1.5)]) == 2 * line
    with pytest.raises(RunError, match="another process"):
        Journal(tmp_path)


def test_the_state_is_kept(tmp_path: Path) -> None:
    assert RunState(tmp_path).values == {"finished": False, "seconds": 0.0, "wandb_id": None}
    assert not list(tmp_path.iterdir())
    RunState(tmp_path).update(seconds=2.5, wandb_id="abc")
    RunState(tmp_path).update(finished=True)
    assert RunState(tmp_path).values == {"finished": True, "seconds": 2.5, "wandb_id": "abc"}


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_damaged_state(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        RunState(tmp_path)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"τ": 1.5})
    assert json.loads(path.read_text()) == {"τ": 1.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"τ": math.nan})

    def full(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert json.loads(path.read_text()) == {"τ": 1.5}
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_outlive_the_run(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    assert store.load() == {}
    store.save({"scores": torch.arange(6.0).reshape(2, 3).T, "done": torch.tensor(4)})
    again = TensorStore(tmp_path).load()
    assert again["scores"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert int(again["done"]) == 4
    store.path.write_bytes(store.path.read_bytes()[:20])
    with pytest.raises(RunError, match="damaged"):
        store.load()
    store.remove()
    assert list(tmp_path.iterdir()) == []

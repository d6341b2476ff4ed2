"""The journal of a run: what a killed run resumes from.

`decisions.jsonl` holds one line a tested edge; `run.json` what is known about the run as a whole.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Any

from acdc.discovery.base import Decision
from acdc.errors import RunError
from acdc.files import write_json
from acdc.graph import Edge, Graph

DECISIONS = "decisions.jsonl"
STATE = "run.json"


class Journal:
    """Writes decisions as they are made; an `Observer` of the pruning loop."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / DECISIONS
        self._file: IO[str] | None = None

    def read(self) -> list[Decision]:
        """The decisions so far. A last line torn by a crash is dropped, from the file as well.

        Raises
        ------
        RunError: a line in the middle is damaged.
        """
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        decisions = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                decisions.append(_parse(line))
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(
                    f"{self.path} line {number} is damaged and the run cannot be resumed: {error}"
                ) from error
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        return decisions

    def started(self, graph: Graph, metric: float) -> None:
        self._file = self.path.open("a")

    def receiver(self, name: str, remaining: int) -> None:
        return

    def decided(self, decision: Decision, remaining: int) -> None:
        assert self._file is not None
        record: dict[str, Any] = {
            "sender": decision.edge.sender,
            "receiver": decision.edge.receiver,
            "effect": decision.effect,
            "kept": decision.kept,
            "metric": decision.metric,
        }
        if decision.near_tie:
            record["near_tie"] = True
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()  # in the system's hands: survives a killed process

    def replayed(self, decision: Decision, remaining: int) -> None:
        return

    def close(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()


def _parse(line: bytes) -> Decision:
    record = json.loads(line)
    return Decision(
        Edge(record["sender"], record["receiver"]),
        float(record["effect"]),
        bool(record["kept"]),
        float(record["metric"]),
        bool(record.get("near_tie", False)),
    )


class RunState:
    """`run.json`: whether the run is finished, how long it has taken, and what a tracker needs to go on with it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / STATE
        self.values: dict[str, Any] = {"finished": False, "seconds": 0.0}

    @property
    def exists(self) -> bool:
        return self.path.exists()

    def load(self) -> RunState:
        try:
            self.values.update(json.loads(self.path.read_text()))
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path.parent} holds no run that can be resumed: {error}") from error
        return self

    def update(self, **values: Any) -> None:
        self.values.update(values)
        write_json(self.path, self.values)

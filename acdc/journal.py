"""The journal of a run: what a killed run resumes from.

`decisions.jsonl` holds one line a tested edge; `run.json` what is known about the run as a whole; `state.safetensors`,
while it runs, the state of a method that makes no decisions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acdc.errors import RunError
from acdc.files import lock, write_atomically, write_json
from acdc.graph import Edge, Graph

if TYPE_CHECKING:  # bring torch, which a look at a finished run does not need
    from torch import Tensor

    from acdc.discovery.base import Decision

DECISIONS = "decisions.jsonl"
STATE = "run.json"
RESOLVED = "resolved.yaml"
TENSORS = "state.safetensors"
_ROUNDING = ("rounding", "compared")


class Journal:
    """Writes decisions as they are made; an `Observer` of the pruning loop, and the lock of a run's folder.

    Raises
    ------
    RunError: another process is working in this folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / DECISIONS
        self._file = self.path.open("ab")
        try:
            lock(self._file)
        except BlockingIOError as error:
            self._file.close()
            raise RunError(f"another process is working on the run in {folder}: wait for it or stop it") from error

    @classmethod
    def is_busy(cls, folder: Path) -> bool:
        """Whether another process is working on the run in this folder."""
        if not (folder / DECISIONS).exists():
            return False
        try:
            cls(folder).close()
        except RunError:
            return True
        return False

    def read(self) -> list[Decision]:
        """The decisions so far. A last line torn by a crash is dropped, from the file as well.

        Raises
        ------
        RunError: a line in the middle is damaged.
        """
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
            self._file.truncate(len(whole))
        return decisions

    def started(self, graph: Graph, metric: float) -> None:
        return

    def receiver(self, name: str, remaining: int) -> None:
        return

    def decided(self, decision: Decision, remaining: int) -> None:
        """Write a decision.

        Raises
        ------
        RunError: its effect is no number, so every later decision would mean nothing.
        """
        if not math.isfinite(decision.effect) or not math.isfinite(decision.metric):
            raise RunError(
                f"without {decision.edge} the metric is {decision.metric} and the effect {decision.effect}: the numbers"
                " leave what the precision holds; try model.dtype=float32 or another metric"
            )
        record: dict[str, Any] = {
            "sender": decision.edge.sender,
            "receiver": decision.edge.receiver,
            "effect": decision.effect,
            "kept": decision.kept,
            "metric": decision.metric,
        }
        for name in _ROUNDING:
            if (error := getattr(decision, name)) is not None:
                record[name] = error
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()  # in the system's hands: survives a killed process

    def replayed(self, decision: Decision, remaining: int) -> None:
        return

    def progressed(self, done: int, total: int, values: Mapping[str, float]) -> None:
        return

    def close(self) -> None:
        self._file.close()


def _parse(line: bytes) -> Decision:
    from acdc.discovery.base import Decision

    record = json.loads(line)
    return Decision(
        Edge(record["sender"], record["receiver"]),
        float(record["effect"]),
        bool(record["kept"]),
        float(record["metric"]),
        **{name: float(record[name]) for name in _ROUNDING if name in record},
    )


class RunState:
    """`run.json`: whether the run is finished, how long it has taken, and what a tracker needs to go on with it.

    Raises
    ------
    RunError: the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / STATE
        self.values: dict[str, Any] = {"finished": False, "seconds": 0.0, "wandb_id": None}
        try:
            self.values.update(json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{self.path} is damaged and the run cannot be resumed: {error}") from error

    def update(self, **values: Any) -> None:
        self.values.update(values)
        write_json(self.path, self.values)


class TensorStore:
    """`state.safetensors` of a run's folder; a `Store`.

    Raises
    ------
    RunError: the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / TENSORS

    def load(self) -> dict[str, Tensor]:
        from safetensors.torch import load

        try:
            tensors: dict[str, Tensor] = load(self.path.read_bytes())
            return tensors
        except FileNotFoundError:
            return {}
        except Exception as error:  # safetensors has several, for what is wrong with a file
            raise RunError(f"{self.path} is damaged and the run cannot be resumed: {error}") from error

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save

        write_atomically(
            self.path, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        )

    def remove(self) -> None:
        """The run is finished: its state is of no use any more."""
        self.path.unlink(missing_ok=True)

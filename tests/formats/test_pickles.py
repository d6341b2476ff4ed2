"""Hostile and damaged pickles: one line, and nothing in them is run."""

from __future__ import annotations

import io
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import edges_pkl, prune_scores

from acdc.circuit import Circuit
from acdc.errors import FormatError
from acdc.formats.mib_pt import write_mib_pt
from acdc.formats.reading import read_circuit, read_circuits
from acdc.graph import Edge, Graph, GraphConfig

EFFECTS: dict[Edge, Any] = {Edge("m0", "logits"): torch.tensor(1.0), Edge("input", "m0"): 0.5}


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def torch_saved(value: Any, *, new: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def named(module: str, name: str) -> bytes:
    """A pickle of a name, with dots as protocol 4 allows them."""
    module_and_name = (b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    return b"\x80\x04" + b"".join(module_and_name) + b"\x93."


def hostile(mark: Path) -> dict[str, bytes]:
    """Files that would make `mark` if they were run."""
    system, touch = Calls(os.system, f"touch {mark}"), f"open({str(mark)!r}, 'w').close()"
    key = ("blocks.0.hook_resid_post", (None,), "blocks.0.hook_resid_pre", (None,))
    storage = b"ctorch.storage\n_load_from_bytes\n"
    inner = pickle.dumps(system, 2)
    return {
        "system": pickle.dumps(system),
        "effect": pickle.dumps([(key, system)]),
        "eval": pickle.dumps([(key, Calls(eval, touch))]),
        "exec": pickle.dumps({"cfg": Calls(exec, touch)}),
        "getattr": b"\x80\x02cbuiltins\ngetattr\n.",
        "attribute": named("collections", "OrderedDict.__class__.__base__"),
        "attribute of the index": named("acdc.TLACDCEdge", "TorchIndex.__init__.__globals__"),
        "tensor": b"\x80\x02" + storage + b"B" + len(inner).to_bytes(4, "little") + inner + b"\x85R.",
        "torch": torch_saved({"cfg": system}),
        "torch scores": torch_saved({"blocks.0.hook_mlp_in": Calls(exec, touch)}),
        "torch legacy": torch_saved([(key, system)], new=False),
        "module": b"\x80\x02cacdc.formats.pickles\nload\n.",
    }


@pytest.mark.parametrize("kind", list(hostile(Path("mark"))))
def test_nothing_is_run(tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "edges.pkl").write_bytes(hostile(mark)[kind])
    with pytest.raises(FormatError, match=r"edges\.pkl names \S+, which no circuit needs") as raised:
        read_circuits(tmp_path / "edges.pkl")
    assert "\n" not in str(raised.value)
    assert not mark.exists()


def test_these_files_are_hostile(tmp_path: Path) -> None:
    """Python's own reader does run them."""
    pickle.loads(hostile(tmp_path / "mark")["effect"])
    assert (tmp_path / "mark").exists()


def test_a_pickle_leaves_nothing_behind(tmp_path: Path) -> None:
    """One that sets an attribute of the index's class (state with slots) does not change what the next one sees."""
    data = b"\x80\x02cacdc.TLACDCEdge\nTorchIndex\nN}X\x0e\x00\x00\x00hashable_tupleN\x85s\x86b."
    (tmp_path / "edges.pkl").write_bytes(data)
    with pytest.raises(FormatError, match="is neither"):
        read_circuit(tmp_path / "edges.pkl")
    (tmp_path / "bare.pkl").write_bytes(
        pickle.dumps([((1, 2, 3, 4), 1.0)], 2).replace(b"K\x02", b"cacdc.TLACDCEdge\nTorchIndex\n)\x81", 1)
    )
    with pytest.raises(FormatError, match="no node"):
        read_circuit(tmp_path / "bare.pkl")


def good(folder: Path) -> dict[str, bytes]:
    circuit = Circuit(Graph(GraphConfig(1, 2, 8)), {Edge("m0", "logits"): 1.0})
    write_mib_pt(circuit, folder / "good.pt")
    scores = dict(prune_scores((1, 2), {"m0->logits": 1.0}))
    return {
        "original": edges_pkl(EFFECTS, 1),
        "mib": (folder / "good.pt").read_bytes(),
        "autocircuit": torch_saved(scores),
        "autocircuit legacy": torch_saved(scores, new=False),
        "autocircuit pickle": pickle.dumps(scores),
    }


def complaint(path: Path) -> str:
    """Why a file is not read; nothing if it is."""
    try:
        read_circuit(path)
    except FormatError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["original", "mib", "autocircuit", "autocircuit legacy", "autocircuit pickle"])
def test_damage_is_one_line(tmp_path: Path, kind: str) -> None:
    """Cut anywhere or with bytes changed: a circuit (where a number or padding changed) or one line, nothing else."""
    rng, data, refused = random.Random(0), good(tmp_path)[kind], 0
    (tmp_path / "whole.pkl").write_bytes(data)
    assert len(read_circuit(tmp_path / "whole.pkl").tested) >= 1
    damaged = [data[: rng.randrange(4, len(data) - 64)] for _ in range(30)]
    for _ in range(120):
        bytes_ = bytearray(data)
        for _ in range(rng.choice((1, 1, 4))):
            bytes_[rng.randrange(4, len(data))] = rng.randrange(256)
        damaged.append(bytes(bytes_))
    for i, content in enumerate(damaged):
        (tmp_path / "damaged.pkl").write_bytes(content)
        said = complaint(tmp_path / "damaged.pkl")
        assert "\n" not in said
        assert said or i >= 30, "a file that was cut was read"
        refused += bool(said)
    assert refused > 40

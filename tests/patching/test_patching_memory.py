"""`patch.memory_gb`, measured: every tensor that is made is counted from its making to its end."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
from experiments import experiment, random_pairs, small
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acdc import patch


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside took together."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.alive: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self._storages((args, kwargs))  # views of what there is take nothing
        out = function(*args, **(kwargs or {}))
        for key, storage in self._storages(out).items():
            if key not in before and key not in self.alive:
                self.alive[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, key)
        return out

    def _storages(self, tree: Any) -> dict[int, UntypedStorage]:
        storages = (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
        return {storage._cdata: storage for storage in storages}

    def _gone(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("activation", {"site": "k", "layers": [0], "shift": False}),
        ("activation", {"site": "q", "layers": [2, 5]}),
        ("path", {"senders": ["m0", "a1.h1"]}),
        ("path", {"senders": ["m0", "a1.h1"], "receivers": ["m2", "a4.h0"], "through": "heads", "sweep": "senders"}),
        ("tracing", {"site": "mlp_out", "draws": 1, "window": 3}),
    ],
)
def test_what_is_stored_of_a_run_counts_too(name: str, options: dict[str, Any]) -> None:
    pairs = [replace(pair, subject=[2, 4]) for pair in random_pairs(7, (8,) * 300)]
    one = experiment(small("gpt2", 3, n_layers=8, n_heads=2, d_head=4), pairs, "logit_diff")
    values = sum(t.nbytes for t in (one.clean.inputs, one.clean.heads, one.clean.mlps, one.ablated.heads))
    memory = values // 2
    with Peak() as peak:
        patch(one, name, memory_gb=memory / 2**30, **options)
    assert peak.most < 1.5 * memory  # distribution shift takes one layer's values of all rows in double precision too

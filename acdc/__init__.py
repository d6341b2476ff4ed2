"""Automated circuit discovery for transformer language models.

    from acdc import Experiment, discover
    experiment = Experiment.build(model="pocket", task="ioi", metric="logit_diff")
    circuit = discover(experiment, method="acdc", threshold=0.03)

Names are loaded on first use, so that `acdc.graph` and `acdc.circuit` need no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Circuit": "acdc.circuit",
    "Edge": "acdc.graph",
    "Graph": "acdc.graph",
    "GraphConfig": "acdc.graph",
    "Experiment": "acdc.experiment",
    "discover": "acdc.discovery",
    "patch": "acdc.patching",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'acdc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]
